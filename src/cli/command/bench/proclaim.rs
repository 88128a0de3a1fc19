//! `bench proclaim`: replicated writes, each under its own epoch, each with a request id, as real
//! holders make them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Map, json};

use super::load::{PATIENCE, drive};
use super::renewer::Renewer;
use super::report::Report;
use super::target::{Target, usage_json};
use super::{Common, setup};
use crate::command::Context;
use crate::error::Outcome;

/// Runs it.
pub async fn run(context: &Context, common: Common) -> Outcome {
    let value = setup::value(common.value_bytes)?;
    let target = Target::open(context, &common).await?;
    // The renewals of the clients' own sessions must not be part of what is measured: few of them.
    let renewer = Renewer::start(&target.channels, 1, Duration::from_millis(500));
    let holders = setup::holders(context, &target, common.clients, &renewer).await?;
    let sessions = holders.iter().map(|holder| (holder.session, holder.nonce)).collect();
    let elections = holders.iter().map(|holder| holder.election.clone()).collect();
    let before = Arc::new(Mutex::new(Vec::new()));
    let begun = Arc::clone(&before);
    let totals = drive(
        context.out,
        holders,
        common.measured(),
        || *begun.lock().expect("nobody panics with it") = target.usage(),
        move |mut holder| {
            let message = holder.proclamation(value.clone());
            async move {
                let result = holder.proclaim(message, PATIENCE).await;
                (holder, result)
            }
        },
    )
    .await;
    let seconds = totals.elapsed.as_secs_f64();
    let before = before.lock().expect("nobody panics with it").clone();
    let mut extra = Map::new();
    extra.insert("clients".into(), json!(common.clients));
    extra.insert("connections".into(), json!(common.connections));
    extra.insert("seconds".into(), json!(common.seconds));
    extra.insert("leader_only".into(), json!(common.leader_only));
    extra.insert("servers".into(), usage_json(&before, &target.usage(), seconds));
    Report {
        name: "proclaim",
        ops_s: totals.latencies.len() as f64 / seconds,
        latencies: totals.latencies,
        errors: totals.errors,
        sample_error: totals.sample_error,
        extra,
    }
    .print(context);
    setup::clean_up(&target, sessions, elections).await;
    Ok(())
}
