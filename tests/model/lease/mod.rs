//! PROTOCOL.md C: a lease under clocks that drift and stand still, and two role changes in a row.
//!
//! ```text
//! holder ──renewals (lost, doubled, late)──► log ──applied late──► proposer ──Expire──► log
//!   ▲ act until left = 0                      │                     wait
//!   └──acknowledgements (any order, late)─────┘ ──applied late──► router: believed
//! ```
//!
//! Real time passes in ticks. A host's clock advances by 1, 2 or 3 units a tick: rho is a half, so
//! that a drift shows within a handful of ticks; the formulas are those of the law. A clock may
//! also stand still for up to the pause margin. Nobody reads real time: every deadline is kept as
//! what is left of it on the clock of its host, which also keeps the number of states finite
//! without a horizon.
//!
//! Assumed: A1, and that the log is one sequence. The proposer stands for any node that leads, or
//! thinks so: it may lag, its proposals may be frozen and committed later. The router stands for
//! any node, agent or relay that names a holder. C5 and C6 are about leases that end too late, not
//! too early, and C9 about clocks beyond A1: no rule of this model could show them.

mod rules;
mod state;

use stateright::{Model, Property};

pub use rules::{LAW, Rule, Rules, Switch};
pub use state::{Action, State};

/// Two holders do not overlap.
pub const S5: &str = "S5 nobody acts whose right was taken";
/// Nobody names a holder for too long.
pub const S8: &str = "S8 nobody names a holder whose lease has lapsed";

/// How much of everything there is.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Renewals of the first holder and of the second.
    pub renewals: [usize; 2],
    /// The time to live, in ticks, before and after a change of policy.
    pub ttls: [u8; 2],
    /// Ticks that a clock may stand still, and for which nodes wait.
    pub pause: u8,
    /// Restarts of the proposer.
    pub restarts: u8,
    /// Whether holders act, for S5.
    pub holder: bool,
    /// Whether a router names them, for S8.
    pub router: bool,
}

impl Bounds {
    /// Drift only.
    pub const DRIFT: Self =
        Self { renewals: [2, 1], ttls: [3, 3], pause: 0, restarts: 1, holder: true, router: false };
    /// Clocks that stand still too.
    pub const PAUSE: Self = Self { renewals: [2, 0], pause: 3, restarts: 0, ..Self::DRIFT };
    /// A policy with a shorter ttl, half way.
    pub const POLICY: Self = Self { renewals: [2, 0], ttls: [4, 2], pause: 1, ..Self::DRIFT };
    /// Who names a holder.
    pub const ROUTER: Self = Self { holder: false, router: true, ..Self::DRIFT };
    /// And how a pause and a policy change that.
    pub const ROUTER_POLICY: Self =
        Self { restarts: 0, holder: false, router: true, ..Self::POLICY };
}

/// The model: the rules within the bounds.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    /// Which rules stand.
    pub rules: Rules,
    /// How much there is of everything.
    pub bounds: Bounds,
}

impl Lease {
    /// What a holder, or a router, counts on after the instant it counts from: ttl·(1−ρ).
    pub(crate) fn short(&self, ttl: u8) -> u8 {
        if self.rules.keep(Rule::HolderRho) { ttl } else { 2 * ttl }
    }

    /// What a node waits after it applied: (ttl + pause_margin)·(1+ρ).
    pub(crate) fn long(&self, ttl: u8) -> u8 {
        let pause = self.bounds.pause;
        match self.rules.off {
            Some(Rule::NodeRho) => 2 * ttl + 2 * pause,
            Some(Rule::PauseMargin) => 3 * ttl,
            Some(Rule::PauseMarginStretched) => 3 * ttl + 2 * pause,
            _ => 3 * (ttl + pause),
        }
    }
}

impl Model for Lease {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let rates = [1, 3];
        let mut states = Vec::new();
        for holder in rates {
            for proposer in rates {
                // One of the two is not there, or its clock does not matter.
                states.push(State::first(self, holder, proposer, holder));
            }
        }
        states
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        state.actions(self, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        next.step(self, action);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(S5, |_, state: &State| !state.acts_without_right()),
            Property::always(S8, |_, state: &State| !state.names_what_lapsed()),
        ];
        if self.rules.off.is_none() {
            properties.push(Property::<Self>::sometimes("a lease lapses", |_, state: &State| {
                state.lapsed(1)
            }));
            if self.bounds.router {
                properties.push(Property::sometimes("a router names one", |_, state: &State| {
                    state.router.left > 0
                }));
            }
            if self.bounds.holder && self.bounds.renewals[1] > 0 {
                properties
                    .push(Property::sometimes("the second holder acts", |_, state: &State| {
                        state.holders[1].acting
                    }));
                properties
                    .push(Property::sometimes("a second lease lapses", |_, state: &State| {
                        state.lapsed(2)
                    }));
            }
        }
        properties
    }
}
