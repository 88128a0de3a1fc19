//! The load of `regent bench proclaim`, `read` and `watch`, against etcd: the same client library, the same
//! TLS, the same loop, so that `scripts/bench` can put the peer's figures of the same minutes beside
//! ours. Absolute times of a shared machine drift; a ratio within one run does not.
//!
//! `etcd_load put|range|watch CLIENTS SECONDS PKI_DIR ENDPOINT...`: prints one JSON object. Clients of
//! `put` and `range` are on the leader only, at most 16 connections, as `--leader-only` does it;
//! watchers are spread over all members, on 12 connections.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use regent_rpc::channel::{ChannelOptions, connect_lazy};
use regent_rpc::tls::{ExpectPeer, Tls, TlsFiles};
use tokio::sync::Notify;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::tokio_stream::{self, StreamExt as _};
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

const CONNECTIONS: usize = 16;
const WATCH_CONNECTIONS: usize = 12;
const WATCHED: &[u8] = b"bench/watched";
const VALUE_BYTES: usize = 100;
const WARM_UP: Duration = Duration::from_secs(1);

/// `etcdserverpb.PutRequest`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct Put {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `etcdserverpb.RangeRequest`: linearizable unless it says otherwise.
#[derive(Clone, PartialEq, prost::Message)]
struct Range {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

/// An answer whose content does not matter.
#[derive(Clone, PartialEq, prost::Message)]
struct Ignored {}

/// `etcdserverpb.WatchRequest`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    create: Option<Range>,
}

/// `etcdserverpb.WatchResponse`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct WatchResponse {
    #[prost(bool, tag = "3")]
    created: bool,
    #[prost(message, repeated, tag = "11")]
    events: Vec<Ignored>,
}

/// `etcdserverpb.StatusResponse`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct MemberStatus {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

/// `etcdserverpb.ResponseHeader`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct Header {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

async fn call<Q, A>(channel: &Channel, path: &'static str, request: Q) -> Result<A, Box<dyn Error>>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await?;
    let codec = ProstCodec::<Q, A>::default();
    let path = PathAndQuery::from_static(path);
    Ok(grpc.unary(tonic::Request::new(request), path, codec).await?.into_inner())
}

async fn leader(tls: &Arc<Tls>, endpoints: &[String]) -> Result<String, Box<dyn Error>> {
    for endpoint in endpoints {
        let channel = dial(tls, endpoint)?;
        let status: MemberStatus =
            call(&channel, "/etcdserverpb.Maintenance/Status", Ignored {}).await?;
        if status.header.is_some_and(|header| header.member_id == status.leader) {
            return Ok(endpoint.clone());
        }
    }
    Err("no member says that it leads".into())
}

fn dial(tls: &Arc<Tls>, endpoint: &str) -> Result<Channel, Box<dyn Error>> {
    let options = ChannelOptions::default();
    Ok(connect_lazy(endpoint, Arc::clone(tls), ExpectPeer::AnyNode, options)?)
}

async fn one_client(
    channel: Channel,
    put: bool,
    client: usize,
    start: Instant,
    end: Instant,
) -> (Histogram<u64>, u64) {
    let mut latencies = Histogram::new_with_bounds(1, 60_000_000, 3).expect("in order");
    let mut errors = 0;
    let key = format!("bench/{client}").into_bytes();
    loop {
        let sent = Instant::now();
        if sent >= end {
            return (latencies, errors);
        }
        let answer: Result<Ignored, _> = if put {
            let request = Put { key: key.clone(), value: vec![b'v'; VALUE_BYTES] };
            call(&channel, "/etcdserverpb.KV/Put", request).await
        } else {
            call(&channel, "/etcdserverpb.KV/Range", Range { key: key.clone() }).await
        };
        let failed = answer.is_err();
        let done = Instant::now();
        if done < start || done >= end {
            continue;
        }
        if failed {
            errors += 1;
        } else {
            latencies.saturating_record((done - sent).as_micros() as u64);
        }
    }
}

/// Each client does one thing after the other, as fast as it is answered.
async fn closed_loop(
    channels: &[Channel],
    put: bool,
    clients: usize,
    seconds: u64,
) -> Result<(Histogram<u64>, u64), Box<dyn Error>> {
    let start = Instant::now() + WARM_UP;
    let end = start + Duration::from_secs(seconds);
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let channel = channels[client % channels.len()].clone();
            tokio::spawn(one_client(channel, put, client, start, end))
        })
        .collect();
    let (mut latencies, mut errors) = (Histogram::<u64>::new(3)?, 0);
    for task in tasks {
        let (own, failed) = task.await?;
        latencies.add(&own)?;
        errors += failed;
    }
    Ok((latencies, errors))
}

/// The change that every watcher waits for.
#[derive(Default)]
struct Round {
    ready: AtomicUsize,
    seen: AtomicUsize,
    all: Notify,
}

async fn one_watcher(channel: Channel, watchers: usize, round: Arc<Round>) {
    let mut grpc = Grpc::new(channel);
    if grpc.ready().await.is_err() {
        return;
    }
    let create = WatchRequest { create: Some(Range { key: WATCHED.to_vec() }) };
    let asked = tokio_stream::iter([create]).chain(tokio_stream::pending());
    let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
    let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
    let Ok(answers) = grpc.streaming(tonic::Request::new(asked), path, codec).await else { return };
    let mut answers = answers.into_inner();
    while let Ok(Some(answer)) = answers.message().await {
        if answer.created {
            round.ready.fetch_add(1, Ordering::AcqRel);
        }
        for _ in answer.events {
            if round.seen.fetch_add(1, Ordering::AcqRel) + 1 == watchers {
                round.all.notify_one();
            }
        }
    }
}

/// One change after the other, each as soon as everybody has seen the one before, and a pause.
async fn watch(
    channels: &[Channel],
    watchers: usize,
    seconds: u64,
) -> Result<(Histogram<u64>, u64), Box<dyn Error>> {
    let round = Arc::new(Round::default());
    for at in 0..watchers {
        let channel = channels[at % channels.len()].clone();
        tokio::spawn(one_watcher(channel, watchers, Arc::clone(&round)));
    }
    let patience = Instant::now() + Duration::from_secs(30);
    while round.ready.load(Ordering::Acquire) < watchers {
        if Instant::now() > patience {
            return Err("not all watchers were served".into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (mut latencies, mut errors) = (Histogram::new_with_bounds(1, 60_000_000, 3)?, 0);
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        round.seen.store(0, Ordering::Release);
        let put = Put { key: WATCHED.to_vec(), value: vec![b'v'; 8] };
        let sent = Instant::now();
        let _: Ignored = call(&channels[0], "/etcdserverpb.KV/Put", put).await?;
        match tokio::time::timeout(Duration::from_secs(5), round.all.notified()).await {
            Ok(()) => latencies.saturating_record(sent.elapsed().as_micros() as u64),
            Err(_) => errors += 1,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok((latencies, errors))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [verb, clients, seconds, pki, endpoints @ ..] = args.as_slice() else {
        return Err("usage: etcd_load put|range|watch CLIENTS SECONDS PKI_DIR ENDPOINT...".into());
    };
    if !["put", "range", "watch"].contains(&verb.as_str()) {
        return Err(format!("{verb:?} is none of put, range, watch").into());
    }
    let (clients, seconds): (usize, u64) = (clients.parse()?, seconds.parse()?);
    let file = |name: &str| Path::new(pki).join(name);
    let tls = Tls::load(TlsFiles {
        cert: file("admin-bench.crt"),
        key: file("admin-bench.key"),
        ca: file("bundle.crt"),
        revoked: None,
        trust: None,
    })?;
    let (latencies, errors) = if verb == "watch" {
        let spread = endpoints.iter().cycle().take(WATCH_CONNECTIONS);
        let channels = spread.map(|at| dial(&tls, at)).collect::<Result<Vec<_>, _>>()?;
        watch(&channels, clients, seconds).await?
    } else {
        let leader = leader(&tls, endpoints).await?;
        let channels =
            (0..CONNECTIONS).map(|_| dial(&tls, &leader)).collect::<Result<Vec<_>, _>>()?;
        closed_loop(&channels, verb == "put", clients, seconds).await?
    };
    let ms = |quantile: f64| latencies.value_at_quantile(quantile) as f64 / 1_000.0;
    println!(
        "{}",
        serde_json::json!({
            "bench": format!("etcd {verb}"), "clients": clients, "errors": errors,
            "ops_s": (latencies.len() as f64 / seconds as f64 * 10.0).round() / 10.0,
            "p50_ms": ms(0.5), "p99_ms": ms(0.99),
        })
    );
    Ok(())
}
