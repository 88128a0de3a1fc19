//! `bench leader`: the leader of a lab is killed, frozen or asked to hand over, again and again;
//! how long nobody could write, and whether any lease was lost.
//!
//! One writer per node, pinned to it, with its own session: it tries to write all the time, 20 ms
//! at most per try. A gap is the longest time, from the fault on, between two successful writes of
//! whichever writer. Leases are held by the client library at the smallest ttl the cluster allows.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use regent_core::id::ElectionName;
use regent_lab::process::Fault as Act;
use regent_lab::{Connections, Lab, View};
use regent_rpc::calls::Calls;
use regent_rpc::client::{CampaignOptions, Lease, Session, SessionOptions};
use regent_rpc::pb::v1;
use regent_rpc::pb::v1::cluster_service_client::ClusterServiceClient;
use serde_json::{Map, Value, json};
use tokio::sync::Mutex;

use super::Common;
use super::renewer::Renewer;
use super::report::{Report, latencies, ms, note};
use super::setup::{self, Holder};
use super::target::{Target, connections};
use crate::command::Context;
use crate::command::lab::from_lab;
use crate::connect::from_call;
use crate::error::{CliError, Context as _, Outcome};
use crate::render::progress;

/// One try of a writer.
const TRY: Duration = Duration::from_millis(20);
/// A round whose gap is longer than this is a failure, not a gap.
const LONGEST_GAP: Duration = Duration::from_secs(30);
/// After the first success a second, longer silence may follow (a deposed leader's last answers):
/// the gap is known when writes have gone on for this long.
const SETTLED: Duration = Duration::from_millis(500);
/// Until all nodes follow one leader again.
const HEALTHY: Duration = Duration::from_secs(30);

/// What is done to the leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// SIGKILL
    #[default]
    Kill,
    /// SIGSTOP, and SIGCONT after its leases ran out
    Stop,
    /// It is asked to hand over
    Transfer,
}

impl Fault {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Transfer => "transfer",
        }
    }
}

/// Options of `bench leader`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  regent lab up --dir /tmp/lab --nodes-only
  regent bench leader --dir /tmp/lab --rounds 20 --fault kill -o json
")]
pub struct Args {
    /// The lab; its processes are killed and started again
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// How often
    #[arg(long, default_value_t = 20)]
    pub rounds: usize,
    /// What is done to the leader
    #[arg(long, value_enum, default_value_t)]
    pub fault: Fault,
    /// Leases held meanwhile, at the smallest ttl that the cluster allows
    #[arg(long, default_value_t = 10)]
    pub leases: usize,
}

/// Successful writes: when the last one was, and the longest silence since the fault.
#[derive(Default)]
struct Successes {
    inner: Mutex<Silence>,
    count: AtomicU64,
    errors: AtomicU64,
    stop: AtomicBool,
}

#[derive(Clone, Copy, Default)]
struct Silence {
    fault: Option<Instant>,
    last: Option<Instant>,
    /// First success of a write that was begun after the fault.
    first: Option<Instant>,
    longest: Duration,
}

impl Successes {
    async fn wrote(&self, begun: Instant, done: Instant) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut silence = self.inner.lock().await;
        if let Some(fault) = silence.fault {
            if begun >= fault && silence.first.is_none() {
                silence.first = Some(done);
            }
            let from = silence.last.map_or(fault, |last| last.max(fault));
            silence.longest = silence.longest.max(done.saturating_duration_since(from));
        }
        silence.last = Some(done);
    }

    async fn begin(&self, fault: Instant) {
        let mut silence = self.inner.lock().await;
        *silence = Silence { fault: Some(fault), last: silence.last, ..Silence::default() };
    }

    /// The gap, once writes have gone on for a while; `None` when they never did.
    async fn gap(&self) -> Option<Duration> {
        let fault = self.inner.lock().await.fault?;
        loop {
            let silence = *self.inner.lock().await;
            let now = Instant::now();
            if silence.first.is_some_and(|first| now.duration_since(first) >= SETTLED) {
                return Some(silence.longest);
            }
            if now.duration_since(fault) > LONGEST_GAP {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Runs it.
pub async fn run(context: &Context, args: Args) -> Outcome {
    let common = Common {
        clients: 0,
        seconds: 0,
        connections: 3,
        dir: Some(args.dir.clone()),
        leader_only: false,
        value_bytes: 8,
    };
    let target = Target::open(context, &common).await?;
    let mut lab = crate::command::lab::open(&args.dir)?;
    if lab.nodes.len() < 3 && args.fault != Fault::Transfer {
        return Err(CliError::usage("cannot take a node away from this lab")
            .because("what is left would be no majority")
            .hint("make a lab of 3 or 5 nodes"));
    }
    let to_nodes = connections(&lab)?;
    healthy(&lab, &to_nodes).await?;
    let leases = Leases::open(&target, args.leases).await?;
    let renewer = Renewer::start(&target.channels, 1, Duration::from_millis(500));
    let holders = setup::holders(context, &target, lab.nodes.len(), &renewer).await?;
    let cleanup: Vec<_> =
        holders.iter().map(|h| (h.session, h.nonce, h.election.clone())).collect();
    let successes = Arc::new(Successes::default());
    let mut writers = tokio::task::JoinSet::new();
    for (holder, node) in holders.into_iter().zip(&lab.nodes) {
        let channel = to_nodes.channel(node.id).expect("one per node");
        let calls = Calls::new(channel);
        writers.spawn(write(Holder { calls, ..holder }, Arc::clone(&successes)));
    }
    let bar = progress::count(context.out, "rounds", args.rounds as u64);
    let mut gaps = latencies();
    let (mut failed, mut list) = (0u64, Vec::new());
    for _ in 0..args.rounds {
        let gap = round(&mut lab, &to_nodes, &successes, args.fault, leases.ttl).await?;
        match gap {
            Some(gap) => {
                note(&mut gaps, gap);
                list.push(json!((gap.as_micros() as f64) / 1_000.0));
            }
            None => {
                failed += 1;
                list.push(Value::Null);
            }
        }
        bar.inc(1);
        bar.set_message(format!("leases lost {}", leases.lost()));
    }
    bar.finish_and_clear();
    successes.stop.store(true, Ordering::Relaxed);
    while writers.join_next().await.is_some() {}
    let lost = leases.lost();
    let mut extra = Map::new();
    extra.insert("fault".into(), json!(args.fault.as_str()));
    extra.insert("profile".into(), json!(lab.profile.as_str()));
    extra.insert("rounds".into(), json!(args.rounds));
    extra.insert("gaps_ms".into(), json!(list));
    extra.insert("min_ms".into(), json!(ms(gaps.min())));
    extra.insert("writes".into(), json!(successes.count.load(Ordering::Relaxed)));
    extra.insert("failed_tries".into(), json!(successes.errors.load(Ordering::Relaxed)));
    extra.insert("leases".into(), json!(args.leases));
    extra.insert("lease_ttl_ms".into(), json!(leases.ttl.as_millis() as u64));
    extra.insert("leases_lost".into(), json!(lost));
    Report {
        name: "leader",
        ops_s: 0.0,
        latencies: gaps,
        errors: failed + lost,
        sample_error: (failed > 0).then(|| "nobody could write for 30 s".to_owned()),
        extra,
    }
    .print(context);
    let mut elections = leases.close().await;
    let sessions = cleanup.iter().map(|(session, nonce, _)| (*session, *nonce)).collect();
    elections.extend(cleanup.into_iter().map(|(_, _, election)| election));
    setup::clean_up(&target, sessions, elections).await;
    Ok(())
}

/// One writer, pinned to one node.
async fn write(mut holder: Holder, successes: Arc<Successes>) {
    while !successes.stop.load(Ordering::Relaxed) {
        let message = holder.proclamation(bytes::Bytes::from_static(b"bench"));
        let begun = Instant::now();
        match holder.proclaim(message, TRY).await {
            Ok(()) => successes.wrote(begun, Instant::now()).await,
            Err(_) => {
                successes.errors.fetch_add(1, Ordering::Relaxed);
            }
        }
        // Steady, not as fast as it goes: the writers must not be the load that slows the election.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn round(
    lab: &mut Lab,
    to_nodes: &Connections,
    successes: &Successes,
    fault: Fault,
    ttl: Duration,
) -> Outcome<Option<Duration>> {
    let view = healthy(lab, to_nodes).await?;
    let leader = view.leader;
    let node = lab.node(leader).cloned().ok_or_else(|| {
        CliError::internal(format!("node {leader} leads, but is not of this lab"))
    })?;
    let failed = |error| from_lab("cannot do that to the leader", error);
    successes.begin(Instant::now()).await;
    match fault {
        Fault::Kill => {
            regent_lab::signal(&node, Act::Kill).map_err(failed)?;
        }
        Fault::Stop => {
            regent_lab::signal(&node, Act::Freeze).map_err(failed)?;
        }
        Fault::Transfer => {
            let channel = to_nodes.channel(leader).expect("one per node");
            let request = v1::TransferLeaderRequest { to: 0 };
            ClusterServiceClient::new(channel).transfer_leader(request).await.map_err(
                |status| {
                    crate::connect::from_status("transfer the leadership", &node.grpc, &status)
                },
            )?;
        }
    }
    let gap = successes.gap().await;
    match fault {
        Fault::Kill => {
            if let Some(process) = &node.process {
                process.wait_gone(Duration::from_secs(5)).await;
            }
            regent_lab::restart(lab, leader).map_err(failed)?;
        }
        Fault::Stop => {
            // Frozen for longer than every lease it knew: what it still believes must be over.
            tokio::time::sleep(ttl).await;
            regent_lab::signal(&node, Act::Thaw).map_err(failed)?;
        }
        Fault::Transfer => {}
    }
    healthy(lab, to_nodes).await?;
    Ok(gap)
}

async fn healthy(lab: &Lab, to_nodes: &Connections) -> Outcome<View> {
    regent_lab::wait_ready(lab, to_nodes, HEALTHY)
        .await
        .map_err(|error| from_lab("the lab is not healthy", error))
}

/// Leases that must survive everything.
struct Leases {
    ttl: Duration,
    held: Vec<Arc<Lease>>,
    sessions: Vec<Session>,
    lost: Arc<AtomicU64>,
    watchers: tokio::task::JoinSet<()>,
}

impl Leases {
    async fn open(target: &Target, count: usize) -> Outcome<Self> {
        let client = target.cluster.client()?;
        let status = client.status().await.map_err(|e| from_call("ask for the status", &e))?;
        let ttl = Duration::from_millis(status.least_ttl_ms);
        let run: u32 = rand::random();
        let lost = Arc::new(AtomicU64::new(0));
        let (mut held, mut sessions) = (Vec::new(), Vec::new());
        let mut watchers = tokio::task::JoinSet::new();
        for at in 0..count {
            let options =
                SessionOptions { ttl, label: "bench leader".into(), ..SessionOptions::default() };
            let session = Session::open(&client, options)
                .await
                .map_err(|error| from_call("open a session at the smallest ttl", &error))?;
            let name = ElectionName::parse(&format!("bench/{run:08x}/lease-{at}"))
                .expect("digits and a few letters are a name");
            let lease = session
                .campaign(&name, b"", CampaignOptions::default())
                .await
                .or_internal(|| "cannot win a new election".to_owned())?;
            let lease = Arc::new(lease);
            let (watched, lost) = (Arc::clone(&lease), Arc::clone(&lost));
            watchers.spawn(async move {
                watched.lost().await;
                lost.fetch_add(1, Ordering::Relaxed);
            });
            held.push(lease);
            sessions.push(session);
        }
        Ok(Self { ttl, held, sessions, lost, watchers })
    }

    fn lost(&self) -> u64 {
        let not_held = self.held.iter().filter(|lease| !lease.is_held()).count() as u64;
        self.lost.load(Ordering::Relaxed).max(not_held)
    }

    /// Ends them, and names the elections they were of.
    async fn close(mut self) -> Vec<String> {
        self.watchers.shutdown().await;
        let elections = self.held.drain(..).map(|lease| lease.election().to_string()).collect();
        for session in self.sessions {
            // Best effort: what is not closed lapses.
            let _ = session.close().await;
        }
        elections
    }
}
