//! `regent recover`: one survivor of a cluster whose majority is gone for good goes on alone. Says
//! first what would be kept and lost; only `--yes` acts.

use std::path::PathBuf;
use std::time::Duration;

use regent_core::id::NodeId;
use regent_node::recover::{RecoverError, RecoverOptions, RecoverReport, recover};
use serde_json::{Value, json};

use super::Context;
use super::restore::{checked, load, local_user};
use crate::duration;
use crate::error::{CliError, Outcome};
use crate::render::table::Table;

/// Options of `recover`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  regent recover --config node.toml
  regent recover --config node.toml --reason nodes-2-and-3-burnt --yes

For the loss of a majority only: a cluster that still has one heals by itself. Run it on the
survivor that holds most (compare the dry runs), with its node stopped. What only the lost nodes
held is lost. It is refused while an old voter answers; one that answers and really is not to be
counted must be named. Elections are granted again once every lease of before has run out.
")]
pub struct Args {
    /// Configuration of the survivor; it must be stopped
    #[arg(long, value_name = "NODE.TOML")]
    pub config: PathBuf,
    /// Old voters that may still answer, each named by its id
    #[arg(long, value_delimiter = ',', value_name = "NODE")]
    pub although_reachable: Vec<u64>,
    /// Highest incarnation counter heard of anywhere
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N")]
    pub above_incarnation: u64,
    /// Grant nothing before leases of so long a ttl have run out [default: the longest ttl known, 15s
    /// at least]
    #[arg(long, value_parser = duration::parse, value_name = "DURATION")]
    pub hold_grants: Option<Duration>,
    /// Why; goes into the audit chain
    #[arg(long, default_value = "the majority was lost")]
    pub reason: String,
    /// Do it
    #[arg(long)]
    pub yes: bool,
}

/// Looks, and acts if told to.
pub async fn run(context: &Context, args: Args) -> Outcome {
    let options = RecoverOptions {
        config: load(&args.config)?,
        although_reachable: args.although_reachable.into_iter().map(NodeId).collect(),
        above: args.above_incarnation,
        hold: args.hold_grants.map(checked).transpose()?,
        reason: args.reason,
        by: local_user(),
        dry_run: !args.yes,
    };
    let report = recover(&options).await.map_err(from_recover)?;
    context.out.value(|| as_json(&report), || as_text(&report));
    let unnamed: Vec<NodeId> = report
        .reachable
        .iter()
        .copied()
        .filter(|node| !options.although_reachable.contains(node))
        .collect();
    match unnamed.is_empty() {
        true => Ok(()),
        false => Err(from_recover(RecoverError::Reachable(unnamed))),
    }
}

fn from_recover(error: RecoverError) -> CliError {
    let what = "cannot recover";
    let base = match &error {
        RecoverError::Config(_) => CliError::usage(what),
        RecoverError::Reachable(_) => CliError::refused(what)
            .hint("stop those nodes; or, if you know better, name them: --although-reachable"),
        RecoverError::Nothing(_) | RecoverError::NotVoter(_) | RecoverError::Interrupted { .. } => {
            CliError::refused(what)
        }
        RecoverError::Identity(_) => {
            CliError::refused(what).hint("stop the node first: its data directory must be free")
        }
        RecoverError::Log(_) | RecoverError::Move { .. } => CliError::internal(what),
    };
    base.caused_by(error)
}

fn as_json(report: &RecoverReport) -> Value {
    let dropped: Vec<Value> = report
        .dropped
        .iter()
        .map(|(node, address, voter)| json!({ "id": node.0, "address": address, "voter": voter }))
        .collect();
    json!({
        "node": report.node.0,
        "last": report.last.0,
        "committed": report.committed.0,
        "dropped": dropped,
        "reachable": report.reachable.iter().map(|node| node.0).collect::<Vec<_>>(),
        "incarnation": report.from.to_string(),
        "new_incarnation": report.to.to_string(),
        "sessions_void": report.sessions,
        "longest_ttl_void_ms": report.longest_ttl_ms,
        "grants_held_ms": report.grants_held_ms,
        "services_unadopted": report.services,
        "quarantined": report.quarantined,
        "kept_in": report.kept_in,
        "written": report.written,
    })
}

fn as_text(report: &RecoverReport) -> String {
    let mut table = Table::pairs();
    let dropped: Vec<String> = report
        .dropped
        .iter()
        .map(|(node, address, voter)| {
            format!("node {node} at {address}{}", if *voter { "" } else { " (learner)" })
        })
        .collect();
    let reachable: Vec<String> = report.reachable.iter().map(ToString::to_string).collect();
    table.pair("survivor", format!("node {}", report.node));
    table.pair("keeps", format!("everything up to revision {}", report.last));
    if let Some(why) = &report.quarantined {
        table.pair("was in quarantine", why);
    }
    table.pair("known committed", format!("up to revision {}", report.committed));
    table.pair("drops", dropped.join(", "));
    table.pair("still answer", reachable.join(", "));
    table.pair("incarnation", format!("{} becomes {}", report.from, report.to));
    table.pair("sessions void", report.sessions);
    table.pair("longest ttl among them", format!("{} ms", report.longest_ttl_ms));
    table.pair("ttl waited out", duration::human(report.grants_held_ms));
    if report.grants_held_ms < report.owed_ms {
        let risk = "holders of before may still believe in their leases when new ones are granted";
        table.pair("warning", risk);
    }
    table.pair("services to adopt", report.services.join(", "));
    let end = match report.written {
        true => format!(
            "recovered; the old log is in {}\nstart the node, then add others: regent members add",
            report.kept_in.display()
        ),
        false => "nothing was written; add --yes to do it".to_owned(),
    };
    format!("{table}\n{end}")
}
