//! Detects stale write-ahead logs, whose pages SQLite would wrongly prefer to those of the database.
//!
//! After a crash, SQLite replays the log up to the first frame with a wrong checksum. It prefers the pages of
//! these frames to those of the database file. That is right for a log torn by a power failure: pages are
//! synced to the log before a checkpoint copies them into the file. It is wrong for a log that was damaged
//! after its checkpoint. Its readable part is then older than the file. The mixture is a state that never
//! existed, although the checksum of every page is right. So the log is checked before SQLite opens it. If
//! the file already contains a page from after the log's readable end, the log was once readable further.
//!
//! The format: <https://sqlite.org/fileformat2.html#the_write_ahead_log>. Not detected here: a truncated log,
//! because the missing frames cannot be compared. The mismatch then shows in the journal's own tables (see
//! `Store::restored`).

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek as _, SeekFrom},
    os::unix::fs::FileExt as _,
    path::Path,
};

use super::checksum_vfs::{PAGE, SUM};

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
/// First word of a log. Its lowest bit tells the byte order of the checksums: 0 little-endian, 1 big-endian.
const MAGIC: u32 = 0x377f_0682;

/// Whether the log of this database is stale, or so damaged that SQLite would silently ignore it.
///
/// # Errors
/// The error of the system. A missing log is no error.
pub(crate) fn is_stale(database: &Path) -> io::Result<bool> {
    let log = match File::open(format!("{}-wal", database.display())) {
        Ok(log) => log,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut log = BufReader::with_capacity(64 * 1024, log);
    let mut header = [0; HEADER];
    // A log with a shorter header, or with only zeros, was just being created.
    if !fill(&mut log, &mut header)? || header.iter().all(|byte| *byte == 0) {
        return Ok(false);
    }
    let magic = word(&header, 0);
    let is_big_endian = magic & 1 == 1;
    let mut sums = summed((0, 0), &header[..HEADER - 8], is_big_endian);
    let is_header = magic & !1 == MAGIC && sums == (word(&header, 24), word(&header, 28));
    // The header is written in one piece, so an invalid one was damaged later. SQLite would silently ignore
    // the whole log.
    if !is_header {
        return Ok(true);
    }
    // Another page size: not a database of this program, or older than the page checksums.
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

/// Whether the file already contains a page from the log after its first `frames` frames.
fn behind(log: &mut BufReader<File>, frames: u64, salts: &[u8], database: &Path) -> io::Result<bool> {
    let file = File::open(database)?;
    let mut frame = [0; FRAME_HEADER + PAGE];
    let mut page = [0; PAGE];
    log.seek(SeekFrom::Start(HEADER as u64 + frames * frame.len() as u64))?;
    while fill(log, &mut frame)? {
        let (head, logged) = frame.split_at(FRAME_HEADER);
        // Frames with other salts are left from before the log was restarted.
        if &head[8..16] != salts {
            continue;
        }
        let offset = u64::from(word(head, 0)).saturating_sub(1) * PAGE as u64;
        // Pages in the file end with a checksum; pages in the log do not.
        if file.read_exact_at(&mut page, offset).is_ok() && page[..PAGE - SUM] == logged[..PAGE - SUM] {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Fills a buffer from the log. `false`: the log has fewer bytes left.
fn fill(log: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match log.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns the big-endian word at an offset.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

/// Continues SQLite's checksum of a log over more words.
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
