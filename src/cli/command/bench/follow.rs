//! `bench follow`: many services, each with somebody who follows its routes; one of them is declared
//! otherwise, over and over. How long until its follower knows, what that costs the nodes, and whether
//! anybody else was told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::stream::{StreamExt as _, TryStreamExt as _};
use regent_core::command::Expect;
use regent_core::id::{Locality, ServiceName};
use regent_core::spec::{Engine, InstanceSpec, Mode, Policy, ServiceSpec, TopologyKind};
use regent_rpc::client::{Client, ClientOptions};
use regent_rpc::pb::v1;
use regent_rpc::pb::v1::routing_service_client::RoutingServiceClient;
use regent_rpc::tls::{Tls, TlsFiles};
use serde_json::{Map, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::Common;
use super::load::PATIENCE;
use super::report::{Report, latencies, ms, note};
use super::target::{Target, settings_of, usage_json};
use crate::command::Context;
use crate::connect::from_call;
use crate::error::{CliError, Context as _, Outcome};
use crate::render::progress;

/// Services declared at the same time.
const AT_ONCE: usize = 64;
/// How long all follow and nothing changes, to know what that costs by itself.
const IDLE: Duration = Duration::from_secs(5);
/// How long all followers may take to begin.
const BEGIN_WITHIN: Duration = Duration::from_secs(120);

/// Options of `bench follow`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  regent lab up --dir /tmp/lab --nodes-only
  regent bench follow --dir /tmp/lab --clients 10000 --connections 48 --seconds 10 -o json

--clients is the number of services, of three instances each. Services of its own remain declared.
")]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    /// Between two changes
    #[arg(long, default_value = "50ms", value_parser = crate::duration::parse)]
    pub interval: Duration,
}

/// What followers have been told.
#[derive(Default)]
struct Told {
    ready: AtomicU64,
    /// Tables after the first, of services that nobody changed.
    strays: AtomicU64,
    /// Changes that the follower of the changed one was told of.
    changes: AtomicU64,
    changed: Notify,
}

fn name(at: usize) -> Outcome<ServiceName> {
    ServiceName::parse(&format!("bench-{at}")).or_internal(|| "no name".to_owned())
}

fn spec(at: usize, version: u64) -> Outcome<ServiceSpec> {
    let instances = ["a", "b", "c"].map(|zone| {
        let one = InstanceSpec {
            name: zone.parse().or_internal(|| "no name".to_owned())?,
            locality: Locality { region: "r".into(), zone: zone.into(), host: zone.into() },
            address: format!("{zone}.example.org:{}", 1_024 + version % 60_000),
            priority: 100,
        };
        Ok(one)
    });
    Ok(ServiceSpec {
        name: name(at)?,
        description: String::new(),
        engine: Engine::Postgres,
        topology: TopologyKind::ActivePassive,
        instances: instances.into_iter().collect::<Outcome<_>>()?,
        partitions: Vec::new(),
        policy: Policy::default_for(Mode::Quorum),
    })
}

async fn declare(client: &Client, at: usize, version: u64) -> Outcome {
    let spec = spec(at, version)?;
    let applied = client.apply_service(&spec, Expect::Any, false).await;
    applied.map(drop).map_err(|error| from_call("declare a service", &error))
}

/// Runs it.
pub async fn run(context: &Context, args: Args) -> Outcome {
    let common = &args.common;
    let target = Target::open(context, common).await?;
    let Some(lab) = &target.lab else {
        return Err(CliError::usage("cannot declare so many services on a cluster in use")
            .hint("measure a lab: --dir DIR"));
    };
    let settings = settings_of(lab, context);
    let tls = Tls::load(TlsFiles {
        cert: settings.cert,
        key: settings.key,
        ca: settings.ca,
        revoked: None,
        trust: settings.trust_domain,
    })
    .or_internal(|| "cannot use the lab's certificates".to_owned())?;
    let options = ClientOptions { timeout: PATIENCE, ..ClientOptions::default() };
    let client = Client::new(&lab.endpoints(), tls, options)
        .or_internal(|| "cannot use the lab's endpoints".to_owned())?;
    let bar = progress::count(context.out, "services", common.clients as u64);
    futures::stream::iter(0..common.clients)
        .map(|at| declare(&client, at, 0))
        .buffer_unordered(AT_ONCE)
        .try_for_each(|()| async {
            bar.inc(1);
            Ok(())
        })
        .await?;
    bar.finish_and_clear();
    let told = Arc::new(Told::default());
    let mut tasks = JoinSet::new();
    for at in 0..common.clients {
        let routing = RoutingServiceClient::new(target.channel(at));
        tasks.spawn(follow(routing, name(at)?.to_string(), at == 0, told.clone()));
    }
    all_follow(&told, common.clients as u64).await?;
    let before = target.usage();
    tokio::time::sleep(IDLE).await;
    let idle = cpu_ms(&before, &target.usage()) / IDLE.as_secs_f64();

    let (mut known, mut writes) = (latencies(), latencies());
    let (mut errors, mut rounds) = (0, 0_u64);
    let before = target.usage();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(common.seconds) {
        rounds += 1;
        let all = told.changes.load(Ordering::Acquire);
        let sent = Instant::now();
        let waits = async {
            while told.changes.load(Ordering::Acquire) == all {
                told.changed.notified().await;
            }
            sent.elapsed()
        };
        let written = async {
            declare(&client, 0, rounds).await?;
            Outcome::Ok(sent.elapsed())
        };
        let (written, heard) = tokio::join!(written, tokio::time::timeout(PATIENCE, waits));
        note(&mut writes, written?);
        match heard {
            Ok(took) => note(&mut known, took),
            Err(_) => errors += 1,
        }
        tokio::time::sleep(args.interval).await;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let after = target.usage();
    let per_change = (cpu_ms(&before, &after) - idle * seconds) / rounds as f64;
    let mut extra = Map::new();
    extra.insert("services".into(), json!(common.clients));
    extra.insert("rounds".into(), json!(rounds));
    extra.insert("write_p50_ms".into(), json!(ms(writes.value_at_quantile(0.5))));
    extra.insert("told_to_others".into(), json!(told.strays.load(Ordering::Relaxed)));
    extra.insert("idle_cpu_ms_per_s".into(), json!((idle * 10.0).round() / 10.0));
    extra.insert("cpu_ms_per_change".into(), json!((per_change * 1_000.0).round() / 1_000.0));
    extra.insert("servers".into(), usage_json(&before, &after, seconds));
    Report { name: "follow", ops_s: 0.0, latencies: known, errors, sample_error: None, extra }
        .print(context);
    Ok(())
}

/// Processor time of all nodes between two looks.
fn cpu_ms(
    before: &[(u64, regent_lab::process::Usage)],
    after: &[(u64, regent_lab::process::Usage)],
) -> f64 {
    let sum = |all: &[(u64, regent_lab::process::Usage)]| -> u64 {
        all.iter().map(|(_, usage)| usage.cpu_ms).sum()
    };
    sum(after).saturating_sub(sum(before)) as f64
}

async fn all_follow(told: &Told, wanted: u64) -> Outcome {
    let deadline = Instant::now() + BEGIN_WITHIN;
    loop {
        let ready = told.ready.load(Ordering::Acquire);
        if ready >= wanted {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(CliError::unreachable("cannot begin to follow")
                .because(format!("{ready} of {wanted} followers were served"))
                .hint("give more --connections: each carries a bounded number of streams"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn follow(
    mut routing: RoutingServiceClient<Channel>,
    service: String,
    is_changed: bool,
    told: Arc<Told>,
) {
    let ask = v1::WatchRoutesRequest { service, router: String::new(), client: None };
    let Ok(opened) = routing.watch(ask).await else { return };
    let mut stream = opened.into_inner();
    let mut is_first = true;
    while let Ok(Some(message)) = stream.message().await {
        if message.routes.is_none() {
            continue;
        }
        if std::mem::take(&mut is_first) {
            told.ready.fetch_add(1, Ordering::AcqRel);
        } else if is_changed {
            told.changes.fetch_add(1, Ordering::AcqRel);
            told.changed.notify_one();
        } else {
            told.strays.fetch_add(1, Ordering::Relaxed);
        }
    }
}
