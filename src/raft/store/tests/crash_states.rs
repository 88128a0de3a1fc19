//! Power cuts, enumerated: after every change that a workload makes to the disk, for the possible
//! subsets of what was not synced. In each state the log must open and hold exactly what was
//! acknowledged, or that and the one group that was under way.

use crate::store::sabotage::{self, Sabotage};
use crate::store::sim_disk::{SimDisk, split_mix};
use crate::store::tests::workload::{
    Progress, Step, entry, open, purge, random, run, same, states_after, vote,
};
use crate::store::wal::Recovered;

/// Up to this many unsynced units, every subset is tried; beyond, the telling ones and random ones.
const EXHAUSTIVE_UNITS: usize = 7;
const RANDOM_SUBSETS: u64 = 24;

/// The subsets of `units` unsynced units to try, as predicates over unit numbers.
fn subsets(units: usize, seed: u64) -> Vec<Vec<bool>> {
    if units <= EXHAUSTIVE_UNITS {
        return (0..1u32 << units)
            .map(|mask| (0..units).map(|unit| mask & (1 << unit) != 0).collect())
            .collect();
    }
    let mut out = vec![vec![false; units], vec![true; units]];
    for at in 1..units {
        // Only the first ones, only the last ones, all but one, just one.
        out.push((0..units).map(|unit| unit < at).collect());
        out.push((0..units).map(|unit| unit >= at).collect());
        out.push((0..units).map(|unit| unit != at).collect());
        out.push((0..units).map(|unit| unit == at).collect());
    }
    let mut rng = seed;
    for _ in 0..RANDOM_SUBSETS {
        out.push((0..units).map(|_| split_mix(&mut rng).is_multiple_of(2)).collect());
    }
    out
}

/// Whether what was read back is what the progress allows.
fn check(states: &[Recovered], progress: Progress, found: &Recovered) -> Result<(), String> {
    let acknowledged = progress.acknowledged;
    let last = acknowledged + usize::from(progress.under_way);
    if states[acknowledged..=last].iter().any(|state| same(state, found)) {
        return Ok(());
    }
    Err(format!("{progress:?}: expected {:?}, found {found:?}", states[acknowledged]))
}

/// Tries all crash states of a workload; returns how many there were, or the first violation.
fn enumerate(steps: &[Step], seed: u64) -> Result<usize, String> {
    let states = states_after(steps);
    let mut tried = 0;
    for changes in 0.. {
        let disk = SimDisk::new();
        disk.power_off_after(changes);
        let progress = run(&disk, steps);
        for subset in subsets(disk.pending_units(), seed ^ changes) {
            let crashed = disk.fork();
            crashed.crash_keeping(|unit| subset[unit]);
            let context = |what: String| format!("after {changes} changes, {subset:?}: {what}");
            recover_twice(&crashed, &states, progress, tried as u64).map_err(context)?;
            tried += 1;
        }
        if progress.acknowledged == steps.len() {
            return Ok(tried);
        }
    }
    Ok(tried)
}

/// Opens the log after a crash, with a second power cut during or after that, and goes on with it.
fn recover_twice(
    crashed: &SimDisk,
    states: &[Recovered],
    progress: Progress,
    nth: u64,
) -> Result<(), String> {
    // A power cut during recovery; which one, and what it keeps, differs from state to state.
    let mut rng = nth;
    let again = crashed.fork();
    again.power_off_after(split_mix(&mut rng) % 12);
    drop(open(&again));
    again.crash(split_mix(&mut rng));
    let (_, found) = open(&again).map_err(|e| format!("after a second cut: {e}"))?;
    check(states, progress, &found)?;

    // What was told once stays, also if nothing unsynced survives from here on.
    let (wal, found) = open(crashed).map_err(|e| e.to_string())?;
    check(states, progress, &found)?;
    drop(wal);
    crashed.crash_keeping(|_| false);
    let (mut wal, told) = open(crashed).map_err(|e| format!("told, then cut: {e}"))?;
    if !same(&told, &found) {
        return Err(format!("told {found:?}, and after a power cut {told:?}"));
    }

    // The log goes on where it ended.
    let next = wal.last_index().map_or(0, |last| last + 1);
    let mut expected = found;
    for index in next..next + 2 {
        let group = [entry(index, 40), vote(1000 + index)];
        wal.append(&group).map_err(|e| e.to_string())?;
        super::workload::apply(&mut expected, &group);
    }
    drop(wal);
    crashed.crash_keeping(|_| false);
    let (_, found) = open(crashed).map_err(|e| format!("after going on: {e}"))?;
    if !same(&found, &expected) {
        return Err(format!("went on to {expected:?}, found {found:?}"));
    }
    Ok(())
}

/// A workload that has everything: votes alone, groups over many sectors, segments, purges.
fn script() -> Vec<Step> {
    let mut steps = vec![Step::plain(vec![vote(1)]), Step::plain(vec![entry(0, 10)])];
    for round in 0..3u64 {
        let base = 1 + round * 6;
        steps.push(Step::plain((base..base + 4).map(|index| entry(index, 300)).collect()));
        steps.push(Step::plain(vec![vote(2 + round)]));
        steps.push(Step::plain(vec![entry(base + 4, 1500)]));
        steps.push(Step { full_first: true, ..Step::plain(vec![entry(base + 5, 600)]) });
        steps.push(Step { prepare: true, ..Step::plain(vec![purge(base + 1)]) });
    }
    steps
}

fn enumerate_all(seeds: u64) -> Result<usize, String> {
    let mut tried = enumerate(&script(), 1)?;
    for seed in 0..seeds {
        tried += enumerate(&random(seed, 14), seed).map_err(|e| format!("seed {seed}: {e}"))?;
    }
    Ok(tried)
}

#[test]
fn every_crash_state_opens_and_holds_exactly_what_was_acknowledged() {
    let tried = enumerate_all(60).unwrap();
    println!("{tried} crash states");
    assert!(tried >= 20_000, "only {tried} crash states were tried");
}

#[test]
fn the_enumeration_catches_a_log_that_cheats() {
    for fault in [
        Sabotage::AckBeforeSync,
        Sabotage::VoteNotSynced,
        Sabotage::TornTailAccepted,
        Sabotage::DirNotSynced,
    ] {
        let outcome = sabotage::with(Some(fault), || enumerate_all(3));
        assert!(outcome.is_err(), "{fault:?} was not noticed");
    }
}

/// A kill leaves unsynced records in the page cache. Once they were read back and told, they are a
/// promise, so opening must sync them.
fn told_after_a_kill() -> Result<(), String> {
    let disk = SimDisk::new();
    let (mut wal, _) = open(&disk).map_err(|e| e.to_string())?;
    wal.write_group(&[vote(7)]).map_err(|e| e.to_string())?;
    disk.kill();
    drop(wal);
    let (wal, told) = open(&disk).map_err(|e| e.to_string())?;
    if told.vote.is_none() {
        return Err("the killed process had written a vote, and the page cache has it".into());
    }
    drop(wal);
    disk.crash_keeping(|_| false);
    let (_, found) = open(&disk).map_err(|e| e.to_string())?;
    if !same(&told, &found) {
        return Err(format!("told {told:?}, after a power cut {found:?}"));
    }
    Ok(())
}

#[test]
fn what_was_read_back_after_a_kill_survives_a_power_cut() {
    told_after_a_kill().unwrap();
    let outcome = sabotage::with(Some(Sabotage::RecoveredNotSynced), told_after_a_kill);
    assert!(outcome.is_err(), "the fault was not noticed");
}

/// A kill leaves a group in the page cache, and the power goes off while the next start reads it:
/// the group is there, or not, in every crash state. It was never acknowledged.
fn cut_while_opening_after_a_kill() -> Result<usize, String> {
    let mut tried = 0;
    for (before, bytes) in [(0, 30), (0, 1500), (1, 400), (2, 2500)] {
        let mut steps: Vec<Step> =
            (0..before).map(|index| Step::plain(vec![entry(index, 900)])).collect();
        steps.push(Step::plain(vec![entry(before, bytes), vote(7)]));
        let states = states_after(&steps);
        let killed = SimDisk::new();
        let (mut wal, _) = open(&killed).map_err(|e| e.to_string())?;
        let (last, durable) = steps.split_last().expect("at least one");
        for step in durable {
            wal.append(&step.group).map_err(|e| e.to_string())?;
        }
        wal.write_group(&last.group).map_err(|e| e.to_string())?;
        killed.kill();
        drop(wal);
        let progress = Progress { acknowledged: durable.len(), under_way: true };
        for changes in 0.. {
            let disk = killed.fork();
            disk.power_off_after(changes);
            let opened = open(&disk).is_ok();
            for subset in subsets(disk.pending_units(), changes) {
                let crashed = disk.fork();
                crashed.crash_keeping(|unit| subset[unit]);
                let context = |what: String| format!("after {changes} changes, {subset:?}: {what}");
                recover_twice(&crashed, &states, progress, tried as u64).map_err(context)?;
                tried += 1;
            }
            if opened {
                break;
            }
        }
    }
    Ok(tried)
}

#[test]
fn a_power_cut_while_a_killed_log_is_opened_leaves_it_whole() {
    let tried = cut_while_opening_after_a_kill().unwrap();
    assert!(tried > 200, "only {tried} crash states were tried");
    let outcome =
        sabotage::with(Some(Sabotage::MarkedBeforeSynced), cut_while_opening_after_a_kill);
    assert!(outcome.is_err(), "the fault was not noticed");
}
