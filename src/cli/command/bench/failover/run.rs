//! One run: a writer, a fault, the first acknowledgement after it, and all mended again.

use std::time::{Duration, Instant};

use regent_lab::Lab;
use regent_lab::databases::{REDUNDANT, wait_redundant};
use regent_lab::writer::{Ledger, Pace, Summary, Table, Verdict, Writer, verify};
use serde_json::{Value, json};

use super::Args;
use crate::command::lab::{Operator, from_lab};
use crate::error::{CliError, Context as _, Outcome};

/// A run in which no row is acknowledged for so long has failed.
const LONGEST: Duration = Duration::from_secs(60);
/// Writes go on for so long before the fault.
const WARM: Duration = Duration::from_secs(1);
/// And after the first acknowledgement, before anything is mended: a second silence may follow.
const SETTLED: Duration = Duration::from_secs(2);

/// What became of a run.
pub struct Run {
    /// Whether rows were acknowledged again, by another instance where it had to be one.
    pub resumed: bool,
    /// The longest time without an acknowledgement.
    pub gap: Duration,
    /// From the fault to the first acknowledgement of a row sent after it, where one came.
    first: Option<Duration>,
    /// From the mending to all standbys streaming.
    rejoin: Duration,
    from: String,
    to: Option<String>,
    proof: Option<String>,
    rows: Summary,
    /// What is in the table.
    pub verdict: Verdict,
    /// What the writer met most often.
    pub trouble: Option<String>,
}

impl Run {
    /// Rows that are there and must not be, or twice.
    pub fn wrong(&self) -> usize {
        self.verdict.twice.len() + self.verdict.refused_but_there.len()
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        json!({
            "resumed": self.resumed,
            "gap_ms": ms(self.gap),
            "first_ack_ms": self.first.map(ms),
            "rejoin_ms": ms(self.rejoin),
            "from": self.from,
            "to": self.to,
            "proof": self.proof,
            "acked": self.rows.acked,
            "failed": self.rows.failed,
            "unknown": self.rows.unknown,
            "unknown_and_there": self.verdict.unknown_and_there,
            "lost": self.verdict.lost,
            "twice": self.verdict.twice,
            "refused_but_there": self.verdict.refused_but_there,
            "trouble": self.trouble,
        })
    }
}

fn ms(time: Duration) -> f64 {
    super::super::report::ms(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

/// Does it once. The lab is well before and after.
pub async fn once(lab: &mut Lab, args: &Args) -> Outcome<Run> {
    let not_well = |error| from_lab("the lab is not well", error);
    let view =
        wait_redundant(lab, REDUNDANT, &|_| {}).await.map_err(|error| not_well(error.into()))?;
    let databases = lab.databases.clone().ok_or_else(|| CliError::internal("no databases"))?;
    let primary = view
        .primary()
        .and_then(|seen| databases.instance(&seen.id))
        .ok_or_else(|| CliError::internal("the lab has no primary"))?;
    let old = databases.instances.iter().position(|one| one.id == primary.id).unwrap_or(0);
    let operator = Operator::of(lab)?;
    let before = operator.newest().await.map_or(0, |one| one.id);

    let access = databases.access();
    let table = Table::fresh("bench");
    table.create(&access, LONGEST).await.or_internal(|| "cannot make a table".to_owned())?;
    let writer = Writer::start(access.clone(), table.clone(), Pace::STEADY);
    warm(&writer).await?;

    let fault = Instant::now();
    args.fault.inject(lab, primary).await?;
    let elsewhere = args.fault.moves().then_some(old);
    let first = acked(&writer, fault, elsewhere).await;
    let settled = fault + args.fault.lasts(args.hold);
    tokio::time::sleep(SETTLED.max(settled.saturating_duration_since(Instant::now()))).await;
    let mended = Instant::now();
    let (healed, view, _) = regent_lab::heal(&args.dir).await.map_err(not_well)?;
    *lab = healed;
    let done = Instant::now();

    let ledger = writer.stop().await;
    let verdict = verify(&access, &table, &ledger, LONGEST)
        .await
        .or_internal(|| "cannot read the rows back".to_owned())?;
    let operation = operator.newest().await.filter(|one| one.id > before);
    // Best effort: the next run has a table of its own.
    let _ = table.drop(&access, LONGEST).await;
    Ok(Run {
        resumed: first.is_some(),
        gap: ledger.longest_gap(fault, done).length(),
        first: first.map(|at| at.saturating_duration_since(fault)),
        rejoin: done.saturating_duration_since(mended),
        from: primary.id.clone(),
        to: view.databases.as_ref().and_then(|all| Some(all.primary()?.id.clone())),
        proof: operation.map(|one| one.out).filter(|out| !out.is_empty()),
        rows: ledger.summary(),
        trouble: most_often(&ledger),
        verdict,
    })
}

fn most_often(ledger: &Ledger) -> Option<String> {
    let most = ledger.errors().iter().max_by_key(|(_, count)| **count);
    most.map(|(why, count)| format!("{why} ({count} times)"))
}

async fn warm(writer: &Writer) -> Outcome {
    let begun = Instant::now();
    writer.acked_since(begun, LONGEST).await.ok_or_else(|| {
        CliError::unreachable("cannot measure").because("no row was acknowledged before the fault")
    })?;
    tokio::time::sleep(WARM).await;
    Ok(())
}

/// When the first row that was sent after the fault was acknowledged, by another host than `not`.
async fn acked(writer: &Writer, fault: Instant, not: Option<usize>) -> Option<Instant> {
    let deadline = fault + LONGEST;
    loop {
        if let Some(attempt) = writer.ledger().first_ack_not_of(fault, not) {
            return Some(attempt.done);
        }
        if Instant::now() >= deadline {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
