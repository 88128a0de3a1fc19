//! The demo without a database: in half a minute, three nodes elect a leader, two clients
//! campaign, the holder is killed and the lease moves, then the leader is killed and the lease
//! stays.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use regent_core::id::Epoch;
use regent_core::timing::TtlAsk;
use regent_lab::process::Fault;
use regent_lab::{Connections, Lab, Plan, Profile};
use regent_rpc::pb::v1;
use regent_rpc::pb::v1::election_service_client::ElectionServiceClient;
use regent_rpc::pb::v1::observe_response::Event;
use serde_json::json;

use super::candidate::Candidate;
use super::timeline::Timeline;
use crate::command::lab::{connect, from_lab, own_binary};
use crate::connect::from_status;
use crate::error::{CliError, Context as _, Outcome};
use crate::render::text;

/// The election of the demo.
const ELECTION: &str = "demo/primary";
/// Nothing in the demo takes longer; whatever does is a failure.
const PATIENCE: Duration = Duration::from_secs(15);

/// Shows it.
pub async fn show(dir: &Path, timeline: &Arc<Timeline>) -> Outcome {
    timeline.say("starting three nodes in zones a, b and c, with mutual TLS");
    let plan = Plan {
        dir: dir.to_owned(),
        binary: own_binary()?,
        nodes: 3,
        profile: Profile::Lan,
        network: false,
    };
    let (lab, view) =
        regent_lab::up(&plan).await.map_err(|error| from_lab("cannot make the lab", error))?;
    timeline.say(format!("all follow node {}", view.leader));
    let connections = connect(&lab)?;
    let ttl = smallest_ttl(&connections, view.leader).await?;
    tokio::spawn(observe(connections.channel(view.leader), Arc::clone(timeline)));

    let mut first = Candidate::start(&lab, "first", ELECTION, ttl)?;
    let held = first.event("held", PATIENCE).await?;
    let first_epoch = held.epoch;
    timeline.at(held.at, format!("the first client leads under epoch {first_epoch}"));
    let mut second = Candidate::start(&lab, "second", ELECTION, ttl)?;
    second.event("waiting", PATIENCE).await?;
    wait_queued(&connections, view.leader).await?;
    timeline.say("the second client waits in the queue");

    let second_epoch = holder_dies(timeline, &mut first, &mut second, first_epoch, ttl).await?;
    leader_dies(timeline, &lab, dir, &mut second, second_epoch, ttl).await?;

    second.terminate()?;
    let resigned = second.event("resigned", PATIENCE).await?;
    timeline.at(resigned.at, "the second client was told to stop, and resigned");
    Ok(())
}

/// Act one: the holder is killed; the lease moves, later than it could have been used.
async fn holder_dies(
    timeline: &Timeline,
    first: &mut Candidate,
    second: &mut Candidate,
    first_epoch: Epoch,
    ttl: Duration,
) -> Outcome<Epoch> {
    first.kill()?;
    let killed = Instant::now();
    timeline.at(killed, format!("the first client is killed (SIGKILL, pid {})", first.pid()));
    let held = second.event("held", PATIENCE).await?;
    let gap = held.at.saturating_duration_since(killed);
    timeline.at(
        held.at,
        format!("the second client leads under epoch {}, {} ms later", held.epoch, gap.as_millis()),
    );
    timeline.claim("the epoch rose", held.epoch > first_epoch);
    // The dead holder may have renewed just before it was killed, and could have acted for one ttl
    // from then on; it may also have renewed an interval before.
    let interval = Duration::from_millis(TtlAsk::default_interval_ms(ttl.as_millis() as u64));
    let budget = Duration::from_millis(250);
    let earliest = ttl.saturating_sub(interval).saturating_sub(budget);
    timeline.claim("the two never overlapped", gap >= earliest);
    Ok(held.epoch)
}

/// Act two: the leader of the nodes is killed; the lease stays where it is.
async fn leader_dies(
    timeline: &Timeline,
    lab: &Lab,
    dir: &Path,
    second: &mut Candidate,
    epoch: Epoch,
    ttl: Duration,
) -> Outcome {
    let connections = connect(lab)?;
    let before = regent_lab::view(lab, &connections).await.leader;
    let node = lab.node(before).ok_or_else(|| CliError::internal("the lab has no leader"))?;
    let pid = node.process.as_ref().map_or(0, |process| process.pid);
    regent_lab::signal(node, Fault::Kill)
        .map_err(|error| from_lab("cannot kill the leader", error))?;
    let killed = Instant::now();
    timeline.at(killed, format!("node {before}, the leader, is killed (SIGKILL, pid {pid})"));
    let after = loop {
        let seen = regent_lab::view(lab, &connections).await;
        let alive = seen.nodes.iter().find(|node| node.id == seen.leader && node.pid.is_some());
        if seen.leader != before && alive.is_some() {
            break seen.leader;
        }
        if killed.elapsed() > PATIENCE {
            return Err(CliError::internal("no new leader was elected"));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    timeline.say(format!("node {after} leads, {} ms later", killed.elapsed().as_millis()));
    // Longer than the lease would have lasted without renewals.
    let quiet = second.quiet_for(ttl * 3 / 2).await;
    timeline.claim("the holder kept its lease over the change of leader", quiet);
    let row = read(&connections, after).await?;
    let same = row.epoch.is_some_and(|now| {
        (now.incarnation, now.revision) == (epoch.incarnation, epoch.revision.0)
    });
    timeline.claim("its epoch is still in force", same && row.holder.is_some());
    let (_, _, healed) =
        regent_lab::heal(dir).await.map_err(|error| from_lab("cannot heal the lab", error))?;
    timeline.say(format!("node {:?} is started again and follows", healed.started));
    Ok(())
}

async fn smallest_ttl(connections: &Connections, node: u64) -> Outcome<Duration> {
    let status = connections
        .status(node)
        .await
        .ok_or_else(|| CliError::unreachable("the leader does not answer"))?;
    Ok(Duration::from_millis(status.least_ttl_ms))
}

async fn read(connections: &Connections, node: u64) -> Outcome<v1::Election> {
    let channel = connections.channel(node).ok_or_else(|| CliError::internal("no such node"))?;
    let request = v1::LeaderRequest { election: ELECTION.to_owned(), read: None };
    let answer = ElectionServiceClient::new(channel)
        .leader(request)
        .await
        .map_err(|status| from_status("read the election", "the node", &status))?;
    Ok(answer.into_inner().election.unwrap_or_default())
}

async fn wait_queued(connections: &Connections, node: u64) -> Outcome {
    let begun = Instant::now();
    while read(connections, node).await?.queue.is_empty() {
        if begun.elapsed() > PATIENCE {
            return Err(CliError::internal("the second client never came into the queue"));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// The other client: sees every change, and says what it saw.
async fn observe(channel: Option<tonic::transport::Channel>, timeline: Arc<Timeline>) -> Outcome {
    let channel = channel.ok_or_else(|| CliError::internal("no such node"))?;
    let request = v1::ObserveRequest {
        election: ELECTION.to_owned(),
        prefix: String::new(),
        all: false,
        from: None,
    };
    let mut stream = ElectionServiceClient::new(channel)
        .observe(request)
        .await
        .map_err(|status| from_status("observe", "the node", &status))?
        .into_inner();
    let mut last = String::new();
    // Ends with the node it watches; by then the lease has moved.
    while let Some(message) = stream.message().await.or_internal(|| "the watch ended".into())? {
        let Some(Event::Change(change)) = message.event else { continue };
        let seen = match change.election.and_then(|row| row.holder) {
            Some(holder) => format!(
                "{} under epoch {}{}",
                text::value(&holder.value),
                holder.epoch.as_ref().map(text::epoch).unwrap_or_default(),
                if holder.confirmed { "" } else { ", not acting yet" },
            ),
            None => "nobody".to_owned(),
        };
        // A change of the queue alone is no news for people.
        if seen != last {
            timeline.saw(&seen, json!({ "revision": change.revision, "holder": seen }));
            last = seen;
        }
    }
    Ok(())
}
