//! Tests of stale logs: no damage to a log makes SQLite mix two states.

use std::{collections::BTreeSet, fs};

use hearsay_protocol::{
    Identity, Version,
    journal::{ChainHash, EntryId, FeedId, HybridTime, JournalEntry, Run},
};
use hearsay_services::journal::Projection;

use super::*;
use crate::{
    builtin,
    journal::{open::open, store::database::Store, verify},
};

const CLUSTER: &str = "test";
/// Enough runs for several partial checkpoints and restarts of the log.
const RUNS: u64 = 900;

fn grading() -> std::sync::Arc<dyn Projection> {
    builtin().into_iter().find(|plugin| plugin.name() == "grading").unwrap().projection().unwrap()
}

/// Commits [`RUNS`] runs one by one. Calls `image` after each commit, when the files are as a crash would
/// leave them.
fn written(dir: &Path, mut image: impl FnMut(u64, &Path)) {
    let (path, projection) = (dir.join("grading.db"), grading());
    let (mut store, _) = open(&path, "grading", projection.as_ref(), CLUSTER).unwrap();
    let me = Identity::from_seed(&[2; 32]);
    let feed = FeedId { writer: me.id(), boot: 7 };
    let mut before = ChainHash::root(CLUSTER, "grading", feed);
    let reader = rusqlite::Connection::open(&path).unwrap();
    for seq in 1..=RUNS {
        // While a reader is active, checkpoints copy only a part of the log and do not restart it.
        match (seq / 100 % 4, seq % 100) {
            (1, 0) => reader.execute_batch("BEGIN; SELECT count(*) FROM journal_runs").unwrap(),
            (0, 0) if seq > 100 => reader.execute_batch("COMMIT").unwrap(),
            _ => (),
        }
        let body =
            format!(r#"{{"changes":[{{"change":"put","student":{seq},"firstName":"A","lastName":"B"}}]}}"#);
        let entry =
            JournalEntry { time: HybridTime(seq), key: Some(format!("k{seq}")), body: body.into_bytes() };
        let (run, hashes) =
            Run::sign(&me, CLUSTER, "grading", (EntryId { feed, seq: Version(seq) }, before), vec![entry]);
        before = hashes[0];
        store.append_run(&run, projection.as_ref()).unwrap();
        store.commit().unwrap();
        image(seq, &path);
    }
}

fn log_of(path: &Path) -> std::path::PathBuf {
    format!("{}-wal", path.display()).into()
}

/// Opens a database as a node does, verifies it, and returns the numbers of its entries.
fn opened(path: &Path, what: &str) -> BTreeSet<u64> {
    let projection = grading();
    let (store, _) =
        open(path, "grading", projection.as_ref(), CLUSTER).unwrap_or_else(|e| panic!("{what}: {e}"));
    let here = here(&store);
    drop(store);
    let report = verify(path, Some("grading"), &|_| Some(grading()), &mut |_, _, _| ());
    assert!(report.is_clean(), "{what}: {:#?}", report.problems);
    here
}

fn here(store: &Store) -> BTreeSet<u64> {
    let mut runs = store.connection().prepare("SELECT start FROM journal_runs").unwrap();
    runs.query_map([], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
}

#[test]
fn whatever_happens_to_a_log_what_is_opened_is_of_one_moment() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = fastrand::Rng::with_seed(11);
    let (mut older, mut mended) = (0, 0);
    written(dir.path(), |seq, path| {
        if seq % 23 != 0 {
            return;
        }
        let (file, log) = (fs::read(path).unwrap(), fs::read(log_of(path)).unwrap());
        // Only the index in shared memory tells how many frames are copied into the file: `nBackfill`, in
        // native byte order.
        let index = fs::read(format!("{}-shm", path.display())).unwrap();
        let copied = u32::from_ne_bytes(index[96..100].try_into().unwrap()) as usize;
        assert!(!is_stale(path).unwrap(), "nothing happened to it, after {seq}");
        for round in 0..3 {
            let dir = tempfile::tempdir().unwrap();
            let copy = dir.path().join("grading.db");
            fs::write(&copy, &file).unwrap();
            let mut log = log.clone();
            // In the half of the log that a checkpoint copies first.
            let at = rng.usize(..log.len() / 2);
            let what = match round {
                0 => {
                    log.truncate(at);
                    format!("after {seq}, cut to {at}")
                }
                _ => {
                    log[at] ^= 1 << rng.u8(..8);
                    format!("after {seq}, a bit of byte {at} of {}", log.len())
                }
            };
            fs::write(log_of(&copy), &log).unwrap();
            let here = opened(&copy, &what);
            let whole: BTreeSet<u64> = (1..=seq).collect();
            assert!(here.is_subset(&whole), "{what}");
            older += usize::from(here.len() < whole.len());
            let is_mended = copy.with_extension("damaged-1").exists();
            // A damaged frame that was copied need not be noticed: a later frame may have replaced its page
            // in the file.
            let is_copied = at < HEADER || (at - HEADER) / (FRAME_HEADER + PAGE) < copied;
            assert!(is_copied || !is_mended, "{what}, of which {copied} frames are copied");
            mended += usize::from(is_mended);
        }
    });
    println!("{older} lost an end, {mended} were replaced");
    assert!(older > 10 && mended > 10, "{older} lost an end, {mended} were replaced");
}

#[test]
fn what_a_power_failure_leaves_of_the_last_write_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = fastrand::Rng::with_seed(5);
    let mut before: Option<(Vec<u8>, Vec<u8>)> = None;
    written(dir.path(), |seq, path| {
        let (file, log) = (fs::read(path).unwrap(), fs::read(log_of(path)).unwrap());
        if let Some((file, old)) = before.take()
            && old.len() < log.len()
            && old[..HEADER] == log[..HEADER]
        {
            // Only some sectors of the added frames reached the disk.
            let mut torn = log.clone();
            for sector in torn[old.len()..].chunks_mut(512) {
                if rng.bool() {
                    sector.fill(0);
                }
            }
            let dir = tempfile::tempdir().unwrap();
            let copy = dir.path().join("grading.db");
            fs::write(&copy, file).unwrap();
            fs::write(log_of(&copy), torn).unwrap();
            assert!(!is_stale(&copy).unwrap(), "after {seq}");
        }
        if seq % 9 == 0 {
            before = Some((file, log));
        }
    });
}

#[test]
fn sums_are_those_of_the_format() {
    // As SQLite computes them, for both byte orders.
    assert_eq!(summed((0, 0), &[1, 0, 0, 0, 2, 0, 0, 0], false), (1, 3));
    assert_eq!(summed((0, 0), &[0, 0, 0, 1, 0, 0, 0, 2], true), (1, 3));
    assert_eq!(summed((1, 3), &[0, 0, 0, 1, 0, 0, 0, 2], true), (5, 10));
}
