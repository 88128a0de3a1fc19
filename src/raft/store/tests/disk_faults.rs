//! Disks that are full or failing.

use std::sync::Arc;

use crate::store::segment;
use crate::store::sim_disk::SimDisk;
use crate::store::tests::workload::{apply, dir, entry, open, options, purge, same, vote};
use crate::store::vfs::Vfs;
use crate::store::wal::{OpenError, Presence, Recovered, Wal, WalError};

#[test]
fn a_full_disk_acknowledges_nothing_and_heals() {
    let disk = SimDisk::new();
    disk.set_capacity(Some(3 * options().segment_bytes));
    let (mut wal, _) = open(&disk).unwrap();
    let mut expected = Recovered::default();
    let mut index = 0;
    let full = loop {
        let group = [entry(index, 400)];
        match wal.append(&group) {
            Ok(()) => apply(&mut expected, &group),
            Err(error) => break error,
        }
        index += 1;
    };
    assert!(matches!(full, WalError::Full(_)), "{full}");
    assert!(wal.append(&[entry(index, 400)]).is_err(), "the disk is still full");

    let crashed = disk.fork();
    crashed.crash(1);
    let (_, found) = open(&crashed).unwrap();
    assert!(same(&found, &expected));

    disk.set_capacity(None);
    let group = [entry(index, 400)];
    wal.append(&group).unwrap();
    apply(&mut expected, &group);
    drop(wal);
    disk.crash_keeping(|_| false);
    let (_, found) = open(&disk).unwrap();
    assert!(same(&found, &expected));
}

#[test]
fn on_a_full_disk_a_purge_mark_and_a_vote_still_fit_and_make_room() {
    let disk = SimDisk::new();
    disk.set_capacity(Some(2 * options().segment_bytes));
    let (mut wal, _) = open(&disk).unwrap();
    let mut index = 0;
    while wal.append(&[entry(index, 200)]).is_ok() {
        index += 1;
    }
    wal.append(&[vote(9)]).expect("a vote fits into the reserve");
    wal.append(&[purge(index - 1)]).expect("a purge mark fits into the reserve");
    wal.append(&[entry(index, 200)]).expect("purging made room");
    drop(wal);
    disk.crash_keeping(|_| false);
    let (_, found) = open(&disk).unwrap();
    assert_eq!(found.entries.len(), 1);
    assert!(found.vote.is_some());
}

#[test]
fn a_write_that_stops_half_way_is_cleaned_up_before_the_next() {
    let disk = SimDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    disk.cut_writes_short(1);
    assert!(matches!(wal.append(&[entry(0, 3000)]), Err(WalError::Full(_))));
    // A shorter group goes where the longer one was begun.
    wal.append(&[vote(2)]).unwrap();
    drop(wal);
    disk.crash_keeping(|_| true);
    let (_, found) = open(&disk).unwrap();
    assert!(found.entries.is_empty());
    assert!(found.vote.is_some());
    assert_eq!(found.cut_bytes, 0);
}

#[test]
fn a_failed_write_is_final() {
    let disk = SimDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    wal.append(&[vote(1)]).unwrap();
    disk.fail_writes(1);
    for _ in 0..3 {
        assert!(matches!(wal.append(&[vote(2)]), Err(WalError::Fatal(_))));
    }
    drop(wal);
    for seed in 0..20 {
        let crashed = disk.fork();
        crashed.crash(seed);
        let (_, found) = open(&crashed).unwrap();
        assert_eq!(found.vote.as_deref(), Some(b"term 1".as_slice()), "seed {seed}");
    }
}

#[test]
fn a_failed_sync_is_final() {
    let disk = SimDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    wal.append(&[vote(1)]).unwrap();
    disk.fail_syncs(1);
    assert!(matches!(wal.append(&[vote(2)]), Err(WalError::Fatal(_))));
    // The disk would sync again, and lie: what it dropped, it now calls clean.
    for _ in 0..3 {
        assert!(matches!(wal.append(&[vote(3)]), Err(WalError::Fatal(_))));
    }
    assert!(matches!(wal.sync_group(), Err(WalError::Fatal(_))));
    drop(wal);
    disk.crash_keeping(|_| false);
    let (_, found) = open(&disk).unwrap();
    assert!(same(&found, &Recovered { vote: Some("term 1".into()), ..Recovered::default() }));
}

#[test]
fn purging_removes_whole_segments_and_only_those() {
    let disk = SimDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    let mut expected = Recovered::default();
    wal.append(&[vote(5)]).unwrap();
    apply(&mut expected, &[vote(5)]);
    for index in 0..60 {
        let group = [entry(index, 300)];
        wal.append(&group).unwrap();
        apply(&mut expected, &group);
    }
    let segments = || {
        let names = disk.list(dir()).unwrap();
        names.iter().filter_map(|name| segment::number_of(name)).collect::<Vec<_>>()
    };
    let before = segments();
    for to in [10, 25, 40, 58] {
        wal.append(&[purge(to)]).unwrap();
        apply(&mut expected, &[purge(to)]);
        let copy = disk.fork();
        copy.crash_keeping(|_| false);
        let (_, found) = open(&copy).unwrap();
        assert!(same(&found, &expected), "purged up to {to}");
    }
    assert!(before.len() >= 5);
    assert!(segments().len() <= 2, "{:?} left of {before:?}", segments());
    assert_eq!(expected.vote.as_deref(), Some(b"term 5".as_slice()));
}

#[test]
fn a_hole_a_repetition_or_a_cut_below_the_purge_mark_is_refused_before_it_is_written() {
    let disk = SimDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    wal.append(&[entry(0, 1), entry(1, 1), entry(2, 1), purge(1)]).unwrap();
    let before = disk.operations();
    for wrong in [
        vec![entry(4, 1)],
        vec![entry(2, 1)],
        vec![entry(3, 1), entry(3, 1)],
        vec![crate::store::record::Record::TruncateAfter { index: Some(0) }],
        vec![crate::store::record::Record::TruncateAfter { index: None }],
    ] {
        assert!(matches!(wal.append(&wrong), Err(WalError::Invalid(_))), "{wrong:?}");
    }
    assert_eq!(disk.operations(), before);
    wal.append(&[entry(3, 1)]).unwrap();
}

#[test]
fn a_group_larger_than_a_segment_gets_a_larger_segment() {
    let disk = SimDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    let mut expected = Recovered::default();
    for index in 0..4 {
        let group = [entry(index, 10_000 + 3000 * index as usize), vote(index)];
        wal.append(&group).unwrap();
        apply(&mut expected, &group);
    }
    drop(wal);
    let (_, found) = open(&disk).unwrap();
    assert!(same(&found, &expected));
}

#[test]
fn where_a_log_must_be_none_is_made() {
    let disk = SimDisk::new();
    let required =
        || Wal::open_as(Arc::new(disk.clone()), dir(), options(), Presence::Required).err();
    let missing = required().expect("there is no log");
    assert!(matches!(missing, OpenError::Missing { .. }), "{missing}");
    for part in ["/data/log", "mounted", "under a new node id"] {
        assert!(missing.to_string().contains(part), "{part:?} is missing in: {missing}");
    }
    assert!(disk.list(dir()).is_err(), "not even the directory");
    drop(open(&disk).unwrap());
    assert!(required().is_none());
    disk.lose(&dir().join(segment::name(1)));
    disk.overwrite(&dir().join("wal.lock"), b"");
    assert!(matches!(required(), Some(OpenError::Missing { .. })));
    assert_eq!(disk.list(dir()).unwrap(), ["wal.lock"]);
}

#[test]
fn a_log_that_is_open_cannot_be_opened_again() {
    let disk = SimDisk::new();
    let (wal, first) = open(&disk).unwrap();
    assert!(first.created);
    assert!(open(&disk).is_err());
    drop(wal);
    let (_wal, second) = open(&disk).unwrap();
    assert!(!second.created);
}
