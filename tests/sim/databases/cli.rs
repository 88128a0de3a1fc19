//! Many seeds of this depth, on all cores, added up; a failing one with the command that replays it.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use super::{Options, Stats, run};

#[derive(Default)]
struct Sum {
    hash: u64,
    sim_ms: u64,
    failed: u64,
    stats: Stats,
}

/// Runs `seeds` seeds from `from` on; `said` is how the options were said, for the replay line.
pub fn run_many(from: u64, seeds: u64, jobs: usize, options: &Options, said: &str) -> ExitCode {
    let (next, sum) = (AtomicU64::new(0), Mutex::new(Sum::default()));
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= seeds {
                        return;
                    }
                    one(from + n, options, said, &sum);
                }
            });
        }
    });
    let sum = sum.into_inner();
    let (wall, sim_s) = (started.elapsed().as_secs_f64(), sum.sim_ms as f64 / 1_000.0);
    println!(
        "{seeds} seeds {} the clock assumptions, {} failed, {sim_s:.0} simulated s in {wall:.1} s \
         ({:.0} per second), hash {:016x}\n{:?}",
        options.class,
        sum.failed,
        sim_s / wall,
        sum.hash,
        sum.stats,
    );
    if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one(seed: u64, options: &Options, said: &str, sum: &Mutex<Sum>) {
    let outcome = std::panic::catch_unwind(|| run(seed, options));
    let mut sum = sum.lock();
    let violations = match outcome {
        Ok(outcome) => {
            // Added up without regard to order, so that the number of threads does not matter.
            sum.hash = sum.hash.wrapping_add(outcome.hash);
            sum.sim_ms += outcome.sim_ms;
            sum.stats.add(&outcome.stats);
            outcome.violations
        }
        Err(_) => vec!["it panicked".to_owned()],
    };
    if violations.is_empty() {
        return;
    }
    sum.failed += 1;
    println!("seed {seed} FAILED:");
    for violation in violations {
        println!("  {violation}");
    }
    let (class, seconds) = (options.class, options.duration_ms / 1_000);
    println!(
        "  replay: cargo run -p regent-sim -- --depth databases --seeds 1 --from {seed} --class {class} \
         --seconds {seconds}{said} --trace"
    );
}
