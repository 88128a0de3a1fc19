//! Workloads, and what a log must hold after them: the simplest possible model, to compare with.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::store::record::Record;
use crate::store::sim_disk::{SimDisk, split_mix};
use crate::store::wal::{OpenError, Recovered, Wal, WalError, WalOptions};

/// Where the log lies on the simulated disk.
pub fn dir() -> &'static Path {
    Path::new("/data/log")
}

/// Segments so small that a short workload crosses many.
pub fn options() -> WalOptions {
    WalOptions { segment_bytes: 4096, salt: 0x5eed }
}

pub fn open(disk: &SimDisk) -> Result<(Wal, Recovered), OpenError> {
    Wal::open(Arc::new(disk.clone()), dir(), options())
}

pub fn entry(index: u64, bytes: usize) -> Record {
    let fill = (index as u8).wrapping_mul(31).wrapping_add(7);
    Record::Entry { index, bytes: Bytes::from(vec![fill; bytes]) }
}

pub fn vote(term: u64) -> Record {
    Record::Vote(Bytes::from(format!("term {term}")))
}

pub fn purge(index: u64) -> Record {
    Record::Purge { index, bytes: Bytes::from(format!("log id {index}")) }
}

/// Applies a group to what the log should hold.
pub fn apply(state: &mut Recovered, group: &[Record]) {
    for record in group {
        match record.clone() {
            Record::Entry { index, bytes } => state.entries.push((index, bytes)),
            Record::TruncateAfter { index } => state.entries.retain(|(at, _)| Some(*at) <= index),
            Record::Vote(bytes) => state.vote = Some(bytes),
            Record::Committed(bytes) => state.committed = Some(bytes),
            Record::Purge { index, bytes } => {
                state.entries.retain(|(at, _)| *at > index);
                state.purged = Some((index, bytes));
            }
        }
    }
}

/// What the log should hold after each number of groups: element n after n groups.
pub fn states_after(steps: &[Step]) -> Vec<Recovered> {
    let mut state = Recovered::default();
    let mut states = vec![state.clone()];
    for step in steps {
        apply(&mut state, &step.group);
        states.push(state.clone());
    }
    states
}

/// Whether two logs hold the same.
pub fn same(a: &Recovered, b: &Recovered) -> bool {
    (&a.vote, &a.committed, &a.purged, &a.entries) == (&b.vote, &b.committed, &b.purged, &b.entries)
}

/// One append of a workload.
#[derive(Clone, Debug)]
pub struct Step {
    pub group: Vec<Record>,
    /// The disk says "full" half-way through the first try.
    pub full_first: bool,
    /// The next segment may be zeroed ahead afterwards.
    pub prepare: bool,
}

impl Step {
    pub fn plain(group: Vec<Record>) -> Self {
        Self { group, full_first: false, prepare: false }
    }
}

/// A workload by seed: entries of all sizes, also zeros; votes, truncations, purges, retries.
pub fn random(seed: u64, steps: usize) -> Vec<Step> {
    let mut rng = seed;
    let mut below = move |limit: u64| split_mix(&mut rng) % limit;
    let (mut next, mut purged, mut term) = (0u64, None::<u64>, 1u64);
    let mut out = Vec::new();
    for _ in 0..steps {
        let mut group = Vec::new();
        match below(10) {
            0 | 1 => {
                term += 1;
                group.push(vote(term));
            }
            2 if next > 0 => {
                let lowest = purged.map_or(0, |p| p + 1);
                let keep = lowest + below(next - lowest + 1);
                group.push(Record::TruncateAfter { index: keep.checked_sub(1) });
                next = keep;
            }
            3 if next > 0 => {
                // Now and then beyond the end, as an installed snapshot does.
                let to = if below(4) == 0 { next + below(3) } else { below(next) };
                if purged < Some(to) {
                    purged = Some(to);
                    next = next.max(to + 1);
                    group.push(purge(to));
                }
            }
            4 => group.push(Record::Committed(Bytes::from(vec![next as u8; 9]))),
            _ => {}
        }
        for _ in 0..below(4) {
            let bytes = match below(6) {
                0 => 0,
                1 => 700 + below(900),
                _ => below(200),
            };
            let zeros = below(5) == 0;
            let mut record = entry(next, bytes as usize);
            if zeros && let Record::Entry { bytes, .. } = &mut record {
                *bytes = Bytes::from(vec![0; bytes.len()]);
            }
            group.push(record);
            next += 1;
        }
        if below(8) == 0 {
            term += 1;
            group.push(vote(term));
        }
        if !group.is_empty() {
            out.push(Step { group, full_first: below(6) == 0, prepare: below(3) == 0 });
        }
    }
    out
}

/// How far a workload came before the power went off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Groups that were acknowledged.
    pub acknowledged: usize,
    /// Whether one more had been handed to the log.
    pub under_way: bool,
}

/// Runs a workload until it is done or the disk fails.
pub fn run(disk: &SimDisk, steps: &[Step]) -> Progress {
    let Ok((mut wal, _)) = open(disk) else {
        return Progress { acknowledged: 0, under_way: false };
    };
    for (nth, step) in steps.iter().enumerate() {
        if step.full_first {
            disk.cut_writes_short(1);
        }
        let mut outcome = wal.append(&step.group);
        for _ in 0..3 {
            if matches!(outcome, Err(WalError::Full(_))) {
                outcome = wal.append(&step.group);
            }
        }
        if outcome.is_err() {
            return Progress { acknowledged: nth, under_way: true };
        }
        if step.prepare
            && let Some(mut preparation) = wal.preparation()
        {
            wal.prepared(preparation.run());
        }
    }
    Progress { acknowledged: steps.len(), under_way: false }
}
