//! Writing a write-ahead log with half the system calls.
//!
//! SQLite writes each frame in two pieces, 24 bytes that say whose page it is, and the page. As the second follows at once, the first is held back
//! for it. Only what is added at the end is held back: where SQLite goes back to correct a frame, it writes just that. Everything else that is
//! done with a log finds what was held back written.
//! (<https://sqlite.org/fileformat2.html#the_write_ahead_log>)

use std::{
    ffi::{c_int, c_void},
    slice,
};

use rusqlite::ffi;

use super::{File, PAGE, put};

const HEAD: usize = 24;

/// The head of a frame, held back, and where the log was written last.
#[derive(Debug, Default)]
pub(super) struct Head {
    bytes: [u8; HEAD],
    /// Where it belongs.
    held: Option<i64>,
    /// Where the last write ended.
    end: i64,
}

impl Head {
    /// Writes what is held back.
    unsafe fn let_go(&mut self, file: *mut ffi::sqlite3_file) -> c_int {
        match self.held.take() {
            // SAFETY: as for `open`.
            Some(at) => unsafe { put(file, &self.bytes, at) },
            None => ffi::SQLITE_OK,
        }
    }
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    buffer: *const c_void,
    amount: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: as for `open`; the buffer is as long as SQLite says.
    unsafe {
        let bytes = slice::from_raw_parts(buffer.cast::<u8>(), amount as usize);
        let head = &mut (*file.cast::<File>()).log;
        let follows = offset == head.end;
        head.end = offset + i64::from(amount);
        if follows
            && bytes.len() == PAGE
            && let Some(at) = head.held.take()
        {
            let mut frame = [0; HEAD + PAGE];
            frame[..HEAD].copy_from_slice(&head.bytes);
            frame[HEAD..].copy_from_slice(bytes);
            return put(file, &frame, at);
        }
        let before = head.let_go(file);
        if before != ffi::SQLITE_OK {
            return before;
        }
        if follows && bytes.len() == HEAD {
            head.bytes.copy_from_slice(bytes);
            head.held = Some(offset);
            return ffi::SQLITE_OK;
        }
        put(file, bytes, offset)
    }
}

/// Functions that write what is held back first.
macro_rules! let_go_and {
    ($($name:ident => $then:path, ($($argument:ident: $type:ty),*);)*) => {$(
        unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file, $($argument: $type),*) -> c_int {
            // SAFETY: as for `open`; the arguments are SQLite's.
            unsafe {
                match (*file.cast::<File>()).log.let_go(file) {
                    ffi::SQLITE_OK => $then(file, $($argument),*),
                    failed => failed,
                }
            }
        }
    )*};
}

let_go_and! {
    read => super::read_below, (buffer: *mut c_void, amount: c_int, offset: ffi::sqlite3_int64);
    truncate => super::truncate, (size: ffi::sqlite3_int64);
    sync => super::sync, (flags: c_int);
    file_size => super::file_size, (size: *mut ffi::sqlite3_int64);
}

/// All else passes on. What would still be held back when a log is closed belongs to no whole frame, so that nobody misses it.
pub(super) static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    ..super::METHODS
};

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, ptr};

    use rusqlite::Connection;

    use super::{super::check_from_now_on, *};

    fn opened(path: &Path, cache_pages: i64) -> Connection {
        let db = Connection::open(path).unwrap();
        db.pragma_update(None, "journal_mode", "WAL").unwrap();
        db.pragma_update(None, "synchronous", "OFF").unwrap();
        // With few, what a transaction has written goes into the log before it ends, and is read and corrected there.
        db.pragma_update(None, "cache_size", cache_pages).unwrap();
        db
    }

    fn sum(db: &Connection) -> i64 {
        assert_eq!(db.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)).unwrap(), "ok");
        db.query_row("SELECT coalesce(sum(value), 0) FROM rows", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_head_without_its_page_is_there_for_whoever_looks() {
        check_from_now_on();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        let db = opened(&path, 1000);
        db.execute_batch("CREATE TABLE rows (value INTEGER)").unwrap();
        let on_disk = || fs::metadata(dir.path().join("x.db-wal")).unwrap().len() as i64;
        let before = on_disk();
        let (mut log, mut size, mut read) = (ptr::null_mut::<ffi::sqlite3_file>(), 0, [0u8; HEAD]);
        // SAFETY: the connection and its log are open until the end of this test, and the buffers are as long as is said.
        unsafe {
            let at = ptr::from_mut(&mut log).cast();
            ffi::sqlite3_file_control(db.handle(), ptr::null(), ffi::SQLITE_FCNTL_JOURNAL_POINTER, at);
            let methods = &*(*log).pMethods;
            let head = [7u8; HEAD];
            assert_eq!(methods.xWrite.unwrap()(log, head.as_ptr().cast(), HEAD as c_int, before), 0);
            assert_eq!(on_disk(), before, "it is held back");
            assert_eq!(methods.xFileSize.unwrap()(log, &raw mut size), 0);
            assert_eq!((size, on_disk()), (before + HEAD as i64, before + HEAD as i64));
            assert_eq!(methods.xRead.unwrap()(log, read.as_mut_ptr().cast(), HEAD as c_int, before), 0);
        }
        assert_eq!(read, [7; HEAD]);
    }

    #[test]
    fn others_and_the_next_life_find_every_frame() {
        check_from_now_on();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        let (mut small, mut large) = (opened(&path, 5), opened(&path, 1000));
        large.execute_batch("CREATE TABLE rows (id INTEGER PRIMARY KEY, value INTEGER, text TEXT)").unwrap();
        let mut expected = 0;
        for round in 0..60 {
            let is_kept = round % 3 != 2;
            let db = if round % 2 == 0 { &mut small } else { &mut large };
            let tx = db.transaction().unwrap();
            let mut insert = tx.prepare("INSERT INTO rows (value, text) VALUES (?1, ?2)").unwrap();
            for value in 0..100 {
                insert.execute(rusqlite::params![value, "x".repeat(200)]).unwrap();
            }
            drop(insert);
            // Pages that are in the log already are written again.
            tx.execute("UPDATE rows SET value = value + 1 WHERE id % 7 = ?1", [round % 7]).unwrap();
            let here = tx.query_row("SELECT sum(value) FROM rows", [], |row| row.get(0)).unwrap();
            if is_kept {
                tx.commit().unwrap();
                expected = here;
            } else {
                tx.rollback().unwrap();
            }
            assert_eq!((sum(&small), sum(&large)), (expected, expected), "round {round}");
            let copy = dir.path().join("copy.db");
            fs::copy(&path, &copy).unwrap();
            fs::copy(dir.path().join("x.db-wal"), dir.path().join("copy.db-wal")).unwrap();
            _ = fs::remove_file(dir.path().join("copy.db-shm"));
            assert_eq!(
                sum(&Connection::open(&copy).unwrap()),
                expected,
                "after round {round}, as a crash leaves it"
            );
        }
    }
}
