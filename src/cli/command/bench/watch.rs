//! `bench watch`: one change, many watchers; how long until the last one knows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use regent_rpc::pb::v1;
use regent_rpc::pb::v1::election_service_client::ElectionServiceClient;
use regent_rpc::pb::v1::observe_response::Event;
use serde_json::{Map, json};
use tokio::sync::Notify;
use tonic::transport::Channel;

use super::load::PATIENCE;
use super::renewer::Renewer;
use super::report::{Report, latencies, note};
use super::target::{Target, usage_json};
use super::{Common, setup};
use crate::command::Context;
use crate::connect::from_status;
use crate::error::{CliError, Outcome};
use crate::render::progress;

/// Options of `bench watch`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    /// Between two changes
    #[arg(long, default_value = "100ms", value_parser = crate::duration::parse)]
    pub interval: Duration,
}

/// The change that everybody waits for.
#[derive(Default)]
struct Round {
    /// Its number; watchers that see it or a later one count once.
    number: AtomicU64,
    missing: AtomicUsize,
    ready: AtomicUsize,
    changed: Notify,
    broken: AtomicU64,
}

/// Runs it.
pub async fn run(context: &Context, args: Args) -> Outcome {
    let common = &args.common;
    let watchers = common.clients;
    let target = Target::open(context, common).await?;
    let renewer = Renewer::start(&target.channels, 1, Duration::from_millis(500));
    let mut holder = setup::holders(context, &target, 1, &renewer).await?.remove(0);
    let round = Arc::new(Round::default());
    let mut tasks = tokio::task::JoinSet::new();
    for at in 0..watchers {
        let round = Arc::clone(&round);
        tasks.spawn(watch(target.channel(at), holder.election.clone(), round));
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while round.ready.load(Ordering::Acquire) < watchers {
        if Instant::now() >= deadline {
            let ready = round.ready.load(Ordering::Acquire);
            return Err(CliError::unreachable("cannot begin to watch")
                .because(format!("{ready} of {watchers} watchers were served"))
                .hint("give more --connections: each carries a bounded number of streams"));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (mut last, mut writes) = (latencies(), latencies());
    let (mut errors, mut sample_error) = (0u64, None);
    let before = target.usage();
    let bar = progress::seconds(context.out, "seconds", common.measured());
    let begun = Instant::now();
    let mut number = 0u64;
    while begun.elapsed() < common.measured() {
        number += 1;
        round.missing.store(watchers, Ordering::Release);
        round.number.store(number, Ordering::Release);
        let everybody = round.changed.notified();
        let message = holder.proclamation(number.to_string().into_bytes().into());
        let sent = Instant::now();
        if let Err(status) = holder.proclaim(message, PATIENCE).await {
            errors += 1;
            sample_error.get_or_insert_with(|| status.to_string());
            tokio::time::sleep(args.interval).await;
            continue;
        }
        note(&mut writes, sent.elapsed());
        if tokio::time::timeout(PATIENCE, everybody).await.is_ok() {
            note(&mut last, sent.elapsed());
        } else {
            errors += round.missing.load(Ordering::Acquire) as u64;
            sample_error.get_or_insert_with(|| format!("some watchers missed change {number}"));
        }
        tokio::time::sleep(args.interval).await;
    }
    drop(bar);
    let seconds = begun.elapsed().as_secs_f64();
    let mut extra = Map::new();
    extra.insert("watchers".into(), json!(watchers));
    extra.insert("connections".into(), json!(common.connections));
    extra.insert("rounds".into(), json!(number));
    extra.insert("seconds".into(), json!(common.seconds));
    extra.insert("write_p50_ms".into(), json!(super::report::ms(writes.value_at_quantile(0.5))));
    extra.insert("broken_watches".into(), json!(round.broken.load(Ordering::Relaxed)));
    extra.insert("servers".into(), usage_json(&before, &target.usage(), seconds));
    Report {
        name: "watch",
        ops_s: (last.len() * watchers as u64) as f64 / seconds,
        latencies: last,
        errors: errors + round.broken.load(Ordering::Relaxed),
        sample_error,
        extra,
    }
    .print(context);
    tasks.abort_all();
    let sessions = vec![(holder.session, holder.nonce)];
    setup::clean_up(&target, sessions, vec![holder.election]).await;
    Ok(())
}

/// One watcher. A stream that breaks is counted and not opened again: with every watcher that is
/// missing the measurement says so.
async fn watch(channel: Channel, election: String, round: Arc<Round>) -> Outcome {
    let request = v1::ObserveRequest { election, prefix: String::new(), all: false, from: None };
    let mut client = ElectionServiceClient::new(channel);
    let opened = client.observe(request).await;
    let mut stream = match opened {
        Ok(response) => response.into_inner(),
        Err(status) => {
            round.broken.fetch_add(1, Ordering::Relaxed);
            return Err(from_status("observe", "the node", &status));
        }
    };
    let mut seen = 0;
    while let Ok(Some(message)) = stream.message().await {
        match message.event {
            Some(Event::SnapshotEnd(_)) => {
                round.ready.fetch_add(1, Ordering::AcqRel);
            }
            Some(Event::Change(change)) => {
                let value = change.election.and_then(|row| row.holder).map(|holder| holder.value);
                let number = value
                    .and_then(|value| std::str::from_utf8(&value).ok()?.parse().ok())
                    .unwrap_or(0u64);
                // The change may come before `proclaim` returns, never before its round began.
                if number > seen && number == round.number.load(Ordering::Acquire) {
                    seen = number;
                    if round.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
                        round.changed.notify_one();
                    }
                }
            }
            _ => {}
        }
    }
    round.broken.fetch_add(1, Ordering::Relaxed);
    Ok(())
}
