//! `bench keepalive`: many sessions held for a while; none may be lost.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use serde_json::{Map, json};

use super::renewer::Renewer;
use super::report::Report;
use super::target::{Target, usage_json};
use super::{Common, setup};
use crate::command::Context;
use crate::error::Outcome;
use crate::render::progress;

/// Options of `bench keepalive`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example: the figures of docs/performance.md
  regent bench keepalive --dir /tmp/lab --clients 100000 --ttl 10s --seconds 600 -o json
")]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    /// How long the cluster waits without a renewal
    #[arg(long, default_value = "10s", value_parser = crate::duration::parse)]
    pub ttl: Duration,
    /// How often each session is renewed; default: a third of the ttl, less a bit
    #[arg(long, value_parser = crate::duration::parse, value_name = "DURATION")]
    pub renew_interval: Option<Duration>,
    /// Over how many streams
    #[arg(long, default_value_t = 16)]
    pub streams: usize,
    /// Leave the sessions to lapse by themselves at the end, instead of closing each
    #[arg(long)]
    pub abandon: bool,
}

/// Runs it.
pub async fn run(context: &Context, args: Args) -> Outcome {
    let common = &args.common;
    let target = Target::open(context, common).await?;
    let interval = args.renew_interval.unwrap_or(args.ttl * 3 / 10);
    let renewer = Renewer::start(&target.channels, args.streams, interval);
    let opening = Instant::now();
    let kept =
        setup::sessions(context, &target, common.clients, args.ttl, interval, &renewer).await?;
    let opened_in = opening.elapsed();
    // One whole round before measuring: the renewals have found their places by then.
    tokio::time::sleep(interval).await;
    renewer.take_latencies().await;
    let counts = &renewer.counts;
    let (extended, resent) = (counts.extended.load(Relaxed), counts.resent.load(Relaxed));
    let before = target.usage();
    let begun = Instant::now();
    let bar = progress::count(context.out, "seconds", common.seconds);
    while begun.elapsed() < common.measured() {
        let left = common.measured().saturating_sub(begun.elapsed());
        tokio::time::sleep(left.min(Duration::from_secs(1))).await;
        bar.set_position(begun.elapsed().as_secs());
        bar.set_message(format!("lost {}", counts.lost.load(Relaxed)));
    }
    bar.finish_and_clear();
    let seconds = begun.elapsed().as_secs_f64();
    let renewals = counts.extended.load(Relaxed) - extended;
    let (lost, overdue) = (counts.lost.load(Relaxed), counts.overdue.load(Relaxed));
    let mut extra = Map::new();
    extra.insert("clients".into(), json!(common.clients));
    extra.insert("ttl_ms".into(), json!(args.ttl.as_millis() as u64));
    extra.insert("renew_interval_ms".into(), json!(interval.as_millis() as u64));
    extra.insert("streams".into(), json!(args.streams));
    extra.insert("seconds".into(), json!(common.seconds));
    extra.insert("opened_in_ms".into(), json!(opened_in.as_millis() as u64));
    extra.insert("lost".into(), json!(lost));
    extra.insert("overdue".into(), json!(overdue));
    extra.insert("resent".into(), json!(counts.resent.load(Relaxed) - resent));
    extra.insert("broken_streams".into(), json!(counts.broken.load(Relaxed)));
    extra.insert("servers".into(), usage_json(&before, &target.usage(), seconds));
    Report {
        name: "keepalive",
        ops_s: renewals as f64 / seconds,
        latencies: renewer.take_latencies().await,
        errors: lost + overdue,
        sample_error: None,
        extra,
    }
    .print(context);
    if !args.abandon {
        let sessions = kept.iter().map(|kept| (kept.session, kept.nonce)).collect();
        setup::clean_up(&target, sessions, Vec::new()).await;
    }
    Ok(())
}
