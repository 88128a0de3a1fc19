//! Snapshot files and the identity of the disk.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use regent_core::id::NodeId;

use crate::store::identity::{
    Identity, IdentityError, LogState, open_identity, read_identity, write_identity,
};
use crate::store::sim_disk::SimDisk;
use crate::store::snapshot::SnapshotDir;
use crate::store::tests::workload;
use crate::store::vfs::Vfs;

fn snapshots(disk: &SimDisk) -> SnapshotDir {
    SnapshotDir::open(Arc::new(disk.clone()), Path::new("/data/snapshots")).unwrap()
}

fn newest(disk: &SimDisk) -> Option<(Vec<u8>, Vec<u8>)> {
    let loaded = snapshots(disk).load_newest().unwrap();
    loaded.newest.map(|s| (s.meta.to_vec(), s.data.to_vec()))
}

fn content(number: u8) -> (Vec<u8>, Vec<u8>) {
    (vec![number; 30], vec![number ^ 0x55; 1500 + number as usize])
}

#[test]
fn a_saved_snapshot_survives_every_power_cut_and_a_half_saved_one_leaves_the_one_before() {
    let mut tried = 0;
    for changes in 0.. {
        let disk = SimDisk::new();
        let mut dir = snapshots(&disk);
        let mut saved = 0u8;
        disk.power_off_after(changes);
        for number in 1..=4 {
            let (meta, data) = content(number);
            if dir.save(&meta, &data).is_err() {
                break;
            }
            saved = number;
        }
        for seed in 0..40 {
            let crashed = disk.fork();
            crashed.crash(seed);
            let found = newest(&crashed);
            let allowed = [saved, saved + 1].map(|n| (n > 0).then(|| content(n)));
            assert!(allowed.contains(&found), "{saved} saved, after {changes} changes");
            tried += 1;
        }
        if saved == 4 {
            break;
        }
    }
    assert!(tried > 500);
}

#[test]
fn the_last_two_snapshots_are_kept_and_a_damaged_one_is_passed_over() {
    let disk = SimDisk::new();
    let mut dir = snapshots(&disk);
    for number in 1..=5 {
        let (meta, data) = content(number);
        dir.save(&meta, &data).unwrap();
    }
    let names = disk.list(Path::new("/data/snapshots")).unwrap();
    assert_eq!(names.len(), 2);
    let path = Path::new("/data/snapshots").join(&names[1]);
    let length = disk.read(&path).unwrap().len() as u64;
    for byte in (0..length).step_by(3) {
        let damaged = disk.fork();
        damaged.flip_bit(&path, byte, (byte % 8) as u8);
        let loaded = snapshots(&damaged).load_newest().unwrap();
        assert_eq!(loaded.newest.map(|s| s.meta.to_vec()), Some(content(4).0), "byte {byte}");
        assert!(loaded.refused[0].contains(&names[1]), "{:?}", loaded.refused);
    }
}

#[test]
fn a_snapshot_that_does_not_fit_leaves_no_trace_and_can_be_saved_later() {
    let disk = SimDisk::new();
    let mut dir = snapshots(&disk);
    let (meta, data) = content(1);
    dir.save(&meta, &data).unwrap();
    disk.set_capacity(Some(disk.used_bytes() + 100));
    let (meta, data) = content(2);
    assert!(dir.save(&meta, &data).is_err());
    assert_eq!(newest(&disk), Some(content(1)));
    assert_eq!(disk.list(Path::new("/data/snapshots")).unwrap().len(), 1);
    disk.set_capacity(None);
    dir.save(&meta, &data).unwrap();
    assert_eq!(newest(&disk), Some(content(2)));
}

const DATA: &str = "/data";

fn open_as(
    disk: &SimDisk,
    cluster: &str,
    node: u64,
    fresh: u64,
) -> Result<Identity, IdentityError> {
    let dir = Path::new(DATA);
    open_identity(disk, dir, dir, cluster, NodeId(node), fresh)
}

fn boot(disk: &SimDisk, fresh: u64) -> Result<(u64, u64), IdentityError> {
    let identity = open_as(disk, "prod", 3, fresh)?;
    Ok((identity.boots, identity.disk))
}

#[test]
fn each_start_counts_one_and_the_count_survives_every_power_cut() {
    for changes in 0..40 {
        let disk = SimDisk::new();
        disk.power_off_after(changes);
        let mut told = 0;
        while let Ok((boots, _)) = boot(&disk, 1) {
            told = boots;
            if told == 5 {
                break;
            }
        }
        for seed in 0..20 {
            let crashed = disk.fork();
            crashed.crash(seed);
            let (boots, disk_id) = boot(&crashed, 2).unwrap();
            assert!(boots > told, "told {told}, then {boots}");
            assert!(told == 0 || disk_id == 1, "the disk id must stay");
        }
    }
}

#[test]
fn a_foreign_or_damaged_identity_is_refused() {
    let disk = SimDisk::new();
    boot(&disk, 1).unwrap();
    let foreign = open_as(&disk, "prod", 4, 1);
    assert!(matches!(foreign, Err(IdentityError::Foreign { .. })));
    let foreign = open_as(&disk, "test", 3, 1);
    assert!(matches!(foreign, Err(IdentityError::Foreign { .. })));
    let path = Path::new("/data/identity");
    for byte in 0..disk.read(path).unwrap().len() as u64 - 1 {
        let damaged = disk.fork();
        damaged.flip_bit(path, byte, (byte % 8) as u8);
        let refused = boot(&damaged, 1);
        assert!(matches!(refused, Err(IdentityError::Corrupt { .. })), "byte {byte}");
    }
}

#[test]
fn a_log_without_an_identity_is_refused() {
    let disk = SimDisk::new();
    boot(&disk, 1).unwrap();
    drop(workload::open(&disk).unwrap());
    disk.lose(Path::new("/data/identity"));
    let message = boot(&disk, 2).unwrap_err().to_string();
    assert!(message.contains("is missing") && message.contains("log"), "{message}");
}

#[test]
fn a_node_that_had_a_log_and_lost_it_is_refused_and_one_that_never_had_is_not() {
    let disk = SimDisk::new();
    boot(&disk, 1).unwrap();
    // A start that ended before the log was made, say because a port was taken.
    let mut identity = open_as(&disk, "prod", 3, 1).unwrap();
    assert_eq!((identity.boots, identity.log), (2, LogState::None));
    identity.log = LogState::Made;
    write_identity(&disk, Path::new(DATA), &identity).unwrap();
    let message = boot(&disk, 1).unwrap_err().to_string();
    assert!(message.contains("the log is missing") && message.contains("new node id"), "{message}");
    // Refused starts are not counted: nobody was told.
    let read = read_identity(&disk, Path::new(DATA)).unwrap().unwrap();
    assert_eq!(read.boots, 2);
}

#[test]
fn a_lock_a_snapshot_and_half_made_files_do_not_pass_for_a_log() {
    let disk = SimDisk::new();
    let mut identity = open_as(&disk, "prod", 3, 1).unwrap();
    drop(workload::open(&disk).unwrap());
    identity.log = LogState::Made;
    write_identity(&disk, Path::new(DATA), &identity).unwrap();
    boot(&disk, 1).unwrap();
    disk.lose(Path::new("/data/log/wal-0000000000000001.log"));
    for left in ["wal.lock", "wal-new.tmp", "wal-ahead.tmp"] {
        disk.overwrite(&workload::dir().join(left), b"");
    }
    snapshots(&disk).save(b"meta", b"data").unwrap();
    let message = boot(&disk, 1).unwrap_err().to_string();
    assert!(message.contains("the log is missing") && message.contains("mount"), "{message}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hostile_snapshots_and_identities_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        magic in any::<bool>(),
    ) {
        let mut bytes = bytes;
        if magic {
            bytes.splice(..bytes.len().min(8), *b"RegntSnp");
        }
        let disk = SimDisk::new();
        snapshots(&disk);
        disk.overwrite(Path::new("/data/snapshots/snapshot-0000000000000001.snap"), &bytes);
        prop_assert_eq!(newest(&disk), None);
        disk.lose(Path::new("/data/snapshots/snapshot-0000000000000001.snap"));
        disk.overwrite(Path::new("/data/identity"), &bytes);
        prop_assert!(boot(&disk, 1).is_err());
    }
}
