//! Depth 1: whole nodes. The real core and real openraft on a paused clock, with a simulated
//! network, simulated disks and clients that hold leases.

mod chaos;
mod check;
mod client;
mod disk;
mod leases;
mod members;
mod network;
mod node;
pub mod options;
#[cfg(test)]
mod tests;
mod world;

use std::cell::RefCell;
use std::sync::Once;
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

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Makes panics of tasks known: tokio catches them, and a node whose replication task died of one
/// would only look slow.
fn hear_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // At the end of a thread there is nobody left to tell.
            let _ = PANICS.try_with(|panics| panics.borrow_mut().push(panic.to_string()));
            before(panic);
        }));
    });
    PANICS.with(|panics| panics.borrow_mut().clear());
}

/// Runs one seed.
pub fn run(seed: u64, options: &Options) -> Outcome {
    // Without a driver for real I/O: nobody does any, and it costs a system call per turn.
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .rng_seed(RngSeed::from_bytes(&seed.to_be_bytes()))
        .build()
        .expect("a runtime without threads");
    hear_panics();
    runtime.block_on(async {
        let world = World::new(seed, options.clone());
        world.note(format!("seed {seed}, within A1: {}", world.within_a1()));
        let mut site = Site::open(world.clone()).await;
        site.rage(Duration::from_secs(options.seconds)).await;
        if world.checker().violation().is_none() {
            site.settle().await;
        }
        if let Some(panic) = PANICS.with(|panics| panics.borrow().first().cloned()) {
            world.violation(format!("a task panicked: {panic}"));
        }
        let (hash, events) = world.trace_hash();
        world.close();
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
