//! The rules of PROTOCOL.md B, D and E that the model can leave out, one at a time, and what then
//! breaks within which bounds.

use super::Bounds;

/// The law, or the law without one rule.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// The rule left out.
    pub off: Option<Rule>,
}

impl Rules {
    /// Whether a rule stands.
    pub fn keep(self, rule: Rule) -> bool {
        self.off != Some(rule)
    }

    /// Whether an agent that forgot a pledge is noticed. It would also be noticed when a pledge was
    /// never written, so without that rule this one is left out too.
    pub fn remembers(self) -> bool {
        self.keep(Rule::PledgeRemembered) && self.keep(Rule::PledgePersisted)
    }

    /// Whether a boot counter counts accepted starts, and not every one.
    pub fn counts_accepted(self) -> bool {
        self.keep(Rule::BootCounterOfAccepted) && self.keep(Rule::BootCounterAbove)
    }
}

/// A rule that can be left out, to show that it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// B: an agent refuses a directive lower than the highest it has persisted.
    DirectivesInOrder,
    /// B: an instance that presents another boot counter than the recorded one is quarantined.
    BootCounterCompared,
    /// B: the counter counts the starts that the log accepted. Were it every start, a few of them
    /// that no node hears of would bring an old disk up to what is recorded.
    BootCounterOfAccepted,
    /// B: and equal to what is recorded is not above it, if every start counts.
    BootCounterAbove,
    /// B: an agent that knows of no directive as high as a receipt of its own is quarantined too.
    PledgeRemembered,
    /// B, D: a receipt sent before a reboot does not count after it.
    ReceiptOfThisBoot,
    /// B: nothing of an instance starts before its boot counter was judged.
    JudgedBeforeStart,
    /// B: positions are compared by the WAL-borne epoch first, then by the flushed end.
    EpochComparedFirst,
    /// D, detach: `primary_conninfo` is erased on disk.
    DetachErasesConfig,
    /// D, detach: the walreceiver is gone before the receipt.
    DetachEndsReceiver,
    /// D: a receipt is a pledge, fsynced before it is sent.
    PledgePersisted,
    /// D: a receipt counts only for its own fence.
    ReceiptOfThisFence,
    /// D, OUT (c): `detached` from |S| - k + 1 members, not from |S| - k.
    OutQuorum,
    /// D, OUT (c): of every set in A, not only of the newest.
    OutOverAllOfA,
    /// D, OUT (b): a lapse is never enough in quorum mode.
    LapseIsNoProof,
    /// D, Fetch: only from a recruit of the same fence.
    FetchFromRecruit,
    /// D, COMPLETE: `recruited` from |S| - k + 1 members, not from |S| - k.
    CompleteQuorum,
    /// D, COMPLETE: of every set in C, not only of those in A.
    CompleteOverC,
    /// D, COMPLETE: the candidate holds the maximum of the recruits.
    CandidateHoldsMaximum,
    /// D, COMPLETE: a Resign is compared by its end E.
    ResignEndCompared,
    /// D, COMPLETE: the old holder is complete only if it is the last one.
    OnlyTheLastHolder,
    /// D, Grant: C keeps the sets that are not covered yet.
    GrantKeepsC,
    /// D, candidate: acts only when a renewal of its own epoch was acknowledged (C8).
    ConfirmedBeforePromotion,
    /// D, candidate: the names of N are set before it promotes.
    NamesBeforePromotion,
    /// D, candidate: its first transaction writes the epoch.
    EpochIsWritten,
    /// D, Covered: a transaction begun after the promotion.
    CoveredAfterPromotion,
    /// D, sets: A and C gain S' before it is sent.
    SetCommittedFirst,
    /// D, sets: only a transaction begun after the switch makes S' covered.
    CoveredByFreshTransaction,
    /// D, sets: the names are fsynced before they are confirmed.
    NamesOnDisk,
    /// E4: after a restart in place nobody gets in before a probe was seen waiting: until then the
    /// names may be ignored.
    ProbeBeforeClients,
    /// E3, E4: what resigned is closed on disk, and does not start with an older renewal.
    RestartNeedsNewRenewal,
}

/// A switch: what is left out, which property then breaks, and the bounds that show it.
pub struct Switch {
    /// What is left out.
    pub rule: Rule,
    /// The invariant that breaks.
    pub breaks: &'static str,
    /// Within these bounds.
    pub bounds: Bounds,
}

impl Rule {
    /// Every rule, with what breaks without it.
    pub const ALL: [Switch; 33] = {
        use super::{S1, S2, S6};
        const SMALL: Bounds = Bounds::SMALL;
        const TWICE: Bounds = Bounds { operations: 2, ..SMALL };
        const REBOOT: Bounds = Bounds { crashes: 1, ..SMALL };
        const OLD_DISK: Bounds = Bounds { disks: 1, ..REBOOT };
        const APPROVED: Bounds = Bounds { approvals: 1, ..SMALL };
        const SET: Bounds = Bounds { sets: 1, ..SMALL };
        const PLANNED: Bounds = Bounds { planned: 1, ..SMALL };
        const fn breaks(rule: Rule, breaks: &'static str, bounds: Bounds) -> Switch {
            Switch { rule, breaks, bounds }
        }
        [
            breaks(Rule::DirectivesInOrder, S1, SMALL),
            breaks(Rule::BootCounterCompared, S2, OLD_DISK),
            breaks(Rule::BootCounterOfAccepted, S2, Bounds { crashes: 2, ..OLD_DISK }),
            breaks(Rule::BootCounterAbove, S2, OLD_DISK),
            breaks(Rule::PledgeRemembered, S1, Bounds::SAME_BOOT),
            breaks(Rule::ReceiptOfThisBoot, S1, Bounds::SAME_BOOT),
            breaks(Rule::JudgedBeforeStart, S1, OLD_DISK),
            breaks(Rule::EpochComparedFirst, S2, Bounds { writes: 3, ..TWICE }),
            breaks(Rule::DetachErasesConfig, S1, REBOOT),
            breaks(Rule::DetachEndsReceiver, S1, SMALL),
            breaks(Rule::PledgePersisted, S1, REBOOT),
            breaks(Rule::ReceiptOfThisFence, S1, Bounds { closed: 1, ..TWICE }),
            breaks(Rule::OutQuorum, S1, APPROVED),
            breaks(Rule::OutQuorum, S6, APPROVED),
            breaks(Rule::OutOverAllOfA, S1, Bounds { members: 0b010, sets: 1, ..APPROVED }),
            breaks(Rule::LapseIsNoProof, S1, APPROVED),
            breaks(Rule::FetchFromRecruit, S1, Bounds { fetches: 1, ..SMALL }),
            breaks(Rule::CompleteQuorum, S2, SMALL),
            breaks(Rule::CompleteQuorum, S6, SMALL),
            breaks(Rule::CompleteOverC, S2, TWICE),
            breaks(Rule::CandidateHoldsMaximum, S2, SMALL),
            breaks(Rule::ResignEndCompared, S2, PLANNED),
            breaks(Rule::OnlyTheLastHolder, S2, TWICE),
            breaks(Rule::GrantKeepsC, S2, TWICE),
            breaks(Rule::ConfirmedBeforePromotion, S1, Bounds { approvals: 1, ..TWICE }),
            breaks(Rule::NamesBeforePromotion, S2, Bounds { k: 2, ..TWICE }),
            breaks(Rule::EpochIsWritten, S2, Bounds { writes: 3, ..TWICE }),
            breaks(Rule::CoveredAfterPromotion, S2, TWICE),
            breaks(Rule::SetCommittedFirst, S2, Bounds { members: 0b010, ..SET }),
            breaks(Rule::CoveredByFreshTransaction, S2, SET),
            breaks(Rule::NamesOnDisk, S2, Bounds { writes: 2, crashes: 1, victims: 0b001, ..SET }),
            breaks(Rule::ProbeBeforeClients, S2, REBOOT),
            breaks(Rule::RestartNeedsNewRenewal, S1, PLANNED),
        ]
    };
}

/// Bounds within which the law is checked, with one role change.
pub const ONCE: [Bounds; 4] = {
    const SMALL: Bounds = Bounds::SMALL;
    [
        Bounds { crashes: 2, disks: 1, ..SMALL },
        Bounds { planned: 1, closed: 1, crashes: 1, victims: 0b011, disks: 1, ..SMALL },
        Bounds { sets: 1, writes: 2, crashes: 1, victims: 0b001, ..SMALL },
        Bounds { members: 0b010, sets: 1, approvals: 1, crashes: 1, ..SMALL },
    ]
};

/// And with two.
pub const TWICE: [Bounds; 6] = {
    const SMALL: Bounds = Bounds { operations: 2, ..Bounds::SMALL };
    [
        Bounds { fetches: 1, ..SMALL },
        Bounds { fetches: 1, k: 2, ..SMALL },
        Bounds { approvals: 1, ..SMALL },
        Bounds { planned: 1, ..SMALL },
        Bounds { sets: 1, ..SMALL },
        Bounds { crashes: 1, victims: 0b011, disks: 1, ..SMALL },
    ]
};
