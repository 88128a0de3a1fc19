//! Rules that the simulator leaves out, one at a time, to show that it would notice (`tests/sim`).
//!
//! Without the feature `mutants`, which the product does not enable, [`leaves_out`] is `false` and
//! nothing can change that. With it a thread says which rule its own runs leave out.

/// One rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// D, OUT (c): one receipt of each set is enough.
    OutCounts,
    /// D, COMPLETE: any recruit is complete.
    CompleteOverSets,
    /// D, FREE: a candidate needs no receipt that says where its WAL ends. Nothing breaks without this
    /// rule alone: COMPLETE asks for that receipt as well, and people are asked about nobody without one.
    FreeReceipt,
    /// D, grant: C forgets the sets of before.
    UncoveredKept,
    /// D, Covered: names are in force as soon as they are written.
    CoveredByNewTransaction,
    /// D: a receipt is sent before what it promises is on disk, the order to promise it included.
    PledgeSynced,
    /// B, S4: a directive below the highest is obeyed.
    LowerDirectiveRefused,
    /// B: any start is accepted.
    StartsJudged,
    /// C1: the holder's clock needs no margin.
    HolderMargin,
    /// C1: the time to stop is not planned for.
    FenceBudget,
    /// C2: a session may be taken when three quarters of its time are over, the longest that its epoch
    /// was ever promised.
    LaterClock,
    /// C8: a grant counts before a renewal named it.
    GrantRenewed,
    /// D, detach: the upstream stays on disk.
    DetachedOnDisk,
    /// D: a candidate is promoted without the names of its set. Nothing breaks without this rule alone:
    /// a standby's own names match nobody, and a primary lets clients in only after a commit was proved
    /// under the names of its set.
    NamesBeforePromotion,
    /// D: one set follows another directly.
    NamesThroughNobody,
    /// E3: an instance that is down stays what it was.
    ClosedOnDisk,
    /// E4: any renewal starts a primary again.
    RenewalAfterCrash,
    /// F: a primary that is shut needs no deadline, in whatever mode.
    ShutKeepsDeadline,
    /// D: renewals go on under a fence.
    FenceRefusesRenewals,
    /// F: certificates count though a fence is known. No write breaks without this rule alone: a
    /// certificate is the return of a commit under the committed set, and OUT (c) proves that none
    /// returns any more. What it ends in time is reads of what has been replaced.
    CertificatesLatched,
    /// D: standbys are detached before the old primary has resigned.
    CutAfterResign,
    /// H: any loss is within the bound.
    LossBound,
    /// D, receipts: the end of the WAL of an instance that is down is said with the epochs that this
    /// start of its agent has seen, and not with those that the WAL may carry.
    EndCarriesDirective,
    /// D (docs/adr/0012): a promotion takes the next number that its instance knows of.
    TimelineSetAside,
    /// E5: a pause is obeyed below the level at which renewals can say so.
    PauseNeedsLevel,
    /// E5: the fencer loses its deadline before a renewal that names the pause is in the log.
    PauseCommitted,
    /// E5: a lapse proves an end, whatever the last renewal said of a pause.
    LapseUnpaused,
    /// C8: a lease of an earlier grant counts under the directive of a later one. Nothing breaks without
    /// this rule alone: who leads no more was ended, and then no renewal of before counts.
    LeaseOfGrant,
    /// E2: a start that is said again is no stranger to the lease.
    StrangerWaits,
    /// E4: a primary that was ended by order is started again by a renewal of before.
    RenewalAfterStop,
    /// D, OUT (a): what a fencer saw in another boot of a machine proves an end in this one.
    ProofOfThisBoot,
    /// D, OUT (a) and (b), E1: a fencer without a namespace proves an end as any other.
    WeakProvesNothing,
    /// S8: an agent is named the primary by what its loop last knew, whenever it is asked.
    NamingEnds,
    /// D: a standby is promoted with its readers in.
    ReadersShut,
    /// C3: a node believes a renewal from when it applied it, and not from when it asked for a read index
    /// below it.
    BelievedFromRound,
    /// S8: a node's routes name the holder of a lease, whatever the node believes.
    RoutesBelieve,
    /// S8 (docs/adr/0015): a planned fence waits for no router.
    RoutesFirst,
}

impl Mutant {
    /// Every one, with its name on a command line.
    pub const ALL: [(Self, &'static str); 37] = [
        (Self::OutCounts, "out-counts"),
        (Self::CompleteOverSets, "complete-over-sets"),
        (Self::FreeReceipt, "free-receipt"),
        (Self::UncoveredKept, "uncovered-kept"),
        (Self::CoveredByNewTransaction, "covered-by-new-transaction"),
        (Self::PledgeSynced, "pledge-synced"),
        (Self::LowerDirectiveRefused, "lower-directive-refused"),
        (Self::StartsJudged, "starts-judged"),
        (Self::HolderMargin, "holder-margin"),
        (Self::FenceBudget, "fence-budget"),
        (Self::LaterClock, "later-clock"),
        (Self::GrantRenewed, "grant-renewed"),
        (Self::DetachedOnDisk, "detached-on-disk"),
        (Self::NamesBeforePromotion, "names-before-promotion"),
        (Self::NamesThroughNobody, "names-through-nobody"),
        (Self::ClosedOnDisk, "closed-on-disk"),
        (Self::RenewalAfterCrash, "renewal-after-crash"),
        (Self::ShutKeepsDeadline, "shut-keeps-deadline"),
        (Self::FenceRefusesRenewals, "fence-refuses-renewals"),
        (Self::CertificatesLatched, "certificates-latched"),
        (Self::CutAfterResign, "cut-after-resign"),
        (Self::LossBound, "loss-bound"),
        (Self::EndCarriesDirective, "end-carries-directive"),
        (Self::TimelineSetAside, "timeline-set-aside"),
        (Self::PauseNeedsLevel, "pause-needs-level"),
        (Self::PauseCommitted, "pause-committed"),
        (Self::LapseUnpaused, "lapse-unpaused"),
        (Self::LeaseOfGrant, "lease-of-grant"),
        (Self::StrangerWaits, "stranger-waits"),
        (Self::RenewalAfterStop, "renewal-after-stop"),
        (Self::ProofOfThisBoot, "proof-of-this-boot"),
        (Self::WeakProvesNothing, "weak-proves-nothing"),
        (Self::NamingEnds, "naming-ends"),
        (Self::ReadersShut, "readers-shut"),
        (Self::BelievedFromRound, "believed-from-round"),
        (Self::RoutesBelieve, "routes-believe"),
        (Self::RoutesFirst, "routes-first"),
    ];

    /// The one with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(mutant, _)| *mutant)
    }
}

#[cfg(feature = "mutants")]
mod switch {
    use std::cell::Cell;

    use super::Mutant;

    thread_local! {
        static LEFT_OUT: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Whether this thread leaves the rule out.
    pub fn leaves_out(rule: Mutant) -> bool {
        LEFT_OUT.get() == Some(rule)
    }

    /// Runs `body` without this rule.
    pub fn with<T>(mutant: Option<Mutant>, body: impl FnOnce() -> T) -> T {
        let before = LEFT_OUT.replace(mutant);
        let result = body();
        LEFT_OUT.set(before);
        result
    }
}

#[cfg(feature = "mutants")]
pub use switch::{leaves_out, with};

/// Whether the rule is left out: never.
#[cfg(not(feature = "mutants"))]
pub const fn leaves_out(_rule: Mutant) -> bool {
    false
}
