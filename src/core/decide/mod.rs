//! What the leader proposes by itself. `decide(view, now) -> Decision`: commands for the log, and a
//! report that says why, and for what was not done, why not.
//!
//! A decision lost or made twice is harmless: `apply` judges every command again from the log alone
//! (C4), and what is kept between ticks a new leader rebuilds from the state. One thing `apply` cannot
//! judge, because it knows no clock: whether the time of a lease is over (C2). For that the decider
//! asks the node's clocks, and nothing else.

pub mod expiry;
pub mod facts;
pub mod roles;

use std::fmt;

use crate::command::Command;

pub use expiry::Expiry;
pub use facts::Facts;
pub use roles::Roles;

/// What to propose, and why.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// In this order; each stands alone.
    pub commands: Vec<Command>,
    /// For logs, and for whoever asks why nothing happened.
    pub report: Vec<Line>,
}

/// One line of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Whether something was proposed because of this.
    pub acted: bool,
    /// A whole sentence.
    pub text: String,
}

impl Decision {
    fn say(&mut self, acted: bool, text: String) {
        self.report.push(Line { acted, text });
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
