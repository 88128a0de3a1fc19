//! Power cuts under the real writer: its thread, its files, the kernel, and below them a file
//! system that forgets what was not synced.
//!
//! kill -9 proves nothing about durability, because the page cache survives it. So the log runs on
//! a small FUSE file system that keeps, beside what everybody sees, what a power cut would leave:
//! file contents of the last fsync of that file, names of the last fsync of the directory. A cut
//! puts that back, and from then on every call fails, as it does without power.
//!
//! It needs `/dev/fuse` and the right to mount (root). Where that cannot be had, say so with
//! `REGENT_NO_FUSE=1`; the crash states of the simulated disk are checked anyway.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;
use regent_raft::store::real_disk::RealDisk;
use regent_raft::store::record::Record;
use regent_raft::store::wal::{Recovered, Wal, WalOptions};
use regent_raft::store::writer::Writer;

const CUTS: u64 = 20;
/// Nothing is cached by the kernel beyond one mount; each cut is followed by a new one.
const TTL: Duration = Duration::ZERO;
const ROOT: u64 = 1;

#[derive(Clone, Default)]
struct Inode {
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// What differs between the two, at most.
    dirty: Option<(usize, usize)>,
}

/// The disk below the mount. It outlives mounts.
#[derive(Default)]
struct Disk {
    inodes: BTreeMap<u64, Inode>,
    next: u64,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    powerless: bool,
    /// Test of the test: syncs are answered and not done.
    lying: bool,
}

impl Disk {
    fn cut_power(&mut self) {
        self.powerless = true;
        for inode in self.inodes.values_mut() {
            inode.seen = inode.durable.clone();
            inode.dirty = None;
        }
        self.names = self.durable_names.clone();
        let alive: Vec<u64> = self.names.values().copied().collect();
        self.inodes.retain(|number, _| alive.contains(number));
    }

    fn sync_file(&mut self, number: u64) {
        if self.lying {
            return;
        }
        let Some(inode) = self.inodes.get_mut(&number) else {
            return;
        };
        inode.durable.resize(inode.seen.len(), 0);
        if let Some((from, to)) = inode.dirty.take() {
            let to = to.min(inode.seen.len());
            if from < to {
                inode.durable[from..to].copy_from_slice(&inode.seen[from..to]);
            }
        }
    }

    fn create(&mut self, name: &str) -> u64 {
        // The root has number 1.
        self.next = self.next.max(ROOT) + 1;
        self.inodes.insert(self.next, Inode::default());
        self.names.insert(name.to_string(), self.next);
        self.next
    }
}

impl Inode {
    fn touch(&mut self, from: usize, to: usize) {
        self.dirty = Some(match self.dirty {
            Some((a, b)) => (a.min(from), b.max(to)),
            None => (from, to),
        });
    }

    fn resize(&mut self, len: usize) {
        let old = self.seen.len();
        self.seen.resize(len, 0);
        self.touch(old.min(len), old.max(len));
    }
}

/// One mount of the disk.
struct Mounted(Arc<Mutex<Disk>>);

impl Mounted {
    /// Does one operation, unless the power is off.
    fn with<T>(&self, work: impl FnOnce(&mut Disk) -> Result<T, Errno>) -> Result<T, Errno> {
        let mut disk = self.0.lock();
        if disk.powerless { Err(Errno::EIO) } else { work(&mut disk) }
    }

    fn attr(&self, number: u64) -> Result<FileAttr, Errno> {
        self.with(|disk| {
            if number == ROOT {
                return Ok(attributes(number, FileType::Directory, 0));
            }
            let inode = disk.inodes.get(&number).ok_or(Errno::ENOENT)?;
            Ok(attributes(number, FileType::RegularFile, inode.seen.len() as u64))
        })
    }
}

fn attributes(number: u64, kind: FileType, size: u64) -> FileAttr {
    let epoch = SystemTime::UNIX_EPOCH;
    FileAttr {
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
        blksize: 4096,
        flags: 0,
    }
}

fn text(name: &OsStr) -> String {
    name.to_string_lossy().into_owned()
}

fn answer(reply: ReplyEmpty, outcome: Result<(), Errno>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Mounted {
    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let number = self.with(|disk| disk.names.get(&text(name)).copied().ok_or(Errno::ENOENT));
        match number.and_then(|number| self.attr(number)) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino.0) {
            Ok(attr) => reply.attr(&TTL, &attr),
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
        let done = self.with(|disk| {
            if let (Some(size), Some(inode)) = (size, disk.inodes.get_mut(&ino.0)) {
                inode.resize(size as usize);
            }
            Ok(())
        });
        match done.and_then(|()| self.attr(ino.0)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let number = self.with(|disk| Ok(disk.create(&text(name))));
        match number.and_then(|number| self.attr(number)) {
            Ok(attr) => {
                reply.created(&TTL, &attr, Generation(0), FileHandle(0), FopenFlags::empty());
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
        let bytes = self.with(|disk| {
            let content = &disk.inodes.get(&ino.0).ok_or(Errno::ENOENT)?.seen;
            let start = (offset as usize).min(content.len());
            let end = (start + size as usize).min(content.len());
            Ok(content[start..end].to_vec())
        });
        match bytes {
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
        let done = self.with(|disk| {
            let inode = disk.inodes.get_mut(&ino.0).ok_or(Errno::ENOENT)?;
            let (start, end) = (offset as usize, offset as usize + data.len());
            if inode.seen.len() < end {
                inode.resize(end);
            }
            inode.seen[start..end].copy_from_slice(data);
            inode.touch(start, end);
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
        let done = self.with(|disk| {
            let inode = disk.inodes.get_mut(&ino.0).ok_or(Errno::ENOENT)?;
            let end = (offset + length) as usize;
            if inode.seen.len() < end {
                inode.resize(end);
            }
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
        let done = self.with(|disk| {
            disk.sync_file(ino.0);
            Ok(())
        });
        answer(reply, done);
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _data: bool,
        reply: ReplyEmpty,
    ) {
        let done = self.with(|disk| {
            if !disk.lying {
                disk.durable_names = disk.names.clone();
            }
            Ok(())
        });
        answer(reply, done);
    }

    fn unlink(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        // The content stays: the name may come back, or somebody has the file open.
        let done =
            self.with(|disk| disk.names.remove(&text(name)).map(|_| ()).ok_or(Errno::ENOENT));
        answer(reply, done);
    }

    fn rename(
        &self,
        _req: &Request,
        _parent: INodeNo,
        name: &OsStr,
        _newparent: INodeNo,
        newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let done = self.with(|disk| {
            let number = disk.names.remove(&text(name)).ok_or(Errno::ENOENT)?;
            disk.names.insert(text(newname), number);
            Ok(())
        });
        answer(reply, done);
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        match self.with(|disk| Ok(disk.names.clone())) {
            Ok(names) => {
                for (nth, (name, number)) in names.iter().enumerate().skip(offset as usize) {
                    let next = nth as u64 + 1;
                    if reply.add(INodeNo(*number), next, FileType::RegularFile, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(error),
        }
    }
}

/// A mounted disk; unmounts when dropped, also when a test panics.
struct Mount {
    path: PathBuf,
    session: Option<BackgroundSession>,
}

impl Mount {
    fn new(disk: &Arc<Mutex<Disk>>) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("regent-power-cut-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        disk.lock().powerless = false;
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("regent-power-cut".into())];
        let session = fuser::spawn_mount(Mounted(disk.clone()), &path, &config)
            .expect("cannot mount: needs root, or REGENT_NO_FUSE=1 to go without this test");
        Self { path, session: Some(session) }
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

/// Whether this machine was said to have no FUSE; fails when it was not said and has none.
fn go_without() -> bool {
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

/// What was acknowledged, as the callbacks said.
#[derive(Clone, Debug, Default)]
struct Acknowledged {
    entry: Option<u64>,
    term: Option<u64>,
    requests: u64,
}

fn options() -> WalOptions {
    // Small, so that cuts meet new segments too.
    WalOptions { segment_bytes: 128 * 1024, salt: 77 }
}

fn open(dir: &Path) -> (Wal, Recovered) {
    Wal::open(Arc::new(RealDisk), dir, options()).expect("after a power cut the log must open")
}

fn body(index: u64) -> Bytes {
    Bytes::from(vec![(index % 251) as u8; 40 + (index * 37 % 900) as usize])
}

fn term_of(vote: &Bytes) -> u64 {
    String::from_utf8_lossy(vote).parse().unwrap()
}

/// Loads the writer until `requests` were acknowledged, cuts the power, and says what had been.
fn load_and_cut(
    wal: Wal,
    disk: &Mutex<Disk>,
    before: &Acknowledged,
    requests: u64,
) -> Acknowledged {
    let first = wal.last_index().map_or(0, |last| last + 1);
    let writer = Writer::spawn_thread(wal).unwrap();
    let acknowledged = Arc::new(Mutex::new(before.clone()));
    let goal = before.requests + requests;
    let (mut index, mut term) = (first, before.term.unwrap_or(0));
    let deadline = Instant::now() + Duration::from_secs(60);
    while acknowledged.lock().requests < goal {
        assert!(Instant::now() < deadline, "the writer does not get on: {}", writer.problem());
        if writer.queued() > 64 {
            std::thread::yield_now();
            continue;
        }
        let mut records = vec![Record::Entry { index, bytes: body(index) }];
        let entry = index;
        index += 1;
        if index.is_multiple_of(7) {
            // Above every term of an earlier life, acknowledged or not.
            term += 1000;
            records.push(Record::Vote(Bytes::from(term.to_string())));
        }
        if index.is_multiple_of(200) {
            let to = index - 150;
            records.push(Record::Purge { index: to, bytes: Bytes::from(to.to_string()) });
        }
        let noted = acknowledged.clone();
        writer.submit(
            records,
            Box::new(move |outcome: io::Result<()>| {
                if outcome.is_ok() {
                    let mut noted = noted.lock();
                    noted.entry = Some(entry);
                    noted.term = Some(term);
                    noted.requests += 1;
                }
            }),
        );
    }
    disk.lock().cut_power();
    writer.close();
    let acknowledged = acknowledged.lock();
    acknowledged.clone()
}

/// What a log after a cut must hold; says what is lost.
fn check(found: &Recovered, acknowledged: &Acknowledged) -> Result<(), String> {
    let last = found.entries.last().map(|(index, _)| *index);
    if last < acknowledged.entry {
        return Err(format!(
            "entry {:?} was acknowledged, {last:?} is the last",
            acknowledged.entry
        ));
    }
    let term = found.vote.as_ref().map(term_of);
    if term.unwrap_or(0) < acknowledged.term.unwrap_or(0) {
        return Err(format!("vote {:?} was acknowledged, {term:?} is there", acknowledged.term));
    }
    match found.entries.iter().find(|(index, bytes)| *bytes != body(*index)) {
        Some((index, _)) => Err(format!("entry {index} is not what was written")),
        None => Ok(()),
    }
}

#[test]
fn twenty_power_cuts_under_load_lose_no_acknowledged_entry_and_no_vote() {
    if go_without() {
        return;
    }
    let disk = Arc::new(Mutex::new(Disk::default()));
    let mut acknowledged = Acknowledged::default();
    for cut in 0..CUTS {
        let mount = Mount::new(&disk);
        let (wal, found) = open(&mount.path);
        check(&found, &acknowledged).unwrap_or_else(|lost| panic!("after cut {cut}: {lost}"));
        acknowledged.term = found.vote.as_ref().map(term_of);
        acknowledged = load_and_cut(wal, &disk, &acknowledged, 40 + cut * 13 % 170);
    }
    let mount = Mount::new(&disk);
    let (_wal, found) = open(&mount.path);
    check(&found, &acknowledged).unwrap();
    assert!(found.purged.is_some());
    assert!(acknowledged.requests >= CUTS * 40);
}

#[test]
fn a_disk_that_only_pretends_to_sync_is_found_out() {
    if go_without() {
        return;
    }
    let disk = Arc::new(Mutex::new(Disk::default()));
    let mount = Mount::new(&disk);
    let (wal, _) = open(&mount.path);
    disk.lock().lying = true;
    let acknowledged = load_and_cut(wal, &disk, &Acknowledged::default(), 100);
    drop(mount);
    disk.lock().lying = false;
    let mount = Mount::new(&disk);
    // It may be refused as well: the names of later segments are gone, or their content.
    if let Ok((_wal, found)) = Wal::open(Arc::new(RealDisk), &mount.path, options()) {
        assert!(check(&found, &acknowledged).is_err(), "the loss was not noticed");
    }
}
