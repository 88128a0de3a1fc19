//! The application of a test: it writes a row each 5 ms, and knows which ones it was promised.

use std::time::{Duration, Instant};

use regent_lab::writer::ledger::Attempt;
use regent_lab::writer::{Fate, Ledger, Pace, Table, Verdict, Writer, verify};

use super::rig::Rig;
use crate::cluster::{PATIENCE, until};

/// Two hosts that acknowledge rows in turn so close to each other are two primaries.
const TOGETHER: Duration = Duration::from_secs(1);
/// Rows before a fault: enough that a loss would be seen.
const WARM: u64 = 100;

/// The application.
pub struct Load {
    pub writer: Writer,
    pub table: Table,
}

impl Load {
    /// Starts, and waits until rows flow.
    pub async fn start(rig: &Rig) -> Self {
        let table = Table::fresh("it");
        table.create(&rig.access, PATIENCE).await.unwrap();
        let writer = Writer::start(rig.access.clone(), table.clone(), Pace::STEADY);
        let load = Self { writer, table };
        load.progress(WARM).await;
        load
    }

    /// Waits until `more` further rows are acknowledged.
    pub async fn progress(&self, more: u64) {
        let target = self.writer.ledger().summary().acked + more;
        until("more acknowledged rows", async || self.writer.ledger().summary().acked >= target)
            .await;
    }

    /// The first row that was sent after the fault and acknowledged by another host than `not`.
    pub async fn resumed(&self, fault: Instant, not: Option<usize>) -> Attempt {
        let mut first = None;
        until("an acknowledged row after the fault", async || {
            first = self.writer.ledger().first_ack_not_of(fault, not).copied();
            first.is_some()
        })
        .await;
        first.unwrap()
    }

    /// Stops; what was acknowledged is there, nothing is there twice or though it was refused, and
    /// no two hosts took rows at the same time.
    pub async fn all_kept(self, rig: &Rig) -> Ledger {
        let (ledger, verdict) = self.ended(rig).await;
        assert!(verdict.is_good(), "{verdict:?}; {:?}", ledger.errors());
        ledger
    }

    /// Lease mode: as [`Load::all_kept`], but for rows that the application was promised within the
    /// operation's bound before the old primary's right ended; `ended` is the latest it can have.
    pub async fn kept_within(self, rig: &Rig, bound: Duration, ended: Instant) {
        let (ledger, verdict) = self.ended(rig).await;
        assert!(verdict.twice.is_empty() && verdict.refused_but_there.is_empty(), "{verdict:?}");
        let acked = ledger.attempts().iter().filter(|one| one.fate == Fate::Acked);
        let lost: Vec<_> = acked.filter(|one| verdict.lost.contains(&one.id)).collect();
        if let Some((first, last)) = lost.first().zip(lost.last()) {
            let span = last.done - first.done;
            assert!(span <= bound, "{} rows of {span:?} are lost, not {bound:?}", lost.len());
            assert!(last.done <= ended, "a row of after the right's end is lost");
        }
    }

    /// Stops; the ledger, and what is in the table.
    pub async fn ended(self, rig: &Rig) -> (Ledger, Verdict) {
        let ledger = self.writer.stop().await;
        let verdict = verify(&rig.access, &self.table, &ledger, PATIENCE).await.unwrap();
        assert!(verdict.acked >= WARM, "{verdict:?}");
        assert_eq!(ledger.overlaps(TOGETHER), [], "two primaries");
        (ledger, verdict)
    }
}
