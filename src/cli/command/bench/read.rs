//! `bench read`: linearizable reads of who leads.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use regent_rpc::calls::method;
use regent_rpc::pb::v1;
use serde_json::{Map, json};

use super::load::{PATIENCE, answered, drive};
use super::renewer::Renewer;
use super::report::Report;
use super::target::{Target, usage_json};
use super::{Common, setup};
use crate::command::Context;
use crate::error::Outcome;

/// Runs it.
pub async fn run(context: &Context, common: Common) -> Outcome {
    let target = Target::open(context, &common).await?;
    let renewer = Renewer::start(&target.channels, 1, Duration::from_millis(500));
    let holders = setup::holders(context, &target, 1, &renewer).await?;
    let sessions = holders.iter().map(|holder| (holder.session, holder.nonce)).collect();
    let elections: Vec<String> = holders.iter().map(|holder| holder.election.clone()).collect();
    let clients = (0..common.clients)
        .map(|at| {
            let request = v1::LeaderRequest { election: elections[0].clone(), read: None };
            (target.calls(at), request)
        })
        .collect();
    let before = Arc::new(Mutex::new(Vec::new()));
    let begun = Arc::clone(&before);
    let totals = drive(
        context.out,
        clients,
        common.measured(),
        || *begun.lock().expect("nobody panics with it") = target.usage(),
        |(calls, request)| async move {
            let call = calls.unary(method::LEADER, request.clone(), PATIENCE);
            let result = answered::<v1::LeaderResponse>(call, PATIENCE).await;
            ((calls, request), result)
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
        name: "read",
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
