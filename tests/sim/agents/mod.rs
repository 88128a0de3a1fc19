//! The second depth: the core's own state machine, lease clocks and deciders, with lease holders,
//! over an abstract log. No openraft, no bytes on a wire, no tokio: one queue of events in virtual
//! time, so that hours of leases, pauses and changes of leader pass in a second.
//!
//! What is real: [`State`](regent_core::state::State) on every node, `NodeClock`, `Gate`, `Skew`,
//! `Expiry`, `HolderClock`, `EpochGuard`. What is abstract: the log (one sequence, commit after a
//! delay, the fate of entries in flight at a change of leader drawn by chance) and the network.
//!
//! Two classes of runs with their own expectations. *Within* PROTOCOL.md A1: S3, S4, S5, S8, S9, C8 and
//! deduplication hold, every time. *Beyond* it (rates up to 4 %, clocks that stop for seconds) lease
//! intervals may overlap, which is counted, not judged; everything that needs no clock still holds.
//!
//! ```text
//! client ──Renew/Command──► node ──collected per tick──► leader ──propose──► log ──► every node
//!    ▲ HolderClock           │ Gate                       │ Expiry             applies, feeds
//!    └──committed answers────┴◄───────────────────────────┘                    its NodeClock
//! ```

mod check;
mod cli;
mod client;
mod faults;
mod log;
pub mod machine;
mod node;
mod queue;
pub mod random;
mod resource;
#[cfg(test)]
mod tests;
mod world;

use std::fmt;
use std::str::FromStr;

pub use cli::run_many;

/// Which assumptions a run keeps, and so what is expected of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A1 holds.
    Within,
    /// Clocks run and stop as they like.
    Beyond,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Within => "within",
            Self::Beyond => "beyond",
        })
    }
}

impl FromStr for Class {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "within" => Ok(Self::Within),
            "beyond" => Ok(Self::Beyond),
            _ => Err(format!("{text:?} is not one of within, beyond")),
        }
    }
}

/// A bug put back in, to show that it would be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// No margin for the rates of clocks (C1, C2).
    NoRho,
    /// No margin for clocks that stand still for a moment (A1, C2).
    NoPauseMargin,
    /// The leader takes a right when half of the session's time is over (C2).
    EagerExpiry,
    /// The holder counts a lease from about the answer, not from the first transmission (C1).
    CountFromAnswer,
    /// A node names a holder for as long as its row stands, whoever leads by then (C3).
    BelieveForever,
    /// A node that starts, or installs a snapshot, takes its sessions for renewed long ago (C2).
    TimersNotRestarted,
    /// The leader acknowledges renewals that are not committed (C4).
    AnswerBeforeCommit,
    /// A new leader decides before it has applied its term's first entry, and what it decides wins
    /// against renewals that it has not seen (C4). Either rule alone would still save the holder.
    ExpireFromOldState,
    /// The holder checks once and acts on; nothing stops it at its deadline (C1).
    CheckThenAct,
    /// The holder needs time to stop, and does not plan for it (C1).
    NoFenceBudget,
    /// The holder acts on a grant that no acknowledged renewal has named (C8).
    ActUnconfirmed,
    /// A renewal is believed from its application (C3).
    BelieveAtApply,
    /// A leader that was deposed answers read index rounds (C3).
    ReadIndexWithoutQuorum,
    /// A retry runs as a new command.
    NoDeduplication,
    /// The resource takes writes under any epoch (S4).
    UnguardedResource,
}

impl Mutant {
    /// Every one, with its name on the command line.
    pub const ALL: [(Self, &'static str); 15] = [
        (Self::NoRho, "no-rho"),
        (Self::NoPauseMargin, "no-pause-margin"),
        (Self::EagerExpiry, "eager-expiry"),
        (Self::CountFromAnswer, "count-from-answer"),
        (Self::BelieveForever, "believe-forever"),
        (Self::TimersNotRestarted, "timers-not-restarted"),
        (Self::AnswerBeforeCommit, "answer-before-commit"),
        (Self::ExpireFromOldState, "expire-from-old-state"),
        (Self::CheckThenAct, "check-then-act"),
        (Self::NoFenceBudget, "no-fence-budget"),
        (Self::ActUnconfirmed, "act-unconfirmed"),
        (Self::BelieveAtApply, "believe-at-apply"),
        (Self::ReadIndexWithoutQuorum, "read-index-without-quorum"),
        (Self::NoDeduplication, "no-deduplication"),
        (Self::UnguardedResource, "unguarded-resource"),
    ];
}

impl FromStr for Mutant {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.iter().find(|(_, name)| *name == text);
        named.map(|(mutant, _)| *mutant).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|(_, name)| *name).collect();
            format!("{text:?} is not one of {}", names.join(", "))
        })
    }
}

/// What to simulate.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Coordinators.
    pub nodes: usize,
    /// Clients, each with one session and places in some elections.
    pub clients: usize,
    /// How long, in simulated milliseconds.
    pub duration_ms: u64,
    /// Which assumptions hold.
    pub class: Class,
    /// The bug to put in.
    pub mutant: Option<Mutant>,
    /// Print every event.
    pub trace: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 3,
            clients: 4,
            duration_ms: 1_200_000,
            class: Class::Within,
            mutant: None,
            trace: false,
        }
    }
}

/// What happened, so that a run in which nothing happened is not taken for a good one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Events handled.
    pub events: u64,
    /// Entries committed.
    pub entries: u64,
    /// Renewals that extended a session.
    pub renewals: u64,
    /// Renewals answered with "send again" (C5).
    pub resends: u64,
    /// Sessions that ended by a lapse.
    pub lapses: u64,
    /// Sessions that ended because they did not confirm a grant (C8).
    pub unused: u64,
    /// Times a client began to act on an epoch.
    pub acts: u64,
    /// Times a node named a holder.
    pub named: u64,
    /// Leaders after the first.
    pub leaders: u64,
    /// Nodes that restarted, or installed a snapshot.
    pub restarts: u64,
    /// Commands that were applied again.
    pub retries: u64,
    /// Ticks on which a leader abstained (C9).
    pub abstained: u64,
    /// Writes that had an effect on a guarded resource.
    pub writes: u64,
    /// Writes that came too late, and were refused (S4).
    pub refused: u64,
    /// Two holders at a time, or a stale one named: beyond A1, where that may be.
    pub overlaps: u64,
}

impl Stats {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.entries += other.entries;
        self.renewals += other.renewals;
        self.resends += other.resends;
        self.lapses += other.lapses;
        self.unused += other.unused;
        self.acts += other.acts;
        self.named += other.named;
        self.leaders += other.leaders;
        self.restarts += other.restarts;
        self.retries += other.retries;
        self.abstained += other.abstained;
        self.writes += other.writes;
        self.refused += other.refused;
        self.overlaps += other.overlaps;
    }
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Hash over every event and what it did: equal for equal seeds and options.
    pub trace_hash: u64,
    /// Simulated milliseconds.
    pub sim_ms: u64,
    /// Which expectations it was judged by.
    pub class: Class,
    /// Broken invariants, the first few.
    pub violations: Vec<String>,
    /// What happened.
    pub stats: Stats,
}

/// Runs one seed.
pub fn run(seed: u64, options: &Options) -> Outcome {
    world::World::new(seed, options).run()
}
