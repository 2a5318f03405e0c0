//! Checksum VFS: every page of a database has a checksum, and a page with a wrong one reads as
//! `SQLITE_CORRUPT`.
//!
//! SQLite stores no checksums of pages, so a flipped bit in a plug-in's table would be read and served. Here
//! the last eight bytes of each page are a hash of its offset and its other bytes. The hash is written with
//! the page and compared whenever the page is read from the file. A damaged database is put aside and
//! replaced.
//!
//! SQLite reserves these bytes on request and says so in its header (byte 20), so other programs can still
//! read the file. SQLite's own extension `cksumvfs` does the same with a weaker checksum that does not cover
//! the page's number, and no Rust crate has it. This VFS is a layer over SQLite's default VFS
//! (<https://sqlite.org/vfs.html>). It passes everything through except opening, reading and writing a
//! database. The write-ahead log has SQLite's own checksums.

#![allow(unsafe_code, reason = "SQLite's file systems are tables of C functions")]

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr, slice,
    sync::Once,
};

use rusqlite::{Connection, ffi};

use crate::journal::store::format::APPLICATION_ID;

/// Page size of a topic's database. Reads of other sizes are not checked.
pub(crate) const PAGE: usize = 4096;
/// Bytes at the end of each page that are reserved for the checksum.
pub(crate) const SUM: usize = 8;
/// Offsets in the header of a database: the page size, the reserved bytes of a page, and the application id.
const HEADER_PAGE_SIZE: usize = 16;
const HEADER_FREE: usize = 20;
const HEADER_APPLICATION: usize = 68;
const HEADER: usize = 100;
const NAME: &CStr = c"hearsay";
/// Name of the checksum VFS over SQLite's VFS without locks, for files that do not change (`read_only`).
pub(crate) const UNLOCKED: &CStr = c"hearsay-unlocked";
const UNLOCKED_BELOW: &CStr = c"unix-none";

/// An open database. The file of the VFS below follows it in memory.
#[repr(C)]
struct File {
    base: ffi::sqlite3_file,
    has_sums: bool,
}

/// State of a page that was read from the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Page {
    Sound,
    Damaged,
    /// The file has no page of this number, or it cannot be read now.
    Absent,
}

/// Registers the checksum VFS: databases that this process opens from now on are checked, if they have
/// checksums.
pub(crate) fn check_from_now_on() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        register(None, NAME);
        register(Some(UNLOCKED_BELOW), UNLOCKED);
    });
}

/// Registers a checksum VFS over another VFS. The one over SQLite's default becomes the default.
fn register(below: Option<&CStr>, name: &'static CStr) {
    // SAFETY: the table of functions that SQLite returns lives as long as the process, and so does the table
    // that SQLite is given.
    unsafe {
        let is_usual = c_int::from(below.is_none());
        let below = ffi::sqlite3_vfs_find(below.map_or(ptr::null(), CStr::as_ptr));
        if below.is_null() {
            return;
        }
        let mut ours = *below;
        ours.szOsFile += size_of::<File>() as c_int;
        ours.pNext = ptr::null_mut();
        ours.zName = name.as_ptr();
        ours.pAppData = below.cast();
        ours.xOpen = Some(open);
        // Version 3 adds functions with which tests replace system calls; they are left out. The functions
        // that load extensions are shared, because they ignore the VFS argument.
        ours.iVersion = ours.iVersion.min(2);
        ours.xDelete = Some(delete);
        ours.xAccess = Some(access);
        ours.xFullPathname = Some(full_pathname);
        ours.xRandomness = Some(randomness);
        ours.xSleep = Some(sleep);
        ours.xCurrentTime = Some(current_time);
        ours.xGetLastError = Some(get_last_error);
        if ours.iVersion >= 2 && ours.xCurrentTimeInt64.is_some() {
            ours.xCurrentTimeInt64 = Some(current_time_int64);
        }
        ffi::sqlite3_vfs_register(Box::into_raw(Box::new(ours)), is_usual);
    }
}

/// Reserves room for checksums in a database that is new or about to be rewritten (`VACUUM`).
pub(crate) fn leave_room(db: &Connection) {
    let mut free = SUM as c_int;
    // SAFETY: the connection is open while it is borrowed; the operation reads and writes one integer.
    unsafe {
        let free = ptr::from_mut(&mut free).cast();
        ffi::sqlite3_file_control(db.handle(), ptr::null(), ffi::SQLITE_FCNTL_RESERVE_BYTES, free);
    }
}

/// Whether the pages of a database have checksums.
pub(crate) fn have_sums(db: &Connection) -> bool {
    let mut free = -1 as c_int;
    // SAFETY: as in `leave_room`. A negative number only queries the value.
    unsafe {
        let free = ptr::from_mut(&mut free).cast();
        ffi::sqlite3_file_control(db.handle(), ptr::null(), ffi::SQLITE_FCNTL_RESERVE_BYTES, free);
    }
    free == SUM as c_int
}

/// Reads a page from the file, bypassing SQLite's caches. Only the writing thread may call this: another
/// thread could read a page that is half written.
pub(crate) fn look_at(db: &Connection, number: u64) -> Page {
    let mut page = [0; PAGE];
    let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
    // SAFETY: the connection is open while it is borrowed, and so is its file; the buffer has the length that
    // is passed.
    let read = unsafe {
        let at = ptr::from_mut(&mut file).cast();
        ffi::sqlite3_file_control(db.handle(), ptr::null(), ffi::SQLITE_FCNTL_FILE_POINTER, at);
        if file.is_null() || (*file).pMethods.is_null() {
            return Page::Absent;
        }
        let offset = number.saturating_sub(1).saturating_mul(PAGE as u64);
        let Ok(offset) = i64::try_from(offset) else { return Page::Absent };
        match (*(*file).pMethods).xRead {
            Some(read) => read(file, page.as_mut_ptr().cast(), PAGE as c_int, offset),
            None => return Page::Absent,
        }
    };
    match read {
        ffi::SQLITE_OK => Page::Sound,
        // A page of zeros was never written: it was freed before its transaction ended, or it is SQLite's
        // lock page. No query reads it.
        ffi::SQLITE_CORRUPT if page.iter().all(|byte| *byte == 0) => Page::Sound,
        ffi::SQLITE_CORRUPT => Page::Damaged,
        _ => Page::Absent,
    }
}

fn sum(offset: i64, page: &[u8]) -> [u8; SUM] {
    // In one buffer, because BLAKE3 hashes chunks of a kilobyte in parallel.
    let mut hashed = [0; PAGE];
    hashed[..SUM].copy_from_slice(&offset.to_le_bytes());
    hashed[SUM..].copy_from_slice(&page[..PAGE - SUM]);
    let mut sum = [0; SUM];
    sum.copy_from_slice(&blake3::hash(&hashed).as_bytes()[..SUM]);
    sum
}

/// Writes the valid checksum into the page at this offset.
#[cfg(test)]
pub(crate) fn seal(file: &mut [u8], at: usize) {
    let start = at / PAGE * PAGE;
    let sum = sum(start as i64, &file[start..start + PAGE]);
    file[start + PAGE - SUM..start + PAGE].copy_from_slice(&sum);
}

fn is_sound(offset: i64, page: &[u8]) -> bool {
    page[PAGE - SUM..] == sum(offset, page)
}

fn is_page(offset: i64, length: usize) -> bool {
    length == PAGE && offset % PAGE as i64 == 0
}

impl File {
    /// Whether bytes that were read at this offset are sound, as far as they have checksums.
    fn accepts(&mut self, offset: i64, bytes: &[u8]) -> bool {
        if offset == 0 && bytes.len() >= HEADER {
            self.has_sums = usize::from(bytes[HEADER_FREE]) == SUM;
            let ours = bytes[HEADER_APPLICATION..][..4] == (APPLICATION_ID as u32).to_be_bytes();
            if ours
                && usize::from(u16::from_be_bytes([bytes[HEADER_PAGE_SIZE], bytes[HEADER_PAGE_SIZE + 1]]))
                    != PAGE
            {
                return false;
            }
            if is_page(offset, bytes.len()) && !self.has_sums {
                // Either the file has no checksums, or the byte that says so is damaged. In the second case,
                // the page is sound with the right byte.
                let mut page = bytes.to_vec();
                page[HEADER_FREE] = SUM as u8;
                return !is_sound(offset, &page);
            }
        }
        !(self.has_sums && is_page(offset, bytes.len())) || is_sound(offset, bytes)
    }
}

/// Returns the file of the VFS below.
unsafe fn below(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: SQLite allocates `szOsFile` bytes, which is enough for both files.
    unsafe { file.cast::<File>().add(1).cast() }
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite passes the table that it was given, and a file of the size that the table names.
    unsafe {
        let vfs: *mut ffi::sqlite3_vfs = (*vfs).pAppData.cast();
        let Some(open) = (*vfs).xOpen else { return ffi::SQLITE_CANTOPEN };
        // Logs, journals and temporary files have no page checksums, so the VFS below opens them directly.
        if flags & ffi::SQLITE_OPEN_MAIN_DB == 0 {
            return open(vfs, name, file, flags, out);
        }
        let below = below(file);
        (*below).pMethods = ptr::null();
        let opened = open(vfs, name, below, flags, out);
        let methods = if (*below).pMethods.is_null() { ptr::null() } else { &raw const METHODS };
        let base = ffi::sqlite3_file { pMethods: methods };
        file.cast::<File>().write(File { base, has_sums: false });
        opened
    }
}

unsafe extern "C" fn read(
    file: *mut ffi::sqlite3_file,
    buffer: *mut c_void,
    amount: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: as for `open`; the buffer is as long as SQLite says.
    unsafe {
        let read = read_below(file, buffer, amount, offset);
        if !matches!(read, ffi::SQLITE_OK | ffi::SQLITE_IOERR_SHORT_READ) {
            // The buffer may be unwritten.
            return read;
        }
        let bytes = slice::from_raw_parts(buffer.cast::<u8>(), amount as usize);
        // In a short read, missing bytes are zeros. After the end of the file that is right; a page that is
        // only partly in the file fails its checksum.
        let accepts = match read {
            ffi::SQLITE_OK => (*file.cast::<File>()).accepts(offset, bytes),
            _ if is_page(offset, bytes.len()) => {
                bytes.iter().all(|byte| *byte == 0) || (*file.cast::<File>()).accepts(offset, bytes)
            }
            _ => true,
        };
        if accepts { read } else { ffi::SQLITE_CORRUPT }
    }
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    buffer: *const c_void,
    amount: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: as for `read`.
    unsafe {
        let bytes = slice::from_raw_parts(buffer.cast::<u8>(), amount as usize);
        if !is_page(offset, bytes.len()) {
            return put(file, bytes, offset);
        }
        let ours = &mut *file.cast::<File>();
        if offset == 0 {
            ours.has_sums = usize::from(bytes[HEADER_FREE]) == SUM;
        }
        if !ours.has_sums {
            return put(file, bytes, offset);
        }
        // The checksum is added to a copy, because the buffer belongs to SQLite.
        let mut page = [0; PAGE];
        page.copy_from_slice(bytes);
        let sum = sum(offset, &page);
        page[PAGE - SUM..].copy_from_slice(&sum);
        put(file, &page, offset)
    }
}

/// Writes to the file of the VFS below.
unsafe fn put(file: *mut ffi::sqlite3_file, bytes: &[u8], offset: i64) -> c_int {
    // SAFETY: as for `open`; the length of a write fits into `c_int`.
    unsafe {
        let below = below(file);
        match (*(*below).pMethods).xWrite {
            Some(write) => write(below, bytes.as_ptr().cast(), bytes.len() as c_int, offset),
            None => ffi::SQLITE_IOERR,
        }
    }
}

/// Functions of a file that call the file of the VFS below.
macro_rules! pass_on {
    ($($name:ident => $method:ident($($argument:ident: $type:ty),*) or $otherwise:expr;)*) => {$(
        unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file, $($argument: $type),*) -> c_int {
            // SAFETY: as for `open`; the arguments are SQLite's.
            unsafe {
                let below = below(file);
                match (*(*below).pMethods).$method {
                    Some(method) => method(below, $($argument),*),
                    None => $otherwise,
                }
            }
        }
    )*};
}

pass_on! {
    read_below => xRead(buffer: *mut c_void, amount: c_int, offset: ffi::sqlite3_int64) or ffi::SQLITE_IOERR;
    close => xClose() or ffi::SQLITE_OK;
    truncate => xTruncate(size: ffi::sqlite3_int64) or ffi::SQLITE_IOERR;
    sync => xSync(flags: c_int) or ffi::SQLITE_IOERR;
    file_size => xFileSize(size: *mut ffi::sqlite3_int64) or ffi::SQLITE_IOERR;
    lock => xLock(level: c_int) or ffi::SQLITE_IOERR;
    unlock => xUnlock(level: c_int) or ffi::SQLITE_IOERR;
    check_reserved_lock => xCheckReservedLock(out: *mut c_int) or ffi::SQLITE_IOERR;
    file_control => xFileControl(operation: c_int, argument: *mut c_void) or ffi::SQLITE_NOTFOUND;
    sector_size => xSectorSize() or 0;
    shm_map => xShmMap(page: c_int, size: c_int, extend: c_int, out: *mut *mut c_void) or ffi::SQLITE_IOERR;
    shm_lock => xShmLock(offset: c_int, n: c_int, flags: c_int) or ffi::SQLITE_IOERR;
    shm_unmap => xShmUnmap(delete: c_int) or ffi::SQLITE_OK;
}

/// Returns the characteristics of the file below, without `SUBPAGE_READ`. With that flag, SQLite would read
/// parts of overflow pages, which cannot be checked.
unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: as for `open`.
    unsafe {
        let below = below(file);
        let all = (*(*below).pMethods).xDeviceCharacteristics.map_or(0, |all| all(below));
        all & !ffi::SQLITE_IOCAP_SUBPAGE_READ
    }
}

/// Functions of the VFS that call the VFS below.
macro_rules! pass_down {
    ($($name:ident => $method:ident($($argument:ident: $type:ty),*) or $otherwise:expr;)*) => {$(
        unsafe extern "C" fn $name(vfs: *mut ffi::sqlite3_vfs, $($argument: $type),*) -> c_int {
            // SAFETY: SQLite passes the table that it was given, which names the VFS below.
            unsafe {
                let vfs: *mut ffi::sqlite3_vfs = (*vfs).pAppData.cast();
                match (*vfs).$method {
                    Some(method) => method(vfs, $($argument),*),
                    None => $otherwise,
                }
            }
        }
    )*};
}

pass_down! {
    delete => xDelete(name: *const c_char, sync: c_int) or ffi::SQLITE_IOERR;
    access => xAccess(name: *const c_char, flags: c_int, out: *mut c_int) or ffi::SQLITE_IOERR;
    full_pathname => xFullPathname(name: *const c_char, size: c_int, out: *mut c_char) or ffi::SQLITE_IOERR;
    randomness => xRandomness(size: c_int, out: *mut c_char) or 0;
    sleep => xSleep(microseconds: c_int) or 0;
    current_time => xCurrentTime(out: *mut f64) or ffi::SQLITE_ERROR;
    get_last_error => xGetLastError(size: c_int, out: *mut c_char) or 0;
    current_time_int64 => xCurrentTimeInt64(out: *mut ffi::sqlite3_int64) or ffi::SQLITE_ERROR;
}

unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    // SAFETY: as for `open`.
    unsafe {
        let below = below(file);
        if let Some(barrier) = (*(*below).pMethods).xShmBarrier {
            barrier(below);
        }
    }
}

/// Functions of an open database. Version 2 has none for memory maps, which would bypass the check.
static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates and closes a database with a table of names. Returns its path and its number of pages.
    fn made(dir: &tempfile::TempDir) -> (std::path::PathBuf, usize) {
        check_from_now_on();
        let path = dir.path().join("x.db");
        let db = Connection::open(&path).unwrap();
        leave_room(&db);
        db.pragma_update(None, "journal_mode", "WAL").unwrap();
        db.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        db.execute_batch(
            "CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT); CREATE INDEX by_name ON names (name);
             WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
             INSERT INTO names SELECT i, 'the name of ' || i FROM n",
        )
        .unwrap();
        drop(db);
        let pages = std::fs::metadata(&path).unwrap().len() as usize / PAGE;
        assert!(pages > 20, "{pages}");
        (path, pages)
    }

    fn read_all(path: &std::path::Path) -> rusqlite::Result<Vec<String>> {
        let db = Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let mut names = db.prepare("SELECT name FROM names NOT INDEXED ORDER BY id")?;
        let names = names.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
        // The index has its own pages.
        db.query_row("SELECT count(DISTINCT name) FROM names INDEXED BY by_name", [], |row| {
            row.get::<_, i64>(0)
        })?;
        Ok(names)
    }

    #[test]
    fn whichever_bit_flips_nothing_wrong_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (path, pages) = made(&dir);
        let sound = read_all(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let mut rng = 1u64;
        let mut random = |below: usize| {
            rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (rng >> 33) as usize % below
        };
        // Every bit of the header, and many elsewhere.
        let places = (0..HEADER * 8).chain((0..1000).map(|_| random(pages * PAGE * 8)));
        let mut found = 0;
        for bit in places.collect::<Vec<_>>() {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, bytes).unwrap();
            match read_all(&path) {
                Ok(names) => assert_eq!(names, sound, "bit {bit}"),
                Err(_) => found += 1,
            }
        }
        // Damage to a page that no query reads is not found.
        assert!(found > 1500, "{found}");
    }

    /// The rest of a long value is on overflow pages, of which SQLite would otherwise read only parts.
    #[test]
    fn a_bit_that_flips_in_what_is_longer_than_a_page_is_found() {
        check_from_now_on();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        let long = "long ".repeat(10_000);
        {
            let db = Connection::open(&path).unwrap();
            leave_room(&db);
            db.pragma_update(None, "journal_mode", "WAL").unwrap();
            db.execute("CREATE TABLE texts (text)", []).unwrap();
            db.execute("INSERT INTO texts VALUES (?1)", [&long]).unwrap();
        }
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.len() - 3 * PAGE + 1000;
        assert!(bytes[at].is_ascii());
        let read = || {
            let db = Connection::open(&path).unwrap();
            db.query_row("SELECT text FROM texts", [], |row| row.get::<_, String>(0))
        };
        assert_eq!(read().unwrap(), long);
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(read().unwrap_err().sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseCorrupt));
    }

    #[test]
    fn a_page_at_the_place_of_another_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (path, pages) = made(&dir);
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes[(pages - 1) * PAGE..].to_vec();
        bytes[3 * PAGE..4 * PAGE].copy_from_slice(&last);
        std::fs::write(&path, bytes).unwrap();
        let db = Connection::open(&path).unwrap();
        db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0)).unwrap();
        assert!(have_sums(&db));
        let looks: Vec<_> = (1..=pages as u64 + 1).map(|page| look_at(&db, page)).collect();
        assert_eq!(looks.iter().filter(|page| **page == Page::Damaged).count(), 1);
        assert_eq!((looks[3], looks[pages]), (Page::Damaged, Page::Absent));
    }

    #[test]
    fn a_file_without_sums_is_read_and_gets_them_when_it_is_rewritten() {
        check_from_now_on();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("old.db");
        let db = Connection::open(&path).unwrap();
        db.execute_batch(
            "PRAGMA journal_mode = WAL; CREATE TABLE names (name); INSERT INTO names VALUES ('x')",
        )
        .unwrap();
        assert!(!have_sums(&db));
        leave_room(&db);
        db.execute_batch("VACUUM").unwrap();
        drop(db);
        assert_eq!(std::fs::read(&path).unwrap()[HEADER_FREE], SUM as u8);
        let db = Connection::open(&path).unwrap();
        assert_eq!(db.query_row("SELECT name FROM names", [], |row| row.get::<_, String>(0)).unwrap(), "x");
        assert_eq!((look_at(&db, 1), look_at(&db, 2)), (Page::Sound, Page::Sound));
        db.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0))
            .map(|all| assert_eq!(all, "ok"))
            .unwrap();
    }
}
