//! A disk in memory with seeded faults and enumerable crash states.
//!
//! It keeps, for each file, what a power cut certainly leaves, and the list of things done since
//! the last sync, sector by sector. A crash is a choice: which of those units had reached the disk.
//! All choices can be listed, so that tests can try every one. No thread, no clock, no randomness
//! but the seeds it is given: the same calls make the same disk.
//!
//! What it assumes of a disk: a sector is written whole or not at all; a rename is atomic; a synced
//! unit stays. What it does not assume: any order among unsynced units, neither within a file, nor
//! among files, nor among names.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::frame::SECTOR_BYTES;
use super::vfs::{OpenMode, VFile, Vfs};

/// What a file was asked to change since it was last synced.
#[derive(Clone, Debug)]
enum FileUnit {
    /// Part of one sector.
    Write { offset: u64, bytes: Vec<u8> },
    /// The length.
    Resize { len: u64 },
}

/// What a directory was asked to change since it was last synced.
#[derive(Clone, Debug)]
enum NameUnit {
    Link { path: PathBuf, file: u64 },
    Unlink { path: PathBuf, file: u64 },
    Rename { from: PathBuf, to: PathBuf, file: u64 },
}

impl NameUnit {
    fn dir(&self) -> Option<&Path> {
        match self {
            Self::Link { path, .. } | Self::Unlink { path, .. } => path.parent(),
            Self::Rename { to, .. } => to.parent(),
        }
    }
}

#[derive(Clone, Debug, Default)]
struct SimFile {
    /// What reads see.
    seen: Vec<u8>,
    /// What is certain to survive.
    durable: Vec<u8>,
    pending: Vec<FileUnit>,
    /// Units whose sync failed: no later sync will write them, a crash may or may not show them.
    forsaken: Vec<FileUnit>,
}

#[derive(Clone, Debug, Default)]
struct Disk {
    files: BTreeMap<u64, SimFile>,
    next_file: u64,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    pending_names: Vec<NameUnit>,
    dirs: Vec<PathBuf>,
    locks: Vec<PathBuf>,
    /// Counts crashes; handles of an earlier life are dead.
    life: u64,
    operations: u64,
    power_off_after: Option<u64>,
    capacity: Option<u64>,
    failing_syncs: u64,
    failing_writes: u64,
    failing_removes: u64,
    short_writes: u64,
}

/// The simulated disk; clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct SimDisk(Arc<Mutex<Disk>>);

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// An independent copy, as it is now; handles stay with the original.
    pub fn fork(&self) -> Self {
        let mut disk = self.0.lock().clone();
        disk.life += 1;
        disk.locks.clear();
        Self(Arc::new(Mutex::new(disk)))
    }

    /// Changes made so far, each call that could leave a trace counting one.
    pub fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// The power goes off after this many further changes: every later call fails and leaves
    /// nothing, until [`SimDisk::crash`].
    pub fn power_off_after(&self, changes: u64) {
        let mut disk = self.0.lock();
        disk.power_off_after = Some(disk.operations + changes);
    }

    /// Limits the disk to this many bytes of file content; `None` lifts the limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.0.lock().capacity = bytes;
    }

    /// Bytes of file content now.
    pub fn used_bytes(&self) -> u64 {
        self.0.lock().used()
    }

    /// The next `count` file syncs fail with EIO, and what they should have written is in doubt.
    pub fn fail_syncs(&self, count: u64) {
        self.0.lock().failing_syncs = count;
    }

    /// The next `count` writes fail with EIO, half-way.
    pub fn fail_writes(&self, count: u64) {
        self.0.lock().failing_writes = count;
    }

    /// The next `count` removals fail with EIO; the files stay.
    pub fn fail_removes(&self, count: u64) {
        self.0.lock().failing_removes = count;
    }

    /// The next `count` writes stop half-way with "no space", although the space was reserved: thin
    /// provisioning and copy-on-write file systems do that.
    pub fn cut_writes_short(&self, count: u64) {
        self.0.lock().short_writes = count;
    }

    /// Flips a bit of a file, durably; `false` if there is no such byte.
    pub fn flip_bit(&self, path: &Path, byte: u64, bit: u8) -> bool {
        let mut disk = self.0.lock();
        let Some(file) = disk.names.get(path).copied() else {
            return false;
        };
        let file = disk.files.entry(file).or_default();
        let at = byte as usize;
        let mask = 1u8 << (bit % 8);
        let mut hit = false;
        for content in [&mut file.seen, &mut file.durable] {
            if let Some(byte) = content.get_mut(at) {
                *byte ^= mask;
                hit = true;
            }
        }
        hit
    }

    /// Replaces a file's content, durably: hostile bytes, a truncated file.
    pub fn overwrite(&self, path: &Path, bytes: &[u8]) {
        let mut disk = self.0.lock();
        let id = match disk.names.get(path) {
            Some(id) => *id,
            None => disk.new_file(),
        };
        disk.names.insert(path.to_path_buf(), id);
        disk.durable_names.insert(path.to_path_buf(), id);
        let file = disk.files.entry(id).or_default();
        *file = SimFile { seen: bytes.to_vec(), durable: bytes.to_vec(), ..SimFile::default() };
    }

    /// Removes a file, durably: somebody else's hand.
    pub fn lose(&self, path: &Path) {
        let mut disk = self.0.lock();
        disk.names.remove(path);
        disk.durable_names.remove(path);
    }

    /// How many unsynced units a crash now would choose from.
    pub fn pending_units(&self) -> usize {
        self.0.lock().pending_units()
    }

    /// The power goes off and comes back: of the unsynced units those survive for which `keep`
    /// says so (it is asked once for each, by number). All handles and locks end.
    pub fn crash_keeping(&self, keep: impl FnMut(usize) -> bool) {
        self.0.lock().crash(keep);
    }

    /// A crash that keeps a random part, by seed: sometimes nothing, sometimes everything.
    pub fn crash(&self, seed: u64) {
        let mut state = seed;
        let style = split_mix(&mut state) % 4;
        self.crash_keeping(|_| match style {
            0 => false,
            1 => true,
            _ => split_mix(&mut state).is_multiple_of(2),
        });
    }

    /// The process is killed, the machine stays up: everything written survives, handles and locks
    /// end.
    pub fn kill(&self) {
        let mut disk = self.0.lock();
        disk.life += 1;
        disk.locks.clear();
    }
}

impl Disk {
    fn used(&self) -> u64 {
        self.names
            .values()
            .filter_map(|file| self.files.get(file))
            .map(|file| file.seen.len() as u64)
            .sum()
    }

    fn new_file(&mut self) -> u64 {
        self.next_file += 1;
        self.files.insert(self.next_file, SimFile::default());
        self.next_file
    }

    /// Counts a change; fails when the power is off.
    fn change(&mut self) -> io::Result<()> {
        if self.power_off_after.is_some_and(|at| self.operations >= at) {
            return Err(io::Error::other("the power is off"));
        }
        self.operations += 1;
        Ok(())
    }

    fn pending_units(&self) -> usize {
        let in_files: usize =
            self.files.values().map(|file| file.forsaken.len() + file.pending.len()).sum();
        in_files + self.pending_names.len()
    }

    fn crash(&mut self, mut keep: impl FnMut(usize) -> bool) {
        let mut unit = 0;
        let mut kept = || {
            unit += 1;
            keep(unit - 1)
        };
        for file in self.files.values_mut() {
            let mut content = std::mem::take(&mut file.durable);
            let units = file.forsaken.drain(..).chain(file.pending.drain(..));
            for change in units {
                if kept() {
                    apply(&mut content, &change);
                }
            }
            file.seen = content.clone();
            file.durable = content;
        }
        for change in std::mem::take(&mut self.pending_names) {
            if kept() {
                self.make_name_durable(&change);
            }
        }
        self.names = self.durable_names.clone();
        let alive: Vec<u64> = self.names.values().copied().collect();
        self.files.retain(|id, _| alive.contains(id));
        self.locks.clear();
        self.life += 1;
        self.power_off_after = None;
        self.failing_syncs = 0;
        self.failing_writes = 0;
        self.failing_removes = 0;
        self.short_writes = 0;
    }

    fn make_name_durable(&mut self, change: &NameUnit) {
        let names = &mut self.durable_names;
        match change {
            NameUnit::Link { path, file } => {
                names.insert(path.clone(), *file);
            }
            NameUnit::Unlink { path, file } => {
                if names.get(path) == Some(file) {
                    names.remove(path);
                }
            }
            NameUnit::Rename { from, to, file } => {
                if names.get(from) == Some(file) {
                    names.remove(from);
                }
                names.insert(to.clone(), *file);
            }
        }
    }
}

fn apply(content: &mut Vec<u8>, unit: &FileUnit) {
    match unit {
        FileUnit::Write { offset, bytes } => {
            let end = *offset as usize + bytes.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[*offset as usize..end].copy_from_slice(bytes);
        }
        FileUnit::Resize { len } => content.resize(*len as usize, 0),
    }
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

/// SplitMix64: a small generator whose only use is to make the same choices again.
pub fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Vfs for SimDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn VFile>> {
        let mut disk = self.0.lock();
        let file = match (disk.names.get(path).copied(), mode) {
            (Some(file), OpenMode::Existing) => file,
            (None, OpenMode::Existing) => return Err(not_found()),
            (Some(file), OpenMode::Create) => {
                disk.change()?;
                let content = disk.files.entry(file).or_default();
                content.seen.clear();
                content.pending.push(FileUnit::Resize { len: 0 });
                file
            }
            (None, OpenMode::Create) => {
                disk.change()?;
                let file = disk.new_file();
                disk.names.insert(path.to_path_buf(), file);
                disk.pending_names.push(NameUnit::Link { path: path.to_path_buf(), file });
                file
            }
        };
        Ok(Box::new(SimHandle { disk: self.clone(), life: disk.life, file }))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let disk = self.0.lock();
        let file = disk.names.get(path).ok_or_else(not_found)?;
        Ok(disk.files.get(file).ok_or_else(not_found)?.seen.clone())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let disk = self.0.lock();
        if !disk.dirs.iter().any(|known| known == dir) {
            return Err(not_found());
        }
        Ok(disk
            .names
            .keys()
            .filter(|path| path.parent() == Some(dir))
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_string()))
            .collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.0.lock();
        if !disk.names.contains_key(from) {
            return Err(not_found());
        }
        disk.change()?;
        let file = disk.names.remove(from).ok_or_else(not_found)?;
        disk.names.insert(to.to_path_buf(), file);
        disk.pending_names.push(NameUnit::Rename {
            from: from.to_path_buf(),
            to: to.to_path_buf(),
            file,
        });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.0.lock();
        if !disk.names.contains_key(path) {
            return Err(not_found());
        }
        disk.change()?;
        if disk.failing_removes > 0 {
            disk.failing_removes -= 1;
            return Err(io::Error::other("simulated EIO on unlink"));
        }
        let file = disk.names.remove(path).ok_or_else(not_found)?;
        disk.pending_names.push(NameUnit::Unlink { path: path.to_path_buf(), file });
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.change()?;
        let changes = std::mem::take(&mut disk.pending_names);
        for change in changes {
            if change.dir() == Some(dir) {
                disk.make_name_durable(&change);
            } else {
                disk.pending_names.push(change);
            }
        }
        Ok(())
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.0.lock();
        for path in dir.ancestors() {
            if !disk.dirs.iter().any(|known| known == path) {
                disk.dirs.push(path.to_path_buf());
            }
        }
        Ok(())
    }

    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        let disk = self.0.lock();
        Ok(disk.capacity.map_or(u64::MAX, |limit| limit.saturating_sub(disk.used())))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send>> {
        let mut disk = self.0.lock();
        if disk.locks.iter().any(|held| held == path) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        disk.locks.push(path.to_path_buf());
        Ok(Box::new(SimLock { disk: self.clone(), life: disk.life, path: path.to_path_buf() }))
    }
}

struct SimLock {
    disk: SimDisk,
    life: u64,
    path: PathBuf,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut disk = self.disk.0.lock();
        if disk.life == self.life {
            disk.locks.retain(|held| *held != self.path);
        }
    }
}

struct SimHandle {
    disk: SimDisk,
    life: u64,
    file: u64,
}

impl SimHandle {
    fn with<T>(&self, work: impl FnOnce(&mut Disk) -> io::Result<T>) -> io::Result<T> {
        let mut disk = self.disk.0.lock();
        if disk.life != self.life || !disk.files.contains_key(&self.file) {
            return Err(io::Error::other("this handle did not survive the crash"));
        }
        work(&mut disk)
    }
}

impl VFile for SimHandle {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|disk| {
            let content = &disk.files[&self.file].seen;
            let start = (offset as usize).min(content.len());
            let end = (start + buf.len()).min(content.len());
            buf[..end - start].copy_from_slice(&content[start..end]);
            Ok(end - start)
        })
    }

    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.with(|disk| {
            disk.change()?;
            let free = disk.capacity.map(|limit| limit.saturating_sub(disk.used()));
            let file = disk.files.entry(self.file).or_default();
            let grows = (offset + buf.len() as u64).saturating_sub(file.seen.len() as u64);
            // A full disk takes what still fits, as a real one does.
            let mut missing = free.map_or(0, |free| grows.saturating_sub(free));
            let fails = disk.failing_writes > 0;
            disk.failing_writes = disk.failing_writes.saturating_sub(1);
            if fails || disk.short_writes > 0 {
                disk.short_writes = disk.short_writes.saturating_sub(u64::from(!fails));
                missing = missing.max(buf.len() as u64 / 2 + 1);
            }
            let taken = &buf[..buf.len().saturating_sub(missing as usize)];
            let mut at = 0usize;
            while at < taken.len() {
                let start = offset + at as u64;
                let room = (SECTOR_BYTES - start % SECTOR_BYTES) as usize;
                let end = (at + room).min(taken.len());
                let unit = FileUnit::Write { offset: start, bytes: taken[at..end].to_vec() };
                apply(&mut file.seen, &unit);
                file.pending.push(unit);
                at = end;
            }
            if fails {
                return Err(io::Error::other("simulated EIO on write"));
            }
            if missing > 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|disk| Ok(disk.files[&self.file].seen.len() as u64))
    }

    fn allocate(&mut self, len: u64) -> io::Result<()> {
        self.with(|disk| {
            disk.change()?;
            let free = disk.capacity.map(|limit| limit.saturating_sub(disk.used()));
            let file = disk.files.entry(self.file).or_default();
            let grows = len.saturating_sub(file.seen.len() as u64);
            if free.is_some_and(|free| grows > free) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            if grows > 0 {
                let unit = FileUnit::Resize { len };
                apply(&mut file.seen, &unit);
                file.pending.push(unit);
            }
            Ok(())
        })
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.with(|disk| {
            disk.change()?;
            let fails = disk.failing_syncs > 0;
            disk.failing_syncs = disk.failing_syncs.saturating_sub(1);
            let file = disk.files.entry(self.file).or_default();
            let pending = std::mem::take(&mut file.pending);
            if fails {
                file.forsaken.extend(pending);
                return Err(io::Error::other("simulated EIO on fdatasync"));
            }
            for unit in &pending {
                apply(&mut file.durable, unit);
            }
            Ok(())
        })
    }
}
