//! Measures the log against bare appends with fdatasync, in the same run and directory.
//!
//! `cargo run -p regent-raft --example wal_bench [directory] [seconds per measurement]`. Prints
//! appends per second and the ratio, and how long a log of 100 MiB takes to open. The rounds
//! alternate, so that a disk that slows down slows both.

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
const ROUNDS: u32 = 3;

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
        let (mut raw, mut wal) = (0.0, 0.0);
        for round in 0..ROUNDS {
            raw += raw_appends(&dir.join(format!("raw-{batch}-{round}")), batch, time)?;
            wal += wal_appends(&dir.join(format!("wal-{batch}-{round}")), batch, time)?;
        }
        let (raw, wal) = (raw / f64::from(ROUNDS), wal / f64::from(ROUNDS));
        println!(
            "batch {batch}: raw {raw:.0} entries/s, log {wal:.0} entries/s, ratio {:.2}",
            wal / raw
        );
    }
    reopen(&dir.join("reopen"))
}

fn raw_appends(path: &Path, batch: usize, time: Duration) -> Result<f64, Box<dyn Error>> {
    let mut file: File = OpenOptions::new().create(true).append(true).open(path)?;
    let bytes = vec![7u8; ENTRY_BYTES * batch];
    let start = Instant::now();
    let mut entries = 0usize;
    while start.elapsed() < time {
        file.write_all(&bytes)?;
        file.sync_data()?;
        entries += batch;
    }
    let rate = entries as f64 / start.elapsed().as_secs_f64();
    fs::remove_file(path)?;
    Ok(rate)
}

fn group(first: u64, batch: usize) -> Vec<Record> {
    let bytes = Bytes::from(vec![7u8; ENTRY_BYTES]);
    (first..first + batch as u64)
        .map(|index| Record::Entry { index, bytes: bytes.clone() })
        .collect()
}

fn wal_appends(dir: &Path, batch: usize, time: Duration) -> Result<f64, Box<dyn Error>> {
    let (mut wal, _) =
        Wal::open(Arc::new(RealDisk), dir, WalOptions { salt: 1, ..Default::default() })?;
    let start = Instant::now();
    let mut entries = 0u64;
    while start.elapsed() < time {
        wal.append(&group(entries, batch))?;
        entries += batch as u64;
    }
    let rate = entries as f64 / start.elapsed().as_secs_f64();
    drop(wal);
    fs::remove_dir_all(dir)?;
    Ok(rate)
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
    for _ in 0..ROUNDS {
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
