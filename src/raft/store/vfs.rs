//! The disk as a trait: what the store may ask of it, and what each call promises about a power cut.
//!
//! The store must never touch `std::fs` itself: crash states are enumerated by putting a simulated
//! disk behind this trait, and a call that goes around it would go around the proof as well.

use std::any::Any;
use std::io;
use std::path::Path;

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// It must exist.
    Existing,
    /// It is made, or emptied if it exists. Its name is durable only after [`Vfs::sync_dir`].
    Create,
}

/// A file system.
pub trait Vfs: Send + Sync + 'static {
    /// Opens a file for reading and writing.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn VFile>>;

    /// Reads a whole file; `NotFound` when it does not exist.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// The names in a directory, sorted; `NotFound` when it does not exist.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Renames within one directory, replacing the target. Atomic; durable after
    /// [`Vfs::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file; durable after [`Vfs::sync_dir`].
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names of a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes a directory and its parents. Durable when it returns.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// Bytes that can still be written below `dir`.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;

    /// Takes an exclusive lock named by a file, held until the guard is dropped; `WouldBlock` when
    /// somebody else (another process on the same data directory) has it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send>>;
}

/// An open file. Reads see writes at once; a power cut keeps any subset of the sectors that were
/// written after the last [`VFile::sync_data`].
pub trait VFile: Send {
    /// Fills `buf` from `offset`; less than `buf.len()` only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `buf` at `offset`. After an error any part of it may have been written.
    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Grows the file to `len` bytes of zeros, with the space reserved, so that later writes below
    /// `len` do not fail for want of it. Durable after [`VFile::sync_data`].
    fn allocate(&mut self, len: u64) -> io::Result<()>;

    /// `fdatasync`: what was written, and the length, survive a power cut. A failure must never be
    /// retried: the kernel may have dropped the pages and marked them clean.
    fn sync_data(&mut self) -> io::Result<()>;
}

/// Whether an error says that the disk (or a quota) is full: the one kind that may heal by itself.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
