//! [`Disk`] model: the current content, and the content that would remain after a power failure.
//!
//! Readers see a write at once. A write is durable after its file was synced. A name is durable after its
//! *directory* was synced: a synced file can lose its name, and a renamed file can have its old name again.
//! POSIX guarantees no more. Most file systems usually do more, but programs that rely on that fail here.
//!
//! A real disk keeps some unsynced writes. It keeps sectors in any order, because disks reorder them, and
//! names in the order of their changes, because file systems keep a journal of names. A seed selects the kept
//! ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
};

use fastrand::Rng;

/// Size of an atomic write, in bytes. Older disks have 512; with a larger size, fewer writes would be torn.
pub(super) const SECTOR: usize = 512;

/// Number of a file or directory.
pub(super) type Number = u64;
/// Root directory.
pub(super) const ROOT: Number = 1;

/// Reason for which an operation failed. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// No entry has this name or number.
    Missing,
    /// An entry already has this name.
    Exists,
    /// The directory is not empty.
    NotEmpty,
    /// The entry is a directory where a file was expected, or the reverse.
    WrongKind,
}

/// Unsynced change of a file, with the data to undo it.
#[derive(Debug)]
struct Change {
    length_before: usize,
    /// Content that the write replaced, or that the resize cut off.
    before: Vec<u8>,
    what: What,
}

#[derive(Debug)]
enum What {
    Write(usize, Vec<u8>),
    Resize(usize),
}

/// Content of a file, and its unsynced changes.
#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) content: Vec<u8>,
    unsynced: Vec<Change>,
}

impl File {
    pub(super) fn write(&mut self, at: usize, bytes: &[u8]) {
        let length_before = self.content.len();
        let end = at + bytes.len();
        let before = self.content.get(at..end.min(length_before)).unwrap_or_default().to_vec();
        self.put(at, bytes);
        self.unsynced.push(Change { length_before, before, what: What::Write(at, bytes.to_vec()) });
    }

    pub(super) fn resize(&mut self, length: usize) {
        let length_before = self.content.len();
        let before = self.content.get(length..).unwrap_or_default().to_vec();
        self.content.resize(length, 0);
        self.unsynced.push(Change { length_before, before, what: What::Resize(length) });
    }

    pub(super) fn sync(&mut self) {
        self.unsynced.clear();
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        if self.content.len() < end {
            self.content.resize(end, 0);
        }
        self.content[at..end].copy_from_slice(bytes);
    }

    /// Returns to the synced state, and then applies a random part of the unsynced changes. Returns the
    /// number of written bytes that are lost.
    fn forget(&mut self, rng: &mut Rng) -> u64 {
        let changes = std::mem::take(&mut self.unsynced);
        for change in changes.iter().rev() {
            match &change.what {
                What::Write(at, _) => {
                    self.content.truncate(change.length_before);
                    self.put(*at, &change.before);
                    // If the write replaced no content, it began after the end of the file, and `put` has
                    // extended the file.
                    self.content.truncate(change.length_before);
                }
                What::Resize(length) => {
                    self.content.resize(change.length_before, 0);
                    if !change.before.is_empty() {
                        self.put(*length, &change.before);
                    }
                }
            }
        }
        let outcome = CrashOutcome::draw(rng);
        let mut forgotten = 0;
        for change in &changes {
            match &change.what {
                What::Write(at, bytes) => {
                    let mut from = 0;
                    while from < bytes.len() {
                        let sector_end = ((at + from) / SECTOR + 1) * SECTOR - at;
                        let to = sector_end.min(bytes.len());
                        if outcome.keeps(rng) {
                            self.put(at + from, &bytes[from..to]);
                        } else {
                            forgotten += (to - from) as u64;
                        }
                        from = to;
                    }
                }
                What::Resize(length) if outcome.keeps(rng) => self.content.resize(*length, 0),
                What::Resize(_) => (),
            }
        }
        forgotten
    }
}

/// Share of unsynced changes that the disk keeps.
#[derive(Clone, Copy)]
enum CrashOutcome {
    Nothing,
    Some(f64),
    All,
}

impl CrashOutcome {
    fn draw(rng: &mut Rng) -> Self {
        match rng.u8(..8) {
            0..3 => Self::Nothing,
            3 => Self::All,
            _ => Self::Some(rng.f64()),
        }
    }

    fn keeps(self, rng: &mut Rng) -> bool {
        match self {
            Self::Nothing => false,
            Self::Some(share) => rng.f64() < share,
            Self::All => true,
        }
    }
}

#[derive(Debug, Default)]
struct Directory {
    seen: BTreeMap<OsString, Number>,
    kept: BTreeMap<OsString, Number>,
}

/// File or directory, with permissions.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) mode: u16,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    File(File),
    Directory(Directory),
}

/// Change of a name in a directory; `None` removes the name.
type Naming = (Number, OsString, Option<Number>);

/// Files and directories, with the unsynced changes of names.
#[derive(Debug)]
pub(super) struct Disk {
    inodes: BTreeMap<Number, Inode>,
    next: Number,
    /// Name changes that are not durable yet, grouped by operation (a rename has two). A power failure keeps
    /// or loses each remaining group as a whole.
    unsynced: Vec<Vec<Naming>>,
    pub(super) syncs: u64,
}

impl Disk {
    pub(super) fn new() -> Self {
        let root = Inode { mode: 0o755, kind: Kind::Directory(Directory::default()) };
        Self { inodes: [(ROOT, root)].into(), next: ROOT + 1, unsynced: Vec::new(), syncs: 0 }
    }

    pub(super) fn inode(&mut self, number: Number) -> Result<&mut Inode, Refusal> {
        self.inodes.get_mut(&number).ok_or(Refusal::Missing)
    }

    /// Returns the length of a file; `None` for a directory.
    pub(super) fn length(&self, number: Number) -> Result<Option<usize>, Refusal> {
        match &self.inodes.get(&number).ok_or(Refusal::Missing)?.kind {
            Kind::File(file) => Ok(Some(file.content.len())),
            Kind::Directory(_) => Ok(None),
        }
    }

    pub(super) fn file(&mut self, number: Number) -> Result<&mut File, Refusal> {
        match &mut self.inode(number)?.kind {
            Kind::File(file) => Ok(file),
            Kind::Directory(_) => Err(Refusal::WrongKind),
        }
    }

    fn directory(&mut self, number: Number) -> Result<&mut Directory, Refusal> {
        match &mut self.inode(number)?.kind {
            Kind::Directory(directory) => Ok(directory),
            Kind::File(_) => Err(Refusal::WrongKind),
        }
    }

    pub(super) fn names(&mut self, directory: Number) -> Result<Vec<(OsString, Number)>, Refusal> {
        Ok(self.directory(directory)?.seen.iter().map(|(name, number)| (name.clone(), *number)).collect())
    }

    pub(super) fn find(&mut self, directory: Number, name: &OsStr) -> Result<Number, Refusal> {
        self.directory(directory)?.seen.get(name).copied().ok_or(Refusal::Missing)
    }

    pub(super) fn create(&mut self, within: Number, name: &OsStr, mode: u16) -> Result<Number, Refusal> {
        self.add(within, name, Inode { mode, kind: Kind::File(File::default()) })
    }

    pub(super) fn create_dir(&mut self, within: Number, name: &OsStr, mode: u16) -> Result<Number, Refusal> {
        self.add(within, name, Inode { mode, kind: Kind::Directory(Directory::default()) })
    }

    fn add(&mut self, within: Number, name: &OsStr, inode: Inode) -> Result<Number, Refusal> {
        if self.directory(within)?.seen.contains_key(name) {
            return Err(Refusal::Exists);
        }
        let number = self.next;
        self.next += 1;
        self.inodes.insert(number, inode);
        self.name(vec![(within, name.to_owned(), Some(number))])?;
        Ok(number)
    }

    /// Adds a second name for a file.
    pub(super) fn link(&mut self, number: Number, within: Number, name: &OsStr) -> Result<(), Refusal> {
        self.file(number)?;
        if self.directory(within)?.seen.contains_key(name) {
            return Err(Refusal::Exists);
        }
        self.name(vec![(within, name.to_owned(), Some(number))])
    }

    pub(super) fn remove(&mut self, within: Number, name: &OsStr) -> Result<(), Refusal> {
        let number = self.find(within, name)?;
        if let Kind::Directory(directory) = &self.inode(number)?.kind
            && !directory.seen.is_empty()
        {
            return Err(Refusal::NotEmpty);
        }
        self.name(vec![(within, name.to_owned(), None)])
    }

    /// If an entry already has the new name, it loses the name in the same step.
    pub(super) fn rename(&mut self, from: (Number, &OsStr), to: (Number, &OsStr)) -> Result<(), Refusal> {
        let number = self.find(from.0, from.1)?;
        self.directory(to.0)?;
        self.name(vec![(from.0, from.1.to_owned(), None), (to.0, to.1.to_owned(), Some(number))])
    }

    fn name(&mut self, namings: Vec<Naming>) -> Result<(), Refusal> {
        for (within, name, number) in &namings {
            apply(&mut self.directory(*within)?.seen, name, *number);
        }
        self.unsynced.push(namings);
        Ok(())
    }

    pub(super) fn sync_file(&mut self, number: Number) -> Result<(), Refusal> {
        self.file(number)?.sync();
        self.syncs += 1;
        Ok(())
    }

    pub(super) fn sync_dir(&mut self, number: Number) -> Result<(), Refusal> {
        let directory = self.directory(number)?;
        directory.kept = directory.seen.clone();
        self.unsynced.iter_mut().for_each(|namings| namings.retain(|(within, ..)| *within != number));
        self.unsynced.retain(|namings| !namings.is_empty());
        self.syncs += 1;
        Ok(())
    }

    /// Simulates a power failure. Returns the size of the loss: bytes, plus one for each lost name.
    pub(super) fn lose_power(&mut self, rng: &mut Rng) -> u64 {
        let mut forgotten = 0;
        let unsynced = std::mem::take(&mut self.unsynced);
        let kept = match CrashOutcome::draw(rng) {
            CrashOutcome::Nothing => 0,
            CrashOutcome::Some(_) => rng.usize(..=unsynced.len()),
            CrashOutcome::All => unsynced.len(),
        };
        for (i, namings) in unsynced.into_iter().enumerate() {
            for (within, name, number) in namings {
                if i >= kept {
                    forgotten += 1;
                } else if let Ok(directory) = self.directory(within) {
                    apply(&mut directory.kept, &name, number);
                }
            }
        }
        for inode in self.inodes.values_mut() {
            match &mut inode.kind {
                Kind::File(file) => forgotten += file.forget(rng),
                Kind::Directory(directory) => directory.seen = directory.kept.clone(),
            }
        }
        let reachable = self.reachable();
        self.inodes.retain(|number, _| reachable.contains(number));
        forgotten
    }

    fn reachable(&self) -> BTreeSet<Number> {
        let mut reachable = BTreeSet::new();
        let mut next = vec![ROOT];
        while let Some(number) = next.pop() {
            if reachable.insert(number)
                && let Some(Inode { kind: Kind::Directory(directory), .. }) = self.inodes.get(&number)
            {
                next.extend(directory.seen.values());
            }
        }
        reachable
    }
}

fn apply(names: &mut BTreeMap<OsString, Number>, name: &OsStr, number: Option<Number>) {
    match number {
        Some(number) => _ = names.insert(name.to_owned(), number),
        None => _ = names.remove(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> &OsStr {
        OsStr::new(name)
    }

    /// Creates a disk with a durable file. Returns the disk and the file's number.
    fn with_file(content: &[u8]) -> (Disk, Number) {
        let mut disk = Disk::new();
        let file = disk.create(ROOT, name("file"), 0o600).unwrap();
        disk.file(file).unwrap().write(0, content);
        disk.sync_file(file).unwrap();
        disk.sync_dir(ROOT).unwrap();
        (disk, file)
    }

    /// Returns all contents that can remain after a power failure.
    fn outcomes(make: impl Fn() -> (Disk, Number)) -> BTreeSet<Vec<u8>> {
        let after = |seed| {
            let (mut disk, file) = make();
            disk.lose_power(&mut Rng::with_seed(seed));
            disk.file(file).unwrap().content.clone()
        };
        (0..500).map(after).collect()
    }

    #[test]
    fn what_was_synced_is_kept_whatever_the_luck() {
        let (disk, _) = with_file(b"kept");
        assert!(disk.unsynced.is_empty());
        assert_eq!(outcomes(|| with_file(b"kept")), [b"kept".to_vec()].into());
    }

    #[test]
    fn of_a_write_that_was_not_synced_any_sectors_may_be_kept_and_no_parts_of_them() {
        let make = || {
            let (mut disk, file) = with_file(&[1; 3 * SECTOR]);
            disk.file(file).unwrap().write(SECTOR / 2, &[2; 2 * SECTOR]);
            (disk, file)
        };
        let (old, new) = ([1; SECTOR / 2], [2; SECTOR / 2]);
        let mut expected = BTreeSet::new();
        for which in 0..8 {
            let at = |bit: u8| if which & (1 << bit) != 0 { new } else { old };
            let halves = [old, at(0), at(1), at(1), at(2), old];
            expected.insert(halves.concat());
        }
        assert_eq!(outcomes(make), expected);
    }

    #[test]
    fn a_file_that_grew_shrank_and_grew_again_goes_back_to_what_it_was() {
        let (mut disk, file) = with_file(b"0123456789");
        let content = disk.file(file).unwrap();
        content.write(20, b"behind the end");
        content.resize(4);
        content.write(2, b"abcdef");
        content.resize(600);
        content.resize(1);
        assert_eq!(content.content, b"0");
        let nothing = (0..100)
            .find(|seed| matches!(CrashOutcome::draw(&mut Rng::with_seed(*seed)), CrashOutcome::Nothing));
        content.forget(&mut Rng::with_seed(nothing.unwrap()));
        assert_eq!(content.content, b"0123456789");
    }

    #[test]
    fn a_name_is_kept_only_once_its_directory_was_synced() {
        let found = |synced: bool| {
            let found = (0..100).map(|seed| {
                let mut disk = Disk::new();
                let file = disk.create(ROOT, name("new"), 0o600).unwrap();
                disk.file(file).unwrap().write(0, b"x");
                disk.sync_file(file).unwrap();
                if synced {
                    disk.sync_dir(ROOT).unwrap();
                }
                disk.lose_power(&mut Rng::with_seed(seed));
                disk.find(ROOT, name("new")).is_ok()
            });
            found.collect::<BTreeSet<_>>()
        };
        assert_eq!(found(true), [true].into());
        assert_eq!(found(false), [false, true].into());
    }

    #[test]
    fn a_rename_whose_directory_was_not_synced_is_done_wholly_or_not_at_all() {
        let mut seen = BTreeSet::new();
        for seed in 0..100 {
            let (mut disk, old) = with_file(b"old");
            let new = disk.create(ROOT, name("file.tmp"), 0o600).unwrap();
            disk.file(new).unwrap().write(0, b"new");
            disk.sync_file(new).unwrap();
            disk.sync_dir(ROOT).unwrap();
            disk.rename((ROOT, name("file.tmp")), (ROOT, name("file"))).unwrap();
            assert_eq!(disk.find(ROOT, name("file")), Ok(new));
            disk.lose_power(&mut Rng::with_seed(seed));
            let names = disk.names(ROOT).unwrap();
            let undone = vec![("file".into(), old), ("file.tmp".into(), new)];
            assert!(names == undone || names == vec![("file".into(), new)], "{names:?}");
            seen.insert(names.len());
        }
        assert_eq!(seen, [1, 2].into());
    }

    #[test]
    fn what_lies_in_a_forgotten_directory_is_forgotten_though_it_was_synced() {
        let mut disk = Disk::new();
        let dir = disk.create_dir(ROOT, name("dir"), 0o700).unwrap();
        let file = disk.create(dir, name("file"), 0o600).unwrap();
        disk.sync_file(file).unwrap();
        disk.sync_dir(dir).unwrap();
        let lost = (0..100)
            .find(|seed| matches!(CrashOutcome::draw(&mut Rng::with_seed(*seed)), CrashOutcome::Nothing));
        assert!(disk.lose_power(&mut Rng::with_seed(lost.unwrap())) > 0);
        assert_eq!(disk.names(ROOT).unwrap(), []);
        assert_eq!(disk.file(file).err(), Some(Refusal::Missing));
    }

    #[test]
    fn the_same_seed_forgets_the_same() {
        let after = || {
            let (mut disk, file) = with_file(&[0; 10 * SECTOR]);
            (0..50u8).for_each(|i| disk.file(file).unwrap().write(usize::from(i) * 100, &[i; 300]));
            disk.lose_power(&mut Rng::with_seed(77));
            disk.file(file).unwrap().content.clone()
        };
        assert_eq!(after(), after());
    }
}
