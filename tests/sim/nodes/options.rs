//! What a run is asked to do, and the mutants: ways to break the system that it must notice.

/// Ways to break the system on purpose. A simulator that does not notice them proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// The disk says "synced" and forgets at a power cut: acknowledged before durable, votes too.
    LyingDisk,
    /// After a crash a node comes up with the disk it had some time before, and votes.
    OldDisk,
    /// Reads are answered from local state without asking the leader.
    LocalReads,
    /// The leader expires sessions without waiting out its clock.
    EagerExpiry,
    /// Clients believe their lease longer than the ttl.
    LooseHolder,
    /// One node applies an entry differently.
    Diverging,
    /// Reads ask the leader how far they must see, and do not wait until this node is there.
    ReadUnapplied,
    /// A node names a holder for as long as its row stands, whoever leads by then (C3).
    BelieveForever,
    /// The resource takes writes under any epoch (S4).
    UnguardedResource,
}

impl Mutant {
    /// All of them, by name.
    pub const ALL: [(&'static str, Self); 9] = [
        ("lying-disk", Self::LyingDisk),
        ("old-disk", Self::OldDisk),
        ("local-reads", Self::LocalReads),
        ("eager-expiry", Self::EagerExpiry),
        ("loose-holder", Self::LooseHolder),
        ("diverging", Self::Diverging),
        ("read-unapplied", Self::ReadUnapplied),
        ("believe-forever", Self::BelieveForever),
        ("unguarded-resource", Self::UnguardedResource),
    ];

    /// Reads a name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(n, _)| *n == name).map(|(_, m)| *m)
    }
}

/// What a run is asked to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Length of the part with faults, in virtual seconds.
    pub seconds: u64,
    /// Whether to print the trace.
    pub trace: bool,
    /// What is broken on purpose.
    pub mutant: Option<Mutant>,
}

impl Default for Options {
    fn default() -> Self {
        Self { seconds: 20, trace: false, mutant: None }
    }
}
