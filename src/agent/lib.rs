//! regent-agent: the sidecar of one instance. Its decisions are `regent_core::agent`; here they are
//! heard, done and told.
//!
//! ```text
//!            link (session, stream)     http (/primary, /replica, ...)
//!                    │                          ▲
//!  sights ───────> run ── core::agent::next ──> status
//!                  │   ▲
//!        steps ◄───┘   └── observe, probe, certify
//!          │ engine                │ engine
//!          └──> guard ──> fencer ──> PostgreSQL
//! ```
//! The agent may be restarted at any time: what runs goes on under the fencer, and what was
//! promised lies in `notes`.

mod adopt;
mod children;
mod config;
mod declared;
mod fences;
mod guard;
mod http;
mod init;
mod link;
mod local;
mod news;
mod notes;
mod prepare;
mod release;
mod run;
mod says;
mod senses;
mod sights;
mod start;
mod status;
mod steady;
mod steps;
mod words;

pub use adopt::{AdoptError, AdoptOptions, Adoption, adopt};
pub use config::{AgentConfig, ConfigError};
pub use init::{InitError, InitOptions, init};
pub use notes::Notes;
pub use regent_engine::postgres::Ask;
pub use release::{Release, ReleaseError, release};
pub use start::{StartError, run};
