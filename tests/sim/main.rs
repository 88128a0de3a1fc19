//! regent-sim: the deterministic simulator. A run is a function of its seed; a seed that fails is
//! printed together with the command that replays it.

mod agents;
mod databases;
mod nodes;
mod resource;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::{Parser, ValueEnum};
use parking_lot::Mutex;

/// How much of the product is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Depth {
    /// Whole nodes: real openraft, simulated network and disks.
    Nodes,
    /// The core and lease holders over an abstract log: a hundred times as much time per second.
    Agents,
    /// Failover of PostgreSQL: the core with agents, fencers, and a model of servers.
    Databases,
}

/// Runs seeds of the deterministic simulator.
#[derive(Debug, Parser)]
#[command(name = "regent-sim")]
struct Args {
    /// How many seeds to run.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// How much of the product is simulated.
    #[arg(long, value_enum, default_value_t = Depth::Nodes)]
    depth: Depth,
    /// Virtual seconds with faults, per seed; by default 20, at depth agents 1200, at depth databases 60.
    #[arg(long)]
    seconds: Option<u64>,
    /// At depths agents and databases: clocks within the assumptions of PROTOCOL.md A1, or beyond them.
    #[arg(long, default_value_t = agents::Class::Within)]
    class: agents::Class,
    /// At depth databases: what breaks often.
    #[arg(long, default_value_t = databases::Profile::Mixed)]
    profile: databases::Profile,
    /// At depth databases: only this mode, lease or quorum.
    #[arg(long)]
    mode: Option<String>,
    /// At depth databases: do not ask that somebody serves in the end (S13).
    #[arg(long)]
    safety_only: bool,
    /// Print every event.
    #[arg(long)]
    trace: bool,
    /// Print what the consensus engine says of itself, too; for a single seed.
    #[arg(long)]
    trace_engine: bool,
    /// Break the system on purpose; a name that does not exist gets the list of a depth's mutants.
    /// The seeds are then expected to fail.
    #[arg(long)]
    mutant: Option<String>,
    /// Threads; by default one per core.
    #[arg(long)]
    jobs: Option<usize>,
}

/// Virtual seconds of a seed at depth nodes.
const NODES_SECONDS: u64 = 20;

/// What all threads add to.
#[derive(Default)]
struct Sum {
    failed: Vec<(u64, String)>,
    hash: u64,
    events: u64,
    virtual_s: f64,
    acks: u64,
    reads: u64,
    grants: u64,
    installs: u64,
    faults: BTreeMap<&'static str, u64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.trace_engine {
        let level = tracing::Level::DEBUG;
        tracing_subscriber::fmt().with_max_level(level).without_time().with_ansi(false).init();
    }
    if args.depth == Depth::Agents {
        return run_agents(&args);
    }
    if args.depth == Depth::Databases {
        return run_databases(&args);
    }
    let mutant = match args.mutant.as_deref() {
        None => None,
        Some(name) => match nodes::Mutant::parse(name) {
            Some(mutant) => Some(mutant),
            None => {
                let names = nodes::Mutant::ALL.map(|(name, _)| name).join(", ");
                eprintln!("{name:?} is not one of {names}");
                return ExitCode::from(2);
            }
        },
    };
    let options = nodes::Options {
        seconds: args.seconds.unwrap_or(NODES_SECONDS),
        trace: args.trace,
        mutant,
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = if args.trace { 1 } else { args.jobs.unwrap_or(cores) };
    let (next, sum) = (AtomicU64::new(0), Mutex::new(Sum::default()));
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= args.seeds {
                        return;
                    }
                    one(args.from + n, &args, &options, &sum);
                }
            });
        }
    });
    let sum = sum.into_inner();
    let wall = started.elapsed().as_secs_f64();
    println!(
        "{} seeds, {} failed, {:.0} virtual s in {wall:.1} s ({:.0} per second), {} events, \
         {} acknowledged, {} reads, {} grants, {} snapshots installed, hash {:016x}",
        args.seeds,
        sum.failed.len(),
        sum.virtual_s,
        sum.virtual_s / wall,
        sum.events,
        sum.acks,
        sum.reads,
        sum.grants,
        sum.installs,
        sum.hash
    );
    println!("faults: {:?}", sum.faults);
    if sum.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_agents(args: &Args) -> ExitCode {
    let mutant = match args.mutant.as_deref().map(str::parse).transpose() {
        Ok(mutant) => mutant,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(2);
        }
    };
    let usual = agents::Options::default();
    let duration_ms = args.seconds.map_or(usual.duration_ms, |seconds| seconds * 1_000);
    let (class, trace) = (args.class, args.trace);
    let options = agents::Options { duration_ms, class, mutant, trace, ..usual };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = if args.trace { 1 } else { args.jobs.unwrap_or(cores) };
    agents::run_many(args.from, args.seeds, jobs, &options, args.mutant.as_deref())
}

fn run_databases(args: &Args) -> ExitCode {
    use regent_core::mutant::Mutant;
    use regent_core::spec::Mode;
    let mutant = args.mutant.as_deref().map(|name| (name, Mutant::named(name)));
    if let Some((name, None)) = mutant {
        eprintln!("{name:?} is not one of {}", Mutant::ALL.map(|(_, name)| name).join(", "));
        return ExitCode::from(2);
    }
    let mode = match args.mode.as_deref() {
        None => None,
        Some("lease") => Some(Mode::Lease),
        Some("quorum") => Some(Mode::Quorum),
        Some(other) => {
            eprintln!("{other:?} is not one of lease, quorum");
            return ExitCode::from(2);
        }
    };
    let usual = databases::Options::default();
    let duration_ms = args.seconds.map_or(usual.duration_ms, |seconds| seconds * 1_000);
    let (class, profile, trace) = (args.class, args.profile, args.trace);
    let mutant = mutant.and_then(|(_, mutant)| mutant);
    let liveness = !args.safety_only;
    let options =
        databases::Options { duration_ms, class, profile, mode, liveness, mutant, trace, ..usual };
    let mut said = format!(" --profile {profile}");
    for (flag, is_set) in [("safety-only", !liveness)] {
        if is_set {
            said.push_str(&format!(" --{flag}"));
        }
    }
    for (flag, value) in [("mode", &args.mode), ("mutant", &args.mutant)] {
        if let Some(value) = value {
            said.push_str(&format!(" --{flag} {value}"));
        }
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = if args.trace { 1 } else { args.jobs.unwrap_or(cores) };
    databases::run_many(args.from, args.seeds, jobs, &options, &said)
}

/// Runs one seed and adds it up. A panic in the product is a failure of the seed.
fn one(seed: u64, args: &Args, options: &nodes::Options, sum: &Mutex<Sum>) {
    let run = std::panic::catch_unwind(|| nodes::run(seed, options));
    let mut sum = sum.lock();
    let failure = match run {
        Ok(outcome) => {
            // Added up without regard to order, so that the number of threads does not matter.
            sum.hash = sum.hash.wrapping_add(outcome.hash);
            sum.events += outcome.events;
            sum.virtual_s += outcome.virtual_time.as_secs_f64();
            sum.acks += outcome.stats.acks;
            sum.reads += outcome.stats.reads;
            sum.grants += outcome.stats.grants;
            sum.installs += outcome.stats.installs;
            for (name, count) in &outcome.stats.faults {
                *sum.faults.entry(name).or_default() += count;
            }
            if args.seeds == 1 {
                println!("seed {seed}: {outcome:#?}");
            }
            outcome.violation
        }
        Err(_) => Some("panicked".into()),
    };
    if let Some(why) = failure {
        let mutant = args.mutant.as_ref().map_or(String::new(), |m| format!(" --mutant {m}"));
        println!(
            "seed {seed} FAILED: {why}\n  replay: cargo run -p regent-sim -- --depth nodes --seeds 1 \
             --from {seed} --seconds {}{mutant} --trace",
            options.seconds
        );
        sum.failed.push((seed, why));
    }
}
