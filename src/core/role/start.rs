//! The start of an agent, and what the log must know of it before anything of its instance runs
//! (PROTOCOL.md B as docs/adr/0010 corrects it).

use serde::{Deserialize, Serialize};

use super::order::DirectiveNumber;
use super::position::Position;
use crate::id::{Epoch, Nonce, SessionId};

/// What an agent says when it comes up, and again with each new session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStart {
    /// Its session, opened by the same principal.
    pub session: SessionId,
    /// This start of the agent; fsynced before it is first said.
    pub nonce: Nonce,
    /// Counter of its last accepted start; 0: none ever.
    pub boot: u64,
    /// The disk that the counter lies on.
    pub disk: u64,
    /// Highest directive it has obeyed or refused others for.
    pub seen: DirectiveNumber,
    /// The database's own identity; `None`: there is no data directory yet.
    pub data: Option<DataIdentity>,
    /// The means of the fencer.
    pub fencer: Armed,
    /// Which run of the fencer: it takes orders of this start of the agent and of no earlier one.
    /// 0: not known.
    pub run: Nonce,
}

/// What a data directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataIdentity {
    /// PostgreSQL's system identifier: equal for all instances of a service.
    pub system: u64,
    /// New at each clone or rewind.
    pub generation: u64,
    /// Highest epoch persisted by the agent or found in the WAL.
    pub epoch: Epoch,
    /// Flushed end; `None`: it is not known, which is not the same as the very beginning.
    pub position: Option<Position>,
    /// Whether it lies or runs out of recovery: a primary, or what was one.
    pub out_of_recovery: bool,
}

/// Whether PostgreSQL can outlive its fencer (E1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Armed {
    /// It cannot: the kernel ends it with the namespace or the cgroup.
    Armed,
    /// It could: a lapse of the lease proves nothing without an approval.
    #[default]
    Weak,
}

impl Armed {
    /// One word for people and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Armed => "armed",
            Self::Weak => "weak",
        }
    }
}
