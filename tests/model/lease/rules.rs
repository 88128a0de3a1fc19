//! The rules of PROTOCOL.md C that the model can leave out, one at a time.

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
}

/// A rule that can be left out, to show that it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// C1: the holder allows for a clock that is slow.
    HolderRho,
    /// C1: from the first transmission, not from the answer.
    CountFromTransmission,
    /// C1: from the first transmission, not from the last one of the same number.
    FirstTransmission,
    /// C1: of exactly the number that was acknowledged, not of the latest one.
    ExactNumber,
    /// C1: the holder plans for the time that it takes to stop.
    FenceBudget,
    /// C1: the fencer's absolute deadline ends the act, not a check before it.
    FencerDeadline,
    /// C2: a node allows for a clock that is fast.
    NodeRho,
    /// C2, A1: and for clocks that stand still for a moment.
    PauseMargin,
    /// C2: the margin too is stretched by the node's rate (ADR 0006).
    PauseMarginStretched,
    /// C2: a node that just started counts from then.
    TimersRestarted,
    /// C3: belief counts from a ReadIndex sent before, not from the application.
    BelieveFromReadIndex,
    /// C3: that ReadIndex's answer was below the renewal.
    AnswerBelowRenewal,
    /// C3: ReadIndex is answered by a leader that is still the leader.
    ReadIndexByQuorum,
    /// C3: belief ends.
    BeliefEnds,
    /// C4: an expiry names the renewal that it saw.
    ExpiryNamesRenewal,
    /// C4: a keep-alive is answered only by a committed entry.
    AnswerAfterCommit,
    /// C7: a shorter ttl does not shorten what a longer one of this epoch has given.
    LongestTtlOfEpoch,
    /// C8: a grant has length 0; the holder acts on its first acknowledged renewal.
    GrantHasNoLength,
    /// D (f): who resigns has stopped before.
    ResignAfterStop,
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
    pub const ALL: [Switch; 19] = {
        use super::{S5, S8};
        const fn breaks(rule: Rule, breaks: &'static str, bounds: Bounds) -> Switch {
            Switch { rule, breaks, bounds }
        }
        [
            breaks(Rule::HolderRho, S5, Bounds::DRIFT),
            breaks(Rule::CountFromTransmission, S5, Bounds::DRIFT),
            breaks(Rule::FirstTransmission, S5, Bounds::DRIFT),
            breaks(Rule::ExactNumber, S5, Bounds::DRIFT),
            breaks(Rule::FenceBudget, S5, Bounds::DRIFT),
            breaks(Rule::FencerDeadline, S5, Bounds::DRIFT),
            breaks(Rule::NodeRho, S5, Bounds::DRIFT),
            breaks(Rule::PauseMargin, S5, Bounds::PAUSE),
            breaks(Rule::PauseMarginStretched, S5, Bounds::PAUSE),
            breaks(Rule::TimersRestarted, S5, Bounds::DRIFT),
            breaks(Rule::BelieveFromReadIndex, S8, Bounds::ROUTER),
            breaks(Rule::AnswerBelowRenewal, S8, Bounds::ROUTER),
            breaks(Rule::ReadIndexByQuorum, S8, Bounds::ROUTER),
            breaks(Rule::BeliefEnds, S8, Bounds::ROUTER),
            breaks(Rule::ExpiryNamesRenewal, S5, Bounds::DRIFT),
            breaks(Rule::AnswerAfterCommit, S5, Bounds::DRIFT),
            breaks(Rule::LongestTtlOfEpoch, S5, Bounds::POLICY),
            breaks(Rule::GrantHasNoLength, S5, Bounds::DRIFT),
            breaks(Rule::ResignAfterStop, S5, Bounds::DRIFT),
        ]
    };
}

/// Bounds within which the law is checked.
pub const LAW: [Bounds; 5] =
    [Bounds::DRIFT, Bounds::PAUSE, Bounds::POLICY, Bounds::ROUTER, Bounds::ROUTER_POLICY];
