//! PROTOCOL.md D, with what it needs of B and E, in quorum mode: one service with a primary and two
//! standbys, up to two role changes, a set change, crashes, and disks that go back.
//!
//! ```text
//! log ──directives──► agents ──obey──► disk, PostgreSQL ──WAL──► standbys ──flushed──► primary
//!  ▲  (any, any time)                    │                                              │
//!  └──────────receipts (any, any time)───┘                          client ◄──acked─────┘
//! ```
//!
//! The network is at its worst: whatever was sent may arrive at any time, in any order, any number
//! of times, or never. A primary that is cut off but alive is one that no directive reaches. There
//! is no clock, as A promises for quorum mode; those are in [`lease`](crate::lease).
//!
//! Left out: lease mode and the degraded set (they rest on clocks), replay and timelines (a WAL is
//! a list of records), records that are written but not flushed, and G.
//!
//! Some rules of D cannot be shown to be needed here, because with them left out S1 and S2 still
//! hold within these bounds: the candidate's own receipt (FREE), CloseFence refused after
//! `stopped`, renewals and changes of sets refused under a fence. They are for lease mode, for S13,
//! or a second line of defence; the model keeps them on.

mod agent;
mod forget;
mod log;
mod rules;
mod state;
mod steps;
mod wal;

pub use rules::{ONCE, Rule, Rules, Switch, TWICE};
pub use state::State;
pub use steps::Action;

use state::{EPOCHS, Members, SyncSet};
use stateright::{Model, Property};

/// At most one instance can get writes acknowledged.
pub const S1: &str = "S1 no write begun after a newer grant is acknowledged under the old epoch";
/// Acknowledged is kept.
pub const S2: &str = "S2 every acknowledged write is on every later primary";
/// No promotion without proofs.
pub const S6: &str = "S6 nobody is primary whose grant lacked OUT or COMPLETE";

/// How much of everything there is.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The first sync set, one bit for each instance.
    pub members: u8,
    /// How many of them acknowledge.
    pub k: u8,
    /// Writes of clients.
    pub writes: usize,
    /// Role changes.
    pub operations: u8,
    /// How many of them may be planned ones.
    pub planned: u8,
    /// Set changes.
    pub sets: u8,
    /// Crashes.
    pub crashes: u8,
    /// Of whom, one bit for each instance. The standbys differ only by their numbers, so where both
    /// are in the first set and there is one crash, one of them is enough.
    pub victims: u8,
    /// Disks that go back.
    pub disks: u8,
    /// The boot that the image they go back to was taken in.
    pub image: u8,
    /// Fetches.
    pub fetches: u8,
    /// Operations given up.
    pub closed: u8,
    /// Grants by an approval of the loss.
    pub approvals: u8,
}

impl Bounds {
    /// One failover, both standbys in the set, one is enough.
    pub const SMALL: Self = Self {
        members: 0b110,
        k: 1,
        writes: 1,
        operations: 1,
        planned: 0,
        sets: 0,
        crashes: 0,
        victims: 0b111,
        disks: 0,
        image: steps::FIRST_BOOT - 1,
        fetches: 0,
        closed: 0,
        approvals: 0,
    };

    /// Beyond A2: a disk that goes back within one boot, which the boot counter cannot tell from a
    /// restart.
    pub const SAME_BOOT: Self =
        Self { crashes: 1, disks: 1, image: steps::FIRST_BOOT, ..Self::SMALL };

    /// The sync set at first.
    fn set(&self) -> SyncSet {
        SyncSet { epoch: 1, members: Members(self.members), k: self.k }
    }
}

/// The model: the rules within the bounds.
#[derive(Clone, Copy, Debug)]
pub struct RoleChange {
    /// Which rules stand.
    pub rules: Rules,
    /// How much there is of everything.
    pub bounds: Bounds,
}

impl Model for RoleChange {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::first(&self.bounds)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        state.actions(&self.bounds, self.rules, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        next.step(action, &self.bounds, self.rules);
        next.forget(&self.bounds, self.rules);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(S1, |_, state: &State| {
                !state.writes.iter().any(|write| write.acked && write.late)
            }),
            Property::always(S2, |_, state: &State| state.keeps_what_was_acknowledged()),
            Property::always(S6, |_, state: &State| {
                (0..EPOCHS).all(|e| state.base[e].is_none() || state.unproven & 1 << e == 0)
            }),
        ];
        if self.rules.off.is_none() {
            let possible = POSSIBLE.iter().filter(|(within, ..)| within(&self.bounds));
            properties.extend(possible.map(|(_, name, seen)| Property::sometimes(name, *seen)));
        }
        properties
    }
}

/// Something that must be possible: within which bounds, its name, and how it is seen.
type Possible = (fn(&Bounds) -> bool, &'static str, fn(&RoleChange, &State) -> bool);

/// So that an empty model is not taken for a safe one.
const POSSIBLE: [Possible; 8] = [
    (|_| true, "a role change completes", |_, state| state.is_covered(2)),
    (
        |bounds| bounds.operations > 1,
        "a second role change completes",
        |_, state| state.is_covered(3),
    ),
    (
        |bounds| bounds.planned > 0,
        "what began as a switchover completes",
        |_, state| state.used.planned > 0 && state.is_covered(2),
    ),
    (
        |bounds| bounds.sets > 0,
        "a set change completes",
        |_, state| state.used.sets > 0 && state.is_covered(1),
    ),
    (
        |bounds| bounds.fetches > 0,
        "a role change with a fetch completes",
        |_, state| state.used.fetches > 0 && state.is_covered(2),
    ),
    (
        |bounds| bounds.closed > 0,
        "a primary goes on after its fence was closed",
        |_, state| state.used.closed > 0 && state.writes.iter().any(|write| write.acked),
    ),
    (
        |bounds| bounds.approvals > 0,
        "a loss is approved",
        |_, state| state.used.approvals > 0 && state.writes.iter().any(|write| write.given_up),
    ),
    (
        |bounds| bounds.disks > 0,
        "a disk is quarantined",
        |_, state| state.log.quarantined != Members(0),
    ),
];
