//! Tests of replacing a damaged database, in particular of a crash at each step.

use std::collections::BTreeSet;

use super::*;
use crate::builtin;

const CLUSTER: &str = "test";

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = dir.read_dir().unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Creates a database with a mark by which the test recognises it.
fn database(path: &Path, mark: &str) {
    let projection = builtin().into_iter().find(|p| p.name() == "grading").unwrap().projection().unwrap();
    let store = Store::open(path, CLUSTER, "grading", projection.as_ref()).unwrap();
    store.connection().execute("INSERT INTO journal_meta VALUES ('mark', ?1)", [mark]).unwrap();
    store.close().unwrap();
}

fn mark(path: &Path) -> String {
    let db = rusqlite::Connection::open(path).unwrap();
    db.query_row("SELECT value FROM journal_meta WHERE name = 'mark'", [], |row| row.get(0)).unwrap()
}

#[test]
fn wherever_replacing_is_killed_the_next_start_has_one_or_the_other_whole() {
    // In step 0, the node is killed before the new database is finished. In the others, it is killed after
    // one of the following renames.
    for step in 0..6usize {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grading.db");
        database(&path, "old");
        fs::write(part(&path, "-wal"), b"of the old one").unwrap();
        fs::write(part(&path, "-shm"), b"of the old one").unwrap();
        database(&begun(&path), "new");
        let aside = path.with_extension("damaged-1");
        if step > 0 {
            fs::rename(begun(&path), finished(&path)).unwrap();
        }
        for suffix in PARTS.iter().take(step.saturating_sub(1)) {
            fs::rename(part(&path, suffix), part(&aside, suffix)).unwrap();
        }
        if step == 5 {
            fs::rename(finished(&path), &path).unwrap();
        }
        let resumed = resume(&path).unwrap();
        assert_eq!(resumed.is_some(), (1..5).contains(&step), "step {step}");
        let left = names(dir.path());
        assert!(!left.iter().any(|name| name.contains("mend")), "step {step}: {left:?}");
        if step == 0 {
            fs::remove_file(part(&path, "-wal")).unwrap();
            assert_eq!(mark(&path), "old");
        } else {
            assert!(!left.contains("grading.db-wal"), "step {step}: another one's log, {left:?}");
            assert_eq!(mark(&path), "new", "step {step}");
            let old = left.iter().filter(|name| name.contains("damaged")).count();
            assert_eq!(old, 3, "step {step}: {left:?}");
        }
    }
}

#[test]
fn what_cannot_be_replaced_stays_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("grading.db");
    fs::write(&path, vec![7; 10_000]).unwrap();
    // A directory has the name that the new database needs.
    fs::create_dir(begun(&path)).unwrap();
    let projection = builtin().into_iter().find(|p| p.name() == "grading").unwrap().projection().unwrap();
    assert!(replace_damaged(&path, CLUSTER, "grading", projection.as_ref()).is_err());
    assert_eq!(fs::read(&path).unwrap(), vec![7; 10_000]);
}

#[test]
fn a_replaced_database_counts_a_majority_of_the_same_replicas() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("grading.db");
    let projection = builtin().into_iter().find(|p| p.name() == "grading").unwrap().projection().unwrap();
    let open = || Store::open(&path, CLUSTER, "grading", projection.as_ref()).unwrap();
    let replicas = [1, 2, 3].map(|n| (hearsay_protocol::NodeId::from_public_key([n; 32]), u64::from(n)));
    let mut store = open();
    replicas.iter().for_each(|replica| store.keep_replica(*replica).unwrap());
    store.commit().unwrap();
    store.close().unwrap();
    replace_damaged(&path, CLUSTER, "grading", projection.as_ref()).unwrap();
    assert_eq!(open().restored().unwrap().replicas, replicas);
}
