//! FUSE handler of the lossy disk: translates the kernel's file-system requests into calls of the disk model.
//!
//! The kernel may cache only pages of open files (all times to live are zero), so that it does not keep data
//! that the disk loses. The kernel handles locks itself.

use std::{
    ffi::OsStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::disk::{Disk, Number, Refusal, SECTOR};

const NEVER_CACHED: Duration = Duration::ZERO;
const GENERATION: Generation = Generation(0);
/// Handle of an open file. The disk needs no state for it.
const HANDLE: FileHandle = FileHandle(0);
/// Free space that the disk reports, in blocks of [`BLOCK`] bytes.
const FREE: u64 = 1 << 20;
const BLOCK: u32 = 4096;

pub(super) struct Mount(pub(super) Arc<Mutex<Disk>>);

impl From<Refusal> for Errno {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Missing => Errno::ENOENT,
            Refusal::Exists => Errno::EEXIST,
            Refusal::NotEmpty => Errno::ENOTEMPTY,
            Refusal::WrongKind => Errno::EINVAL,
        }
    }
}

fn attributes(disk: &mut Disk, number: Number) -> Result<FileAttr, Refusal> {
    let length = disk.length(number)?;
    let size = length.unwrap_or(0) as u64;
    Ok(FileAttr {
        ino: INodeNo(number),
        size,
        blocks: size.div_ceil(SECTOR as u64),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if length.is_some() { FileType::RegularFile } else { FileType::Directory },
        perm: disk.inode(number)?.mode,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK,
        flags: 0,
    })
}

fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).expect("an offset on a 64-bit machine")
}

impl Mount {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, reply: ReplyEntry, number: impl FnOnce(&mut Disk) -> Result<Number, Refusal>) {
        let mut disk = self.disk();
        match number(&mut disk).and_then(|number| attributes(&mut disk, number)) {
            Ok(attributes) => reply.entry(&NEVER_CACHED, &attributes, GENERATION),
            Err(refusal) => reply.error(refusal.into()),
        }
    }

    fn done(&self, reply: ReplyEmpty, what: impl FnOnce(&mut Disk) -> Result<(), Refusal>) {
        match what(&mut self.disk()) {
            Ok(()) => reply.ok(),
            Err(refusal) => reply.error(refusal.into()),
        }
    }
}

impl Filesystem for Mount {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.entry(reply, |disk| disk.find(parent.0, name));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match attributes(&mut self.disk(), ino.0) {
            Ok(attributes) => reply.attr(&NEVER_CACHED, &attributes),
            Err(refusal) => reply.error(refusal.into()),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut disk = self.disk();
        let mut set = || {
            if let Some(mode) = mode {
                disk.inode(ino.0)?.mode = permissions(mode);
            }
            if let Some(size) = size {
                disk.file(ino.0)?.resize(place(size));
            }
            attributes(&mut disk, ino.0)
        };
        match set() {
            Ok(attributes) => reply.attr(&NEVER_CACHED, &attributes),
            Err(refusal) => reply.error(refusal.into()),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.entry(reply, |disk| disk.create_dir(parent.0, name, permissions(mode & !umask)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.done(reply, |disk| disk.remove(parent.0, name));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.done(reply, |disk| disk.remove(parent.0, name));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.done(reply, |disk| disk.rename((parent.0, name), (newparent.0, newname)));
    }

    fn link(&self, _: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        self.entry(reply, |disk| disk.link(ino.0, newparent.0, newname).map(|()| ino.0));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let mut disk = self.disk();
        let created = disk.create(parent.0, name, permissions(mode & !umask));
        match created.and_then(|number| attributes(&mut disk, number)) {
            Ok(attributes) => {
                reply.created(&NEVER_CACHED, &attributes, GENERATION, HANDLE, FopenFlags::empty());
            }
            Err(refusal) => reply.error(refusal.into()),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.disk().file(ino.0) {
            Ok(file) => {
                let rest = file.content.get(place(offset)..).unwrap_or_default();
                reply.data(&rest[..rest.len().min(size as usize)]);
            }
            Err(refusal) => reply.error(refusal.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.disk().file(ino.0) {
            Ok(file) => {
                file.write(place(offset), data);
                reply.written(data.len() as u32);
            }
            Err(refusal) => reply.error(refusal.into()),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Closing a file does not sync it.
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.done(reply, |disk| disk.sync_file(ino.0));
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.done(reply, |disk| disk.sync_dir(ino.0));
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut disk = self.disk();
        let names = match disk.names(ino.0) {
            Ok(names) => names,
            Err(refusal) => return reply.error(refusal.into()),
        };
        for (at, (name, number)) in (1..).zip(names).skip(place(offset)) {
            let kind = match disk.length(number) {
                Ok(Some(_)) => FileType::RegularFile,
                _ => FileType::Directory,
            };
            if reply.add(INodeNo(number), at, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(2 * FREE, FREE, FREE, FREE, FREE, BLOCK, 255, BLOCK);
    }
}
