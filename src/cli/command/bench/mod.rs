//! `regent bench ...`: measures a cluster from the outside.
//!
//! The generator shares the machine with what it measures, so it is light: raw generated clients,
//! no retries, one histogram per client. What one of them could not do counts as an error.

mod failover;
mod follow;
mod keepalive;
mod leader;
mod load;
mod proclaim;
mod read;
mod renewer;
mod report;
mod routes;
mod setup;
mod target;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use super::Context;
use crate::error::Outcome;

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Replicated writes: each client proclaims in its own election
    Proclaim(Common),
    /// Linearizable reads of who leads
    Read(Common),
    /// Leases kept alive: --clients sessions, renewed in batches over a few streams
    Keepalive(keepalive::Args),
    /// One change to --clients watchers: time until the last one knows
    Watch(watch::Args),
    /// Leader of the nodes lost: time until the next replicated write, over and over, on a lab
    Leader(leader::Args),
    /// Many services, somebody follows each, one changes: time until its follower knows, and the cost
    Follow(follow::Args),
    /// Routes opened: time until a connection to the new primary through a proxy, or until the last of
    /// --watchers knows, over and over, on a lab
    Routes(routes::Args),
    /// Primary database lost: time until the next acknowledged row, over and over, on a lab
    Failover(failover::Args),
}

/// Options that all have.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  regent bench proclaim --dir /tmp/lab --clients 64 --seconds 10 -o json
  regent --config client.toml bench read --clients 64
")]
pub struct Common {
    /// How many clients
    #[arg(long, default_value_t = 64)]
    pub clients: usize,
    /// How long to measure
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Over how many connections the clients are spread
    #[arg(long, default_value_t = 16)]
    pub connections: usize,
    /// A lab: its nodes and identity are used, and its processes' memory and time are reported
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Ask the leader only, instead of all nodes in turn
    #[arg(long)]
    pub leader_only: bool,
    /// Bytes of a proclaimed value
    #[arg(long, default_value_t = 100)]
    pub value_bytes: usize,
}

impl Common {
    fn measured(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// Runs one of them.
pub async fn run(context: &Context, verb: Verb) -> Outcome {
    match verb {
        Verb::Proclaim(common) => proclaim::run(context, common).await,
        Verb::Read(common) => read::run(context, common).await,
        Verb::Keepalive(args) => keepalive::run(context, args).await,
        Verb::Watch(args) => watch::run(context, args).await,
        Verb::Leader(args) => leader::run(context, args).await,
        Verb::Follow(args) => follow::run(context, args).await,
        Verb::Routes(args) => routes::run(context, args).await,
        Verb::Failover(args) => failover::run(context, args).await,
    }
}
