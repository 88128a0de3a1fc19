//! `regent election observe`: every change, in order, once; a line each.

use std::ops::ControlFlow;
use std::time::{SystemTime, UNIX_EPOCH};

use regent_rpc::pb::v1;
use regent_rpc::pb::v1::election_service_client::ElectionServiceClient;
use regent_rpc::pb::v1::observe_response::Event;
use serde_json::json;

use crate::command::Context;
use crate::connect::Cluster;
use crate::error::Outcome;
use crate::follow::{Mark, Step, follow};
use crate::render::{json, text};

/// Options of `election observe`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  regent election observe billing
  regent election observe --prefix team-a/ -o json
  regent election observe                        all of them

A connection that breaks is taken up again at another node, without a gap.
")]
pub struct Args {
    /// Name of the election; without it and without --prefix: all
    pub election: Option<String>,
    /// All whose name begins so
    #[arg(long, conflicts_with = "election")]
    pub prefix: Option<String>,
    /// End after so many changes (those of the snapshot do not count)
    #[arg(long, value_name = "N")]
    pub changes: Option<u64>,
}

/// Watches until it is told to stop.
pub async fn run(context: &Context, args: Args) -> Outcome {
    let cluster = Cluster::open(&context.globals)?;
    let election = args.election.clone().unwrap_or_default();
    let prefix = args.prefix.clone().unwrap_or_default();
    let all = election.is_empty() && prefix.is_empty();
    let mut left = args.changes;
    let watch = follow(
        &cluster,
        "observe elections",
        |channel, from| {
            let (election, prefix) = (election.clone(), prefix.clone());
            let request = v1::ObserveRequest { election, prefix, all, from: Some(from) };
            async move { ElectionServiceClient::new(channel).observe(request).await }
        },
        |message: &v1::ObserveResponse| match &message.event {
            Some(Event::Change(change)) => Mark::Change(change.revision),
            Some(Event::SnapshotEnd(stamp)) => Mark::SnapshotEnd(*stamp),
            Some(Event::Bookmark(stamp)) => Mark::Bookmark(*stamp),
            None => Mark::None,
        },
        |step| {
            match step {
                Step::Begin { why } if !why.is_empty() => {
                    let text = format!("the watch begins anew with a snapshot: {why}");
                    context.out.value(|| json!({ "event": "restarted", "why": why }), || text);
                }
                Step::Message(message, snapshot) => {
                    if let Some(Event::Change(change)) = message.event {
                        print(context, &change, snapshot);
                        if !snapshot && let Some(left) = &mut left {
                            *left = left.saturating_sub(1);
                        }
                    }
                }
                Step::Begin { .. } => {}
            }
            let done = left == Some(0);
            Ok(if done { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        },
    );
    tokio::select! {
        result = watch => result,
        // A person who has seen enough: that is no failure.
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

fn print(context: &Context, change: &v1::ElectionChange, snapshot: bool) {
    // A row of the snapshot is no change: what counts is when it last was one.
    let changed = change.election.as_ref().map_or(0, |row| row.changed);
    let revision = if change.revision == 0 { changed } else { change.revision };
    let at_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    context.out.value(
        || {
            json!({
                "event": if snapshot { "snapshot" } else { "change" },
                "seen_at_ms": at_ms,
                "revision": revision,
                "name": change.name,
                "election": change.election.as_ref().map(json::election),
            })
        },
        || {
            let at = text::instant(at_ms);
            let what = match &change.election {
                None => "deleted".to_owned(),
                Some(row) => match &row.holder {
                    Some(holder) => format!(
                        "{} leads under {}{} value {:?}",
                        holder.owner,
                        holder.epoch.as_ref().map(text::epoch).unwrap_or_default(),
                        if holder.confirmed { "" } else { " (does not act yet)" },
                        text::value(&holder.value),
                    ),
                    None => format!("nobody leads, {} wait", row.queue.len()),
                },
            };
            let mark = if snapshot { "=" } else { ">" };
            format!("{at} {mark} r{revision} {}: {what}", change.name)
        },
    );
}
