//! One run: a writer, a fault, the first acknowledgement after it, and all mended again.

use std::time::{Duration, Instant};

use regent_core::spec::Mode;
use regent_lab::Lab;
use regent_lab::databases::{REDUNDANT, wait_redundant};
use regent_lab::writer::{Ledger, Pace, Prober, Summary, Table, Verdict, Writer, verify};
use regent_rpc::pb::v1;
use serde_json::{Value, json};

use super::Args;
use super::side::{Side, Told, span};
use crate::command::lab::{Operator, from_lab};
use crate::error::{CliError, Context as _, Outcome};

/// A run in which no row is acknowledged for so long has failed.
pub const LONGEST: Duration = Duration::from_secs(60);
/// Writes go on for so long before the fault.
const WARM: Duration = Duration::from_secs(1);
/// And after the first acknowledgement, before anything is mended: a second silence may follow.
const SETTLED: Duration = Duration::from_secs(2);

/// What became of a run.
pub struct Run {
    /// Whether rows were acknowledged again, by another instance where it had to be one.
    pub resumed: bool,
    /// The longest time without an acknowledgement; of the prober, where there was one.
    pub gap: Duration,
    /// The same, of the steady writer.
    steady: Duration,
    /// What clients on the old primary's side were told.
    side: Option<Told>,
    /// Promises that were not kept, in words.
    pub broken: Vec<String>,
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

    /// Rows that were acknowledged to anybody and are not there.
    pub fn lost(&self) -> usize {
        self.verdict.lost.len() + self.side.as_ref().map_or(0, |side| side.verdict.lost.len())
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        json!({
            "resumed": self.resumed,
            "gap_ms": ms(self.gap),
            "steady_gap_ms": ms(self.steady),
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
            "side": self.side.as_ref().map(Told::to_json),
            "broken": self.broken,
        })
    }
}

/// In milliseconds.
pub fn ms(time: Duration) -> f64 {
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

    let access = args.through.access(&databases)?;
    let table = Table::fresh("bench");
    table.create(&access, LONGEST).await.or_internal(|| "cannot make a table".to_owned())?;
    let writer = Writer::start(access.clone(), table.clone(), Pace::STEADY);
    let side = match args.fault.is_cut() {
        true => Some(Side::open(lab, &databases, primary).await?),
        false => None,
    };
    let probed = Table::fresh("probed");
    if args.fault.wants_prober() {
        probed.create(&access, LONGEST).await.or_internal(|| "cannot make a table".to_owned())?;
    }
    warm(&writer).await?;

    let fault = Instant::now();
    args.fault.inject(lab, primary).await?;
    // From the fault on: fifty logins a second to each host would keep a small machine busy.
    let prober = args
        .fault
        .wants_prober()
        .then(|| Prober::start(access.clone(), probed.clone(), Pace::PROBE));
    let elsewhere = args.fault.moves().then_some(old);
    let first = acked(&writer, fault, elsewhere).await;
    // Whoever writes steadily is served again later than whoever asks all the time.
    // What hangs at its end, at a host that is gone, is no gap.
    let ended = Instant::now();
    let probes = match prober {
        Some(prober) => Some((prober.stop().await, ended)),
        None => None,
    };
    tokio::time::sleep(SETTLED).await;
    let settled = fault + args.fault.lasts(args.hold);
    tokio::time::sleep(settled.saturating_duration_since(Instant::now())).await;
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
    let side = match side {
        Some(side) => Some(side.close(fault, operation.as_ref()).await?),
        None => None,
    };
    let steady = ledger.longest_gap(fault, done).length();
    let mut promises =
        Promises { mode: databases.mode, bound: bound(operation.as_ref()), broken: Vec::new() };
    promises.check(&verdict, span(&ledger, &verdict));
    let mut gap = steady;
    if let Some((probes, ended)) = &probes {
        gap = probes.longest_gap(fault, *ended).length();
        let seen = verify(&access, &probed, probes, LONGEST)
            .await
            .or_internal(|| "cannot read the rows back".to_owned())?;
        promises.check(&seen, span(probes, &seen));
        let _ = probed.drop(&access, LONGEST).await;
    }
    if let Some(side) = &side {
        promises.check(&side.verdict, side.lost_span);
        if !side.after_grant.is_empty() {
            let count = side.after_grant.len();
            promises
                .broken
                .push(format!("the old primary acknowledged {count} rows after the grant"));
        }
    }
    Ok(Run {
        resumed: first.is_some(),
        gap,
        steady,
        side,
        broken: promises.broken,
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

/// What an operation says that it loses at most; nothing of the kind is no loss at all.
fn bound(operation: Option<&v1::Operation>) -> Duration {
    let loss = operation.and_then(|one| one.loss).and_then(|loss| loss.ms);
    loss.map_or(Duration::ZERO, Duration::from_millis)
}

/// What a mode promises of acknowledged rows.
struct Promises {
    mode: Mode,
    bound: Duration,
    broken: Vec<String>,
}

impl Promises {
    /// Holds one table against it; `span` is the time of which rows are lost.
    fn check(&mut self, verdict: &Verdict, span: Duration) {
        let wrong = verdict.twice.len() + verdict.refused_but_there.len();
        if wrong > 0 {
            self.broken.push(format!("{wrong} rows are there twice, or though they were refused"));
        }
        let lost = verdict.lost.len();
        if lost > 0 && (self.mode == Mode::Quorum || span > self.bound) {
            let bound = self.bound;
            let text = format!("{lost} acknowledged rows of {span:?} are lost, bound {bound:?}");
            self.broken.push(text);
        }
    }
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
