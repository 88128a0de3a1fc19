//! Measures the log against bare appends with fdatasync, in the same run and directory.
//!
//! `cargo run -p regent-raft --example wal_bench [directory] [seconds per measurement]`. Prints
//! appends per second and the ratio, and how long a log of 100 MiB takes to open. The two
//! take turns every few appends, so that what slows down one slows down both.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use regent_raft::store::real_disk::RealDisk;
use regent_raft::store::record::Record;
use regent_raft::store::wal::{Wal, WalOptions};

const ENTRY_BYTES: usize = 256;
/// Appends of one kind before the other has its turn: a loaded machine slows down both alike.
const SLICE_APPENDS: u32 = 20;
const REOPENS: u32 = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let base = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let seconds: f64 = args.next().map_or(Ok(1.0), |text| text.parse())?;
    let dir = base.join(format!("regent-wal-bench-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let outcome = measure(&dir, Duration::from_secs_f64(seconds));
    fs::remove_dir_all(&dir)?;
    outcome
}

fn measure(dir: &Path, time: Duration) -> Result<(), Box<dyn Error>> {
    for batch in [1usize, 64] {
        let mut raw = Raw::create(&dir.join(format!("raw-{batch}")), batch)?;
        let mut log = Log::create(&dir.join(format!("log-{batch}")), batch)?;
        let start = Instant::now();
        while start.elapsed() < 2 * time {
            let (slice, mut spent) = (Instant::now(), 0);
            while spent < SLICE_APPENDS {
                raw.append()?;
                spent += 1;
            }
            raw.time += slice.elapsed();
            let (slice, mut spent) = (Instant::now(), 0);
            while spent < SLICE_APPENDS {
                log.append()?;
                spent += 1;
            }
            log.time += slice.elapsed();
        }
        let rate = |entries: u64, time: Duration| entries as f64 / time.as_secs_f64();
        let (raw, log) = (rate(raw.entries, raw.time), rate(log.entries, log.time));
        println!(
            "batch {batch}: raw {raw:.0} entries/s, log {log:.0} entries/s, ratio {:.2}",
            log / raw
        );
    }
    reopen(&dir.join("reopen"))
}

/// Bare appends to a growing file, each made durable.
struct Raw {
    file: File,
    bytes: Vec<u8>,
    batch: u64,
    entries: u64,
    time: Duration,
}

impl Raw {
    fn create(path: &Path, batch: usize) -> Result<Self, Box<dyn Error>> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let bytes = vec![7u8; ENTRY_BYTES * batch];
        Ok(Self { file, bytes, batch: batch as u64, entries: 0, time: Duration::ZERO })
    }

    fn append(&mut self) -> Result<(), Box<dyn Error>> {
        self.file.write_all(&self.bytes)?;
        self.file.sync_data()?;
        self.entries += self.batch;
        Ok(())
    }
}

/// The same entries through the log.
struct Log {
    wal: Wal,
    batch: usize,
    entries: u64,
    time: Duration,
}

impl Log {
    fn create(dir: &Path, batch: usize) -> Result<Self, Box<dyn Error>> {
        let options = WalOptions { salt: 1, ..Default::default() };
        let (wal, _) = Wal::open(Arc::new(RealDisk), dir, options)?;
        Ok(Self { wal, batch, entries: 0, time: Duration::ZERO })
    }

    fn append(&mut self) -> Result<(), Box<dyn Error>> {
        self.wal.append(&group(self.entries, self.batch))?;
        self.entries += self.batch as u64;
        Ok(())
    }
}

fn group(first: u64, batch: usize) -> Vec<Record> {
    let bytes = Bytes::from(vec![7u8; ENTRY_BYTES]);
    let indexes = first..first + batch as u64;
    indexes.map(|index| Record::Entry { index, bytes: bytes.clone() }).collect()
}

fn reopen(dir: &Path) -> Result<(), Box<dyn Error>> {
    let options = WalOptions { salt: 1, ..Default::default() };
    let (mut wal, _) = Wal::open(Arc::new(RealDisk), dir, options.clone())?;
    let mut entries = 0u64;
    while entries * (ENTRY_BYTES as u64) < 100 << 20 {
        wal.append(&group(entries, 64))?;
        entries += 64;
    }
    drop(wal);
    for _ in 0..REOPENS {
        let start = Instant::now();
        let (wal, recovered) = Wal::open(Arc::new(RealDisk), dir, options.clone())?;
        let took = start.elapsed();
        println!(
            "opened {} entries in {:.1} ms",
            recovered.entries.len(),
            took.as_secs_f64() * 1e3
        );
        drop(wal);
    }
    Ok(())
}
