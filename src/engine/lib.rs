//! regent-engine: what an agent can do to a database; the trait, and PostgreSQL behind it.
//!
//! An engine never starts, stops or signals the server: the fencer owns the process. It yields a
//! [`StartCommand`], and asks the [`Postmaster`] it is given for a reload or the end of one inside
//! process. It decides nothing either: when to promote, whom to follow and which names to set are
//! the agent's orders. All SQL lives in `postgres`.
//!
//! | file | what it has |
//! |---|---|
//! | `engine` | the traits [`Engine`] and [`Postmaster`] |
//! | `facts` | what an engine reports |
//! | `orders` | what an engine is told: roles, upstreams, names of the synchronous set |
//! | `error` | one enum for each family of operations |
//! | `postgres` | the implementation for PostgreSQL 13 to 18 |

mod engine;
mod error;
mod facts;
mod orders;
pub mod postgres;

pub use engine::{Child, Engine, Postmaster};
pub use error::{ChangeError, CommitError, DiskError, RebuildError, SqlError};
pub use facts::{
    CleanStop, Cluster, ClusterState, Discovery, GenerationId, HistoryEntry, HistoryFile,
    LostTransaction, LostTransactions, Lowered, LoweredSession, Observation, Override, Receiver,
    Relation, Sender, Slot, SourceLine, Switch,
};
pub use orders::{
    MemberName, NotAMemberName, Secret, Secrets, Source, StartAs, StartCommand, SyncNames, Upstream,
};
