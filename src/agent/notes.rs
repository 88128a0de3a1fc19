//! The notebook on disk: old or new, and fsynced before anything it says is acted on.

use std::io;
use std::path::{Path, PathBuf};

use regent_core::agent::Notebook;
use regent_fencer::twofold;

const FILE: &str = "notebook";

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
        let book = match twofold::read(dir, FILE)? {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other)?,
            None => Notebook { disk: rand::random(), ..Notebook::default() },
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
            twofold::write(&self.dir, FILE, &serde_json::to_vec_pretty(&book)?)?;
            self.book = book;
        }
        Ok(result)
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
