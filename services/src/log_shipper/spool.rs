//! [`Spool`]: bounded queue of unsent batches in files, oldest first.
//!
//! A file has one batch per line, and is removed when all its batches have been sent. After a crash it is
//! sent again from its beginning; the keys of the batches prevent duplicates. Nothing is synced, because
//! losing the last second of events in a power failure is cheaper than a sync for each batch.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::atomic::AtomicU64,
};

use super::{counters::ShipperCounters, event::Batch};

/// Maximum number of bytes of all files. A node with one event per second fills them in a day.
const BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Maximum number of bytes of one file. A file is read and dropped as a whole.
const FILE_BYTES: u64 = 1024 * 1024;
/// Maximum number of bytes of the spool in memory, for a node without a data directory.
const MEMORY_BYTES_MAX: usize = 1024 * 1024;
/// Maximum number of bytes read from a file. The spool never writes a longer file.
const READ_BYTES_MAX: u64 = 4 * FILE_BYTES;

/// Queue of batches.
pub(super) struct Spool {
    files: Option<Files>,
    /// Batches at the front: those of the oldest file or, without files, all.
    ready: VecDeque<Batch>,
    ready_bytes: usize,
}

struct Files {
    dir: PathBuf,
    /// Oldest first. The batches of the first file are in `ready` if `is_read`.
    all: VecDeque<SpoolFile>,
    is_read: bool,
    /// The last file, while it is being written.
    open: Option<File>,
    next: u64,
}

struct SpoolFile {
    number: u64,
    bytes: u64,
    events: usize,
}

impl Files {
    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:012}.ndjson"))
    }
}

impl Spool {
    /// A small spool in memory.
    pub(super) fn in_memory() -> Self {
        Self { files: None, ready: VecDeque::new(), ready_bytes: 0 }
    }

    /// A spool in this directory, with its existing batches; in memory if the directory cannot be created.
    pub(super) fn in_dir(dir: PathBuf, dropped: &AtomicU64) -> Self {
        if fs::create_dir_all(&dir).is_err() {
            return Self::in_memory();
        }
        let mut numbers: Vec<u64> = fs::read_dir(&dir)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".ndjson")?.parse().ok())
            .collect();
        numbers.sort_unstable();
        let next = numbers.last().map_or(0, |last| last + 1);
        let mut files = Files { dir, all: VecDeque::new(), is_read: false, open: None, next };
        for number in numbers {
            let path = files.path(number);
            let bytes = fs::metadata(&path).map_or(0, |metadata| metadata.len());
            files.all.push_back(SpoolFile { number, bytes, events: events_in(&read(&path)) });
        }
        let mut spool = Self { files: Some(files), ready: VecDeque::new(), ready_bytes: 0 };
        spool.make_room(dropped);
        spool
    }

    /// Returns whether there is nothing to send.
    pub(super) fn is_empty(&self) -> bool {
        self.ready.is_empty()
            && self.files.as_ref().is_none_or(|files| files.all.len() <= usize::from(files.is_read))
    }

    /// Adds a batch. Drops the oldest batches if there is no room, and the new one if it cannot be written.
    pub(super) fn push(&mut self, batch: Batch, dropped: &AtomicU64) {
        let Some(files) = &mut self.files else {
            self.ready_bytes += cost(&batch);
            self.ready.push_back(batch);
            while self.ready_bytes > MEMORY_BYTES_MAX && self.ready.len() > 1 {
                // The first one may be in flight.
                if let Some(gone) = self.ready.remove(1) {
                    self.ready_bytes = self.ready_bytes.saturating_sub(cost(&gone));
                    ShipperCounters::count(dropped, gone.events.len());
                }
            }
            return;
        };
        if !files.write(&batch) {
            ShipperCounters::count(dropped, batch.events.len());
        }
        self.make_room(dropped);
    }

    fn make_room(&mut self, dropped: &AtomicU64) {
        let Some(files) = &mut self.files else { return };
        while files.all.iter().map(|file| file.bytes).sum::<u64>() > BYTES_MAX {
            // The batches in flight are in memory, and their file stays until they are sent.
            let oldest = usize::from(files.is_read);
            let Some(gone) = files.all.remove(oldest) else { return };
            if files.all.len() == oldest {
                files.open = None;
            }
            _ = fs::remove_file(files.path(gone.number));
            ShipperCounters::count(dropped, gone.events);
        }
    }

    /// Returns the oldest batch.
    pub(super) fn first(&mut self, dropped: &AtomicU64) -> Option<Batch> {
        while self.ready.is_empty() {
            let files = self.files.as_mut()?;
            if files.is_read {
                files.remove_first();
                continue;
            }
            let file = files.all.front()?;
            if files.all.len() == 1 {
                // The next batch starts a new file.
                files.open = None;
            }
            let batches = read(&files.path(file.number));
            // Torn or damaged lines are skipped; their events are missing from the sum and count as dropped.
            ShipperCounters::count(dropped, file.events.saturating_sub(events_in(&batches)));
            files.is_read = true;
            self.ready = batches;
        }
        self.ready.front().cloned()
    }

    /// Removes the oldest batch, which was sent.
    pub(super) fn remove_sent(&mut self) {
        if let Some(sent) = self.ready.pop_front() {
            self.ready_bytes = self.ready_bytes.saturating_sub(cost(&sent));
        }
        if let Some(files) = &mut self.files
            && self.ready.is_empty()
            && files.is_read
        {
            files.remove_first();
        }
    }
}

impl Files {
    fn remove_first(&mut self) {
        if let Some(first) = self.all.pop_front() {
            // A file that cannot be removed is sent again after the next start. The log recognises its
            // batches.
            _ = fs::remove_file(self.path(first.number));
        }
        self.is_read = false;
    }

    /// Writes a batch. Returns whether it was written.
    fn write(&mut self, batch: &Batch) -> bool {
        let Ok(mut line) = serde_json::to_vec(batch) else { return false };
        line.push(b'\n');
        let is_full = self.all.back().is_none_or(|file| file.bytes + line.len() as u64 > FILE_BYTES);
        if self.open.is_none() || is_full {
            let number = self.next;
            let Ok(file) = OpenOptions::new().append(true).create_new(true).open(self.path(number)) else {
                // Another program may have created the file.
                self.next += 1;
                return false;
            };
            self.next += 1;
            self.open = Some(file);
            self.all.push_back(SpoolFile { number, bytes: 0, events: 0 });
        }
        let (Some(open), Some(file)) = (&mut self.open, self.all.back_mut()) else { return false };
        if open.write_all(&line).is_err() {
            // The file may end in half a line, so nothing may be added to it.
            self.open = None;
            return false;
        }
        file.bytes += line.len() as u64;
        file.events += batch.events.len();
        true
    }
}

fn cost(batch: &Batch) -> usize {
    batch.events.iter().map(|event| event.message.len() + event.service.len() + 64).sum()
}

/// Reads the intact batches of a file.
fn read(path: &Path) -> VecDeque<Batch> {
    let Ok(file) = File::open(path) else { return VecDeque::new() };
    let lines = BufReader::new(file.take(READ_BYTES_MAX)).split(b'\n').map_while(Result::ok);
    lines.filter_map(|line| serde_json::from_slice(&line).ok()).collect()
}

fn events_in(batches: &VecDeque<Batch>) -> usize {
    batches.iter().map(|batch| batch.events.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::{super::event::LogEvent, *};
    use crate::plugins::log::record::Level;

    fn batch(number: usize, bytes: usize) -> Batch {
        let event = LogEvent {
            time: number as u64,
            level: Level::Warn,
            service: "node".into(),
            message: "x".repeat(bytes),
        };
        Batch { key: format!("k-{number}"), events: vec![event; 2] }
    }

    fn drain(spool: &mut Spool, dropped: &AtomicU64) -> Vec<String> {
        let mut keys = Vec::new();
        while let Some(batch) = spool.first(dropped) {
            keys.push(batch.key);
            spool.remove_sent();
        }
        keys
    }

    fn keys(numbers: std::ops::Range<usize>) -> Vec<String> {
        numbers.map(|number| format!("k-{number}")).collect()
    }

    #[test]
    fn batches_come_back_in_order_also_after_a_restart_and_leave_no_files() {
        let dir = tempfile::tempdir().unwrap();
        let dropped = AtomicU64::new(0);
        let mut spool = Spool::in_dir(dir.path().join("spool"), &dropped);
        assert!(spool.is_empty());
        (0..5).for_each(|number| spool.push(batch(number, 100_000), &dropped));
        assert_eq!(spool.first(&dropped).unwrap(), batch(0, 100_000));
        spool.remove_sent();
        drop(spool);
        let mut spool = Spool::in_dir(dir.path().join("spool"), &dropped);
        // The first file was not finished, so it is sent again.
        spool.push(batch(5, 10), &dropped);
        assert_eq!(drain(&mut spool, &dropped), keys(0..6));
        assert!(spool.is_empty() && spool.first(&dropped).is_none());
        spool.push(batch(6, 10), &dropped);
        assert_eq!(drain(&mut spool, &dropped), keys(6..7));
        assert_eq!(fs::read_dir(dir.path().join("spool")).unwrap().count(), 0);
        assert_eq!(dropped.into_inner(), 0);
    }

    #[test]
    fn a_full_spool_drops_the_oldest_and_counts_them() {
        let dir = tempfile::tempdir().unwrap();
        let dropped = AtomicU64::new(0);
        let mut spool = Spool::in_dir(dir.path().to_owned(), &dropped);
        (0..40).for_each(|number| spool.push(batch(number, 400_000), &dropped));
        let kept = drain(&mut spool, &dropped);
        let gone = 40 - kept.len();
        assert_eq!(kept, keys(gone..40));
        assert!((10..30).contains(&kept.len()), "{}", kept.len());
        assert_eq!(dropped.into_inner(), 2 * gone as u64);
    }

    #[test]
    fn what_is_being_sent_stays_while_the_rest_overflows() {
        let dropped = AtomicU64::new(0);
        let dir = tempfile::tempdir().unwrap();
        for mut spool in [Spool::in_dir(dir.path().to_owned(), &dropped), Spool::in_memory()] {
            spool.push(batch(0, 10), &dropped);
            assert_eq!(spool.first(&dropped).unwrap().key, "k-0");
            (1..60).for_each(|number| spool.push(batch(number, 200_000), &dropped));
            assert_eq!(spool.first(&dropped).unwrap().key, "k-0");
            let kept = drain(&mut spool, &dropped);
            assert_eq!((kept[0].as_str(), kept.last().unwrap().as_str()), ("k-0", "k-59"));
        }
    }

    #[test]
    fn a_torn_line_costs_itself_alone() {
        let dir = tempfile::tempdir().unwrap();
        let dropped = AtomicU64::new(0);
        let mut spool = Spool::in_dir(dir.path().to_owned(), &dropped);
        (0..3).for_each(|number| spool.push(batch(number, 10), &dropped));
        let file = dir.path().join("000000000000.ndjson");
        let text = fs::read(&file).unwrap();
        fs::write(&file, &text[..text.len() - 20]).unwrap();
        assert_eq!(drain(&mut spool, &dropped), keys(0..2));
        assert_eq!(dropped.into_inner(), 2);
    }

    #[test]
    fn without_a_directory_a_little_is_kept_in_memory() {
        let dropped = AtomicU64::new(0);
        let mut spool = Spool::in_dir("/proc/nowhere/spool".into(), &dropped);
        (0..20).for_each(|number| spool.push(batch(number, 100_000), &dropped));
        let kept = drain(&mut spool, &dropped);
        assert!((4..7).contains(&kept.len()), "{kept:?}");
        assert_eq!(dropped.into_inner(), 2 * (20 - kept.len()) as u64);
    }
}
