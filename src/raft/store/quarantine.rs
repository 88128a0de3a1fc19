//! The mark of a disk that went back in time: a node that finds it votes no more.
//!
//! Found out once, it must not be forgotten with the process. The boot counter rises with each
//! start, and those who know what the disk has promised may be down the next time.

use std::io;
use std::path::Path;

use super::identity::{IdentityError, cannot, replace};
use super::vfs::Vfs;

/// Name of the file in the data directory.
pub const NAME: &str = "quarantined";
/// No reason is longer; a file that is was not written here.
const MAX_BYTES: usize = 64 * 1024;

/// Why the data directory `dir` is in quarantine; `None` when it is not. A mark that cannot be
/// understood is a mark.
///
/// # Errors
/// What the disk said; whether there is a mark is unknown then.
pub fn read(vfs: &dyn Vfs, dir: &Path) -> Result<Option<String>, IdentityError> {
    let path = dir.join(NAME);
    match vfs.read(&path) {
        Ok(bytes) => {
            let bytes = &bytes[..bytes.len().min(MAX_BYTES)];
            Ok(Some(String::from_utf8_lossy(bytes).trim_end().to_owned()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(cannot("read", &path)(error)),
    }
}

/// Marks `dir`; durable when it returns.
///
/// # Errors
/// What the disk said.
pub fn mark(vfs: &dyn Vfs, dir: &Path, why: &str) -> Result<(), IdentityError> {
    replace(vfs, dir, NAME, format!("{why}\n").as_bytes())
}

/// Takes the mark away: a new life of the cluster begins here. Durable when it returns.
///
/// # Errors
/// What the disk said.
pub fn lift(vfs: &dyn Vfs, dir: &Path) -> Result<(), IdentityError> {
    let path = dir.join(NAME);
    match vfs.remove(&path) {
        Ok(()) => vfs.sync_dir(dir).map_err(cannot("write", &path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(cannot("remove", &path)(error)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::sim_disk::SimDisk;

    #[test]
    fn a_mark_outlives_a_power_cut_and_so_does_its_end() {
        let dir = Path::new("/data");
        let disk = SimDisk::new();
        disk.create_dir_all(dir).unwrap();
        disk.sync_dir(dir).unwrap();
        assert_eq!(read(&disk, dir).unwrap(), None);
        mark(&disk, dir, "it went back").unwrap();
        for seed in 0..20 {
            let crashed = disk.fork();
            crashed.crash(seed);
            assert_eq!(read(&crashed, dir).unwrap().as_deref(), Some("it went back"));
        }
        lift(&disk, dir).unwrap();
        lift(&disk, dir).unwrap();
        for seed in 0..20 {
            let crashed = disk.fork();
            crashed.crash(seed);
            assert_eq!(read(&crashed, dir).unwrap(), None);
        }
    }
}
