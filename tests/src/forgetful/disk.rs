//! What a disk has, and what it would still have if the power went now.
//!
//! A write is at once seen by everybody who reads, and is kept for certain once its file was synced. A name is kept once its *directory* was: a
//! synced file whose name was forgotten is gone, and a renamed one has its old name. That is what POSIX promises; most file systems do better most
//! of the time, and whoever relies on that finds out here.
//!
//! When the power goes, a real disk has kept some of what nobody asked it to keep: sectors in any order, because it reorders them as it
//! likes, and names in the order in which they changed, because file systems keep a log of these. Which of them, a seed says.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
};

use fastrand::Rng;

/// What a disk writes as a whole, in bytes. Of older and pretending disks; a larger one would only tear less.
pub(super) const SECTOR: usize = 512;

/// The number of a file or directory.
pub(super) type Number = u64;
/// The topmost directory.
pub(super) const ROOT: Number = 1;

/// Why something was not done. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// There is nothing of this name or number.
    Missing,
    /// There is something of this name.
    Exists,
    /// A directory that holds something.
    NotEmpty,
    /// A directory, or none, where the other was expected.
    WrongKind,
}

/// A change of a file that was not synced, and what undoes it.
#[derive(Debug)]
struct Change {
    length_before: usize,
    /// What stood where it wrote, or behind where it cut.
    before: Vec<u8>,
    what: What,
}

#[derive(Debug)]
enum What {
    Write(usize, Vec<u8>),
    Resize(usize),
}

/// A file's content.
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

    /// Goes back to what was synced, and then keeps some of the rest. Returns how many bytes that were written are not kept.
    fn forget(&mut self, rng: &mut Rng) -> u64 {
        let changes = std::mem::take(&mut self.unsynced);
        for change in changes.iter().rev() {
            match &change.what {
                What::Write(at, _) => {
                    self.content.truncate(change.length_before);
                    self.put(*at, &change.before);
                    // Where nothing was overwritten, the write began behind the end.
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
        let luck = Luck::draw(rng);
        let mut forgotten = 0;
        for change in &changes {
            match &change.what {
                What::Write(at, bytes) => {
                    let mut from = 0;
                    while from < bytes.len() {
                        let sector_end = ((at + from) / SECTOR + 1) * SECTOR - at;
                        let to = sector_end.min(bytes.len());
                        if luck.keeps(rng) {
                            self.put(at + from, &bytes[from..to]);
                        } else {
                            forgotten += (to - from) as u64;
                        }
                        from = to;
                    }
                }
                What::Resize(length) if luck.keeps(rng) => self.content.resize(*length, 0),
                What::Resize(_) => (),
            }
        }
        forgotten
    }
}

/// How much of what was not asked for a disk has kept.
#[derive(Clone, Copy)]
enum Luck {
    Nothing,
    Some(f64),
    All,
}

impl Luck {
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

/// A file or a directory, and its permissions.
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

/// A name in a directory now means this; `None`: nothing.
type Naming = (Number, OsString, Option<Number>);

/// A disk.
#[derive(Debug)]
pub(super) struct Disk {
    inodes: BTreeMap<Number, Inode>,
    next: Number,
    /// Changes of names whose directories were not synced since. What changes at once is kept at once or not at all.
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

    /// The length of a file; `None`: it is a directory.
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

    /// A second name for a file.
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

    /// Whatever has the new name loses it in the same step.
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

    /// The power goes and comes back. Returns how many bytes, names counted as one each, were forgotten.
    pub(super) fn lose_power(&mut self, rng: &mut Rng) -> u64 {
        let mut forgotten = 0;
        let unsynced = std::mem::take(&mut self.unsynced);
        let kept = match Luck::draw(rng) {
            Luck::Nothing => 0,
            Luck::Some(_) => rng.usize(..=unsynced.len()),
            Luck::All => unsynced.len(),
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

    /// A disk with a file that is kept for certain, and what it holds.
    fn with_file(content: &[u8]) -> (Disk, Number) {
        let mut disk = Disk::new();
        let file = disk.create(ROOT, name("file"), 0o600).unwrap();
        disk.file(file).unwrap().write(0, content);
        disk.sync_file(file).unwrap();
        disk.sync_dir(ROOT).unwrap();
        (disk, file)
    }

    /// What can be left after the power went.
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
        let nothing = (0..100).find(|seed| matches!(Luck::draw(&mut Rng::with_seed(*seed)), Luck::Nothing));
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
        let lost = (0..100).find(|seed| matches!(Luck::draw(&mut Rng::with_seed(*seed)), Luck::Nothing));
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
