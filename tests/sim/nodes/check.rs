//! The invariants, checked as things happen (numbers of DESIGN.md, section 4).
//!
//! S3 epochs rise per key · S4 nothing late has an effect · S5 one holder at a time, under A1 ·
//! S9 equal state at equal revision · S10 and S11 nothing acknowledged is missing from what is read
//! later · S12 each node's watcher sees every change once, in order, or is told that the state was
//! replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use regent_core::effect::{Applied, Change};
use regent_core::id::{ElectionName, Epoch, Revision, SessionId};
use regent_core::reply::Reply;
use regent_core::state::State;
use regent_core::state::election::Election;

use super::options::{Mutant, Options};
use crate::resource::Resource;

/// What a watcher of one node has seen.
#[derive(Default)]
struct Watcher {
    at: Revision,
    rows: BTreeMap<ElectionName, Arc<Election>>,
}

/// An election's lease, as of the newest entry.
#[derive(Clone, Copy, Default)]
struct Lease {
    epoch: Epoch,
    holder: Option<SessionId>,
    confirmed: bool,
}

/// Figures of a run; a fault or an act that never happened was not tested.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Entries applied somewhere for the first time.
    pub entries: u64,
    /// Commands that were acknowledged to a client.
    pub acks: u64,
    /// Linearizable reads that were answered.
    pub reads: u64,
    /// Epochs granted.
    pub grants: u64,
    /// Times that a client was seen holding a lease.
    pub held: u64,
    /// Writes that had an effect on a guarded resource.
    pub writes: u64,
    /// Writes that came too late, and were refused (S4).
    pub refused: u64,
    /// Snapshots installed while running.
    pub installs: u64,
    /// Faults by name.
    pub faults: BTreeMap<&'static str, u64>,
}

/// The keeper of the invariants.
pub struct Checker {
    violation: Option<String>,
    diverging: bool,
    guarded: bool,
    /// Highest revision that was acknowledged or read by anybody.
    pub acked: Revision,
    hashes: BTreeMap<Revision, [u8; 16]>,
    leases: BTreeMap<ElectionName, Lease>,
    /// Epochs that were confirmed by their holders and then taken because their time was up. By
    /// election: one entry grants all that a session leaves behind, under one epoch.
    lapsed: BTreeSet<(ElectionName, Epoch)>,
    watchers: BTreeMap<u64, Watcher>,
    resources: BTreeMap<ElectionName, Resource>,
    /// Figures.
    pub stats: Stats,
}

impl Checker {
    /// Knows nothing yet.
    pub fn new(options: &Options) -> Self {
        Self {
            violation: None,
            diverging: options.mutant == Some(Mutant::Diverging),
            guarded: options.mutant != Some(Mutant::UnguardedResource),
            acked: Revision(0),
            hashes: BTreeMap::new(),
            leases: BTreeMap::new(),
            lapsed: BTreeSet::new(),
            watchers: BTreeMap::new(),
            resources: BTreeMap::new(),
            stats: Stats::default(),
        }
    }

    /// Whether this epoch of an election was confirmed by its holder and then ended by the clock
    /// alone. Only then must nobody have named its holder any more (C3): who resigns may be named for
    /// a while.
    pub fn has_lapsed(&self, election: &ElectionName, epoch: Epoch) -> bool {
        self.lapsed.contains(&(election.clone(), epoch))
    }

    /// Keeps the first violation.
    pub fn violated(&mut self, text: String) {
        self.violation.get_or_insert(text);
    }

    /// The first violation.
    pub fn violation(&self) -> Option<&String> {
        self.violation.as_ref()
    }

    /// Counts a fault.
    pub fn fault(&mut self, name: &'static str) {
        *self.stats.faults.entry(name).or_default() += 1;
    }

    /// Something was acknowledged at this revision.
    pub fn acknowledged(&mut self, at: Revision) {
        self.acked = self.acked.max(at);
    }

    /// A node applied an entry.
    pub fn applied(&mut self, node: u64, state: &State, applied: &Applied) -> Result<(), String> {
        let at = applied.revision;
        self.watch(node, state, applied)?;
        let mut hash = state.rolling_hash();
        if self.diverging && node == 2 && at.0.is_multiple_of(100) {
            hash[0] ^= 1;
        }
        match self.hashes.get(&at) {
            Some(known) if *known == hash => Ok(()),
            Some(_) => Err(format!("S9: node {node} has another state at revision {at}")),
            None => {
                self.hashes.insert(at, hash);
                self.first(state, applied)
            }
        }
    }

    /// An entry was applied for the first time anywhere.
    fn first(&mut self, state: &State, applied: &Applied) -> Result<(), String> {
        let at = applied.revision;
        self.stats.entries += 1;
        state.check().map_err(|broken| format!("the state broke a rule at {at}: {broken:?}"))?;
        for (name, row) in state.elections() {
            let holder = row.holder.as_ref().map(|holder| holder.session);
            let before = self.leases.get(name).copied().unwrap_or_default();
            if row.epoch < before.epoch {
                let old = before.epoch;
                return Err(format!("S3: {name} went from epoch {old} back to {}", row.epoch));
            }
            if holder.is_some() && holder != before.holder && row.epoch == before.epoch {
                let epoch = row.epoch;
                return Err(format!("S3: {name} has another holder under the same epoch {epoch}"));
            }
            if row.epoch > before.epoch {
                self.stats.grants += 1;
            }
            let expired = matches!(applied.reply, Reply::Expired { .. });
            if expired && before.confirmed && holder != before.holder {
                self.lapsed.insert((name.clone(), before.epoch));
            }
            let session = holder.and_then(|id| state.sessions().get(&id));
            let confirmed = session.is_some_and(|row_of| row_of.known_grant >= row.epoch.revision);
            self.leases.insert(name.clone(), Lease { epoch: row.epoch, holder, confirmed });
        }
        Ok(())
    }

    /// S4: a write reaches what an election guards. True when it had an effect.
    pub fn written(&mut self, election: &ElectionName, epoch: Epoch) -> Result<bool, String> {
        let newest = self.leases.get(election).copied().unwrap_or_default().epoch;
        let resource = self.resources.entry(election.clone()).or_default();
        let effect = resource.write(epoch, newest, self.guarded);
        match effect {
            Ok(true) => self.stats.writes += 1,
            Ok(false) => self.stats.refused += 1,
            Err(_) => {}
        }
        effect.map_err(|text| format!("S4: {election}: {text}"))
    }

    fn watch(&mut self, node: u64, state: &State, applied: &Applied) -> Result<(), String> {
        let at = applied.revision;
        let watcher = self.watchers.entry(node).or_default();
        if at != watcher.at.next() {
            return Err(format!(
                "S12: the watcher of node {node} was at {}, heard {at}",
                watcher.at
            ));
        }
        watcher.at = at;
        for change in &applied.changes {
            match change {
                Change::Election(name, Some(row)) => {
                    watcher.rows.insert(name.clone(), row.clone());
                }
                Change::Election(name, None) => {
                    watcher.rows.remove(name);
                }
                _ => {}
            }
        }
        if watcher.rows != *state.elections() {
            return Err(format!("S12: the watcher of node {node} missed a change at {at}"));
        }
        Ok(())
    }

    /// A node's state was replaced.
    pub fn installed(&mut self, node: u64, state: &State) -> Result<(), String> {
        let at = state.revision();
        let watcher = self.watchers.entry(node).or_default();
        if at > watcher.at {
            self.stats.installs += 1;
        }
        *watcher = Watcher { at, rows: state.elections().clone() };
        match self.hashes.get(&at) {
            Some(known) if *known != state.rolling_hash() => {
                Err(format!("S9: node {node} installed another state at revision {at}"))
            }
            None if at > Revision(0) => {
                Err(format!("S9: node {node} installed revision {at}, which nobody ever applied"))
            }
            _ => Ok(()),
        }
    }
}
