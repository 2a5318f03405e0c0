//! Tests of read-only connections: they read the log, change no file, and find damage.

use std::sync::Arc;

use hearsay_protocol::{
    Identity, Version,
    journal::{ChainHash, EntryId, FeedId, HybridTime, JournalEntry, Run},
};
use hearsay_services::journal::Projection;

use super::*;
use crate::journal::store::database::Store;

fn grading() -> Arc<dyn Projection> {
    let plugins = crate::builtin();
    plugins.iter().find(|plugin| plugin.name() == "grading").unwrap().projection().unwrap()
}

/// Adds three students, and leaves the store open.
fn filled(path: &Path) -> Store {
    let mut store = Store::open(path, "test", "grading", grading().as_ref()).unwrap();
    let me = Identity::from_seed(&[1; 32]);
    let feed = FeedId { writer: me.id(), boot: 7 };
    let entries = (1..=3).map(|id| JournalEntry {
        time: HybridTime(id),
        key: None,
        body: format!(r#"{{"changes":[{{"change":"put","student":{id},"firstName":"A","lastName":"B"}}]}}"#)
            .into_bytes(),
    });
    let at = (EntryId { feed, seq: Version(1) }, ChainHash::root("test", "grading", feed));
    let (run, _) = Run::sign(&me, "test", "grading", at, entries.collect());
    store.append_run(&run, grading().as_ref()).unwrap();
    store.commit().unwrap();
    store
}

fn students(db: &Connection) -> i64 {
    db.query_row("SELECT count(*) FROM students", [], |row| row.get(0)).unwrap()
}

/// Copies a database and its log as a crash leaves them. The copy lacks `-shm`, for which a full disk has no
/// room.
fn crashed(from: &Path, dir: &Path) -> PathBuf {
    let copy = dir.join("crashed.db");
    fs::copy(from, &copy).unwrap();
    fs::copy(format!("{}-wal", from.display()), dir.join("crashed.db-wal")).unwrap();
    copy
}

#[test]
fn entries_in_the_log_are_read_by_several_connections_and_no_file_changes() {
    let dir = tempfile::tempdir().unwrap();
    let running = filled(&dir.path().join("grading.db"));
    fs::create_dir(dir.path().join("copy")).unwrap();
    let path = crashed(&dir.path().join("grading.db"), &dir.path().join("copy"));
    drop(running);
    let all = || {
        let mut files: Vec<_> = fs::read_dir(dir.path().join("copy"))
            .unwrap()
            .map(|file| file.unwrap().path())
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect();
        files.sort();
        files
    };
    let before = all();
    assert!(has_log(&path));
    let many: Vec<Connection> = (0..5).map(|_| connect(&path).unwrap()).collect();
    assert_eq!(many.iter().map(students).collect::<Vec<_>>(), [3; 5]);
    let store = Store::open_read_only(&path, "test", "grading", grading().as_ref()).unwrap();
    assert!(store.is_read_only());
    assert_eq!(store.restored().unwrap().extents[0].seen.highest(), Version(3));
    many[0].execute("DELETE FROM students", []).unwrap_err();
    drop((many, store));
    assert!(all() == before, "no file is new, gone or changed");
    let store = Store::open(&path, "test", "grading", grading().as_ref()).unwrap();
    assert_eq!(students(store.connection()), 3);
}

#[test]
fn a_file_without_a_log_is_read_and_one_of_another_version_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("grading.db");
    filled(&path).close().unwrap();
    assert!(!has_log(&path));
    assert_eq!(students(&connect(&path).unwrap()), 3);
    let db = Connection::open(&path).unwrap();
    db.execute("UPDATE journal_meta SET value = 0 WHERE name = 'projection'", []).unwrap();
    drop(db);
    let error = Store::open_read_only(&path, "test", "grading", grading().as_ref()).err().unwrap();
    assert!(error.to_string().contains("rebuilt once there is room"), "{error}");
}

#[test]
fn a_flipped_bit_is_found_without_room_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("grading.db");
    filled(&path).close().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(10).position(|text| text == b"\"lastName\"").unwrap();
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let db = connect(&path).unwrap();
    let read = db.query_row("SELECT sum(length(entries)) FROM journal_runs", [], |row| row.get::<_, i64>(0));
    assert_eq!(read.unwrap_err().sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt));
}

#[test]
fn a_damaged_log_is_not_read_past() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("grading.db");
    filled(&path).close().unwrap();
    fs::write(dir.path().join("grading.db-wal"), [7; 5000]).unwrap();
    let error = Store::open_read_only(&path, "test", "grading", grading().as_ref()).err().unwrap();
    assert!(error.to_string().contains("its write-ahead log is older"), "{error}");
}
