//! What the leader does about the roles of services: first grants, failovers, switchovers, sets.

use super::Decision;
use super::facts::Facts;
use crate::lease::skew::SkewVerdict;
use crate::state::State;
use crate::time::{Reading, WallMs};

/// What the leader sees at one look.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The state, locked for reading.
    pub state: &'a State,
    /// Hot facts.
    pub facts: &'a Facts,
    /// The term in which this node leads and whose first entry it has applied; `None` otherwise.
    pub term: Option<u64>,
    /// What C9 says of this node's clock.
    pub skew: SkewVerdict,
    /// This node's clock.
    pub now: Reading,
    /// For flap control and people.
    pub wall: WallMs,
}

/// The leader's memory between looks; nothing of it matters for safety.
#[derive(Clone, Debug, Default)]
pub struct Roles {
    term: Option<u64>,
}

impl Roles {
    /// What to propose now.
    pub fn decide(&mut self, view: &View<'_>) -> Decision {
        self.term = view.term;
        Decision::default()
    }
}
