//! What a renewal of a role's lease says beside its number (PROTOCOL.md C4): how the holder is tied to
//! its fencer, how far its WAL reached when, and which pause, policy and sync set it acts by. The last
//! committed one is all that is known of a holder that falls silent.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::position::Position;
use super::start::Armed;
use crate::id::Revision;
use crate::time::Micros;

/// An instant on a holder's CLOCK_BOOTTIME, in microseconds. It means something only beside another
/// one of the same [`MachineBoot`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct HolderInstant(pub u64);

/// Which boot of which machine instants belong to: drawn from the kernel's boot id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MachineBoot(pub u64);

impl HolderInstant {
    /// So much later.
    pub const fn plus(self, time: Micros) -> Self {
        Self(self.0.saturating_add(time.0))
    }

    /// Time since `earlier`; nothing if that is the later one.
    pub const fn since(self, earlier: Self) -> Micros {
        Micros(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for HolderInstant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} us", self.0)
    }
}

/// How far a holder's flushed WAL reached, and when it was asked: everything up to there was written
/// by then, and what was acknowledged up to `sampled` lies below it or at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watermark {
    /// The end of its WAL.
    pub at: Position,
    /// Read *before* the end was asked for: what was acknowledged until then lies below the end.
    pub sampled: HolderInstant,
}

/// What a renewal says of its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderReport {
    /// Whether what it guards can outlive its fencer. A disarmed fencer is as weak as none.
    pub armed: Armed,
    /// Boot of the machine that the instants belong to.
    pub boot: MachineBoot,
    /// When the renewal was sent first: the lease counts from there (C1).
    pub sent: HolderInstant,
    /// The newest watermark; `None`: its database has not been heard yet.
    pub watermark: Option<Watermark>,
    /// The pause that is in force at the holder: its fencer has no deadline, or may have none from
    /// here on (E5). `None`: armed, and under no pause.
    pub pause: Option<Revision>,
    /// Revision of the service's declaration that it acts by (C7).
    pub policy: Revision,
    /// The sync set whose names are in force.
    pub set: Option<Revision>,
}

/// When the last process of a holder had ended: beside a receipt that says that it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopInstant {
    /// Boot of the machine.
    pub boot: MachineBoot,
    /// Nothing was left by then.
    pub at: HolderInstant,
}
