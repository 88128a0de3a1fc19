//! The third depth: failover of PostgreSQL. The core's state machine with its role handlers, the
//! leader's deciders, and the agent's machine, all real, over models of what they command: servers
//! with WAL and SyncRep, fencers, hosts, a network.
//!
//! ```text
//! clients ──> postgres ◄── steps ◄── agent ── core::agent::next
//!                ▲  │ WAL              │ streams, renewals
//!       fencer ──┘  ▼                  ▼
//!                postgres          coordinators ── core::state, core::decide
//!                         check: looks at all of it from outside
//! ```
//! What is real: `State::apply`, `decide::{Roles, Expiry}`, `NodeClock`, `HolderClock`, `Notebook`,
//! `Local`, `Right`, `Naming`, `next`, the fencer's rules of deadlines. What is written again: the agent's
//! loop (`src/agent/{run,steps,link}.rs`) and the node's side of its stream, in the same order and by the
//! same rules. What is a model: PostgreSQL, the kernel, the network, the log.

mod agent;
mod check;
mod cli;
mod clients;
mod coordinators;
mod directed;
mod faults;
mod host;
mod link;
mod net;
mod order;
mod pages;
mod people;
mod plan;
mod postgres;
mod prepare;
mod readers;
mod routes;
mod says;
mod senses;
mod steps;
mod streams;
#[cfg(test)]
mod tests;
mod twins;
mod wal;
mod world;

use std::fmt;
use std::str::FromStr;

use regent_core::mutant::Mutant;
use regent_core::spec::Mode;

pub use crate::agents::Class;
pub use cli::run_many;

/// How long after the last fault somebody must serve, in simulated milliseconds.
pub const LIVENESS_MS: u64 = 90_000;

/// What breaks often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Everything.
    Mixed,
    /// Only primaries that die.
    Quiet,
    /// The network.
    Cuts,
    /// Processes, power and disks.
    Crashes,
    /// People who change the primary.
    Switchovers,
    /// What stands still.
    Clocks,
    /// Long leases under clocks at the bounds of A1.
    Rates,
    /// Standbys that are detached and come back some other way.
    Detaches,
    /// Standbys that come back while their primary's sync set changes.
    Flaps,
    /// A primary and a standby that serve on without anybody else.
    Splits,
    /// People who keep their hands on a service while its primary is alone.
    Pauses,
    /// The same while a cluster is not at the newest feature level yet, and while it is raised.
    Upgrades,
    /// Those who were granted and end before they act on it.
    Heirs,
    /// Hosts that are cloned as they run.
    Twins,
    /// Fencers without a namespace, which somebody may outlive.
    Weak,
    /// A leader out of its mind: what it proposes is nobody's decision.
    Rogue,
}

impl Profile {
    /// Every one, with its name on the command line.
    pub const ALL: [(Self, &'static str); 16] = [
        (Self::Mixed, "mixed"),
        (Self::Quiet, "quiet"),
        (Self::Cuts, "cuts"),
        (Self::Crashes, "crashes"),
        (Self::Switchovers, "switchovers"),
        (Self::Clocks, "clocks"),
        (Self::Rates, "rates"),
        (Self::Detaches, "detaches"),
        (Self::Flaps, "flaps"),
        (Self::Splits, "splits"),
        (Self::Pauses, "pauses"),
        (Self::Upgrades, "upgrades"),
        (Self::Heirs, "heirs"),
        (Self::Twins, "twins"),
        (Self::Weak, "weak"),
        (Self::Rogue, "rogue"),
    ];
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Self::ALL.iter().find(|(profile, _)| profile == self);
        f.write_str(named.map_or("", |(_, name)| name))
    }
}

impl FromStr for Profile {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.iter().find(|(_, name)| *name == text);
        named.map(|(profile, _)| *profile).ok_or_else(|| {
            format!("{text:?} is not one of {}", Self::ALL.map(|(_, name)| name).join(", "))
        })
    }
}

/// What to simulate.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// For how long things break, in simulated milliseconds.
    pub duration_ms: u64,
    /// Which assumptions about clocks hold.
    pub class: Class,
    /// What breaks often.
    pub profile: Profile,
    /// Only this mode; else the seed chooses.
    pub mode: Option<Mode>,
    /// Whether somebody must serve in the end (S13).
    pub liveness: bool,
    /// Whether agents are asked who is primary (S8).
    pub pages: bool,
    /// A rule to leave out.
    pub mutant: Option<Mutant>,
    /// Print what happens.
    pub trace: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            duration_ms: 60_000,
            class: Class::Within,
            profile: Profile::Mixed,
            mode: None,
            liveness: true,
            pages: true,
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
    /// Leaders after the first.
    pub leaders: u64,
    /// Things that broke.
    pub faults: u64,
    /// Writes that clients were told are done.
    pub acked: u64,
    /// Epochs granted.
    pub grants: u64,
    /// Promotions, and starts as a primary.
    pub primaries: u64,
    /// Times that clients were let in.
    pub opened: u64,
    /// Certificates (F).
    pub certificates: u64,
    /// Deadlines that a fencer kept.
    pub fired: u64,
    /// Directives refused as too old (S4).
    pub stale: u64,
    /// Rewinds and clones.
    pub rebuilt: u64,
    /// Disks that went back in time.
    pub went_back: u64,
    /// Writes lost within the bound (lease mode).
    pub lost: u64,
    /// Writes lost by an approval.
    pub excused: u64,
    /// Runs that ended with a question to people.
    pub asked: u64,
    /// Two primaries at a time, beyond A1, where that may be.
    pub overlaps: u64,
    /// Fencers that lost their deadline for a pause.
    pub paused: u64,
    /// Switchovers that were announced.
    pub announced: u64,
    /// Grants to who held the end of a resignation.
    pub resigned: u64,
    /// Switchovers that a failover took over.
    pub taken_over: u64,
    /// Recruits that were told to fetch.
    pub fetches: u64,
    /// Grants to one that had fetched.
    pub fetched: u64,
    /// Servers of which somebody outlived the fencer.
    pub outlived: u64,
    /// Runs in which a cloned host was taken for its instance.
    pub twins: u64,
    /// Reads of standbys.
    pub reads: u64,
    /// Times that readers did not go, so that all was ended before a promotion.
    pub stubborn: u64,
    /// Times that an agent named its instance the primary to who asked.
    pub named: u64,
    /// While its loop stood still.
    pub held_up: u64,
    /// A node was asked for the routes of a service with a lease.
    pub routed: u64,
    /// Whose session was taken, which it did not know.
    pub routed_late: u64,
    /// A planned fence began where routers are waited for.
    pub drained: u64,
    /// All of them had left.
    pub left: u64,
}

impl Stats {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.entries += other.entries;
        self.leaders += other.leaders;
        self.faults += other.faults;
        self.acked += other.acked;
        self.grants += other.grants;
        self.primaries += other.primaries;
        self.opened += other.opened;
        self.certificates += other.certificates;
        self.fired += other.fired;
        self.stale += other.stale;
        self.rebuilt += other.rebuilt;
        self.went_back += other.went_back;
        self.lost += other.lost;
        self.excused += other.excused;
        self.asked += other.asked;
        self.overlaps += other.overlaps;
        self.paused += other.paused;
        self.announced += other.announced;
        self.resigned += other.resigned;
        self.taken_over += other.taken_over;
        self.fetches += other.fetches;
        self.fetched += other.fetched;
        self.outlived += other.outlived;
        self.twins += other.twins;
        self.reads += other.reads;
        self.stubborn += other.stubborn;
        self.named += other.named;
        self.held_up += other.held_up;
        self.routed += other.routed;
        self.routed_late += other.routed_late;
        self.drained += other.drained;
        self.left += other.left;
    }
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Over every event and what it did: equal for equal seeds and options.
    pub hash: u64,
    /// Simulated milliseconds.
    pub sim_ms: u64,
    /// Broken invariants.
    pub violations: Vec<String>,
    /// What happened.
    pub stats: Stats,
}

/// Runs one seed.
pub fn run(seed: u64, options: &Options) -> Outcome {
    regent_core::mutant::with(options.mutant, || world::World::new(seed, options).run())
}
