//! Tests of the store: durability, damaged databases and permissions.

use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::registry::registration::Registration;

fn row(id: &str, port: u16) -> Box<Row> {
    let registration = Registration { id: id.into(), service: "web".into(), port, ..Registration::default() };
    Box::new(Row { registration, since_ms: 1 })
}

#[tokio::test]
async fn stored_registrations_are_restored() {
    let dir = tempfile::tempdir().unwrap();
    let (store, stored, _) = Store::open(dir.path()).unwrap();
    assert!(stored.rows.is_empty());
    let writes = vec![Write::Upsert(row("a", 1)), Write::Upsert(row("b", 2)), Write::Upsert(row("a", 3))];
    store.write(writes, true).done().await.unwrap();
    let setting = Write::Setting("maintenance".into(), Some("{}".into()));
    store.write(vec![Write::Delete("b".into()), setting], true).done().await.unwrap();
    drop(store);
    let reopened = || Store::open(dir.path());
    // The thread closes the file asynchronously.
    let (_, stored, _) = loop {
        match reopened() {
            Ok(opened) => break opened,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    assert_eq!(stored.rows.len(), 1);
    assert_eq!(stored.rows[0].0, *row("a", 3));
    assert_eq!(stored.settings, [("maintenance".to_owned(), "{}".to_owned())]);
}

#[test]
fn a_damaged_database_is_renamed_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(FILE), vec![7; 8192]).unwrap();
    let (_, stored, damaged) = Store::open(dir.path()).unwrap();
    assert!(stored.rows.is_empty());
    assert_eq!(std::fs::read(damaged.unwrap()).unwrap(), vec![7; 8192]);
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

#[tokio::test]
async fn only_the_owner_can_read_the_files() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let log = dir.path().join(format!("{FILE}-wal"));
    let path = dir.path().join(FILE);
    let (store, ..) = Store::open(dir.path()).unwrap();
    store.write(vec![Write::Upsert(row("a", 1))], true).done().await.unwrap();
    assert_eq!((mode(&path), mode(&log)), (PRIVATE, PRIVATE));
    // Permissions as left by an older version.
    let other = tempfile::tempdir().unwrap();
    let path = other.path().join(FILE);
    drop(Connection::open(&path).and_then(|db| db.execute_batch("PRAGMA user_version = 0; VACUUM")));
    let log = other.path().join(format!("{FILE}-wal"));
    fs::write(&log, "").unwrap();
    for file in [&path, &log] {
        fs::set_permissions(file, Permissions::from_mode(0o644)).unwrap();
    }
    let _opened = Store::open(other.path()).unwrap();
    assert_eq!((mode(&path), mode(&log)), (PRIVATE, PRIVATE));
}
