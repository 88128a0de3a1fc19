//! Depth 1: whole nodes. The real core and real openraft on a paused clock, with a simulated
//! network, simulated disks and clients that hold leases.

mod chaos;
mod check;
mod client;
mod disk;
mod network;
mod node;
pub mod options;
#[cfg(test)]
mod tests;
mod world;

use std::time::Duration;

use tokio::runtime::{Builder, RngSeed};

pub use check::Stats;
pub use options::{Mutant, Options};

use chaos::Site;
use world::World;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Hash over every event; equal for equal seeds.
    pub hash: u64,
    /// Events in the trace.
    pub events: u64,
    /// Virtual time it took.
    pub virtual_time: Duration,
    /// The first invariant that was broken.
    pub violation: Option<String>,
    /// Figures.
    pub stats: Stats,
}

/// Runs one seed.
pub fn run(seed: u64, options: &Options) -> Outcome {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .rng_seed(RngSeed::from_bytes(&seed.to_be_bytes()))
        .build()
        .expect("a runtime without threads");
    runtime.block_on(async {
        let world = World::new(seed, options.clone());
        world.note(format!("seed {seed}, within A1: {}", world.within_a1()));
        let mut site = Site::open(world.clone()).await;
        site.rage(Duration::from_secs(options.seconds)).await;
        if world.checker().violation().is_none() {
            site.settle().await;
        }
        let (hash, events) = world.trace_hash();
        let checker = world.checker();
        Outcome {
            hash,
            events,
            virtual_time: world.elapsed(),
            violation: checker.violation().cloned(),
            stats: checker.stats.clone(),
        }
    })
}
