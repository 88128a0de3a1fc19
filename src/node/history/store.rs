//! The sled store itself: records by number, each verified when it is read.
//!
//! sled 0.34 is known to panic on some damaged files; whoever calls this must expect that (see
//! [`guarded`]). Its `flush` does not sync the disk, which is fine here: what a power cut takes is
//! fetched again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use regent_core::state::audit::AuditRecord;

/// sled's page cache: the newest records are read from the replicated window, so old ones may be
/// slow.
const CACHE_BYTES: u64 = 4 * 1024 * 1024;
/// Written into the store; another one is set aside.
const FORMAT: &[u8] = b"regent history 1";
const FORMAT_KEY: &[u8] = b"format";

/// The store is of no use any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("sled refuses")]
    Sled(#[from] sled::Error),
    #[error("sled panicked: {0}")]
    Panic(String),
    #[error("it is of another format")]
    Format,
}

/// What lies under a number.
pub(super) enum Found {
    Good(Box<AuditRecord>),
    /// Its bytes are not a record, or not that one.
    Bad,
    Nothing,
}

pub(super) struct Store {
    db: sled::Db,
    records: sled::Tree,
}

/// Runs `f` and turns a panic of sled's into an error.
pub(super) fn guarded<T>(f: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    // Safe to go on after a panic: the store is thrown away then.
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(StoreError::Panic(text.unwrap_or("no message").to_owned()))
    })
}

fn key(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

impl Store {
    /// Opens or creates the store in `dir`.
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        guarded(|| {
            let db = sled::Config::new()
                .path(dir)
                .cache_capacity(CACHE_BYTES)
                .mode(sled::Mode::LowSpace)
                .flush_every_ms(None)
                .open()?;
            match db.get(FORMAT_KEY)? {
                Some(format) if format == FORMAT => {}
                Some(_) => return Err(StoreError::Format),
                None => {
                    db.insert(FORMAT_KEY, FORMAT)?;
                }
            }
            let records = db.open_tree("records")?;
            Ok(Self { db, records })
        })
    }

    pub(super) fn get(&self, number: u64) -> Result<Found, StoreError> {
        guarded(|| {
            let bytes = self.records.get(key(number))?;
            Ok(bytes.map_or(Found::Nothing, |bytes| check(number, &bytes)))
        })
    }

    /// Writes records; all of them or, after a crash, any of them.
    pub(super) fn put<'a>(
        &self,
        records: impl IntoIterator<Item = &'a AuditRecord>,
    ) -> Result<(), StoreError> {
        guarded(|| {
            let mut batch = sled::Batch::default();
            for record in records {
                let bytes = postcard::to_stdvec(record).expect("a record has only plain fields");
                batch.insert(&key(record.number), bytes);
            }
            Ok(self.records.apply_batch(batch)?)
        })
    }

    /// Removes `from` to `to`, both included.
    pub(super) fn remove(&self, from: u64, to: u64) -> Result<(), StoreError> {
        guarded(|| {
            for entry in self.records.range(key(from)..=key(to)).keys() {
                self.records.remove(entry?)?;
            }
            Ok(())
        })
    }

    /// Calls `seen` with each number in order: `true` for a good record that follows the good one
    /// before it.
    pub(super) fn scan(&self, mut seen: impl FnMut(u64, bool)) -> Result<(), StoreError> {
        guarded(|| {
            let mut before: Option<(u64, [u8; 32])> = None;
            for entry in &self.records {
                let (key, bytes) = entry?;
                let Ok(number) = <[u8; 8]>::try_from(key.as_ref()).map(u64::from_be_bytes) else {
                    continue;
                };
                let Found::Good(record) = check(number, &bytes) else {
                    before = None;
                    seen(number, false);
                    continue;
                };
                let follows = before.is_none_or(|(last, hash)| {
                    last.checked_add(1) != Some(number) || record.before == hash
                });
                before = Some((number, record.hash));
                seen(number, follows);
            }
            Ok(())
        })
    }

    /// Hands what is buffered to the kernel.
    pub(super) fn flush(&self) -> Result<(), StoreError> {
        guarded(|| Ok(self.db.flush().map(|_| ())?))
    }

    pub(super) fn bytes(&self) -> u64 {
        self.db.size_on_disk().unwrap_or(0)
    }
}

fn check(number: u64, bytes: &[u8]) -> Found {
    match postcard::from_bytes::<AuditRecord>(bytes) {
        Ok(record) if record.number == number && record.computed_hash() == record.hash => {
            Found::Good(Box::new(record))
        }
        _ => Found::Bad,
    }
}

/// Moves a store that is of no use out of the way, so that somebody can look at it; one is kept.
pub(super) fn set_aside(dir: &Path) -> std::io::Result<PathBuf> {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".set-aside");
    let aside = dir.with_file_name(name);
    if aside.exists() {
        std::fs::remove_dir_all(&aside)?;
    }
    match std::fs::rename(dir, &aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(aside),
    }
}
