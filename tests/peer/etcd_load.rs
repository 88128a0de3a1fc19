//! The load of `regent bench proclaim` and `read`, against etcd: the same client library, the same
//! TLS, the same loop, so that `scripts/bench` can put the peer's figures of the same minutes beside
//! ours. Absolute times of a shared machine drift; a ratio within one run does not.
//!
//! `etcd_load put|range CLIENTS SECONDS PKI_DIR ENDPOINT...`: prints one JSON object. Clients are on
//! the leader only, at most 16 connections, as `--leader-only` does it.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use regent_rpc::channel::{ChannelOptions, connect_lazy};
use regent_rpc::tls::{ExpectPeer, Tls, TlsFiles};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

const CONNECTIONS: usize = 16;
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

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [verb, clients, seconds, pki, endpoints @ ..] = args.as_slice() else {
        return Err("usage: etcd_load put|range CLIENTS SECONDS PKI_DIR ENDPOINT...".into());
    };
    let put = match verb.as_str() {
        "put" => true,
        "range" => false,
        other => return Err(format!("{other:?} is neither put nor range").into()),
    };
    let (clients, seconds): (usize, u64) = (clients.parse()?, seconds.parse()?);
    let file = |name: &str| Path::new(pki).join(name);
    let tls = Tls::load(TlsFiles {
        cert: file("admin-bench.crt"),
        key: file("admin-bench.key"),
        ca: file("bundle.crt"),
        revoked: None,
        trust: None,
    })?;
    let leader = leader(&tls, endpoints).await?;
    let channels = (0..CONNECTIONS).map(|_| dial(&tls, &leader)).collect::<Result<Vec<_>, _>>()?;

    let start = Instant::now() + WARM_UP;
    let end = start + Duration::from_secs(seconds);
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let channel = channels[client % CONNECTIONS].clone();
            tokio::spawn(one_client(channel, put, client, start, end))
        })
        .collect();
    let (mut latencies, mut errors) = (Histogram::<u64>::new(3)?, 0);
    for task in tasks {
        let (own, failed) = task.await?;
        latencies.add(&own)?;
        errors += failed;
    }
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
