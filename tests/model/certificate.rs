//! PROTOCOL.md F, quorum mode: a primary that no coordinator reaches holds on by certificates.
//!
//! A certificate is a canary transaction that the sync set acknowledged. No write depends on a
//! clock here: [`role_change`](crate::role_change) shows that without any. What a certificate
//! bounds is for how long *reads* on a cut-off primary may be stale: ttl, and what its clock stood
//! still, after the grant of a newer epoch. Clocks and units are those of [`lease`](crate::lease).

use stateright::{Model, Property};

/// The time to live, in ticks.
const TTL: u8 = 4;
/// How many ticks the primary's clock may stand still: the pause margin.
const PAUSE: u8 = 1;
/// What the primary needs to close, in units of its clock.
const BUDGET: u8 = 1;
/// More than any deadline; ages are not counted further.
const OLD: u8 = 12;
/// Canaries that are sent.
const CANARIES: u8 = 2;

/// Reads are stale for a bounded time.
pub const STALE: &str = "F nobody serves for longer than ttl and a pause after a newer grant";
/// Whoever knows stays closed.
pub const CLOSED: &str = "F nobody serves who knows of a fence";

/// A rule that can be left out, to show that it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A certificate dates from before its first byte was sent, not from its return.
    FromFirstByte,
    /// It lasts ttl·(1−ρ), for a clock that is slow.
    Rho,
    /// What it takes to close is planned for.
    CloseBudget,
    /// A warning, a cancel, or names other than the committed ones are a failure.
    WarningIsFailure,
    /// Recruits acknowledge nothing.
    RecruitsAcknowledgeNothing,
    /// It never re-arms once the agent knows of a fence or a refusal.
    Latch,
    /// That latch is fsynced.
    LatchOnDisk,
}

impl Rule {
    /// Every rule, with what breaks without it.
    pub const ALL: [(Self, &'static str); 7] = [
        (Self::FromFirstByte, STALE),
        (Self::Rho, STALE),
        (Self::CloseBudget, STALE),
        (Self::WarningIsFailure, STALE),
        (Self::RecruitsAcknowledgeNothing, STALE),
        (Self::Latch, CLOSED),
        (Self::LatchOnDisk, CLOSED),
    ];
}

/// A canary transaction under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Canary {
    /// Since before its first byte, on the primary's clock.
    age: u8,
    /// Whether enough of the set has flushed it.
    flushed: bool,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Units of the primary's clock in a tick, 1 to 3.
    rate: u8,
    pauses: u8,
    /// Whether the sync set was detached.
    cut: bool,
    /// Ticks since the grant, counted up to a limit.
    granted: Option<u8>,
    canary: Option<Canary>,
    sent: u8,
    /// Until the primary has closed.
    left: u8,
    /// What the agent knows, and what it would know after a restart.
    latch: bool,
    latch_on_disk: bool,
    /// Whether it ever knew.
    told: bool,
    restarts: u8,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Real time passes; the primary's clock may stand still.
    Tick {
        /// Whether it does.
        still: bool,
    },
    /// The agent sends a canary.
    Send,
    /// Enough of the set has flushed it.
    Flush,
    /// It is cancelled: it returns with a warning.
    Warn,
    /// It returns.
    Return,
    /// The sync set is detached, under a fence.
    Cut,
    /// A newer epoch is granted.
    Grant,
    /// The agent hears of the fence, and closes.
    Hear,
    /// The agent restarts.
    Restart,
}

/// The law, or the law without one rule.
#[derive(Clone, Copy, Debug, Default)]
pub struct Certificate {
    /// The rule left out.
    pub off: Option<Rule>,
}

impl Certificate {
    fn keep(self, rule: Rule) -> bool {
        self.off != Some(rule)
    }
}

impl State {
    fn serves(&self) -> bool {
        self.left > 0
    }

    fn tick(&mut self, still: bool) {
        self.granted = self.granted.map(|ticks| (ticks + 1).min(OLD));
        if still {
            self.pauses -= 1;
            return;
        }
        if let Some(canary) = &mut self.canary {
            canary.age = (canary.age + self.rate).min(OLD);
        }
        self.left = self.left.saturating_sub(self.rate);
    }

    fn returned(&mut self, model: Certificate) {
        let Some(canary) = self.canary.take() else { return };
        let length = if model.keep(Rule::Rho) { TTL } else { 2 * TTL };
        let age = if model.keep(Rule::FromFirstByte) { canary.age } else { 0 };
        let left = length.saturating_sub(age);
        let budget = if model.keep(Rule::CloseBudget) { 0 } else { BUDGET };
        if left > BUDGET && !self.latch {
            self.left = self.left.max(left + budget);
        }
    }
}

impl Model for Certificate {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let first = |rate| State {
            rate,
            pauses: PAUSE,
            cut: false,
            granted: None,
            canary: None,
            sent: 0,
            left: 0,
            latch: false,
            latch_on_disk: false,
            told: false,
            restarts: 0,
        };
        (1..=3).map(first).collect()
    }

    fn actions(&self, state: &State, next: &mut Vec<Action>) {
        next.push(Action::Tick { still: false });
        if state.pauses > 0 {
            next.push(Action::Tick { still: true });
        }
        match state.canary {
            None if state.sent < CANARIES => next.push(Action::Send),
            Some(canary) if canary.flushed => next.push(Action::Return),
            Some(_) => {
                if !state.cut || !self.keep(Rule::RecruitsAcknowledgeNothing) {
                    next.push(Action::Flush);
                }
                next.push(Action::Warn);
            }
            None => {}
        }
        if !state.cut {
            next.push(Action::Cut);
        } else if state.granted.is_none() {
            next.push(Action::Grant);
        }
        if state.cut && !state.told {
            next.push(Action::Hear);
        }
        if state.restarts == 0 {
            next.push(Action::Restart);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Tick { still } => next.tick(still),
            Action::Send => {
                next.sent += 1;
                next.canary = Some(Canary { age: 0, flushed: false });
            }
            Action::Flush => {
                next.canary = state.canary.map(|canary| Canary { flushed: true, ..canary });
            }
            Action::Warn if self.keep(Rule::WarningIsFailure) => next.canary = None,
            Action::Warn | Action::Return => next.returned(*self),
            Action::Cut => next.cut = true,
            Action::Grant => next.granted = Some(0),
            Action::Hear => {
                next.told = true;
                next.left = 0;
                next.latch = self.keep(Rule::Latch);
                next.latch_on_disk = next.latch && self.keep(Rule::LatchOnDisk);
            }
            // The canary goes on in its backend, and the fencer keeps its deadline.
            Action::Restart => {
                next.restarts += 1;
                next.latch = state.latch_on_disk;
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(STALE, |_, state: &State| {
                !state.serves() || state.granted.is_none_or(|ticks| ticks < TTL + PAUSE)
            }),
            Property::always(CLOSED, |_, state: &State| !(state.serves() && state.told)),
        ];
        if self.off.is_none() {
            properties
                .push(Property::<Self>::sometimes("a primary holds on", |_, state: &State| {
                    state.serves() && state.granted.is_some()
                }));
        }
        properties
    }
}
