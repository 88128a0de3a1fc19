//! From the entry that opens the routes, as the first node's log has it, to the first call or session of
//! a client at the new primary, or to the last watch that knows. The instances are played, so that no
//! database takes the processors meanwhile. `REGENT_FLIPS=30 cargo test --release` for the rows of
//! docs/performance.md.

use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use regent_lab::databases::proxy;
use regent_lab::ports;
use regent_rpc::pb::v1;
use regent_rpc::pb::v1::routing_service_client::RoutingServiceClient;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::envoy::{Envoy, reaches, session, staged};
use super::grpc::Program;
use super::stage::{ORDERS, Stage};
use crate::cluster::{REGENT, until};

/// Seconds of the day, of an instant as logs write it.
fn seconds(stamp: &str) -> f64 {
    let time = stamp.split_once('T').unwrap().1.trim_end_matches('Z');
    time.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().unwrap())
}

/// Of this moment.
fn now() -> f64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64() % 86_400.0
}

/// When the first node opened the routes to `name`, after `since`.
fn opened(stage: &Stage, name: &str, since: f64) -> f64 {
    let to = format!("to={name}");
    let stamps = stage.cluster.lab.nodes.iter().flat_map(|node| {
        let log = std::fs::read_to_string(&node.log).unwrap();
        let lines = log.lines().filter(|line| line.contains("writes are routed "));
        let stamps = lines.filter(|line| line.split_whitespace().any(|word| word == to));
        let stamps = stamps.filter_map(|line| line.split_whitespace().next().map(seconds));
        stamps.filter(|at| *at > since).collect::<Vec<_>>()
    });
    stamps.fold(f64::MAX, f64::min)
}

/// Flip after flip from a to b and back; `follow` makes one and says when who is measured was there.
async fn measure(what: &str, stage: &Stage, mut follow: impl AsyncFnMut(&'static str) -> f64) {
    // Each node says in its log when it has applied what somebody follows there.
    let (client, mut everywhere) = (stage.cluster.client("router"), JoinSet::new());
    let known: Known = Arc::new(Mutex::new(vec![Default::default(); 3]));
    for (at, (_, channel)) in client.channels().into_iter().enumerate() {
        everywhere.spawn(watch(RoutingServiceClient::new(channel), at, known.clone()));
    }
    let all_follow = || known.lock().unwrap().iter().all(|(to, _)| to == "a");
    until("a watch at each node", async || all_follow()).await;
    let flips: usize = std::env::var("REGENT_FLIPS").map_or(5, |text| text.parse().unwrap());
    let (mut took, mut last) = (Vec::new(), now());
    for flip in 0..flips {
        let other = if flip % 2 == 0 { "b" } else { "a" };
        let at = follow(other).await;
        // The last line of a log may be on its way.
        tokio::time::sleep(Duration::from_millis(100)).await;
        took.push(1_000.0 * (at - opened(stage, other, last)));
        last = at;
    }
    took.sort_by(f64::total_cmp);
    let (p50, max) = (took[took.len() / 2], took[took.len() - 1]);
    println!("{what}: p50 {p50:.1} ms, max {max:.1} ms of {took:.1?}");
    // A bound for a busy machine: whoever waits for a poll of a second is far above it.
    assert!(took[0] > -1.0 && p50 < 150.0, "{what}: {took:?}");
}

/// Asks for a session with `other` each millisecond while it becomes the primary.
async fn probed(stage: &Stage, port: u16, other: &'static str) -> f64 {
    let first = tokio::spawn(async move {
        let mut tries = JoinSet::new();
        loop {
            tries.spawn(async move {
                let there = session(port).await.is_some_and(|(_, with)| with == other);
                there.then(now)
            });
            while let Some(tried) = tries.try_join_next() {
                if let Some(at) = tried.unwrap() {
                    return at;
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    stage.switch_to(other).await;
    let waiting = tokio::time::timeout(Duration::from_secs(20), first);
    waiting.await.expect("somebody is there").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_client_is_at_the_new_primary_within_milliseconds() {
    let ports = ports::free(2).unwrap();
    let addresses: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let stage = Stage::up("flips", 3, &addresses).await;
    let mut program = Program::start(&stage.cluster, &[], &ports);
    program.reaches("orders.write", "a");
    let follow = async |other| {
        let said = program.follows(&stage, other).await;
        seconds(said["at"].as_str().unwrap())
    };
    measure("gRPC", &stage, follow).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_through_envoy_is_at_the_new_primary_within_milliseconds() {
    let stage = staged("flips-envoy", 3).await;
    let envoy = Envoy::start(&stage, "flips", ports::free(1).unwrap()[0], |_| {});
    reaches(envoy.write, "a").await;
    measure("Envoy", &stage, async |other| probed(&stage, envoy.write, other).await).await;
}

/// Ended with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_through_a_haproxy_that_is_told_is_at_the_new_primary_within_milliseconds() {
    let stage = staged("flips-haproxy", 3).await;
    let path = stage.cluster.scratch.path();
    let (socket, config) = (path.join("haproxy.sock"), path.join("haproxy.cfg"));
    let socket = socket.to_str().unwrap();
    let [write, read] = ports::free(2).unwrap()[..] else { panic!("two ports") };
    let (write_at, read_at) = (format!("127.0.0.1:{write}"), format!("127.0.0.1:{read}"));
    let args = ["routes", "export", ORDERS, "--format", "haproxy", "--check-interval-ms", "10000"];
    let places = ["--socket", socket, "--write", &write_at, "--read", &read_at];
    let out = stage.cluster.verb_as("router", &[&args[..], &places].concat());
    std::fs::write(&config, out.stdout).unwrap();
    let quiet = |command: &mut Command| {
        let all = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ended(all.spawn().unwrap())
    };
    let mut haproxy = Command::new(proxy::program().expect("HAProxy is installed"));
    let _haproxy = quiet(haproxy.args(["-db", "-f"]).arg(&config));
    let mut sync = Command::new(REGENT);
    let sync = sync.args(["lab", "exec", "--as", "router", "--dir"]).arg(&stage.cluster.lab.dir);
    let _sync = quiet(sync.args(["--", "haproxy-sync", ORDERS, "--socket", socket]));
    until("it is told", async || {
        let shown = stage.routes();
        let routers = shown["routers"].as_array().unwrap();
        routers.iter().any(|one| one["revision"].as_u64() > Some(0))
    })
    .await;
    reaches(write, "a").await;
    measure("push", &stage, async |other| probed(&stage, write, other).await).await;
}

/// Who takes writes, as each watch knows it, and since when.
type Known = Arc<Mutex<Vec<(String, f64)>>>;

async fn watch(mut routing: RoutingServiceClient<Channel>, at: usize, known: Known) {
    let ask = v1::WatchRoutesRequest { service: ORDERS.into(), ..Default::default() };
    let mut stream = routing.watch(ask).await.unwrap().into_inner();
    while let Ok(Some(message)) = stream.message().await {
        let Some(routes) = message.routes else { continue };
        let to = routes.write.map(|one| one.instance).unwrap_or_default();
        let mut known = known.lock().unwrap();
        if known[at].0 != to {
            known[at] = (to, now());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_of_a_thousand_watches_knows_the_new_primary_within_milliseconds() {
    let stage = staged("flips-watches", 3).await;
    let known: Known = Arc::new(Mutex::new(vec![Default::default(); 1_000]));
    // Twelve connections; a client has one to each node.
    let clients: Vec<_> = (0..4).map(|_| stage.cluster.client("router")).collect();
    let channels: Vec<Channel> =
        clients.iter().flat_map(|client| client.channels()).map(|(_, channel)| channel).collect();
    let mut watches = JoinSet::new();
    for at in 0..1_000 {
        let routing = RoutingServiceClient::new(channels[at % channels.len()].clone());
        watches.spawn(watch(routing, at, known.clone()));
    }
    let all_know = async |name: &str| {
        let all = || known.lock().unwrap().iter().all(|(to, _)| to == name);
        until("all of them know", async || all()).await;
        known.lock().unwrap().iter().map(|(_, at)| *at).fold(0.0, f64::max)
    };
    all_know("a").await;
    let follow = async |other| {
        stage.switch_to(other).await;
        all_know(other).await
    };
    measure("1,000 watches", &stage, follow).await;
}
