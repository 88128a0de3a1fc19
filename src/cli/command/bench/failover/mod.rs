//! `bench failover`: the primary database of a lab is killed, frozen or asked to hand over, again
//! and again; how long no row was acknowledged, and whether an acknowledged one was lost.
//!
//! The client is the lab's own steady writer: a row each 5 ms over one connection, to whichever
//! host takes writes, deadlines of one second; or through the lab's HAProxy. The gap of a run is the
//! longest time between two acknowledgements from the fault until all standbys stream again, so a
//! second silence while the old primary comes back counts too.
//!
//! Where packets are dropped the steady writer measures its own deadlines (`steady_gap_ms`); the gap
//! is then that of a prober, which opens fresh connections to every host each 20 ms. What clients
//! with open sessions on the old primary's own machine are told meanwhile is in `side`.

pub mod fault;
mod run;
mod side;

use std::path::PathBuf;
use std::time::Duration;

use regent_lab::databases::Databases;
use regent_lab::writer::Access;
use serde_json::{Map, Value, json};

use super::report::{Report, latencies, note};
use crate::command::Context;
use crate::command::lab;
use crate::error::{CliError, Outcome};
use crate::render::progress;
use fault::Fault;
use run::Run;

/// Options of `bench failover`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  regent lab up --dir /tmp/lab
  regent bench failover --dir /tmp/lab --fault host --runs 20 -o json

  regent lab up --dir /tmp/net --network
  regent bench failover --dir /tmp/net --fault cut --runs 10 -o json

The last line of -o json has p50_ms and max_ms of the gaps, lost_rows, and each run by itself.
")]
pub struct Args {
    /// The lab; its processes are killed and started again
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// What is done to the primary
    #[arg(long, value_enum, default_value_t)]
    pub fault: Fault,
    /// How often
    #[arg(long, default_value_t = 5)]
    pub runs: usize,
    /// Which way the client comes in
    #[arg(long, value_enum, default_value_t)]
    pub through: Through,
    /// How long a fault that can be taken back lasts (freeze, coordinators, cuts)
    #[arg(long, default_value = "5s", value_parser = crate::duration::parse)]
    pub hold: Duration,
}

/// How the client finds the primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Through {
    /// It knows every instance, and tries one after the other
    #[default]
    Hosts,
    /// It knows the lab's HAProxy alone
    Haproxy,
    /// It knows the lab's Envoy alone
    Envoy,
}

impl Through {
    /// As on the command line.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Hosts => "hosts",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
        }
    }

    /// How such a client logs in.
    ///
    /// # Errors
    /// The lab has no such proxy.
    pub fn access(self, databases: &Databases) -> Outcome<Access> {
        match self {
            Self::Hosts => Ok(databases.access()),
            Self::Haproxy => databases.through_haproxy().ok_or_else(|| {
                CliError::usage("cannot go through HAProxy")
                    .because("the lab has none")
                    .hint("make one with it: `regent lab up --dir D --haproxy require`")
            }),
            Self::Envoy => databases.through_envoy().ok_or_else(|| {
                CliError::usage("cannot go through Envoy")
                    .because("the lab has none")
                    .hint("make one with it: `regent lab up --dir D --envoy PROGRAM`")
            }),
        }
    }
}

/// Runs it.
pub async fn run(context: &Context, args: Args) -> Outcome {
    let mut opened = lab::open(&args.dir)?;
    let Some(databases) = opened.databases.clone() else {
        return Err(CliError::usage("cannot measure a failover")
            .because(format!("the lab in {} has no databases", args.dir.display()))
            .hint("make one without --nodes-only, or measure its nodes: `regent bench leader`"));
    };
    args.through.access(&databases)?;
    args.fault.check(&opened, databases.instances.len())?;
    let bar = progress::count(context.out, "runs", args.runs as u64);
    let mut runs = Vec::new();
    for _ in 0..args.runs {
        runs.push(run::once(&mut opened, &args).await?);
        bar.inc(1);
        bar.set_message(format!("rows lost {}", lost(&runs)));
    }
    bar.finish_and_clear();
    let mut gaps = latencies();
    for run in runs.iter().filter(|run| run.resumed) {
        note(&mut gaps, run.gap);
    }
    let failed = runs.iter().filter(|run| !run.resumed).count() as u64;
    let mut extra = Map::new();
    extra.insert("fault".into(), json!(args.fault.as_str()));
    extra.insert("through".into(), json!(args.through.as_str()));
    extra.insert("mode".into(), json!(databases.policy().mode));
    extra.insert("ttl_ms".into(), json!(databases.ttl_ms));
    extra.insert("runs".into(), json!(args.runs));
    extra.insert("min_ms".into(), json!(super::report::ms(gaps.min())));
    extra.insert("lost_rows".into(), json!(lost(&runs)));
    extra.insert("wrong_rows".into(), json!(runs.iter().map(Run::wrong).sum::<usize>()));
    extra.insert(
        "broken".into(),
        json!(runs.iter().flat_map(|run| &run.broken).collect::<Vec<_>>()),
    );
    extra.insert("each".into(), runs.iter().map(Run::to_json).collect::<Value>());
    let sample = runs.iter().find_map(|run| run.trouble.clone());
    Report {
        name: "failover",
        ops_s: 0.0,
        latencies: gaps,
        errors: failed,
        sample_error: sample.filter(|_| failed > 0),
        extra,
    }
    .print(context);
    match runs.iter().find_map(|run| run.broken.first()) {
        None => Ok(()),
        Some(broken) => Err(CliError::internal("the database did not keep what it promised")
            .because(broken.clone())),
    }
}

fn lost(runs: &[Run]) -> usize {
    runs.iter().map(Run::lost).sum()
}
