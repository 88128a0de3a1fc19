//! A disk that lies: it says "synced" and forgets at a power cut. For a mutant.
//!
//! The first sync of a file after it was opened is honest: a segment without its head is noticed at
//! the next start, before anybody can be harmed. What is lost is what was acknowledged: a tail.

use std::any::Any;
use std::io;
use std::path::Path;

use regent_raft::store::sim_disk::SimDisk;
use regent_raft::store::vfs::{OpenMode, VFile, Vfs};

/// Passes everything on but the syncs of files.
pub struct LyingDisk(pub SimDisk);

struct LyingFile {
    file: Box<dyn VFile>,
    synced: bool,
}

impl Vfs for LyingDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn VFile>> {
        Ok(Box::new(LyingFile { file: self.0.open(path, mode)?, synced: false }))
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.0.read(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.sync_dir(dir)
    }
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.0.create_dir_all(dir)
    }
    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.0.free_bytes(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send>> {
        self.0.lock(path)
    }
}

impl VFile for LyingFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }
    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn allocate(&mut self, len: u64) -> io::Result<()> {
        self.file.allocate(len)
    }
    fn sync_data(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.synced, true) { Ok(()) } else { self.file.sync_data() }
    }
}
