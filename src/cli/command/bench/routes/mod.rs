//! `bench routes`: the primary of a lab is changed again and again; how long after the entry that opens
//! the routes a new session is at the new primary, and how long after the one that closes them an old
//! session is cut.
//!
//! The instants of the entries are those at which the first node applied them, by its log. Sessions are
//! asked for each millisecond while nobody takes writes, and come through whatever listens at
//! `--address`; or watches of routes are counted, and the last one that knows is what is measured.

mod applied;
mod flip;
mod probe;
mod watchers;

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::failover::fault::Fault;
use super::report::{Report, latencies, ms, note};
use crate::command::Context;
use crate::command::lab;
use crate::error::{CliError, Outcome};
use crate::render::progress;

/// Options of `bench routes`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  regent lab up --dir /tmp/lab --haproxy require
  regent bench routes --dir /tmp/lab --address 127.0.0.1:24571 --runs 30 -o json
  regent bench routes --dir /tmp/lab --watchers 1000 --runs 30 -o json

The last line of -o json has p50_ms and max_ms from the routes' opening, and cut_p50_ms and cut_max_ms
from their closing to the end of a session that was open.
")]
pub struct Args {
    /// The lab; its primary is changed
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// The write port of a proxy
    #[arg(long, value_name = "HOST:PORT", required_unless_present = "watchers")]
    pub address: Option<String>,
    /// How many watches of routes, instead of a proxy
    #[arg(long, value_name = "N", conflicts_with = "address",
          value_parser = clap::value_parser!(u32).range(1..=50_000))]
    pub watchers: Option<u32>,
    /// Over how many connections these are spread
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub connections: u32,
    /// How often
    #[arg(long, default_value_t = 30)]
    pub runs: usize,
    /// How the primary is changed (switchover, freeze, host)
    #[arg(long, value_enum, default_value_t = Fault::Switchover)]
    pub fault: Fault,
}

/// Runs it.
pub async fn run(context: &Context, args: Args) -> Outcome {
    if !matches!(args.fault, Fault::Switchover | Fault::Freeze | Fault::Host) {
        return Err(CliError::usage(format!("cannot measure routes by {}", args.fault.as_str()))
            .hint("use switchover, freeze or host"));
    }
    let opened = lab::open(&args.dir)?;
    if opened.databases.is_none() {
        return Err(CliError::usage("cannot measure routes")
            .because(format!("the lab in {} has no databases", args.dir.display()))
            .hint("make one without --nodes-only"));
    }
    let bar = progress::count(context.out, "flips", args.runs as u64);
    let mut flips = flip::Flips::begin(context, opened, &args).await?;
    let (mut moved, mut cut) = (latencies(), latencies());
    let (mut each, mut errors, mut sample_error) = (Vec::new(), 0, None);
    for _ in 0..args.runs {
        match flips.once().await? {
            Ok(flip) => {
                note(&mut moved, flip.moved);
                flip.cut.iter().for_each(|took| note(&mut cut, *took));
                each.push(flip.to_json());
            }
            Err(why) => {
                errors += 1;
                sample_error.get_or_insert(why);
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let mut extra = Map::new();
    extra.insert("fault".into(), json!(args.fault.as_str()));
    extra.insert("runs".into(), json!(args.runs));
    if let Some(watchers) = args.watchers {
        extra.insert("watchers".into(), json!(watchers));
    }
    if !cut.is_empty() {
        extra.insert("cuts".into(), json!(cut.len()));
        extra.insert("cut_p50_ms".into(), json!(ms(cut.value_at_quantile(0.5))));
        extra.insert("cut_max_ms".into(), json!(ms(cut.max())));
    }
    extra.insert("each".into(), each.into_iter().collect::<Value>());
    Report { name: "routes", ops_s: 0.0, latencies: moved, errors, sample_error, extra }
        .print(context);
    Ok(())
}
