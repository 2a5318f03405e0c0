//! Reads and writes the last incarnation used, in two slots of a file that are overwritten in place.
//!
//! Problem: a restart must write a new incarnation before it uses it. Replacing a file by renaming needs
//! space for the new file, so a node did not start on a full disk. Rule: the file has its full size from the
//! first start. It holds two slots, each with a checksum and in its own block. A start overwrites and syncs
//! the slot with the lower number. A power failure can damage only that slot, and the other one still holds
//! the last incarnation used.
//!
//! Versions before the slots use only the file `incarnation`. The node keeps that file up to date in case of
//! a downgrade, and reads it because an earlier version may have run last. Without space to replace the file,
//! the node overwrites it in place.
//!
//! File systems that copy on write (Btrfs, ZFS) need room for every write; there the start on a full disk can
//! still fail.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
};

use super::{
    error::StorageError,
    file,
    layout::{INCARNATION as FILE, INCARNATION_MS_MAX, INCARNATION_SLOTS as SLOTS},
};

/// Offset of the second slot: in another block of any usual file system, so that no torn write damages both.
const SLOT_BYTES: usize = 4096;
/// The first word of a slot; the number and the checksum follow on the same line.
const PREFACE: &str = "hearsay-incarnation";
/// Hexadecimal digits of a slot's checksum: the first 64 bits of a BLAKE3 hash.
const CHECKSUM_DIGITS: usize = 16;
/// Bytes read from a slot. The line of a slot is shorter.
const LINE_BYTES_MAX: usize = 128;

/// Returns the last incarnation used, in milliseconds; 0 before the first start.
///
/// # Errors
/// A file cannot be read, or all of them are damaged.
pub(super) fn read_last(dir: &Path) -> Result<u64, StorageError> {
    let slots = read_slots(&dir.join(SLOTS))?;
    let of_slots = slots.and_then(|slots| slots.into_iter().flatten().max());
    let of_file = match read_file(&dir.join(FILE)) {
        // The damaged file can be ignored. Normally the slots hold the same number. Only an earlier version
        // that ran since could have stored a higher one, and that version leaves no damaged file: it replaces
        // the file atomically.
        Err(StorageError::Damaged { path, problem }) if of_slots.is_some() => {
            tracing::warn!(path = %path.display(), problem, "the file is damaged; the slots beside it count");
            None
        }
        read => read?,
    };
    match (slots.is_some(), of_slots.max(of_file)) {
        // Both slots are damaged, and the file alone may hold an older number.
        (true, _) if of_slots.is_none() => Err(StorageError::Damaged {
            path: dir.join(SLOTS),
            problem: "neither of its slots has a checksum that holds".into(),
        }),
        (_, last) => Ok(last.unwrap_or(0)),
    }
}

/// Writes and syncs the incarnation that is about to be used.
///
/// # Errors
/// The incarnation could not be written; the one before is still stored.
pub(super) fn write_next(dir: &Path, next: u64) -> Result<(), StorageError> {
    let (slots, file) = (dir.join(SLOTS), dir.join(FILE));
    let unwritable = |path: &Path| {
        let path = path.to_owned();
        move |source| StorageError::Unwritable { path, source }
    };
    let is_written = match overwrite_slot(&slots, next).map_err(unwritable(&slots))? {
        true => true,
        false => match create_slots(&slots, next) {
            Ok(()) => true,
            // An upgrade on a full disk: the old file can be overwritten in place.
            Err(error) if file::is_full(&error) && file.exists() => false,
            Err(error) => return Err(unwritable(&slots)(error)),
        },
    };
    let line = format!("{next}\n");
    match file::write(&file, line.as_bytes(), file::PUBLIC).or_else(|error| match file::is_full(&error) {
        true => overwrite(&file, line.as_bytes()),
        false => Err(error),
    }) {
        Err(error) if !is_written => Err(unwritable(&file)(error)),
        Err(error) => {
            tracing::warn!(path = %file.display(), %error, "cannot update the incarnation for earlier versions");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Returns the numbers of both slots, without those of damaged slots. `None`: the file does not exist.
fn read_slots(path: &Path) -> Result<Option<[Option<u64>; 2]>, StorageError> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StorageError::Unreadable { path: path.to_owned(), source }),
    };
    let mut slots = [None; 2];
    for (number, slot) in slots.iter_mut().enumerate() {
        let mut bytes = [0; LINE_BYTES_MAX];
        let read = file
            .read_at(&mut bytes, (number * SLOT_BYTES) as u64)
            .map_err(|source| StorageError::Unreadable { path: path.to_owned(), source })?;
        *slot = bytes.get(..read).and_then(parse);
    }
    Ok(Some(slots))
}

/// Overwrites the slot with the lower number. `false`: the file does not exist.
fn overwrite_slot(path: &Path, next: u64) -> io::Result<bool> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut numbers = [None; 2];
    for (number, slot) in numbers.iter_mut().enumerate() {
        let mut bytes = [0; LINE_BYTES_MAX];
        let read = file.read_at(&mut bytes, (number * SLOT_BYTES) as u64)?;
        *slot = bytes.get(..read).and_then(parse);
    }
    // A damaged slot counts as the lowest.
    let lower = usize::from(numbers[1] < numbers[0]);
    file.write_all_at(render(next).as_bytes(), (lower * SLOT_BYTES) as u64)?;
    file.sync_data()?;
    Ok(true)
}

/// Creates the file atomically, with the same number in both slots.
fn create_slots(path: &Path, next: u64) -> io::Result<()> {
    let mut bytes = vec![b' '; 2 * SLOT_BYTES];
    let line = render(next);
    for slot in bytes.chunks_exact_mut(SLOT_BYTES) {
        slot[..line.len()].copy_from_slice(line.as_bytes());
    }
    file::write(path, &bytes, file::PUBLIC)
}

/// Overwrites a file in place. Content of another length is refused as on a full disk.
fn overwrite(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    if file.metadata()?.len() != bytes.len() as u64 {
        return Err(io::ErrorKind::StorageFull.into());
    }
    file.write_all_at(bytes, 0)?;
    file.sync_data()
}

/// Formats a slot's line, always of the same length.
fn render(incarnation: u64) -> String {
    let text = format!("{PREFACE} {incarnation:020}");
    let checksum = checksum(&text);
    format!("{text} {checksum}\n")
}

fn checksum(text: &str) -> String {
    let mut hex = blake3::hash(text.as_bytes()).to_hex().to_string();
    hex.truncate(CHECKSUM_DIGITS);
    hex
}

/// Returns the number in a slot; `None`: it is damaged.
fn parse(slot: &[u8]) -> Option<u64> {
    let line = std::str::from_utf8(slot.split(|byte| *byte == b'\n').next()?).ok()?;
    let (text, sum) = line.rsplit_once(' ')?;
    let number = text.strip_prefix(PREFACE)?.trim_start().parse().ok()?;
    (sum == checksum(text) && number <= INCARNATION_MS_MAX).then_some(number)
}

/// Returns the number in the file of versions before the slots; `None`: the file does not exist.
fn read_file(path: &Path) -> Result<Option<u64>, StorageError> {
    let content =
        file::read(path, 64).map_err(|source| StorageError::Unreadable { path: path.to_owned(), source })?;
    let Some(content) = content else { return Ok(None) };
    let damaged = |problem: &str| StorageError::Damaged { path: path.to_owned(), problem: problem.into() };
    match content.text.trim_end().parse() {
        Ok(last) if last < INCARNATION_MS_MAX => Ok(Some(last)),
        Ok(_) => Err(damaged("it lies centuries ahead, where no node could follow it")),
        Err(_) => Err(damaged("expected one decimal number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corrupt(dir: &Path, slot: usize) {
        let file = OpenOptions::new().write(true).open(dir.join(SLOTS)).unwrap();
        file.write_all_at(b"torn", (slot * SLOT_BYTES + 30) as u64).unwrap();
    }

    #[test]
    fn each_start_overwrites_the_lower_slot_in_place_and_keeps_the_copy_for_earlier_versions() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert_eq!(read_last(dir).unwrap(), 0);
        let inode = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(dir.join(SLOTS)).unwrap());
        write_next(dir, 10).unwrap();
        let (made, bytes) = (inode(), fs::metadata(dir.join(SLOTS)).unwrap().len());
        for (next, slots) in [(20, [20, 10]), (30, [20, 30]), (40, [40, 30])] {
            write_next(dir, next).unwrap();
            assert_eq!(read_slots(&dir.join(SLOTS)).unwrap(), Some(slots.map(Some)));
            assert_eq!(fs::read_to_string(dir.join(FILE)).unwrap(), format!("{next}\n"));
            assert_eq!(read_last(dir).unwrap(), next);
        }
        assert_eq!((inode(), fs::metadata(dir.join(SLOTS)).unwrap().len()), (made, bytes));
    }

    #[test]
    fn a_torn_slot_costs_nothing_and_is_the_next_to_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        write_next(dir, 10).unwrap();
        write_next(dir, 20).unwrap();
        // The power failed while 30 was written over 10.
        corrupt(dir, 1);
        assert_eq!(read_last(dir).unwrap(), 20);
        write_next(dir, 40).unwrap();
        assert_eq!(read_slots(&dir.join(SLOTS)).unwrap(), Some([Some(20), Some(40)]));
        corrupt(dir, 0);
        corrupt(dir, 1);
        let error = read_last(dir).unwrap_err();
        assert!(matches!(&error, StorageError::Damaged { path, .. } if path.ends_with(SLOTS)), "{error}");
        assert!(error.advice().contains("clock"), "{}", error.advice());
    }

    #[test]
    fn the_number_of_an_earlier_version_counts_before_and_after_the_upgrade() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        fs::write(dir.join(FILE), "1000\n").unwrap();
        assert_eq!(read_last(dir).unwrap(), 1000);
        write_next(dir, 2000).unwrap();
        // An earlier version ran once more.
        fs::write(dir.join(FILE), "3000\n").unwrap();
        assert_eq!(read_last(dir).unwrap(), 3000);
        fs::write(dir.join(FILE), "half").unwrap();
        assert_eq!(read_last(dir).unwrap(), 2000);
    }

    #[test]
    fn no_flipped_bit_of_a_slot_makes_another_number() {
        let line = render(1_795_952_428_256);
        assert_eq!(parse(line.as_bytes()), Some(1_795_952_428_256));
        for bit in 0..(line.len() - 1) * 8 {
            let mut bytes = line.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse(&bytes), None, "bit {bit}");
        }
    }
}
