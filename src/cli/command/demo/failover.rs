//! The demo with PostgreSQL: a client writes, the primary's host is killed, another instance takes
//! over, the old one comes back as a standby; and every row that was acknowledged is there.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use regent_core::spec::Mode;
use regent_lab::databases::{
    Databases, DatabasesView, Front, REDUNDANT, Wanted, http, signal_host, wait_redundant,
};
use regent_lab::process::Fault;
use regent_lab::writer::{Access, Ledger, Pace, Table, Writer, verify};
use regent_lab::{Lab, Plan, Profile};
use regent_rpc::pb::v1;
use tokio::task::JoinSet;

use super::report::{Report, Told};
use super::timeline::Timeline;
use crate::command::lab::{NO_HAPROXY, Operator, from_lab, own_binary};
use crate::error::{CliError, Context as _, Outcome};

/// Nothing in the demo takes longer, but for the start and the way back.
const PATIENCE: Duration = Duration::from_secs(30);
/// Rows are written for so long before anything happens.
const CALM: Duration = Duration::from_secs(2);
/// And after the first acknowledgement by the new primary.
const SETTLED: Duration = Duration::from_secs(2);
/// How often the agents are asked what they say of themselves.
const LOOK: Duration = Duration::from_millis(10);
/// An agent on loopback answers at once, or is dead.
const ANSWER: Duration = Duration::from_millis(500);

/// The kill: both clocks, for what is measured here and what the nodes wrote down.
#[derive(Clone, Copy)]
pub(super) struct Kill {
    at: Instant,
    wall: SystemTime,
}

impl Kill {
    /// Milliseconds from the kill to `at`.
    fn ms(&self, at: Instant) -> u128 {
        at.saturating_duration_since(self.at).as_millis()
    }

    /// The same, for an instant of the machine's wall clock; negative: before the kill.
    pub(super) fn wall_ms(&self, at_ms: u64) -> i128 {
        let kill = self.wall.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        i128::from(at_ms) - i128::try_from(kill).unwrap_or_default()
    }
}

/// What there is to look at.
struct Scene {
    lab: Lab,
    databases: Databases,
    table: Table,
    operator: Operator,
    /// How the client comes in, and in which words.
    access: Access,
    way: &'static str,
}

/// Shows it.
pub async fn show(dir: &Path, timeline: &Arc<Timeline>) -> Outcome {
    let scene = set_up(dir, timeline).await?;
    let writer = Writer::start(scene.access.clone(), scene.table.clone(), Pace::STEADY);
    let begun = Instant::now();
    if writer.acked_since(begun, PATIENCE).await.is_none() {
        return Err(
            CliError::internal("no row was acknowledged").because(troubles(&writer.ledger()))
        );
    }
    tokio::time::sleep(CALM).await;
    let rows = writer.ledger().summary().acked;
    timeline.say(format!("a client writes a row each 5 ms {}; {rows} are acknowledged", scene.way));

    let (kill, old) = kill_primary(&scene, timeline).await?;
    let watch = Watch::start(&scene, old, kill, timeline);
    let first = first_ack(&writer, kill, old).await;
    let Some((at, new)) = first else {
        timeline.claim("another instance took over", false);
        return Err(CliError::internal("no other instance acknowledged a row")
            .because(troubles(&writer.ledger())));
    };
    let id = |at: usize| scene.databases.instances[at].id.clone();
    let later = kill.ms(at);
    timeline.at(at, format!("{} acknowledges the first row, {later} ms after the kill", id(new)));
    timeline.claim("another instance took over", new != old);
    tokio::time::sleep(SETTLED).await;
    drop(watch);

    let rejoined = rejoin(dir, &scene, old, timeline).await?;
    let ended = Instant::now();
    let ledger = writer.stop().await;
    let verdict = verify(&scene.access, &scene.table, &ledger, PATIENCE)
        .await
        .or_internal(|| "cannot read the rows back".to_owned())?;
    let operation = scene.operator.newest().await;
    let operation = operation.filter(|one| is_after(one, kill));
    let report = Report {
        way: scene.way,
        old: id(old),
        new: id(new),
        first_write_ms: kill.ms(at),
        rejoined_ms: rejoined.as_millis(),
        pause_ms: ledger.longest_gap(kill.at, ended).length().as_millis(),
        operation: operation.map(|one| Told::of(&one, kill)),
        rows: ledger.summary(),
        unknown_and_there: verdict.unknown_and_there,
        lost: verdict.lost.len(),
    };
    timeline.report(report.to_json(), &report.to_string());
    timeline.claim("the old primary was proven out before another was granted", report.is_proven());
    timeline.claim("no acknowledged row is lost", verdict.lost.is_empty() && report.rows.acked > 0);
    timeline.claim(
        "no row is there twice, and none that was refused",
        verdict.twice.is_empty() && verdict.refused_but_there.is_empty(),
    );
    Ok(())
}

async fn set_up(dir: &Path, timeline: &Arc<Timeline>) -> Outcome<Scene> {
    let plan = Plan {
        dir: dir.to_owned(),
        binary: own_binary()?,
        nodes: 3,
        profile: Profile::Lan,
        network: false,
    };
    let ttl = Duration::from_secs(3);
    let wanted = Wanted {
        instances: 3,
        mode: Mode::Quorum,
        ttl,
        haproxy: Front::Auto,
        envoy: None,
        keep: false,
    };
    let say = |step: String| timeline.say(step);
    let (lab, view) = regent_lab::up_with(&plan, &wanted, &say)
        .await
        .map_err(|error| from_lab("cannot make the lab", error))?;
    let databases = lab.databases.clone().ok_or_else(|| CliError::internal("no databases"))?;
    let seen = view.databases.as_ref().and_then(DatabasesView::primary);
    let primary = seen.map_or("nobody", |one| one.id.as_str());
    timeline.say(format!(
        "{primary} is primary of {} in mode quorum, {} standbys stream",
        databases.service,
        databases.instances.len() - 1
    ));
    let (access, way) = match databases.through_haproxy() {
        Some(access) => (access, "through HAProxy"),
        None => {
            timeline.say(NO_HAPROXY);
            (databases.access(), "to whichever host takes it")
        }
    };
    let table = Table::fresh("demo");
    table.create(&access, PATIENCE).await.or_internal(|| "cannot make a table".to_owned())?;
    let operator = Operator::of(&lab)?;
    Ok(Scene { lab, databases, table, operator, access, way })
}

/// Which one was primary; nothing of it is left.
async fn kill_primary(scene: &Scene, timeline: &Timeline) -> Outcome<(Kill, usize)> {
    let view = wait_redundant(&scene.lab, PATIENCE, &|_| {})
        .await
        .map_err(|error| from_lab("the lab is not well", error.into()))?;
    let primary = view.primary().map_or("", |one| one.id.as_str());
    let all = &scene.databases.instances;
    let at = all
        .iter()
        .position(|one| one.id == primary)
        .ok_or_else(|| CliError::internal("the lab has no primary"))?;
    let kill = Kill { at: Instant::now(), wall: SystemTime::now() };
    let count = signal_host(&scene.lab, &all[at], Fault::Kill)
        .map_err(|error| from_lab("cannot kill the primary", error.into()))?;
    if count == 0 {
        return Err(CliError::internal(format!("no process of {primary} was there")));
    }
    let what = format!("the host of {primary} dies: SIGKILL to agent, fencer, PostgreSQL");
    timeline.at(kill.at, what);
    Ok((kill, at))
}

/// Tells what happens while it happens, until it is dropped.
struct Watch(JoinSet<()>);

impl Watch {
    fn start(scene: &Scene, dead: usize, kill: Kill, timeline: &Arc<Timeline>) -> Self {
        let mut tasks = JoinSet::new();
        tasks.spawn(watch_agents(scene.databases.clone(), dead, Arc::clone(timeline)));
        tasks.spawn(watch_nodes(scene.operator.clone(), kill, Arc::clone(timeline)));
        Self(tasks)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort_all();
    }
}

/// Says when an agent's word about itself changes.
async fn watch_agents(databases: Databases, dead: usize, timeline: Arc<Timeline>) {
    let mut primary = vec![false; databases.instances.len()];
    loop {
        for (at, instance) in databases.instances.iter().enumerate().filter(|(at, _)| *at != dead) {
            let answer = http::get(&instance.http, "/primary", ANSWER).await;
            let now = answer.is_some_and(|answer| answer.code == 200);
            if now != primary[at] {
                let word = if now { "it is primary, and open" } else { "it is not primary" };
                timeline.say(format!("the agent of {} says: {word}", instance.id));
            }
            primary[at] = now;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Says each phase of the role change that the kill made, as the nodes commit it.
async fn watch_nodes(operator: Operator, kill: Kill, timeline: Arc<Timeline>) {
    let mut told = 0;
    operator
        .watch(|operation| {
            // One of before the kill is how the lab came to its first primary.
            let ours = is_after(&operation, kill);
            for began in operation.history.iter().skip(told).filter(|_| ours) {
                timeline.say(phase_text(&operation, &began.phase));
                told += 1;
            }
        })
        .await;
}

/// A phase in the words of somebody who never heard of it.
fn phase_text(operation: &v1::Operation, phase: &str) -> String {
    let from = &operation.from;
    match phase {
        "fence" => {
            format!("detected: {}; {from} is fenced: standbys let go of it", operation.verdict)
        }
        "promote" => format!("{from} is proven out: {} may be primary", operation.to),
        "repair" => format!("{} is promoted, and verified", operation.to),
        other => format!("the {} is in phase {other}", operation.kind),
    }
}

/// When another host acknowledged a row that was sent after the kill, and which.
async fn first_ack(writer: &Writer, kill: Kill, old: usize) -> Option<(Instant, usize)> {
    let deadline = kill.at + PATIENCE;
    loop {
        if let Some(attempt) = writer.ledger().first_ack_not_of(kill.at, Some(old)) {
            return Some((attempt.done, attempt.host));
        }
        if Instant::now() >= deadline {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Starts the old primary's agent; how long it took until it streams.
async fn rejoin(dir: &Path, scene: &Scene, old: usize, timeline: &Timeline) -> Outcome<Duration> {
    let id = &scene.databases.instances[old].id;
    let begun = Instant::now();
    timeline.say(format!("the host of {id} is back: its agent is started"));
    let mut lab = Lab::open(dir).map_err(|error| from_lab("cannot open the lab", error.into()))?;
    let failed = |error: regent_lab::databases::DatabaseError| {
        from_lab("the old primary did not come back", error.into())
    };
    regent_lab::databases::revive(&mut lab).map_err(failed)?;
    let view = wait_redundant(&lab, REDUNDANT, &|_| {}).await.map_err(failed)?;
    let standby = view.instances.iter().any(|one| one.id == *id && one.is_standby());
    let took = begun.elapsed();
    timeline.say(format!("{id} streams from the new primary, {} ms later", took.as_millis()));
    timeline.claim("the old primary is back as a standby", standby);
    Ok(took)
}

/// Whether a role change began after the kill.
fn is_after(operation: &v1::Operation, kill: Kill) -> bool {
    operation.history.first().is_some_and(|one| kill.wall_ms(one.at_ms) >= 0)
}

fn troubles(ledger: &Ledger) -> String {
    let most = ledger.errors().iter().max_by_key(|(_, count)| **count);
    most.map_or_else(|| "nothing was answered".to_owned(), |(why, _)| why.clone())
}
