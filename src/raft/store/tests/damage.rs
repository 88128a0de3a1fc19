//! Damage: bits that flip, files that vanish, bytes that somebody made up. Acknowledged records are
//! never silently lost or changed, and nothing panics.

use std::path::PathBuf;

use bytes::Bytes;
use proptest::prelude::*;

use crate::store::frame::{self, Head};
use crate::store::record::Record;
use crate::store::sabotage::{self, Sabotage};
use crate::store::segment::{self, HEADER_BYTES, SegmentHeader};
use crate::store::sim_disk::SimDisk;
use crate::store::tests::workload::{
    Step, dir, entry, open, options, purge, random, run, same, states_after, vote,
};
use crate::store::vfs::Vfs;
use crate::store::wal::{OpenError, Recovered};

fn file(number: u64) -> PathBuf {
    dir().join(segment::name(number))
}

/// The numbers of the segments.
fn segments(disk: &SimDisk) -> Vec<u64> {
    let names = disk.list(dir()).unwrap();
    names.iter().filter_map(|name| segment::number_of(name)).collect()
}

/// The last segment of the sample.
const LAST: u64 = 5;

/// A log of five segments, never closed in order: no mark behind the last group.
fn sample() -> (SimDisk, Recovered) {
    let mut steps = vec![Step::plain(vec![vote(3)])];
    for index in 0..14u64 {
        steps.push(Step::plain(vec![entry(index, 500 + 40 * index as usize)]));
    }
    steps.push(Step::plain(vec![entry(14, 1200), vote(4)]));
    let disk = SimDisk::new();
    assert_eq!(run(&disk, &steps).acknowledged, steps.len());
    disk.crash_keeping(|_| false);
    assert_eq!(segments(&disk), [1, 2, 3, 4, LAST]);
    (disk, states_after(&steps).pop().unwrap())
}

/// Flips bits one at a time; returns how many flips were refused, or the first that was swallowed.
fn flip_everywhere() -> Result<(usize, usize), String> {
    let (disk, expected) = sample();
    let (mut refused, mut harmless) = (0, 0);
    for number in 1..=LAST {
        let bytes = disk.read(&file(number)).map_err(|e| e.to_string())?;
        for at in 0..bytes.len() as u64 {
            let bits = if at % 5 == 0 { 0..8 } else { (at % 8) as u8..(at % 8) as u8 + 1 };
            for bit in bits {
                let flipped = disk.fork();
                assert!(flipped.flip_bit(&file(number), at, bit));
                match open(&flipped) {
                    Err(OpenError::Corrupt { .. } | OpenError::Version { .. }) => refused += 1,
                    Err(other) => return Err(format!("segment {number} byte {at}: {other}")),
                    Ok((_, found)) if same(&found, &expected) => harmless += 1,
                    Ok(_) => {
                        return Err(format!(
                            "segment {number} byte {at} bit {bit}: the flip was swallowed"
                        ));
                    }
                }
            }
        }
    }
    Ok((refused, harmless))
}

#[test]
fn a_bit_that_flips_anywhere_is_refused_or_changes_nothing() {
    let (refused, harmless) = flip_everywhere().unwrap();
    assert!(refused > 10_000, "only {refused} refused, {harmless} harmless");
}

#[test]
fn the_bit_flips_catch_a_log_that_ignores_checksums() {
    let outcome = sabotage::with(Some(Sabotage::CrcIgnored), flip_everywhere);
    assert!(outcome.is_err());
}

#[test]
fn a_flip_in_the_only_group_after_the_last_sync_is_told_from_a_torn_write() {
    let disk = SimDisk::new();
    let steps = [Step::plain(vec![vote(1)]), Step::plain(vec![entry(0, 3000)])];
    run(&disk, &steps);
    disk.crash_keeping(|_| false);
    // Far inside the last group: all its sectors are there, so it was complete.
    disk.flip_bit(&file(1), 2500, 3);
    assert!(matches!(open(&disk), Err(OpenError::Corrupt { .. })));
}

#[test]
fn the_refusal_names_file_place_and_what_to_do() {
    let (disk, _) = sample();
    disk.flip_bit(&file(2), 1000, 0);
    let message = open(&disk).err().unwrap().to_string();
    for part in ["wal-0000000000000002.log", "at byte", "checksum", "under a new node id"] {
        assert!(message.contains(part), "{part:?} is missing in: {message}");
    }
}

#[test]
fn a_lost_segment_is_refused() {
    for number in 1..=LAST {
        let (disk, _) = sample();
        disk.lose(&file(number));
        assert!(matches!(open(&disk), Err(OpenError::Corrupt { .. })), "segment {number}");
    }
}

#[test]
fn the_loss_of_the_newest_segment_is_noticed_also_when_a_crash_came_before_its_announcement() {
    let steps: Vec<Step> = (0..8).map(|index| Step::plain(vec![entry(index, 700)])).collect();
    let mut rolled = 0;
    for changes in 0.. {
        let disk = SimDisk::new();
        disk.power_off_after(changes);
        let done = run(&disk, &steps).acknowledged == steps.len();
        disk.crash_keeping(|_| false);
        let newest = segments(&disk).last().copied().unwrap_or(0);
        if newest > 1 {
            rolled += 1;
            // Whatever is the newest after this start, its loss is noticed from then on.
            drop(open(&disk).unwrap());
            disk.crash_keeping(|_| false);
            disk.lose(&file(newest));
            let message = open(&disk).err().expect("a file is gone").to_string();
            assert!(message.contains("that file is gone"), "{message}");
        }
        if done {
            break;
        }
    }
    assert!(rolled > 5, "{rolled}");
}

#[test]
fn a_log_of_format_1_is_read_and_closed_like_one_of_today() {
    let (disk, expected) = sample();
    for number in 1..=LAST {
        let mut bytes = disk.read(&file(number)).unwrap();
        bytes[8] = 1;
        let crc = crc32c::crc32c(&bytes[..48]);
        bytes[48..52].copy_from_slice(&crc.to_le_bytes());
        // Format 1 had no continuations.
        if number < LAST {
            let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
            bytes[end - 32..end].fill(0);
        }
        disk.overwrite(&file(number), &bytes);
    }
    let (_, found) = open(&disk).unwrap();
    assert!(same(&found, &expected));
    disk.lose(&file(LAST));
    assert!(matches!(open(&disk), Err(OpenError::Corrupt { .. })));
}

#[test]
fn a_truncated_file_is_refused_or_loses_nothing() {
    let (disk, expected) = sample();
    for number in 1..=LAST {
        let bytes = disk.read(&file(number)).unwrap();
        for length in (0..bytes.len()).step_by(61) {
            let cut = disk.fork();
            cut.overwrite(&file(number), &bytes[..length]);
            match open(&cut) {
                Err(_) => {}
                Ok((_, found)) => assert!(same(&found, &expected), "cut at {length}"),
            }
        }
    }
}

#[test]
fn flips_in_a_torn_tail_invent_nothing() {
    for seed in 0..400u64 {
        let steps = random(seed, 8);
        let states = states_after(&steps);
        let disk = SimDisk::new();
        disk.power_off_after(10 + seed % 14);
        let progress = run(&disk, &steps);
        disk.crash(seed);
        let names = disk.list(dir()).unwrap();
        let Some(last) = names.iter().rfind(|name| segment::number_of(name).is_some()) else {
            continue;
        };
        disk.flip_bit(&dir().join(last), 512 + seed * 37 % 3500, (seed % 8) as u8);
        let end = progress.acknowledged + usize::from(progress.under_way);
        if let Ok((_, found)) = open(&disk) {
            let allowed = &states[progress.acknowledged..=end];
            assert!(allowed.iter().any(|state| same(state, &found)), "seed {seed}");
        }
    }
}

#[test]
fn stale_bytes_of_an_older_segment_are_not_read_as_records() {
    // A file system brings back blocks of segment 1 where the last one has not been written yet.
    let (disk, expected) = sample();
    let old = disk.read(&file(1)).unwrap();
    let mut last = disk.read(&file(LAST)).unwrap();
    let end = last.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    for shift in [32usize, 512, 1024] {
        let from = end.next_multiple_of(512) + shift;
        if from >= last.len() {
            continue;
        }
        last.truncate(end);
        last.resize(4096, 0);
        last[from..].copy_from_slice(&old[from..]);
        let stale = disk.fork();
        stale.overwrite(&file(LAST), &last);
        let (_, found) = open(&stale).unwrap();
        assert!(same(&found, &expected));
        assert!(found.cut_bytes > 0);
    }
}

#[test]
fn purged_segments_may_be_gone_but_needed_ones_may_not() {
    let (disk, mut expected) = sample();
    let (mut wal, _) = open(&disk).unwrap();
    wal.append(&[purge(9)]).unwrap();
    drop(wal);
    super::workload::apply(&mut expected, &[purge(9)]);
    assert!(disk.read(&file(1)).is_err(), "the purged segment is still there");
    let (_, found) = open(&disk).unwrap();
    assert!(same(&found, &expected));
    let oldest = segments(&disk)[0];
    assert!(oldest < LAST, "the purge went too far for this test");
    disk.lose(&file(oldest));
    let message = open(&disk).err().expect("entries are missing").to_string();
    assert!(message.contains("are missing"), "{message}");
}

#[test]
fn a_newer_format_is_refused_as_such() {
    let (disk, _) = sample();
    let mut bytes = disk.read(&file(LAST)).unwrap();
    bytes[8] = 9;
    let crc = crc32c::crc32c(&bytes[..48]);
    bytes[48..52].copy_from_slice(&crc.to_le_bytes());
    disk.overwrite(&file(LAST), &bytes);
    assert!(matches!(
        open(&disk),
        Err(OpenError::Version { found: 9, known: segment::FORMAT, .. })
    ));
}

/// A segment whose checksums are all right and whose content is whatever it is given.
fn forged(bodies: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let salt = segment::salt_of(options().salt, 1);
    let body_bytes: usize = bodies.iter().map(|(_, body)| body.len() / 32 * 32 + 64).sum();
    let bytes = (HEADER_BYTES as usize + body_bytes + 32 + 300) as u64;
    let mut out = SegmentHeader { number: 1, first_group: 1, salt, bytes }.encode();
    for (group, (records, body)) in bodies.iter().enumerate() {
        let mut sealed = vec![0; 32];
        sealed.extend_from_slice(body);
        frame::seal_group(&mut sealed, group as u64 + 1, *records, salt, out.len() as u64);
        out.extend_from_slice(&sealed);
    }
    out.extend_from_slice(&Head::mark(77).encode(salt));
    out.resize(out.len() + 300, 0);
    assert_eq!(out.len() as u64, bytes);
    out
}

fn open_bytes(bytes: &[u8]) {
    let disk = SimDisk::new();
    disk.create_dir_all(dir()).unwrap();
    disk.overwrite(&file(1), bytes);
    // Whatever comes out, it comes out; and if it opened, it can be appended to.
    if let Ok((mut wal, found)) = open(&disk) {
        let next = wal.last_index().map_or(Some(0), |last| last.checked_add(1));
        if let Some(index) = next {
            wal.append(&[Record::Entry { index, bytes: Bytes::from_static(b"x") }]).unwrap();
            drop(wal);
            let (_, again) = open(&disk).unwrap();
            assert_eq!(again.entries.len(), found.entries.len() + 1);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hostile_files_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        open_bytes(&bytes);
    }

    #[test]
    fn hostile_groups_with_good_checksums_never_panic(
        bodies in proptest::collection::vec(
            (0u32..6, proptest::collection::vec(prop_oneof![Just(0u8), 0u8..10, any::<u8>()], 0..120)),
            0..5,
        ),
    ) {
        open_bytes(&forged(&bodies));
    }

    #[test]
    fn good_files_with_hostile_pieces_never_panic(
        at in 0usize..4096,
        piece in proptest::collection::vec(any::<u8>(), 1..200),
    ) {
        let (disk, expected) = sample();
        let mut bytes = disk.read(&file(2)).unwrap();
        let end = (at + piece.len()).min(bytes.len());
        bytes[at..end].copy_from_slice(&piece[..end - at]);
        disk.overwrite(&file(2), &bytes);
        if let Ok((_, found)) = open(&disk) {
            prop_assert!(same(&found, &expected));
        }
    }
}
