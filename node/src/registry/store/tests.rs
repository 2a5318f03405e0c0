use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::registry::registration::Registration;

fn row(id: &str, port: u16) -> Box<Row> {
    let registration = Registration { id: id.into(), service: "web".into(), port, ..Registration::default() };
    Box::new(Row { registration, since_ms: 1 })
}

#[tokio::test]
async fn what_is_written_is_there_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let (store, stored, _) = Store::open(dir.path()).unwrap();
    assert!(stored.rows.is_empty());
    let writes = vec![Write::Put(row("a", 1)), Write::Put(row("b", 2)), Write::Put(row("a", 3))];
    store.write(writes, true).done().await.unwrap();
    let setting = Write::Setting("maintenance".into(), Some("{}".into()));
    store.write(vec![Write::Delete("b".into()), setting], true).done().await.unwrap();
    drop(store);
    let reopened = || Store::open(dir.path());
    // The thread closes the file in its own time.
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
fn a_database_that_is_damaged_is_put_aside_and_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(FILE), vec![7; 8192]).unwrap();
    let (_, stored, aside) = Store::open(dir.path()).unwrap();
    assert!(stored.rows.is_empty());
    assert_eq!(std::fs::read(aside.unwrap()).unwrap(), vec![7; 8192]);
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

#[tokio::test]
async fn the_files_are_for_their_owner_alone_whatever_the_directory_allows() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let log = dir.path().join(format!("{FILE}-wal"));
    let path = dir.path().join(FILE);
    let (store, ..) = Store::open(dir.path()).unwrap();
    store.write(vec![Write::Put(row("a", 1))], true).done().await.unwrap();
    assert_eq!((mode(&path), mode(&log)), (PRIVATE, PRIVATE));
    // As a version before left it.
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
