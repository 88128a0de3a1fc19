//! Power cuts under the real writer: its thread, its files, the kernel, and below them a file
//! system that forgets what was not synced.
#![allow(clippy::unwrap_used)]

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use regent_forgetful::{Disk, Mount, go_without};
use regent_raft::store::real_disk::RealDisk;
use regent_raft::store::record::Record;
use regent_raft::store::wal::{Recovered, Wal, WalOptions};
use regent_raft::store::writer::Writer;

const CUTS: u64 = 20;

fn mounted(disk: &Disk) -> Mount {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("regent-power-cut-{}-{number}", std::process::id());
    Mount::at(disk, &std::env::temp_dir().join(name))
}

/// What was acknowledged, as the callbacks said.
#[derive(Clone, Debug, Default)]
struct Acknowledged {
    entry: Option<u64>,
    term: Option<u64>,
    requests: u64,
}

fn options() -> WalOptions {
    // Small, so that cuts meet new segments too.
    WalOptions { segment_bytes: 128 * 1024, salt: 77 }
}

fn open(dir: &Path) -> (Wal, Recovered) {
    Wal::open(Arc::new(RealDisk), dir, options()).expect("after a power cut the log must open")
}

fn body(index: u64) -> Bytes {
    Bytes::from(vec![(index % 251) as u8; 40 + (index * 37 % 900) as usize])
}

fn term_of(vote: &Bytes) -> u64 {
    String::from_utf8_lossy(vote).parse().unwrap()
}

/// Loads the writer until `requests` were acknowledged, cuts the power, and says what had been.
fn load_and_cut(wal: Wal, disk: &Disk, before: &Acknowledged, requests: u64) -> Acknowledged {
    let first = wal.last_index().map_or(0, |last| last + 1);
    let writer = Writer::spawn_thread(wal).unwrap();
    let acknowledged = Arc::new(Mutex::new(before.clone()));
    let goal = before.requests + requests;
    let (mut index, mut term) = (first, before.term.unwrap_or(0));
    let deadline = Instant::now() + Duration::from_secs(60);
    while acknowledged.lock().requests < goal {
        assert!(Instant::now() < deadline, "the writer does not get on: {}", writer.problem());
        if writer.queued() > 64 {
            std::thread::yield_now();
            continue;
        }
        let mut records = vec![Record::Entry { index, bytes: body(index) }];
        let entry = index;
        index += 1;
        if index.is_multiple_of(7) {
            // Above every term of an earlier life, acknowledged or not.
            term += 1000;
            records.push(Record::Vote(Bytes::from(term.to_string())));
        }
        if index.is_multiple_of(200) {
            let to = index - 150;
            records.push(Record::Purge { index: to, bytes: Bytes::from(to.to_string()) });
        }
        let noted = acknowledged.clone();
        writer.submit(
            records,
            Box::new(move |outcome: io::Result<()>| {
                if outcome.is_ok() {
                    let mut noted = noted.lock();
                    noted.entry = Some(entry);
                    noted.term = Some(term);
                    noted.requests += 1;
                }
            }),
        );
    }
    disk.cut_power();
    writer.close();
    let acknowledged = acknowledged.lock();
    acknowledged.clone()
}

/// What a log after a cut must hold; says what is lost.
fn check(found: &Recovered, acknowledged: &Acknowledged) -> Result<(), String> {
    let last = found.entries.last().map(|(index, _)| *index);
    if last < acknowledged.entry {
        return Err(format!(
            "entry {:?} was acknowledged, {last:?} is the last",
            acknowledged.entry
        ));
    }
    let term = found.vote.as_ref().map(term_of);
    if term.unwrap_or(0) < acknowledged.term.unwrap_or(0) {
        return Err(format!("vote {:?} was acknowledged, {term:?} is there", acknowledged.term));
    }
    match found.entries.iter().find(|(index, bytes)| *bytes != body(*index)) {
        Some((index, _)) => Err(format!("entry {index} is not what was written")),
        None => Ok(()),
    }
}

#[test]
fn twenty_power_cuts_under_load_lose_no_acknowledged_entry_and_no_vote() {
    if go_without() {
        return;
    }
    let disk = Disk::default();
    let mut acknowledged = Acknowledged::default();
    for cut in 0..CUTS {
        let mount = mounted(&disk);
        let (wal, found) = open(&mount.path);
        check(&found, &acknowledged).unwrap_or_else(|lost| panic!("after cut {cut}: {lost}"));
        acknowledged.term = found.vote.as_ref().map(term_of);
        acknowledged = load_and_cut(wal, &disk, &acknowledged, 40 + cut * 13 % 170);
    }
    let mount = mounted(&disk);
    let (_wal, found) = open(&mount.path);
    check(&found, &acknowledged).unwrap();
    assert!(found.purged.is_some());
    assert!(acknowledged.requests >= CUTS * 40);
}

#[test]
fn a_disk_that_only_pretends_to_sync_is_found_out() {
    if go_without() {
        return;
    }
    let disk = Disk::default();
    let mount = mounted(&disk);
    let (wal, _) = open(&mount.path);
    disk.lie(true);
    let acknowledged = load_and_cut(wal, &disk, &Acknowledged::default(), 100);
    drop(mount);
    disk.lie(false);
    let mount = mounted(&disk);
    // It may be refused as well: the names of later segments are gone, or their content.
    if let Ok((_wal, found)) = Wal::open(Arc::new(RealDisk), &mount.path, options()) {
        assert!(check(&found, &acknowledged).is_err(), "the loss was not noticed");
    }
}
