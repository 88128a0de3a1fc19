//! Snapshot files: written aside, checksummed, synced, renamed; the last two are kept.
//!
//! A file under its own name is complete. One whose checksum is wrong was damaged later; it is
//! passed over with a message, never repaired and never half read.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::record::{u32_at, u64_at};
use super::vfs::{OpenMode, Vfs};

/// Snapshots that are kept: the newest, and one to fall back on. The log is purged only as far as
/// the older one reaches (see `keeper`), or it would be nothing to fall back on.
pub const KEPT_SNAPSHOTS: usize = 2;

const MAGIC: &[u8; 8] = b"RegntSnp";
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 40;
const TEMPORARY_NAME: &str = "snapshot-new.tmp";

/// A snapshot as it was saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSnapshot {
    /// Meta data as the layer above writes it.
    pub meta: Bytes,
    /// The snapshot itself.
    pub data: Bytes,
}

/// What was found at [`SnapshotDir::load_newest`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadedSnapshot {
    /// The newest intact one. It may be older than the log's purge mark if a newer one was
    /// damaged: then entries are missing, and the node must not start.
    pub newest: Option<StoredSnapshot>,
    /// Meta data of the intact one before it, to fall back on; only [`SnapshotDir::load_kept`]
    /// looks for it.
    pub fallback: Option<Bytes>,
    /// One message for each file that was damaged and passed over.
    pub refused: Vec<String>,
}

/// The directory of snapshots.
pub struct SnapshotDir {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    next: u64,
    /// Files that were found damaged: they do not count as kept, and go with the next save.
    damaged: BTreeSet<u64>,
}

impl SnapshotDir {
    /// Opens the directory, making it if need be, and clears away what a crash left half-made.
    pub fn open(vfs: Arc<dyn Vfs>, dir: &Path) -> io::Result<Self> {
        vfs.create_dir_all(dir)?;
        match vfs.remove(&dir.join(TEMPORARY_NAME)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // A name may be in the directory and not on the disk yet.
        vfs.sync_dir(dir)?;
        let mut snapshots = Self { vfs, dir: dir.to_path_buf(), next: 1, damaged: BTreeSet::new() };
        if let Some(newest) = snapshots.numbers()?.last() {
            snapshots.next = newest + 1;
        }
        Ok(snapshots)
    }

    /// Saves a snapshot durably, then removes damaged ones, and all others but the last two. After
    /// an error the snapshots that were there are still there; with a full disk it may simply be
    /// tried again later.
    pub fn save(&mut self, meta: &[u8], data: &[u8]) -> io::Result<()> {
        let temporary = self.dir.join(TEMPORARY_NAME);
        let path = self.dir.join(name(self.next));
        let written = self.write(&temporary, meta, data);
        if let Err(error) = written.and_then(|()| self.vfs.rename(&temporary, &path)) {
            // A half-made file would only take space.
            let _ = self.vfs.remove(&temporary);
            return Err(error);
        }
        // The number is used up even if the directory cannot be synced: the name is taken.
        self.next += 1;
        self.vfs.sync_dir(&self.dir)?;
        // The new one is saved; an old one that stays takes space, and is tried again next time.
        if let Err(error) = self.remove_old() {
            tracing::warn!(%error, dir = %self.dir.display(), "an old snapshot was not removed");
        }
        Ok(())
    }

    /// Reads the newest intact snapshot.
    pub fn load_newest(&mut self) -> io::Result<LoadedSnapshot> {
        self.load(false)
    }

    /// Reads the newest intact snapshot, and the meta data of the one to fall back on.
    pub fn load_kept(&mut self) -> io::Result<LoadedSnapshot> {
        self.load(true)
    }

    fn load(&mut self, with_fallback: bool) -> io::Result<LoadedSnapshot> {
        let mut loaded = LoadedSnapshot::default();
        for number in self.numbers()?.into_iter().rev() {
            let path = self.dir.join(name(number));
            match decode(&Bytes::from(self.vfs.read(&path)?)) {
                Ok(snapshot) if loaded.newest.is_some() => {
                    loaded.fallback = Some(snapshot.meta);
                    break;
                }
                Ok(snapshot) => loaded.newest = Some(snapshot),
                Err(what) => {
                    self.damaged.insert(number);
                    loaded.refused.push(format!(
                        "{}: {what}; an older snapshot is used if the log still continues it",
                        path.display()
                    ));
                }
            }
            if loaded.newest.is_some() && !with_fallback {
                break;
            }
        }
        Ok(loaded)
    }

    /// Somebody else's hand, for tests.
    #[cfg(test)]
    pub(crate) fn damage_newest(&self) {
        let newest = *self.numbers().expect("readable").last().expect("there is one");
        let mut file =
            self.vfs.open(&self.dir.join(name(newest)), OpenMode::Existing).expect("there");
        file.write_all_at(b"x", 50).expect("there is space");
    }

    fn write(&self, path: &Path, meta: &[u8], data: &[u8]) -> io::Result<()> {
        let mut file = self.vfs.open(path, OpenMode::Create)?;
        let head = encode_head(meta, data)?;
        file.write_all_at(&head, 0)?;
        file.write_all_at(meta, head.len() as u64)?;
        file.write_all_at(data, (head.len() + meta.len()) as u64)?;
        file.sync_data()
    }

    fn remove_old(&mut self) -> io::Result<()> {
        let numbers = self.numbers()?;
        let (damaged, intact): (Vec<u64>, Vec<u64>) =
            numbers.into_iter().partition(|number| self.damaged.contains(number));
        let excess = intact.len().saturating_sub(KEPT_SNAPSHOTS);
        for number in damaged.iter().chain(&intact[..excess]) {
            self.vfs.remove(&self.dir.join(name(*number)))?;
            self.damaged.remove(number);
        }
        Ok(())
    }

    fn numbers(&self) -> io::Result<Vec<u64>> {
        let names = self.vfs.list(&self.dir)?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|n| number_of(n)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }
}

/// Whether `dir` holds a snapshot under its own name, which is complete.
pub(super) fn any(vfs: &dyn Vfs, dir: &Path) -> io::Result<bool> {
    match vfs.list(dir) {
        Ok(names) => Ok(names.iter().any(|name| number_of(name).is_some())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn name(number: u64) -> String {
    format!("snapshot-{number:016x}.snap")
}

fn number_of(name: &str) -> Option<u64> {
    let hex = name.strip_prefix("snapshot-")?.strip_suffix(".snap")?;
    u64::from_str_radix(hex, 16).ok().filter(|_| hex.len() == 16)
}

fn encode_head(meta: &[u8], data: &[u8]) -> io::Result<Vec<u8>> {
    let meta_bytes = u32::try_from(meta.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the meta data is too large"))?;
    let mut head = Vec::with_capacity(HEADER_BYTES);
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&FORMAT.to_le_bytes());
    head.extend_from_slice(&meta_bytes.to_le_bytes());
    head.extend_from_slice(&(data.len() as u64).to_le_bytes());
    head.extend_from_slice(&crc32c::crc32c(meta).to_le_bytes());
    head.extend_from_slice(&crc32c::crc32c(data).to_le_bytes());
    head.extend_from_slice(&[0; 4]);
    let crc = crc32c::crc32c(&head);
    head.extend_from_slice(&crc.to_le_bytes());
    Ok(head)
}

fn decode(bytes: &Bytes) -> Result<StoredSnapshot, String> {
    if bytes.len() < HEADER_BYTES || &bytes[..8] != MAGIC {
        return Err("this is not a snapshot file".to_string());
    }
    if u32_at(bytes, 36) != crc32c::crc32c(&bytes[..36]) {
        return Err("the header's checksum is wrong".to_string());
    }
    let format = u32_at(bytes, 8);
    if format != FORMAT {
        return Err(format!("format {format} is not known to this version"));
    }
    let meta_end = HEADER_BYTES.saturating_add(u32_at(bytes, 12) as usize);
    let data_bytes = usize::try_from(u64_at(bytes, 16)).unwrap_or(usize::MAX);
    if meta_end.saturating_add(data_bytes) != bytes.len() {
        return Err(format!(
            "{} bytes long, {} expected",
            bytes.len(),
            meta_end.saturating_add(data_bytes)
        ));
    }
    let meta = bytes.slice(HEADER_BYTES..meta_end);
    let data = bytes.slice(meta_end..);
    if crc32c::crc32c(&meta) != u32_at(bytes, 24) || crc32c::crc32c(&data) != u32_at(bytes, 28) {
        return Err("the checksum is wrong".to_string());
    }
    Ok(StoredSnapshot { meta, data })
}
