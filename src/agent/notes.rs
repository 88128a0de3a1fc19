//! The notebook on disk: replaced whole, fsynced, before anything it says is acted on.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use regent_core::agent::Notebook;

const FILE: &str = "notebook.json";

/// The notebook and where it lies.
#[derive(Debug)]
pub struct Notes {
    dir: PathBuf,
    /// What is on disk.
    pub book: Notebook,
}

impl Notes {
    /// Reads it, or makes a new one with a disk id of its own.
    ///
    /// # Errors
    /// The directory cannot be made, the file cannot be read or is damaged: then nothing is known
    /// of what was promised, and nobody may guess.
    pub fn open(dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let book = match std::fs::read(dir.join(FILE)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Notebook { disk: rand::random(), ..Notebook::default() }
            }
            Err(error) => return Err(error),
        };
        Ok(Self { dir: dir.to_owned(), book })
    }

    /// Changes it, and returns when the disk has it.
    ///
    /// # Errors
    /// The disk's; the notebook in memory is then as before.
    pub fn change<T>(&mut self, change: impl FnOnce(&mut Notebook) -> T) -> io::Result<T> {
        let mut book = self.book.clone();
        let result = change(&mut book);
        if book != self.book {
            self.write(&book)?;
            self.book = book;
        }
        Ok(result)
    }

    fn write(&self, book: &Notebook) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(book)?;
        let fresh = self.dir.join(format!("{FILE}.new"));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, self.dir.join(FILE))?;
        File::open(&self.dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_noted_is_there_after_a_restart_and_damage_is_an_error() {
        let name = format!("regent-notes-{}-{}", std::process::id(), rand::random::<u64>());
        let dir = std::env::temp_dir().join(name);
        let mut notes = Notes::open(&dir).unwrap();
        let disk = notes.book.disk;
        notes.change(|book| book.boot = 7).unwrap();
        let again = Notes::open(&dir).unwrap();
        assert_eq!((again.book.boot, again.book.disk), (7, disk));
        std::fs::write(dir.join(FILE), b"{").unwrap();
        assert!(Notes::open(&dir).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
