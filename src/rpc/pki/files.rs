//! Writing files so that a reader sees the old content or the new one, never half of it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::PkiError;

/// Mode of a key.
pub(super) const SECRET: u32 = 0o600;
/// Mode of a certificate.
pub(super) const PUBLIC: u32 = 0o644;

pub(super) fn make_dir(dir: &Path) -> Result<(), PkiError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| PkiError::File {
        what: "make",
        path: dir.to_owned(),
        source,
    })
}

pub(super) fn read_text(path: &Path) -> Result<String, PkiError> {
    std::fs::read_to_string(path).map_err(|source| PkiError::File {
        what: "read",
        path: path.to_owned(),
        source,
    })
}

/// Writes a file that must not exist yet.
pub(super) fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let temporary = write_beside(path, text, mode)?;
    // A hard link, unlike a rename, fails when the name is taken: no race can overwrite a key.
    let linked = std::fs::hard_link(&temporary, path);
    let _ = std::fs::remove_file(&temporary);
    match linked {
        Ok(()) => sync_dir(path),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            Err(PkiError::Exists { path: path.to_owned() })
        }
        Err(source) => Err(PkiError::File { what: "write", path: path.to_owned(), source }),
    }
}

/// Writes a file, replacing the one that is there.
pub(super) fn write_over(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let temporary = write_beside(path, text, mode)?;
    move_over(&temporary, path)
}

/// Gives a file another name, replacing what had it.
pub(super) fn move_over(from: &Path, to: &Path) -> Result<(), PkiError> {
    std::fs::rename(from, to).map_err(|source| PkiError::File {
        what: "write",
        path: to.to_owned(),
        source,
    })?;
    sync_dir(to)
}

fn write_beside(path: &Path, text: &str, mode: u32) -> Result<PathBuf, PkiError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let fail = |source| PkiError::File { what: "write", path: path.to_owned(), source };
    let write = || {
        // Left over by a crash of a process with the same id.
        let _ = std::fs::remove_file(&temporary);
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    if let Err(source) = write() {
        let _ = std::fs::remove_file(&temporary);
        return Err(fail(source));
    }
    Ok(temporary)
}

fn sync_dir(path: &Path) -> Result<(), PkiError> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| PkiError::File {
        what: "write",
        path: dir.to_owned(),
        source,
    })
}
