//! What clients with open sessions on the old primary's own machine were told after a cut, and
//! whether that was true.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use regent_lab::Lab;
use regent_lab::databases::{Databases, LabInstance};
use regent_lab::writer::ledger::Attempt;
use regent_lab::writer::{Access, Fate, Ledger, Locals, Summary, Table, Verdict, verify};
use regent_rpc::pb::v1;
use serde_json::{Value, json};

use super::run::{LONGEST, ms};
use crate::error::{Context as _, Outcome};

/// The phase that begins with the grant of the new epoch.
const GRANTED: &str = "promote";

/// Those clients.
pub struct Side {
    locals: Locals,
    table: Table,
    access: Access,
}

impl Side {
    /// Opens their sessions, from the primary's machine.
    pub async fn open(lab: &Lab, databases: &Databases, primary: &LabInstance) -> Outcome<Self> {
        let access = databases.access();
        let table = Table::fresh("side");
        table.create(&access, LONGEST).await.or_internal(|| "cannot make a table".to_owned())?;
        let own = Access { from: lab.space(&primary.id), ..access.clone() };
        let host = databases.instances.iter().position(|one| one.id == primary.id).unwrap_or(0);
        let locals = Locals::start(own, host, table.clone())
            .await
            .or_internal(|| "cannot open sessions on the primary's machine".to_owned())?;
        Ok(Self { locals, table, access })
    }

    /// Ends them, and compares what they were told with what the present primary has.
    pub async fn close(self, fault: Instant, operation: Option<&v1::Operation>) -> Outcome<Told> {
        let ledger = self.locals.stop().await;
        let verdict = verify(&self.access, &self.table, &ledger, LONGEST)
            .await
            .or_internal(|| "cannot read the rows back".to_owned())?;
        // Best effort: the next run has a table of its own.
        let _ = self.table.drop(&self.access, LONGEST).await;
        let granted = operation.and_then(granted);
        let after = |since: Option<Instant>| -> Vec<i64> {
            let acks = acked(&ledger).filter(|one| since.is_some_and(|since| one.done >= since));
            acks.map(|one| one.id).collect()
        };
        Ok(Told {
            rows: ledger.summary(),
            after_fault: after(Some(fault)).len(),
            last: ledger.last_ack().map(|one| one.done.saturating_duration_since(fault)),
            granted: granted.map(|at| at.saturating_duration_since(fault)),
            after_grant: after(granted),
            lost_span: span(&ledger, &verdict),
            verdict,
        })
    }
}

fn acked(ledger: &Ledger) -> impl Iterator<Item = &Attempt> {
    ledger.attempts().iter().filter(|one| one.fate == Fate::Acked)
}

/// From the first row that is lost to the last.
pub fn span(ledger: &Ledger, verdict: &Verdict) -> Duration {
    let lost: Vec<_> = acked(ledger).filter(|one| verdict.lost.contains(&one.id)).collect();
    let ends = lost.first().zip(lost.last());
    ends.map_or(Duration::ZERO, |(first, last)| last.done.saturating_duration_since(first.done))
}

/// When the new epoch began, on this program's clock: nodes and clients share the machine's.
fn granted(operation: &v1::Operation) -> Option<Instant> {
    let began = operation.history.iter().find(|one| one.phase == GRANTED)?;
    let at = UNIX_EPOCH + Duration::from_millis(began.at_ms);
    Instant::now().checked_sub(SystemTime::now().duration_since(at).ok()?)
}

/// What they were told.
pub struct Told {
    rows: Summary,
    after_fault: usize,
    last: Option<Duration>,
    granted: Option<Duration>,
    /// Rows acknowledged by the old primary when there was a new one.
    pub after_grant: Vec<i64>,
    /// What became of their rows.
    pub verdict: Verdict,
    /// How long a time the lost rows are of.
    pub lost_span: Duration,
}

impl Told {
    /// For programs.
    pub fn to_json(&self) -> Value {
        json!({
            "acked": self.rows.acked,
            "unknown": self.rows.unknown,
            "failed": self.rows.failed,
            "acked_after_fault": self.after_fault,
            "last_ack_ms": self.last.map(ms),
            "granted_ms": self.granted.map(ms),
            "acked_after_grant": self.after_grant,
            "lost": self.verdict.lost,
            "lost_span_ms": ms(self.lost_span),
            "unknown_and_there": self.verdict.unknown_and_there,
        })
    }
}
