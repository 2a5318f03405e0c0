//! Measures the time of a single sync, and counts the syncs of the whole machine from `/proc/diskstats`.

use std::{
    fs::{self, File},
    io::{Seek as _, SeekFrom, Write as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// Size of a frame of SQLite's write-ahead log.
const PAGE: usize = 4096;

/// Syncs and bytes of a device since the system's start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Disk {
    pub(crate) flushes: u64,
    pub(crate) written_bytes: u64,
}

impl Disk {
    /// Reads the counters of a folder's device; `None` if the kernel does not count it.
    pub(crate) fn of(folder: &Path) -> Option<Self> {
        let device = fs::metadata(folder).ok()?.dev();
        read(&fs::read_to_string("/proc/diskstats").ok()?, major_minor(device))
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            flushes: self.flushes.saturating_sub(earlier.flushes),
            written_bytes: self.written_bytes.saturating_sub(earlier.written_bytes),
        }
    }
}

/// Splits a device number as glibc's `gnu_dev_major` and `gnu_dev_minor` do, for devices of today's sizes.
fn major_minor(device: u64) -> (u64, u64) {
    ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00))
}

/// Parses a line of `/proc/diskstats`. By Documentation/admin-guide/iostats.rst, after the name, field 7
/// counts written sectors of 512 bytes, and field 16 flushes.
fn read(diskstats: &str, (major, minor): (u64, u64)) -> Option<Disk> {
    let fields = diskstats.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let fields = fields.into_iter().find(|fields| {
        let number = |place: usize| fields.get(place).and_then(|field| field.parse().ok());
        (number(0), number(1)) == (Some(major), Some(minor))
    })?;
    let field = |number: usize| fields.get(2 + number)?.parse::<u64>().ok();
    Some(Disk { flushes: field(16)?, written_bytes: field(7)? * 512 })
}

/// How a file is written before each sync.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Writing {
    /// Appends this many bytes, as a log grows.
    AtTheEnd(usize),
    /// Overwrites a page, as in a write-ahead log after a checkpoint.
    InPlace,
}

/// Writes and syncs (`fdatasync`) in a loop for this time. Returns the time of each sync in microseconds.
///
/// # Errors
/// The disk refuses a write.
pub(crate) fn syncs(folder: &Path, writing: Writing, time: Duration) -> Result<Vec<u64>> {
    let path = folder.join("syncs");
    let mut file = File::create(&path).with_context(|| path.display().to_string())?;
    let bytes = match writing {
        Writing::AtTheEnd(bytes) => vec![7; bytes],
        Writing::InPlace => {
            file.write_all(&[0; 256 * PAGE])?;
            vec![7; PAGE]
        }
    };
    file.sync_all()?;
    let (begin, mut times) = (Instant::now(), Vec::new());
    while begin.elapsed() < time {
        if writing == Writing::InPlace {
            file.seek(SeekFrom::Start((times.len() % 256 * PAGE) as u64))?;
        }
        let began = Instant::now();
        file.write_all(&bytes)?;
        file.sync_data()?;
        times.push(u64::try_from(began.elapsed().as_micros())?);
    }
    fs::remove_file(&path)?;
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_counts_are_of_the_right_device() {
        let stats = " 253 0 vda 1 2 3 4 5 6 8 9 10 11 12 13 14 15 16 17 18\n 253 1 vda1 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9\n";
        assert_eq!(read(stats, (253, 0)), Some(Disk { flushes: 17, written_bytes: 8 * 512 }));
        assert_eq!(read(stats, (8, 0)), None);
        assert_eq!(major_minor(0xfd01), (253, 1));
    }

    #[test]
    fn syncs_are_timed() {
        let folder = std::env::temp_dir();
        for writing in [Writing::AtTheEnd(200), Writing::InPlace] {
            let times = syncs(&folder, writing, Duration::from_millis(20)).unwrap();
            assert!(!times.is_empty(), "{writing:?}");
        }
    }
}
