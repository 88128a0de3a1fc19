//! What is seen, and what would be left.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use fuser::Errno;
use parking_lot::Mutex;

/// The number of the topmost directory; FUSE knows it by this one.
pub(crate) const ROOT: u64 = 1;

/// Bytes of a block.
const BLOCK: usize = 4096;

type Names = BTreeMap<OsString, u64>;

/// What has been written, block by block: a log's preallocated segments are mostly holes.
#[derive(Clone, Default)]
struct Blocks {
    len: usize,
    written: BTreeMap<usize, Vec<u8>>,
}

#[derive(Clone, Default)]
pub(crate) struct File {
    seen: Blocks,
    durable: Blocks,
    /// Blocks in which the two may differ.
    dirty: BTreeSet<usize>,
}

#[derive(Clone, Default)]
pub(crate) struct Directory {
    pub seen: Names,
    durable: Names,
}

#[derive(Clone)]
pub(crate) enum Inode {
    File(File),
    Directory(Directory),
}

/// The disk below a mount. It outlives mounts; clones share it.
#[derive(Clone)]
pub struct Disk(Arc<Mutex<Content>>);

pub(crate) struct Content {
    inodes: BTreeMap<u64, Inode>,
    last: u64,
    powerless: bool,
    lying: bool,
}

impl Default for Disk {
    fn default() -> Self {
        let root = Inode::Directory(Directory::default());
        let inodes = BTreeMap::from([(ROOT, root)]);
        Self(Arc::new(Mutex::new(Content { inodes, last: ROOT, powerless: false, lying: false })))
    }
}

impl Disk {
    /// The power fails: what was not synced is gone, and every call fails until the next mount.
    pub fn cut_power(&self) {
        let mut content = self.0.lock();
        content.powerless = true;
        content.forget();
    }

    /// Everything there is becomes durable, as after a clean shutdown.
    pub fn settle(&self) {
        self.0.lock().inodes.values_mut().for_each(Inode::sync);
    }

    /// Test of the test: syncs are answered and not done.
    pub fn lie(&self, lying: bool) {
        self.0.lock().lying = lying;
    }

    pub(crate) fn power_up(&self) {
        self.0.lock().powerless = false;
    }

    /// Does one operation, unless the power is off.
    pub(crate) fn with<T>(
        &self,
        work: impl FnOnce(&mut Content) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut content = self.0.lock();
        if content.powerless { Err(Errno::EIO) } else { work(&mut content) }
    }
}

impl Content {
    fn forget(&mut self) {
        self.inodes.values_mut().for_each(Inode::forget);
        let mut reached = BTreeSet::from([ROOT]);
        let mut next = vec![ROOT];
        while let Some(number) = next.pop() {
            let Some(Inode::Directory(directory)) = self.inodes.get(&number) else { continue };
            next.extend(directory.seen.values().filter(|inner| reached.insert(**inner)));
        }
        self.inodes.retain(|number, _| reached.contains(number));
    }

    pub fn inode(&self, number: u64) -> Result<&Inode, Errno> {
        self.inodes.get(&number).ok_or(Errno::ENOENT)
    }

    pub fn file(&mut self, number: u64) -> Result<&mut File, Errno> {
        match self.inodes.get_mut(&number).ok_or(Errno::ENOENT)? {
            Inode::File(file) => Ok(file),
            Inode::Directory(_) => Err(Errno::EISDIR),
        }
    }

    pub fn directory(&mut self, number: u64) -> Result<&mut Directory, Errno> {
        match self.inodes.get_mut(&number).ok_or(Errno::ENOENT)? {
            Inode::Directory(directory) => Ok(directory),
            Inode::File(_) => Err(Errno::ENOTDIR),
        }
    }

    pub fn look_up(&mut self, parent: u64, name: &OsStr) -> Result<u64, Errno> {
        self.directory(parent)?.seen.get(name).copied().ok_or(Errno::ENOENT)
    }

    /// Makes `inode` under a name; what had the name before loses it.
    pub fn make(&mut self, parent: u64, name: &OsStr, inode: Inode) -> Result<u64, Errno> {
        let number = self.last + 1;
        self.directory(parent)?.seen.insert(name.to_owned(), number);
        self.last = number;
        self.inodes.insert(number, inode);
        Ok(number)
    }

    /// Takes a name away. The content stays: the name may come back at a cut, or somebody has the
    /// file open.
    pub fn unlink(&mut self, parent: u64, name: &OsStr) -> Result<u64, Errno> {
        self.directory(parent)?.seen.remove(name).ok_or(Errno::ENOENT)
    }

    pub fn remove_directory(&mut self, parent: u64, name: &OsStr) -> Result<(), Errno> {
        let number = self.look_up(parent, name)?;
        if !self.directory(number)?.seen.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.unlink(parent, name).map(|_| ())
    }

    pub fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) -> Result<(), Errno> {
        self.directory(to.0)?;
        let number = self.unlink(from.0, from.1)?;
        self.directory(to.0)?.seen.insert(to.1.to_owned(), number);
        Ok(())
    }

    pub fn sync(&mut self, number: u64) -> Result<(), Errno> {
        let inode = self.inodes.get_mut(&number).ok_or(Errno::ENOENT)?;
        if !self.lying {
            inode.sync();
        }
        Ok(())
    }
}

impl Inode {
    fn sync(&mut self) {
        match self {
            Self::File(file) => file.sync(),
            Self::Directory(directory) => directory.durable = directory.seen.clone(),
        }
    }

    fn forget(&mut self) {
        match self {
            Self::File(file) => file.forget(),
            Self::Directory(directory) => directory.seen = directory.durable.clone(),
        }
    }
}

impl File {
    pub fn len(&self) -> usize {
        self.seen.len
    }

    fn sync(&mut self) {
        self.durable.len = self.seen.len;
        for at in std::mem::take(&mut self.dirty) {
            match self.seen.written.get(&at) {
                Some(block) => self.durable.written.insert(at, block.clone()),
                None => self.durable.written.remove(&at),
            };
        }
    }

    fn forget(&mut self) {
        self.seen = self.durable.clone();
        self.dirty.clear();
    }

    pub fn resize(&mut self, len: usize) {
        if len < self.seen.len {
            // What is cut off must not come back when the file grows again.
            let gone = self.seen.written.split_off(&len.div_ceil(BLOCK));
            self.dirty.extend(gone.into_keys());
            if let Some(block) = self.seen.written.get_mut(&(len / BLOCK)) {
                block[len % BLOCK..].fill(0);
                self.dirty.insert(len / BLOCK);
            }
        }
        self.seen.len = len;
    }

    pub fn grow(&mut self, len: usize) {
        if self.seen.len < len {
            self.resize(len);
        }
    }

    pub fn write(&mut self, at: usize, data: &[u8]) {
        self.grow(at + data.len());
        let mut done = 0;
        while done < data.len() {
            let (block, from) = ((at + done) / BLOCK, (at + done) % BLOCK);
            let part = (BLOCK - from).min(data.len() - done);
            let content = self.seen.written.entry(block).or_insert_with(|| vec![0; BLOCK]);
            content[from..from + part].copy_from_slice(&data[done..done + part]);
            self.dirty.insert(block);
            done += part;
        }
    }

    pub fn read(&self, at: usize, len: usize) -> Vec<u8> {
        let end = (at + len).min(self.seen.len).max(at);
        let mut bytes = vec![0; end - at];
        for (block, content) in self.seen.written.range(at / BLOCK..end.div_ceil(BLOCK)) {
            let start = block * BLOCK;
            let (from, to) = (start.max(at), (start + BLOCK).min(end));
            if from < to {
                bytes[from - at..to - at].copy_from_slice(&content[from - start..to - start]);
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> &OsStr {
        OsStr::new(text)
    }

    fn found(disk: &Disk, path: &[&str]) -> Option<Vec<u8>> {
        let mut content = disk.0.lock();
        let mut at = ROOT;
        for part in path {
            at = content.look_up(at, name(part)).ok()?;
        }
        content.file(at).ok().map(|file| file.read(0, file.len()))
    }

    /// Makes `outer/file`, writes, and syncs what is asked for.
    fn made(sync: impl Fn(&mut Content, u64, u64) -> Result<(), Errno>) -> Disk {
        let disk = Disk::default();
        let done = disk.with(|content| {
            let outer =
                content.make(ROOT, name("outer"), Inode::Directory(Directory::default()))?;
            let file = content.make(outer, name("file"), Inode::File(File::default()))?;
            content.file(file)?.write(0, b"once");
            sync(content, outer, file)
        });
        assert!(done.is_ok());
        disk.cut_power();
        disk
    }

    #[test]
    fn a_cut_leaves_what_was_synced_with_its_names_and_nothing_else() {
        let all = made(|content, outer, file| {
            content.sync(file)?;
            content.sync(outer)?;
            content.sync(ROOT)?;
            content.file(file)?.write(0, b"more, not synced");
            content.rename((outer, name("file")), (ROOT, name("moved")))
        });
        assert_eq!(found(&all, &["outer", "file"]).as_deref(), Some(&b"once"[..]));
        assert_eq!(found(&all, &["moved"]), None);
        let no_name = made(|content, _, file| content.sync(file).and_then(|()| content.sync(ROOT)));
        assert_eq!(found(&no_name, &["outer", "file"]), None);
        let no_parent = made(|content, outer, file| {
            content.sync(file)?;
            content.sync(outer)
        });
        assert_eq!(found(&no_parent, &["outer", "file"]), None);
        let no_content = made(|content, outer, _| {
            content.sync(outer)?;
            content.sync(ROOT)
        });
        assert_eq!(found(&no_content, &["outer", "file"]).as_deref(), Some(&b""[..]));
    }

    #[test]
    fn a_file_reads_as_it_was_written_across_blocks_holes_and_cuts() {
        let mut file = File::default();
        file.write(BLOCK - 2, b"over");
        assert_eq!(file.len(), BLOCK + 2);
        assert_eq!(file.read(BLOCK - 3, 100), b"\0over");
        file.grow(3 * BLOCK);
        assert_eq!(file.read(2 * BLOCK, 2), [0, 0]);
        file.sync();
        file.resize(BLOCK - 1);
        file.grow(BLOCK + 2);
        assert_eq!(file.read(BLOCK - 2, 4), b"o\0\0\0");
        file.write(0, b"lost");
        file.forget();
        assert_eq!(file.len(), 3 * BLOCK);
        assert_eq!(file.read(0, 4), [0; 4]);
        assert_eq!(file.read(BLOCK - 2, 4), b"over");
        assert_eq!(file.read(4 * BLOCK, 4), b"");
        file.resize(10);
        file.sync();
        file.forget();
        file.grow(2 * BLOCK);
        assert_eq!(file.read(BLOCK - 2, 4), [0; 4]);
    }

    #[test]
    fn without_power_nothing_works_and_a_liar_keeps_nothing() {
        let disk = made(|_, _, _| Ok(()));
        assert!(disk.with(|content| content.sync(ROOT)).is_err());
        disk.power_up();
        assert!(disk.with(|content| content.sync(ROOT)).is_ok());
        disk.lie(true);
        let made = disk.with(|content| {
            content.make(ROOT, name("file"), Inode::File(File::default()))?;
            content.sync(ROOT)
        });
        assert!(made.is_ok());
        disk.cut_power();
        assert_eq!(found(&disk, &["file"]), None);
    }
}
