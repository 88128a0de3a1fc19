//! Segment files: their names, their header, and making one so that it appears complete or not at
//! all.
//!
//! A segment appears under its own name only after its header and its first group (the state that
//! lets everything before it be deleted) are synced. So a named file without them is damage, never
//! a crash.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame::{self, SECTOR_BYTES};
use super::record::{u32_at, u64_at};
use super::vfs::{OpenMode, VFile, Vfs};

/// The format that this version writes, and the newest that it reads. Format 2 closes a segment
/// with a continuation (see `frame`); format 1, which has none, is read as well.
pub const FORMAT: u32 = 2;

/// Bytes of the header; the first group follows.
pub(super) const HEADER_BYTES: u64 = SECTOR_BYTES;

/// A segment that is being made because it is needed now.
pub(super) const NEW_NAME: &str = "wal-new.tmp";
/// A segment that is being made ahead of need.
pub(super) const AHEAD_NAME: &str = "wal-ahead.tmp";

const MAGIC: &[u8; 8] = b"RegntWAL";
const USED_BYTES: usize = 52;
/// One step of zeroing a segment ahead: small, so that a group's fdatasync never waits long for it.
const ZERO_STEP_BYTES: u64 = 1024 * 1024;

/// The header of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// Number of the segment; from 1, without gaps.
    pub number: u64,
    /// Number of its first group; all groups below it are in earlier segments, acknowledged.
    pub first_group: u64,
    /// Mixed into the checksums of its groups.
    pub salt: u64,
    /// Size of the file; a shorter one was cut by somebody.
    pub bytes: u64,
}

/// Why a header could not be read.
pub(super) enum HeaderFault {
    /// Written by a newer version.
    Version(u32),
    /// Damaged.
    Damaged(&'static str),
}

impl SegmentHeader {
    /// Its bytes, one sector.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![0u8; HEADER_BYTES as usize];
        out[0..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        out[16..24].copy_from_slice(&self.number.to_le_bytes());
        out[24..32].copy_from_slice(&self.first_group.to_le_bytes());
        out[32..40].copy_from_slice(&self.salt.to_le_bytes());
        out[40..48].copy_from_slice(&self.bytes.to_le_bytes());
        let crc = crc32c::crc32c(&out[..48]);
        out[48..52].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a header.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, HeaderFault> {
        if bytes.len() < HEADER_BYTES as usize {
            return Err(HeaderFault::Damaged("the file is shorter than its header"));
        }
        if &bytes[0..8] != MAGIC {
            return Err(HeaderFault::Damaged("this is not a segment of the log"));
        }
        if u32_at(bytes, 48) != crc32c::crc32c(&bytes[..48]) {
            return Err(HeaderFault::Damaged("the header's checksum is wrong"));
        }
        let format = u32_at(bytes, 8);
        if format > FORMAT {
            return Err(HeaderFault::Version(format));
        }
        if !frame::is_zero(&bytes[USED_BYTES..HEADER_BYTES as usize]) {
            return Err(HeaderFault::Damaged("the header's reserved bytes are not zero"));
        }
        Ok(Self {
            number: u64_at(bytes, 16),
            first_group: u64_at(bytes, 24),
            salt: u64_at(bytes, 32),
            bytes: u64_at(bytes, 40),
        })
    }
}

/// The name of segment `number`.
pub(super) fn name(number: u64) -> String {
    format!("wal-{number:016x}.log")
}

/// The number in a segment's name, if it is one.
pub(super) fn number_of(name: &str) -> Option<u64> {
    let hex = name.strip_prefix("wal-")?.strip_suffix(".log")?;
    if hex.len() != 16 || hex.bytes().any(|b| b.is_ascii_uppercase()) {
        return None;
    }
    u64::from_str_radix(hex, 16).ok()
}

/// Whether `dir` holds a log: a named segment, which is complete. A lock, or what a crash left
/// half-made, is none.
pub(super) fn any(vfs: &dyn Vfs, dir: &Path) -> io::Result<bool> {
    match vfs.list(dir) {
        Ok(names) => Ok(names.iter().any(|name| number_of(name).is_some())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Salt of a segment: differs from segment to segment, so that a block of an older one that comes
/// back under a newer name is not read as its own.
pub(super) fn salt_of(log_salt: u64, number: u64) -> u64 {
    (log_salt ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ number.rotate_left(32)
}

/// A file of zeros that will become a segment.
pub struct ZeroedFile {
    pub(super) file: Box<dyn VFile>,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
}

impl ZeroedFile {
    /// Makes one now: space reserved, but not written, because somebody waits.
    pub(super) fn create_now(vfs: &dyn Vfs, dir: &Path, bytes: u64) -> io::Result<Self> {
        let path = dir.join(NEW_NAME);
        let made = vfs.open(&path, OpenMode::Create).and_then(|mut file| {
            file.allocate(bytes)?;
            Ok(file)
        });
        match made {
            Ok(file) => Ok(Self { file, path, bytes }),
            Err(error) => {
                // A half-made file would only take the space that is missing.
                let _ = vfs.remove(&path);
                Err(error)
            }
        }
    }
}

/// A segment that is being zeroed ahead of need, step by step: overwriting zeros is 1.4 times as
/// fast as extending a file, because no metadata changes. It may run on another thread.
pub struct Preparation {
    vfs: Arc<dyn Vfs>,
    path: PathBuf,
    bytes: u64,
    file: Option<Box<dyn VFile>>,
    written: u64,
}

impl Preparation {
    pub(super) fn new(vfs: Arc<dyn Vfs>, dir: &Path, bytes: u64) -> Self {
        Self { vfs, path: dir.join(AHEAD_NAME), bytes, file: None, written: 0 }
    }

    /// Zeroes a bit more; the file when it is done. After an error the half-made file is gone; the
    /// preparation may be begun anew at any time.
    pub fn step(&mut self) -> io::Result<Option<ZeroedFile>> {
        let result = self.try_step();
        if result.is_err() {
            self.file = None;
            self.written = 0;
            let _ = self.vfs.remove(&self.path);
        }
        result
    }

    /// All steps at once.
    pub fn run(&mut self) -> io::Result<ZeroedFile> {
        loop {
            if let Some(done) = self.step()? {
                return Ok(done);
            }
        }
    }

    fn try_step(&mut self) -> io::Result<Option<ZeroedFile>> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => self.vfs.open(&self.path, OpenMode::Create)?,
        };
        let step = ZERO_STEP_BYTES.min(self.bytes - self.written);
        file.write_all_at(&vec![0u8; step as usize], self.written)?;
        file.sync_data()?;
        self.written += step;
        if self.written < self.bytes {
            self.file = Some(file);
            return Ok(None);
        }
        Ok(Some(ZeroedFile { file, path: self.path.clone(), bytes: self.bytes }))
    }
}
