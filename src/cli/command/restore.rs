//! `regent restore`: a backup becomes the first node of a new cluster. Says first what would be;
//! only `--yes` writes.

use std::path::PathBuf;
use std::time::Duration;

use regent_core::authz::{Principal, Role};
use regent_core::limits::MAX_TTL_MS;
use regent_node::config::{ConfigError, NodeConfig};
use regent_node::restore::{RestoreError, RestoreOptions, RestoreReport, restore};
use serde_json::{Value, json};

use super::Context;
use crate::duration;
use crate::error::{CliError, Outcome};
use crate::render::progress;
use crate::render::table::Table;

/// Options of `restore`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  regent restore --config node.toml --from regent.backup
  regent restore --config node.toml --from regent.backup --yes

Without --yes it checks the backup and says what would happen. With --yes it writes the data
directory of the node; start the node then, and add others with `regent members add`.

A restore begins a new incarnation: every session, lease and watch of before is void, and every
epoch granted from then on is higher than any before. The first ones are granted once every lease
of before has run out: say with --hold-grants how long those are, if clients of today use longer
ones than the backup knows. If anything may have seen a later life of
this cluster than the backup knows, give its incarnation with --above-incarnation.
")]
pub struct Args {
    /// Configuration of the node that begins the new cluster; its data directory must be empty
    #[arg(long, value_name = "NODE.TOML")]
    pub config: PathBuf,
    /// The backup
    #[arg(long, value_name = "FILE")]
    pub from: PathBuf,
    /// Highest incarnation counter heard of anywhere since the backup
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N")]
    pub above_incarnation: u64,
    /// Grant nothing before leases of so long a ttl have run out [default: the longest ttl known, 15s
    /// at least]
    #[arg(long, value_parser = duration::parse, value_name = "DURATION")]
    pub hold_grants: Option<Duration>,
    /// Why; goes into the audit chain
    #[arg(long, default_value = "restored from a backup")]
    pub reason: String,
    /// Write it
    #[arg(long)]
    pub yes: bool,
}

/// Checks, and writes if told to.
pub async fn run(context: &Context, args: Args) -> Outcome {
    let options = RestoreOptions {
        backup: args.from.clone(),
        config: load(&args.config)?,
        above: args.above_incarnation,
        hold: args.hold_grants.map(checked).transpose()?,
        reason: args.reason,
        by: local_user(),
        dry_run: !args.yes,
    };
    let turning = progress::turning(context.out, &format!("restore from {}", args.from.display()));
    let report = restore(&options).await.map_err(from_restore)?;
    drop(turning);
    context.out.value(|| as_json(&report), || as_text(&report));
    Ok(())
}

/// A wait before the first grants that the cluster accepts.
pub fn checked(hold: Duration) -> Outcome<Duration> {
    if hold <= Duration::from_millis(MAX_TTL_MS) {
        return Ok(hold);
    }
    Err(CliError::usage("cannot hold grants back for so long")
        .because("it is longer than a day, and so than any lease"))
}

/// Reads a node's configuration for a verb that works on its data directory.
pub fn load(path: &std::path::Path) -> Outcome<NodeConfig> {
    NodeConfig::load(path).map_err(|error| unusable(path, error))
}

/// Every problem of a configuration, each with its fix.
pub fn unusable(path: &std::path::Path, error: ConfigError) -> CliError {
    let base = CliError::usage(format!("cannot use {}", path.display()));
    match error {
        ConfigError::Problems(problems) => {
            problems.iter().fold(base, |base, problem| base.because(problem.to_string()))
        }
        error => base.caused_by(error),
    }
}

/// Who does it, for the audit chain: there is no certificate here, only the machine's own user.
pub fn local_user() -> Principal {
    let user = ["SUDO_USER", "LOGNAME", "USER"].iter().find_map(|name| std::env::var(name).ok());
    Principal::new(Role::Admin, format!("local/{}", user.as_deref().unwrap_or("unknown")))
}

fn from_restore(error: RestoreError) -> CliError {
    let what = "cannot restore";
    let base = match &error {
        RestoreError::Read { .. } | RestoreError::Damaged { .. } => CliError::usage(what)
            .hint("`regent backup` makes backups; one that is damaged is of no use"),
        RestoreError::OtherCluster { .. } | RestoreError::UsedId { .. } => CliError::refused(what),
        RestoreError::NotEmpty(_) => {
            CliError::refused(what).hint("move the old data directory away; do not delete it yet")
        }
        RestoreError::Identity(_) | RestoreError::Write(_) => CliError::internal(what)
            .hint("remove the data directory that was begun, then try again"),
    };
    base.caused_by(error)
}

fn as_json(report: &RestoreReport) -> Value {
    json!({
        "cluster": report.cluster,
        "revision": report.revision.0,
        "incarnation": report.from.to_string(),
        "new_incarnation": report.to.to_string(),
        "node": report.node.0,
        "services_unadopted": report.services,
        "sessions_void": report.sessions,
        "longest_ttl_void_ms": report.longest_ttl_ms,
        "grants_held_ms": report.grants_held_ms,
        "held_elections_void": report.held_elections,
        "written": report.written,
    })
}

fn as_text(report: &RestoreReport) -> String {
    let mut table = Table::pairs();
    table.pair("cluster", &report.cluster);
    table.pair("up to revision", report.revision);
    table.pair("incarnation", format!("{} becomes {}", report.from, report.to));
    table.pair("first node", report.node);
    table.pair("sessions void", report.sessions);
    table.pair("longest ttl among them", format!("{} ms", report.longest_ttl_ms));
    table.pair("ttl waited out", duration::human(report.grants_held_ms));
    if report.grants_held_ms < report.owed_ms {
        let risk = "holders of before may still believe in their leases when new ones are granted";
        table.pair("warning", risk);
    }
    table.pair("leaders void", report.held_elections);
    table.pair("services to adopt", report.services.join(", "));
    let end = match report.written {
        true => "restored; start the node: regent server --config ...",
        false => "nothing was written; add --yes to do it",
    };
    format!("{table}\n{end}")
}
