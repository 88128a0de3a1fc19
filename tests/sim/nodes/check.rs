//! The invariants, checked as things happen (numbers of DESIGN.md, section 4).
//!
//! S3 epochs rise per key · S5 one holder at a time, under A1 · S9 equal state at equal revision ·
//! S10 and S11 nothing acknowledged is missing from what is read later · S12 each node's watcher
//! sees every change once, in order, or is told that the state was replaced.

use std::collections::BTreeMap;
use std::sync::Arc;

use regent_core::effect::{Applied, Change};
use regent_core::id::{ElectionName, Epoch, Revision, SessionId};
use regent_core::state::State;
use regent_core::state::election::Election;

use super::options::{Mutant, Options};

/// What a watcher of one node has seen.
#[derive(Default)]
struct Watcher {
    at: Revision,
    rows: BTreeMap<ElectionName, Arc<Election>>,
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
    /// Snapshots installed while running.
    pub installs: u64,
    /// Faults by name.
    pub faults: BTreeMap<&'static str, u64>,
}

/// The keeper of the invariants.
pub struct Checker {
    violation: Option<String>,
    diverging: bool,
    /// Highest revision that was acknowledged or read by anybody.
    pub acked: Revision,
    hashes: BTreeMap<Revision, [u8; 16]>,
    leases: BTreeMap<ElectionName, (Epoch, Option<SessionId>)>,
    watchers: BTreeMap<u64, Watcher>,
    /// Figures.
    pub stats: Stats,
}

impl Checker {
    /// Knows nothing yet.
    pub fn new(options: &Options) -> Self {
        Self {
            violation: None,
            diverging: options.mutant == Some(Mutant::Diverging),
            acked: Revision(0),
            hashes: BTreeMap::new(),
            leases: BTreeMap::new(),
            watchers: BTreeMap::new(),
            stats: Stats::default(),
        }
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
            let (epoch, before) = self.leases.get(name).copied().unwrap_or((Epoch::NONE, None));
            if row.epoch < epoch {
                return Err(format!("S3: {name} went from epoch {epoch} back to {}", row.epoch));
            }
            if holder.is_some() && holder != before && row.epoch == epoch {
                return Err(format!("S3: {name} has another holder under the same epoch {epoch}"));
            }
            if row.epoch > epoch {
                self.stats.grants += 1;
            }
            self.leases.insert(name.clone(), (row.epoch, holder));
        }
        Ok(())
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
