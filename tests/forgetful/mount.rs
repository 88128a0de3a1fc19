//! A [`Disk`] as a directory of this machine.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};

use crate::disk::{Content, Directory, Disk, File, Inode};

/// Nothing is cached by the kernel beyond one mount; each cut is followed by a new one.
const TTL: Duration = Duration::ZERO;
const BLOCK: u32 = 4096;
/// Blocks said to be free: far more than any test writes.
const FREE: u64 = 16 << 20;

/// A mounted disk; unmounts when dropped, also when a test panics.
pub struct Mount {
    /// Where.
    pub path: PathBuf,
    session: Option<BackgroundSession>,
}

impl Mount {
    /// Mounts `disk` at `path`, which is made when it is missing, and gives it power.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn at(disk: &Disk, path: &Path) -> Self {
        std::fs::create_dir_all(path).expect("a directory to mount on");
        disk.power_up();
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("regent-forgetful".into())];
        let session = fuser::spawn_mount(Mounted(disk.clone()), path, &config)
            .expect("cannot mount: needs root, or REGENT_NO_FUSE=1 to go without this test");
        Self { path: path.to_owned(), session: Some(session) }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some(session) = self.session.take()
            && let Err(error) = session.umount_and_join()
        {
            eprintln!("cannot unmount {}: {error}", self.path.display());
        }
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// Whether this machine was said to have no FUSE.
///
/// # Panics
/// When it was not said and there is none.
pub fn go_without() -> bool {
    if std::env::var_os("REGENT_NO_FUSE").is_some_and(|value| value == "1") {
        eprintln!("REGENT_NO_FUSE=1: power cuts under a real file system are not tested here");
        return true;
    }
    assert!(
        Path::new("/dev/fuse").exists(),
        "/dev/fuse is missing: load the module fuse, or set REGENT_NO_FUSE=1 to go without"
    );
    false
}

struct Mounted(Disk);

impl Mounted {
    fn attributes(&self, number: u64) -> Result<FileAttr, Errno> {
        let (kind, size) = self.0.with(|content| {
            Ok(match content.inode(number)? {
                Inode::File(file) => (FileType::RegularFile, file.len() as u64),
                Inode::Directory(_) => (FileType::Directory, 0),
            })
        })?;
        let epoch = SystemTime::UNIX_EPOCH;
        Ok(FileAttr {
            ino: INodeNo(number),
            size,
            blocks: size.div_ceil(512),
            atime: epoch,
            mtime: epoch,
            ctime: epoch,
            crtime: epoch,
            kind,
            perm: 0o755,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK,
            flags: 0,
        })
    }

    fn entry(&self, number: Result<u64, Errno>, reply: ReplyEntry) {
        match number.and_then(|number| self.attributes(number)) {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(error) => reply.error(error),
        }
    }
}

fn answer(reply: ReplyEmpty, outcome: Result<(), Errno>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Mounted {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.entry(self.0.with(|content| content.look_up(parent.0, name)), reply);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(ino.0) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let done = self.0.with(|content| {
            if let Some(size) = size {
                content.file(ino.0)?.resize(size as usize);
            }
            Ok(())
        });
        match done.and_then(|()| self.attributes(ino.0)) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let made = Inode::Directory(Directory::default());
        self.entry(self.0.with(|content| content.make(parent.0, name, made)), reply);
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let made = Inode::File(File::default());
        let number = self.0.with(|content| content.make(parent.0, name, made));
        match number.and_then(|number| self.attributes(number)) {
            Ok(attributes) => {
                let (handle, flags) = (FileHandle(0), FopenFlags::empty());
                reply.created(&TTL, &attributes, Generation(0), handle, flags);
            }
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read =
            |content: &mut Content| Ok(content.file(ino.0)?.read(offset as usize, size as usize));
        match self.0.with(read) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let done = self.0.with(|content| {
            content.file(ino.0)?.write(offset as usize, data);
            Ok(())
        });
        match done {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        let done = self.0.with(|content| {
            content.file(ino.0)?.grow((offset + length) as usize);
            Ok(())
        });
        answer(reply, done);
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Closing a file syncs nothing.
        reply.ok();
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _data: bool, reply: ReplyEmpty) {
        answer(reply, self.0.with(|content| content.sync(ino.0)));
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _data: bool,
        reply: ReplyEmpty,
    ) {
        answer(reply, self.0.with(|content| content.sync(ino.0)));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, self.0.with(|content| content.unlink(parent.0, name).map(|_| ())));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, self.0.with(|content| content.remove_directory(parent.0, name)));
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = ((parent.0, name), (newparent.0, newname));
        answer(reply, self.0.with(|content| content.rename(from, to)));
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.0.with(|content| {
            let names = content.directory(ino.0)?.seen.clone();
            let kind = |number| match content.inode(number) {
                Ok(Inode::Directory(_)) => FileType::Directory,
                _ => FileType::RegularFile,
            };
            Ok(names.into_iter().map(|(name, n)| (name, n, kind(n))).collect::<Vec<_>>())
        });
        match listed {
            Ok(names) => {
                for (nth, (name, number, kind)) in names.iter().enumerate().skip(offset as usize) {
                    if reply.add(INodeNo(*number), nth as u64 + 1, *kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(error),
        }
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(FREE, FREE, FREE, FREE, FREE, BLOCK, 255, BLOCK);
    }
}
