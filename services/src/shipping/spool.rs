//! Batches that wait for a log node: in files, the oldest first, and not more than so many.
//!
//! A file holds a batch in each line, and is removed when all of them were sent. One that was begun when the node died is sent anew from its
//! beginning; the batches carry their keys, so the log has them once. Nothing is synced: losing the last second of a machine's own words with its
//! power is cheaper than a sync for each.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::atomic::AtomicU64,
};

use super::{Batch, Counters};

/// Bytes of all files together. A node that says a line a second fills it in a day.
const BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Bytes after which a new file is begun: what is dropped when there are too many, and what is read at once.
const FILE_BYTES: u64 = 1024 * 1024;
/// Bytes in memory, for a node that keeps nothing.
const MEMORY_BYTES_MAX: usize = 1024 * 1024;
/// Nothing that was written here is longer than this.
const READ_BYTES_MAX: u64 = 4 * FILE_BYTES;

/// A queue of batches.
pub(super) struct Spool {
    files: Option<Files>,
    /// At the front: read from the oldest file or, without files, all there are.
    ready: VecDeque<Batch>,
    ready_bytes: usize,
}

struct Files {
    dir: PathBuf,
    /// The oldest first. The first is in `ready` if `is_read`.
    all: VecDeque<Piece>,
    is_read: bool,
    /// The last of them, while it is written to.
    open: Option<File>,
    next: u64,
}

struct Piece {
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
    /// For a node that keeps nothing: a little, in memory.
    pub(super) fn in_memory() -> Self {
        Self { files: None, ready: VecDeque::new(), ready_bytes: 0 }
    }

    /// In this directory, with what is there from before. Without it (it cannot be made), in memory.
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
            files.all.push_back(Piece { number, bytes, events: events_in(&read(&path)) });
        }
        let mut spool = Self { files: Some(files), ready: VecDeque::new(), ready_bytes: 0 };
        spool.make_room(dropped);
        spool
    }

    /// Whether there is nothing to send.
    pub(super) fn is_empty(&self) -> bool {
        self.ready.is_empty()
            && self.files.as_ref().is_none_or(|files| files.all.len() <= usize::from(files.is_read))
    }

    /// Adds a batch at the end. Where there is no room, the oldest go; what cannot be written goes itself.
    pub(super) fn push(&mut self, batch: Batch, dropped: &AtomicU64) {
        let Some(files) = &mut self.files else {
            self.ready_bytes += cost(&batch);
            self.ready.push_back(batch);
            while self.ready_bytes > MEMORY_BYTES_MAX && self.ready.len() > 1 {
                // The first may be on its way.
                if let Some(gone) = self.ready.remove(1) {
                    self.ready_bytes = self.ready_bytes.saturating_sub(cost(&gone));
                    Counters::count(dropped, gone.events.len());
                }
            }
            return;
        };
        if !files.write(&batch) {
            Counters::count(dropped, batch.events.len());
        }
        self.make_room(dropped);
    }

    fn make_room(&mut self, dropped: &AtomicU64) {
        let Some(files) = &mut self.files else { return };
        while files.all.iter().map(|piece| piece.bytes).sum::<u64>() > BYTES_MAX {
            // What is being sent is in memory already, and its file stays until it is.
            let oldest = usize::from(files.is_read);
            let Some(gone) = files.all.remove(oldest) else { return };
            if files.all.len() == oldest {
                files.open = None;
            }
            _ = fs::remove_file(files.path(gone.number));
            Counters::count(dropped, gone.events);
        }
    }

    /// The oldest batch.
    pub(super) fn first(&mut self, dropped: &AtomicU64) -> Option<Batch> {
        while self.ready.is_empty() {
            let files = self.files.as_mut()?;
            if files.is_read {
                files.remove_first();
                continue;
            }
            let piece = files.all.front()?;
            if files.all.len() == 1 {
                // The next batch begins a new one.
                files.open = None;
            }
            let batches = read(&files.path(piece.number));
            // What is torn or damaged is skipped, and known by what is missing.
            Counters::count(dropped, piece.events.saturating_sub(events_in(&batches)));
            files.is_read = true;
            self.ready = batches;
        }
        self.ready.front().cloned()
    }

    /// The oldest batch was sent.
    pub(super) fn done(&mut self) {
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
            // A file that stays is sent again after the next start, and the log knows it.
            _ = fs::remove_file(self.path(first.number));
        }
        self.is_read = false;
    }

    /// Whether it could be written.
    fn write(&mut self, batch: &Batch) -> bool {
        let Ok(mut line) = serde_json::to_vec(batch) else { return false };
        line.push(b'\n');
        let is_full = self.all.back().is_none_or(|piece| piece.bytes + line.len() as u64 > FILE_BYTES);
        if self.open.is_none() || is_full {
            let number = self.next;
            let Ok(file) = OpenOptions::new().append(true).create_new(true).open(self.path(number)) else {
                // It may be there after all, by another's hand.
                self.next += 1;
                return false;
            };
            self.next += 1;
            self.open = Some(file);
            self.all.push_back(Piece { number, bytes: 0, events: 0 });
        }
        let (Some(file), Some(piece)) = (&mut self.open, self.all.back_mut()) else { return false };
        if file.write_all(&line).is_err() {
            // Half a line may stand there now, to which nothing may be added.
            self.open = None;
            return false;
        }
        piece.bytes += line.len() as u64;
        piece.events += batch.events.len();
        true
    }
}

fn cost(batch: &Batch) -> usize {
    batch.events.iter().map(|event| event.message.len() + event.service.len() + 64).sum()
}

/// Batches that can be read.
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
    use super::{super::Event, *};
    use crate::log::record::Level;

    fn batch(number: usize, bytes: usize) -> Batch {
        let event = Event {
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
            spool.done();
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
        spool.done();
        drop(spool);
        let mut spool = Spool::in_dir(dir.path().join("spool"), &dropped);
        // The first file was not finished, so it comes again.
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
