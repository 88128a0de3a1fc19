//! Files that outlive a power cut: written beside, synced, renamed, and the directory synced.
//!
//! When this process is root, what it writes belongs to the server's user.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::error::DiskError;

/// Who owns what is written: none when this process already is that user.
pub(super) type Owner = Option<(u32, u32)>;

fn failed<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> DiskError + 'a {
    move |source| DiskError::Io { what, path: path.to_owned(), source }
}

/// The directory a path is in.
pub(super) fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or_else(|| Path::new("/"))
}

/// Makes the names in a directory survive.
pub(super) fn sync_dir(dir: &Path) -> Result<(), DiskError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(failed("sync", dir))
}

/// Replaces a file's whole content, readable by its owner alone; the new one is there when this
/// returns. After an error or a power cut the file is the old one or the new one.
pub(super) fn write(path: &Path, text: &str, owner: Owner) -> Result<(), DiskError> {
    write_whole(path, text, owner)?;
    sync_dir(parent(path))
}

/// As [`write`], but which of the two it is after a power cut is open until [`sync`].
pub(super) fn write_whole(path: &Path, text: &str, owner: Owner) -> Result<(), DiskError> {
    rename_over(path, text, owner, File::sync_all)
}

/// As [`write_whole`] without a flush: after a power cut it may be empty, too.
pub(super) fn write_unsynced(path: &Path, text: &str, owner: Owner) -> Result<(), DiskError> {
    rename_over(path, text, owner, |_| Ok(()))
}

fn rename_over(
    path: &Path,
    text: &str,
    owner: Owner,
    flush: impl FnOnce(&File) -> io::Result<()>,
) -> Result<(), DiskError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".regent-new");
    let beside = Path::new(&beside);
    let put = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(beside)?;
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
        }
        file.write_all(text.as_bytes())?;
        flush(&file)?;
        fs::rename(beside, path)
    };
    put().map_err(failed("write", path))
}

/// Makes what [`write_whole`] or [`write_unsynced`] put there survive.
pub(super) fn sync(path: &Path) -> Result<(), DiskError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(failed("sync", path))?;
    sync_dir(parent(path))
}

/// As [`write`], unless the file has that content already.
pub(super) fn write_if_other(path: &Path, text: &str, owner: Owner) -> Result<(), DiskError> {
    match fs::read_to_string(path) {
        Ok(now) if now == text => Ok(()),
        _ => write(path, text, owner),
    }
}

/// The text of a file; none when there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<String>, DiskError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("read", path)(e)),
    }
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), DiskError> {
    match fs::remove_file(path) {
        Ok(()) => sync_dir(parent(path)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed("remove", path)(e)),
    }
}

/// Makes a directory for its owner alone, if it is not there.
pub(super) fn make_dir(dir: &Path, owner: Owner) -> Result<(), DiskError> {
    if dir.is_dir() {
        return Ok(());
    }
    let make = || {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        match owner {
            Some((uid, gid)) => std::os::unix::fs::chown(dir, Some(uid), Some(gid)),
            None => Ok(()),
        }
    };
    make().map_err(failed("create", dir))?;
    sync_dir(parent(dir))
}

/// The names in a directory; none when there is no such directory.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, DiskError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed("list", dir)(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("list", dir))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Copies a file, synced.
pub(super) fn copy(from: &Path, to: &Path, owner: Owner) -> Result<u64, DiskError> {
    let put = || {
        let bytes = fs::copy(from, to)?;
        let file = File::open(to)?;
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
        }
        file.sync_all()?;
        Ok(bytes)
    };
    put().map_err(failed("copy", from))
}
