//! Whether a write-ahead log may be believed.
//!
//! After a crash SQLite takes of a log what its sums prove, up to the first frame that does not, and pages that stand there for newer than those of
//! the file. That is right for a log that a power failure tore, because what is copied into the file was synced in the log before. It is
//! wrong for one that decayed *after* it was copied: its beginning is older than the file, and a database made of both is of no moment that ever was,
//! with every page's own sum in order. So a log is looked at before SQLite sees it: where a page that stands behind its end is in the file
//! already, the end was once elsewhere.
//!
//! The format: <https://sqlite.org/fileformat2.html#the_write_ahead_log>. Absent: a log that was cut off. What is no longer there proves nothing; that
//! file and log do not fit together then shows in the journal's own tables (see `Store::restored`).

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek as _, SeekFrom},
    os::unix::fs::FileExt as _,
    path::Path,
};

use super::pages::{PAGE, SUM};

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
/// How a log begins; its lowest bit says in which order the bytes of words are summed.
const MAGIC: u32 = 0x377f_0682;

/// Whether the log beside this database is damaged in a way that SQLite would not notice.
///
/// # Errors
/// What the system said. No log is no error.
pub(super) fn is_stale(database: &Path) -> io::Result<bool> {
    let log = match File::open(format!("{}-wal", database.display())) {
        Ok(log) => log,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut log = BufReader::with_capacity(64 * 1024, log);
    let mut header = [0; HEADER];
    // One that is shorter, or nothing but zeros, was being made.
    if !fill(&mut log, &mut header)? || header.iter().all(|byte| *byte == 0) {
        return Ok(false);
    }
    let magic = word(&header, 0);
    let is_big_endian = magic & 1 == 1;
    let mut sums = summed((0, 0), &header[..HEADER - 8], is_big_endian);
    let is_header = magic & !1 == MAGIC && sums == (word(&header, 24), word(&header, 28));
    // It is written in one piece, and SQLite would take it for no log at all.
    if !is_header {
        return Ok(true);
    }
    // Not ours, or from before there was something to compare.
    if word(&header, 8) as usize != PAGE {
        return Ok(false);
    }
    let salts = &header[16..24];
    let mut frame = [0; FRAME_HEADER + PAGE];
    let (mut number, mut committed) = (0u64, 0u64);
    while fill(&mut log, &mut frame)? && &frame[8..16] == salts {
        let (head, page) = frame.split_at(FRAME_HEADER);
        sums = summed(summed(sums, &head[..8], is_big_endian), page, is_big_endian);
        if sums != (word(head, 16), word(head, 20)) {
            break;
        }
        number += 1;
        if word(head, 4) != 0 {
            committed = number;
        }
    }
    behind(&mut log, committed, salts, database)
}

/// Whether one of the log's pages behind so many frames is in the file.
fn behind(log: &mut BufReader<File>, frames: u64, salts: &[u8], database: &Path) -> io::Result<bool> {
    let file = File::open(database)?;
    let mut frame = [0; FRAME_HEADER + PAGE];
    let mut page = [0; PAGE];
    log.seek(SeekFrom::Start(HEADER as u64 + frames * frame.len() as u64))?;
    while fill(log, &mut frame)? {
        let (head, logged) = frame.split_at(FRAME_HEADER);
        // Others are of an earlier time, when the log was longer.
        if &head[8..16] != salts {
            continue;
        }
        let offset = u64::from(word(head, 0)).saturating_sub(1) * PAGE as u64;
        // The file's pages have sums at their ends, and the log's have not.
        if file.read_exact_at(&mut page, offset).is_ok() && page[..PAGE - SUM] == logged[..PAGE - SUM] {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads all of a buffer. `false`: there is less.
fn fill(log: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match log.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// The big-endian number at a place.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

/// SQLite's sums of a log, continued over some words.
fn summed((mut a, mut b): (u32, u32), bytes: &[u8], is_big_endian: bool) -> (u32, u32) {
    let number = |bytes: &[u8]| {
        let word = word(bytes, 0);
        if is_big_endian { word } else { word.swap_bytes() }
    };
    for pair in bytes.chunks_exact(8) {
        a = a.wrapping_add(number(&pair[..4])).wrapping_add(b);
        b = b.wrapping_add(number(&pair[4..])).wrapping_add(a);
    }
    (a, b)
}

#[cfg(test)]
mod tests;
