//! The demo with PostgreSQL: a client writes, the primary's host is killed, another instance takes
//! over, the old one comes back as a standby; and every row that was acknowledged is there.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use regent_core::spec::Mode;
use regent_lab::databases::{
    Databases, DatabasesView, REDUNDANT, Wanted, http, signal_host, wait_redundant,
};
use regent_lab::process::Fault;
use regent_lab::writer::{Fate, Ledger, Pace, Table, Verdict, Writer, verify};
use regent_lab::{Lab, Plan, Profile};

use super::timeline::Timeline;
use crate::command::lab::{Operation, from_lab, newest_operation, own_binary};
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
struct Kill {
    at: Instant,
    wall: SystemTime,
}

impl Kill {
    /// Milliseconds from the kill to `at`.
    fn ms(&self, at: Instant) -> u128 {
        at.saturating_duration_since(self.at).as_millis()
    }

    /// The same, for an instant of the machine's wall clock; negative: before the kill.
    fn wall_ms(&self, at_ms: u64) -> i128 {
        let kill = self.wall.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        i128::from(at_ms) - i128::try_from(kill).unwrap_or_default()
    }

    /// A wall clock's instant on the timeline.
    fn instant(&self, at_ms: u64) -> Instant {
        let after = u64::try_from(self.wall_ms(at_ms)).unwrap_or(0);
        self.at + Duration::from_millis(after)
    }
}

/// What there is to look at.
struct Scene {
    lab: Lab,
    databases: Databases,
    table: Table,
}

/// Shows it.
pub async fn show(dir: &Path, timeline: &Arc<Timeline>) -> Outcome {
    let scene = set_up(dir, timeline).await?;
    let access = scene.databases.access();
    let writer = Writer::start(access.clone(), scene.table.clone(), Pace::STEADY);
    let begun = Instant::now();
    if writer.acked_since(begun, PATIENCE).await.is_none() {
        return Err(
            CliError::internal("no row was acknowledged").because(troubles(&writer.ledger()))
        );
    }
    tokio::time::sleep(CALM).await;
    let rows = writer.ledger().summary().acked;
    timeline.say(format!("a client writes a row each 5 ms; {rows} are acknowledged"));

    let (kill, old) = kill_primary(&scene, timeline).await?;
    let watch = tokio::spawn(watch(scene.databases.clone(), old, Arc::clone(timeline)));
    let first = first_ack(&writer, kill, old).await;
    let Some((at, new)) = first else {
        watch.abort();
        timeline.claim("another instance took over", false);
        return Err(CliError::internal("no other instance acknowledged a row")
            .because(troubles(&writer.ledger())));
    };
    let id = |at: usize| scene.databases.instances[at].id.clone();
    timeline.at(at, format!("{} acknowledges the first row, {} ms later", id(new), kill.ms(at)));
    timeline.claim("another instance took over", new != old);
    tokio::time::sleep(SETTLED).await;
    watch.abort();

    let back = rejoin(dir, &scene, old, timeline).await?;
    let ledger = writer.stop().await;
    let verdict = verify(&access, &scene.table, &ledger, PATIENCE)
        .await
        .or_internal(|| "cannot read the rows back".to_owned())?;
    let operation = newest_operation(&scene.lab, &scene.databases.service).await;
    if let Some(operation) = &operation {
        tell_operation(operation, kill, timeline);
    }
    report(&ledger, &verdict, kill, back, timeline);
    Ok(())
}

async fn set_up(dir: &Path, timeline: &Arc<Timeline>) -> Outcome<Scene> {
    let plan = Plan { dir: dir.to_owned(), binary: own_binary()?, nodes: 3, profile: Profile::Lan };
    let ttl = Duration::from_secs(3);
    let wanted = Wanted { instances: 3, mode: Mode::Quorum, ttl, keep: false };
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
    let table = Table::fresh("demo");
    let access = databases.access();
    table.create(&access, PATIENCE).await.or_internal(|| "cannot make a table".to_owned())?;
    Ok(Scene { lab, databases, table })
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
    timeline.at(
        kill.at,
        format!(
            "the host of {primary} dies: SIGKILL to PostgreSQL, fencer, agent ({count} processes)"
        ),
    );
    Ok((kill, at))
}

/// Says when an agent's word about itself changes, until it is aborted.
async fn watch(databases: Databases, dead: usize, timeline: Arc<Timeline>) {
    let mut last = vec![None; databases.instances.len()];
    loop {
        for (at, instance) in databases.instances.iter().enumerate().filter(|(at, _)| *at != dead) {
            let answer = http::get(&instance.http, "/primary", ANSWER).await;
            let primary = answer.is_some_and(|answer| answer.code == 200);
            if last[at].is_some_and(|before| before != primary) || (primary && last[at].is_none()) {
                let word = if primary { "it is primary, and open" } else { "it is not primary" };
                timeline.say(format!("the agent of {} says: {word}", instance.id));
            }
            last[at] = Some(primary);
        }
        tokio::time::sleep(LOOK).await;
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

/// What the nodes wrote down: when each phase began, and which proof the new right rests on.
fn tell_operation(operation: &Operation, kill: Kill, timeline: &Timeline) {
    let because = if operation.verdict.is_empty() { &operation.kind } else { &operation.verdict };
    for began in &operation.history {
        timeline.at(
            kill.instant(began.at_ms),
            format!(
                "{}: {} ({} ms after the kill)",
                operation.kind,
                began.phase,
                kill.wall_ms(began.at_ms)
            ),
        );
    }
    timeline.say(format!("detected as {because}: {} -> {}", operation.from, operation.to));
    timeline.say(format!("the old primary is out: {}", operation.out));
    timeline.say(format!("the new primary is complete: {}", operation.complete));
}

fn report(ledger: &Ledger, verdict: &Verdict, kill: Kill, back: Duration, timeline: &Timeline) {
    let gap = ledger.longest_gap(kill.at, Instant::now());
    let rows = ledger.summary();
    timeline.say(format!(
        "nobody could write for {} ms; the old primary was back after {} ms",
        gap.length().as_millis(),
        back.as_millis()
    ));
    timeline.say(format!(
        "rows acknowledged {}, of those lost {}; refused {}; of {} nobody was told, {} are there",
        rows.acked,
        verdict.lost.len(),
        rows.failed,
        ledger.ids(Fate::Unknown).len(),
        verdict.unknown_and_there
    ));
    timeline.claim("no acknowledged row is lost", verdict.lost.is_empty() && rows.acked > 0);
    timeline.claim(
        "no row is there twice, and none that was refused",
        verdict.twice.is_empty() && verdict.refused_but_there.is_empty(),
    );
}

fn troubles(ledger: &Ledger) -> String {
    let most = ledger.errors().iter().max_by_key(|(_, count)| **count);
    most.map_or_else(|| "nothing was answered".to_owned(), |(why, _)| why.clone())
}
