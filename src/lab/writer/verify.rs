//! Whether the table holds what was promised.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ledger::{Fate, Ledger};
use super::{Access, AccessError, Pace, Table};

/// How long reading all rows may take.
const READ: Duration = Duration::from_secs(30);

/// What is in the table, against what was promised.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Verdict {
    /// Rows that were acknowledged.
    pub acked: u64,
    /// Acknowledged rows that are not there: lost. The reason why Regent exists.
    pub lost: Vec<i64>,
    /// Rows that are there more than once.
    pub twice: Vec<i64>,
    /// Rows that are there although the server said that they are not committed.
    pub refused_but_there: Vec<i64>,
    /// Rows whose fate nobody knew, and that are there.
    pub unknown_and_there: u64,
    /// Which host was asked.
    pub host: usize,
}

impl Verdict {
    /// Nothing was lost, nothing is there that must not be.
    pub fn is_good(&self) -> bool {
        self.lost.is_empty() && self.twice.is_empty() && self.refused_but_there.is_empty()
    }
}

/// Reads the whole table from the present primary, and compares.
///
/// # Errors
/// Nobody takes writes within `within`, or the rows cannot be read.
pub async fn verify(
    access: &Access,
    table: &Table,
    ledger: &Ledger,
    within: Duration,
) -> Result<Verdict, AccessError> {
    let (session, host) = access.writable_within(Pace::STEADY, 0, within).await?;
    // Every row as it lies in the table: an index that lost one, or has it twice, is not believed.
    session.batch("SET enable_indexscan = off; SET enable_indexonlyscan = off", READ).await?;
    session.batch("SET enable_bitmapscan = off", READ).await?;
    let what = "reading all rows";
    let sql = format!("SELECT id FROM {}", table.name());
    let rows = tokio::time::timeout(READ, session.client().query(sql.as_str(), &[]))
        .await
        .map_err(|_| AccessError::Late { what, within: READ })?
        .map_err(|source| AccessError::Postgres { what, source })?;
    let mut there = BTreeMap::new();
    for row in rows {
        *there.entry(row.get::<_, i64>(0)).or_insert(0_u64) += 1;
    }
    Ok(Verdict { host, ..compare(ledger, &there) })
}

fn compare(ledger: &Ledger, there: &BTreeMap<i64, u64>) -> Verdict {
    let acked = ledger.ids(Fate::Acked);
    let known = |id: &&i64| there.contains_key(id);
    Verdict {
        lost: acked.iter().filter(|id| !there.contains_key(id)).copied().collect(),
        twice: there.iter().filter(|(_, count)| **count > 1).map(|(id, _)| *id).collect(),
        refused_but_there: ledger.ids(Fate::Failed).iter().filter(known).copied().collect(),
        unknown_and_there: ledger.ids(Fate::Unknown).iter().filter(known).count() as u64,
        acked: acked.len() as u64,
        host: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::ledger::Attempt;
    use super::*;
    use std::time::Instant;

    #[test]
    fn an_acknowledged_row_that_is_missing_is_lost_and_an_unknown_one_may_be_either() {
        let mut ledger = Ledger::default();
        let now = Instant::now();
        let fates = [Fate::Acked, Fate::Acked, Fate::Failed, Fate::Unknown, Fate::Unknown];
        for (id, fate) in (1..).zip(fates) {
            ledger.note(Attempt { id, host: 0, begun: now, done: now, fate });
        }
        let good = compare(&ledger, &BTreeMap::from([(1, 1), (2, 1), (4, 1)]));
        assert!(good.is_good(), "{good:?}");
        assert_eq!((good.acked, good.unknown_and_there), (2, 1));
        let bad = compare(&ledger, &BTreeMap::from([(1, 2), (3, 1)]));
        assert_eq!((bad.lost, bad.twice, bad.refused_but_there), (vec![2], vec![1], vec![3]));
    }
}
