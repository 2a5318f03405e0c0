//! Tests of [`Storage`]: which state survives a restart, and which files are refused.

use std::{fs, os::unix::fs::PermissionsExt as _};

use hearsay_protocol::Identity;

use super::*;

fn open(dir: &Path) -> Result<Storage, StorageError> {
    Storage::open(&DataDir::Exactly(dir.to_owned()), "home")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn peer(n: u8) -> Remembered {
    Remembered {
        id: Identity::from_seed(&[n; 32]).id(),
        name: format!("node {n}"),
        addresses: vec![format!("/ip4/10.0.0.{n}/tcp/7600")],
        rank: u64::from(n),
    }
}

#[test]
fn a_node_is_the_same_after_a_restart_and_its_secrets_are_its_owners() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).unwrap();
    let (seed, token) = (first.seed().clone(), first.api_token().clone());
    assert_eq!(mode(&dir.path().join("node.key")), 0o600);
    assert_eq!(mode(&dir.path().join("api-token")), 0o600);
    drop(first);
    let second = open(dir.path()).unwrap();
    assert_eq!((second.seed(), second.api_token()), (&seed, &token));
}

#[test]
fn two_nodes_on_one_machine_are_two_nodes() {
    let under = tempfile::tempdir().unwrap();
    let slots = DataDir::Slots(under.path().to_owned());
    let (a, b) = (Storage::open(&slots, "home").unwrap(), Storage::open(&slots, "home").unwrap());
    assert_ne!(a.seed(), b.seed());
    assert_eq!(b.dir(), Some(under.path().join("home/1").as_path()));
    let elsewhere = Storage::open(&slots, "..").unwrap();
    assert_eq!(elsewhere.dir(), Some(under.path().join("%2e./0").as_path()));
}

#[test]
fn the_incarnation_grows_even_when_the_clock_goes_backwards() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path()).unwrap();
    assert_eq!(storage.next_incarnation(1000).unwrap(), Incarnation(1000));
    assert_eq!(storage.next_incarnation(1000).unwrap(), Incarnation(1000 + BEHIND_MS));
    drop(storage);
    let mut restarted = open(dir.path()).unwrap();
    assert_eq!(restarted.next_incarnation(5).unwrap(), Incarnation(1000 + 2 * BEHIND_MS));
    assert_eq!(restarted.next_incarnation(900_000).unwrap(), Incarnation(900_000));
    let mut ephemeral = Storage::open(&DataDir::Ephemeral, "home").unwrap();
    assert_eq!(ephemeral.next_incarnation(7).unwrap(), Incarnation(7));
    assert_eq!(ephemeral.next_incarnation(7).unwrap(), Incarnation(7 + BEHIND_MS));
}

#[test]
fn an_incarnation_that_cannot_be_trusted_stops_the_start() {
    let dir = tempfile::tempdir().unwrap();
    for wrong in ["", "soon", "-1", "8000000000000", &u64::MAX.to_string()] {
        fs::write(dir.path().join("incarnation"), wrong).unwrap();
        let error = open(dir.path()).unwrap_err();
        assert!(matches!(error, StorageError::Damaged { .. }), "{wrong}: {error}");
        assert!(error.advice().contains("clock"), "{}", error.advice());
    }
}

#[test]
fn a_secret_that_others_can_read_or_that_is_damaged_is_refused_by_name() {
    for (file, other) in [("node.key", "seed 00\n"), ("api-token", "letmein")] {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path()).unwrap());
        let path = dir.path().join(file);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = open(dir.path()).unwrap_err();
        assert!(matches!(error, StorageError::TooOpen { mode: 0o640, .. }), "{error}");
        assert!(error.advice().contains("chmod 600"), "{}", error.advice());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, other).unwrap();
        let error = open(dir.path()).unwrap_err();
        assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(file), "{error}");
    }
}

#[test]
fn remembered_members_come_back_bounded_and_only_for_their_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path()).unwrap();
    assert!(storage.remembered().is_empty());
    let many: Vec<_> = (1..=100).map(peer).collect();
    storage.remember(&many).unwrap();
    assert_eq!(storage.remembered(), many[..REMEMBERED_MAX]);
    drop(storage);
    let other = Storage::open(&DataDir::Exactly(dir.path().to_owned()), "work").unwrap();
    assert!(other.remembered().is_empty());
}

#[test]
fn garbage_among_remembered_members_costs_no_more_than_itself() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path()).unwrap();
    let path = dir.path().join("peers.json");
    for garbage in ["", "{", "[]", "\u{0}", "{\"cluster\":\"home\",\"peers\":3}"] {
        fs::write(&path, garbage).unwrap();
        assert!(storage.remembered().is_empty(), "{garbage}");
    }
    storage.remember(&[peer(1), peer(2)]).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(&peer(1).id.to_string(), "no-key")).unwrap();
    assert_eq!(storage.remembered(), [peer(2)]);
}

#[test]
fn an_ephemeral_node_keeps_nothing_and_forgets_nothing_it_needs() {
    let storage = Storage::open(&DataDir::Ephemeral, "home").unwrap();
    assert_eq!(storage.dir(), None);
    storage.remember(&[peer(1)]).unwrap();
    assert!(storage.remembered().is_empty());
    assert_eq!(storage.api_token().expose().len(), 64);
}

#[test]
fn a_printed_storage_shows_no_secret() {
    let storage = Storage::open(&DataDir::Ephemeral, "home").unwrap();
    let printed = format!("{storage:?}");
    assert!(!printed.contains(storage.api_token().expose()), "{printed}");
}
