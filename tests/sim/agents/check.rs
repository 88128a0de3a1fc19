//! The judge: applies every committed entry to a state of its own, and holds the invariants against
//! what nodes and clients do.
//!
//! It knows real time, which nobody in the simulation does. What rests on clocks (S5, S8) is a
//! violation within A1 and a count beyond it; what needs no clock (S3, S4, S9, C8, deduplication) is
//! a violation always.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use regent_core::command::{Command, Entry as Encoded};
use regent_core::effect::{Applied, Change, ClockEffect};
use regent_core::id::{ElectionName, Epoch, Revision, SessionId};
use regent_core::reply::{Rejection, Reply};
use regent_core::state::State;

use super::machine::{SECOND, Time};
use super::queue::CallId;
use super::{Class, Stats};

/// Violations kept: the first ones tell the story.
const MAX_VIOLATIONS: usize = 10;
/// Hashes kept for nodes that lag.
const HASHES: usize = 4_000;

/// Why sessions ended in an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Their time ran out (C4).
    Lapse,
    /// They did not confirm a grant (C8).
    Unused,
    /// Their client closed them.
    Closed,
}

/// The judge.
pub struct Check {
    class: Class,
    /// Real time, for the texts.
    pub now: Time,
    /// The state after the last committed entry.
    pub state: State,
    hashes: VecDeque<[u8; 16]>,
    first_hash: u64,
    epochs: BTreeMap<ElectionName, Epoch>,
    /// Sessions whose right was taken by a lapse.
    lapsed: BTreeSet<SessionId>,
    /// What each call was answered with the first time.
    replies: BTreeMap<CallId, Reply>,
    /// Highest epoch anybody acted on.
    acted: BTreeMap<ElectionName, Epoch>,
    /// What is proclaimed.
    values: BTreeMap<ElectionName, Vec<u8>>,
    pub stats: Stats,
    pub violations: Vec<String>,
}

impl Check {
    pub fn new(class: Class) -> Self {
        Self {
            class,
            now: 0,
            state: State::default(),
            hashes: VecDeque::new(),
            first_hash: 1,
            epochs: BTreeMap::new(),
            lapsed: BTreeSet::new(),
            replies: BTreeMap::new(),
            acted: BTreeMap::new(),
            values: BTreeMap::new(),
            stats: Stats::default(),
            violations: Vec::new(),
        }
    }

    /// Something that must never be, whatever the clocks.
    pub fn broken(&mut self, text: String) {
        if self.violations.len() < MAX_VIOLATIONS {
            let (s, us) = (self.now / SECOND, self.now % SECOND);
            self.violations.push(format!("at {s}.{us:06} s: {text}"));
        }
    }

    /// Something that may be only beyond A1.
    pub fn broken_within(&mut self, text: String) {
        match self.class {
            Class::Within => self.broken(text),
            Class::Beyond => self.stats.overlaps += 1,
        }
    }

    /// An entry was committed at `index`. Returns the sessions that it ended, and why.
    pub fn committed(
        &mut self,
        index: u64,
        bytes: &[u8],
        call: Option<CallId>,
    ) -> Vec<(SessionId, End)> {
        let applied = if bytes.is_empty() {
            self.state.apply_blank(Revision(index))
        } else {
            self.state.apply(Revision(index), bytes)
        };
        self.stats.entries += 1;
        self.hashes.push_back(self.state.rolling_hash());
        if self.hashes.len() > HASHES {
            self.hashes.pop_front();
            self.first_hash += 1;
        }
        self.proclaimed(&applied, bytes);
        self.epochs_rise(&applied);
        if let Some(call) = call {
            self.same_reply(call, &applied.reply);
        }
        self.ended(&applied, bytes)
    }

    /// S4: nobody changes what is proclaimed but the holder, under the newest epoch.
    fn proclaimed(&mut self, applied: &Applied, bytes: &[u8]) {
        for change in &applied.changes {
            let Change::Election(name, Some(row)) = change else { continue };
            let value = row.holder.as_ref().map_or(&[][..], |holder| &holder.value);
            if self.values.get(name).is_some_and(|known| known == value) {
                continue;
            }
            self.values.insert(name.clone(), value.to_vec());
            let Ok(Command::Proclaim { epoch, .. }) =
                Encoded::decode(bytes).and_then(|entry| entry.command())
            else {
                continue;
            };
            let highest = self.newest(name);
            if epoch < highest {
                self.broken(format!("S4: {name} was proclaimed under {epoch} after {highest}"));
            }
        }
    }

    /// The newest epoch that was granted.
    pub fn newest(&self, election: &ElectionName) -> Epoch {
        self.epochs.get(election).copied().unwrap_or(Epoch::NONE)
    }

    /// S3.
    fn epochs_rise(&mut self, applied: &Applied) {
        for change in &applied.changes {
            let Change::Election(name, Some(row)) = change else { continue };
            let Some(holder) = &row.holder else { continue };
            let highest = self.newest(name);
            if holder.epoch < highest || row.epoch < holder.epoch {
                self.broken(format!("S3: {name} went from {highest} to {}", holder.epoch));
            }
            self.epochs.insert(name.clone(), holder.epoch.max(highest));
        }
    }

    /// A call that is applied again changes nothing and says the same.
    fn same_reply(&mut self, call: CallId, reply: &Reply) {
        let Some(first) = self.replies.get(&call) else {
            self.replies.insert(call, reply.clone());
            return;
        };
        self.stats.retries += 1;
        let stale = matches!(reply, Reply::Rejected(Rejection::SerialStale { .. }));
        if !stale && first != reply {
            self.broken(format!("dedupe: {call:?} was answered {first:?}, then {reply:?}"));
        }
    }

    fn ended(&mut self, applied: &Applied, bytes: &[u8]) -> Vec<(SessionId, End)> {
        let gone = |effect: &ClockEffect| match effect {
            ClockEffect::Ended(session) => Some(*session),
            _ => None,
        };
        let gone: Vec<_> = applied.clocks.iter().filter_map(gone).collect();
        if gone.is_empty() {
            return Vec::new();
        }
        let why = match Encoded::decode(bytes).and_then(|entry| entry.command()) {
            Ok(Command::ExpireSessions { .. }) => End::Lapse,
            Ok(Command::ExpireGrants { .. }) => End::Unused,
            _ => End::Closed,
        };
        match why {
            End::Lapse => {
                self.stats.lapses += gone.len() as u64;
                self.lapsed.extend(&gone);
            }
            End::Unused => self.stats.unused += gone.len() as u64,
            End::Closed => {}
        }
        gone.into_iter().map(|session| (session, why)).collect()
    }

    /// S9: a node's state after `index` is everybody's.
    pub fn same_hash(&mut self, node: usize, index: u64, hash: [u8; 16]) {
        let known = index
            .checked_sub(self.first_hash)
            .and_then(|at| self.hashes.get(usize::try_from(at).ok()?));
        if known.is_some_and(|known| *known != hash) {
            self.broken(format!("S9: node {node} differs after entry {index}"));
        }
    }

    /// S8: a node names the holder of `election`.
    pub fn names(&mut self, node: usize, election: &ElectionName, session: SessionId) {
        self.stats.named += 1;
        if self.lapsed.contains(&session) {
            self.broken_within(format!(
                "S8: node {node} names session {session} for {election} after it lapsed"
            ));
        }
    }

    /// S5: a client begins to act on an epoch; `others` are those still acting on the election.
    pub fn acts(
        &mut self,
        client: usize,
        election: &ElectionName,
        epoch: Epoch,
        others: &[(usize, Epoch)],
    ) {
        self.stats.acts += 1;
        for (other, theirs) in others {
            self.broken_within(format!(
                "S5: client {client} acts on {election} {epoch} while client {other} does on {theirs}"
            ));
        }
        let highest = self.acted.get(election).copied().unwrap_or(Epoch::NONE);
        if epoch < highest {
            self.broken_within(format!(
                "S5: client {client} begins to act on {election} {epoch} after {highest} was acted on"
            ));
        }
        self.acted.insert(election.clone(), epoch.max(highest));
    }

    /// A session ended while its client still acted.
    pub fn took_from(&mut self, client: usize, session: SessionId, why: End) {
        let text = format!("client {client} acts under session {session}, which ended: {why:?}");
        match why {
            End::Lapse => self.broken_within(format!("S5: {text}")),
            End::Unused | End::Closed => self.broken(format!("C8: {text}")),
        }
    }
}
