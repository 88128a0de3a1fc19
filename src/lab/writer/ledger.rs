//! What became of each row, and what follows: gaps, rows that must be there, two primaries at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// What a client knows of a row it tried to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The server said that it is committed, without a warning: it must be there for ever.
    Acked,
    /// The server said that it is not committed.
    Failed,
    /// No answer, or one with a warning: it may be there, or not.
    Unknown,
}

/// One row that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Its id; never used twice.
    pub id: i64,
    /// Which host it was sent to.
    pub host: usize,
    /// When it was sent.
    pub begun: Instant,
    /// When its fate was known.
    pub done: Instant,
    /// What became of it.
    pub fate: Fate,
}

/// All rows of one client, in the order in which their fates were known.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    attempts: Vec<Attempt>,
    errors: BTreeMap<String, u64>,
}

/// How often which fate was met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Rows acknowledged.
    pub acked: u64,
    /// Rows refused.
    pub failed: u64,
    /// Rows of which nobody can say.
    pub unknown: u64,
}

/// A stretch without an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The last acknowledgement before it, or the beginning of what was looked at.
    pub from: Instant,
    /// The first one after it.
    pub to: Instant,
}

impl Gap {
    /// How long it was.
    pub fn length(&self) -> Duration {
        self.to.saturating_duration_since(self.from)
    }
}

impl Ledger {
    /// Notes what became of a row.
    pub fn note(&mut self, attempt: Attempt) {
        self.attempts.push(attempt);
    }

    /// Notes why something did not work; the same text is counted.
    pub fn trouble(&mut self, why: String) {
        *self.errors.entry(why).or_default() += 1;
    }

    /// All troubles, with how often each was met.
    pub fn errors(&self) -> &BTreeMap<String, u64> {
        &self.errors
    }

    /// All rows.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// How many had which fate.
    pub fn summary(&self) -> Summary {
        let count = |fate| self.attempts.iter().filter(|one| one.fate == fate).count() as u64;
        Summary {
            acked: count(Fate::Acked),
            failed: count(Fate::Failed),
            unknown: count(Fate::Unknown),
        }
    }

    /// Ids of one fate.
    pub fn ids(&self, fate: Fate) -> BTreeSet<i64> {
        self.attempts.iter().filter(|one| one.fate == fate).map(|one| one.id).collect()
    }

    fn acks(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.iter().filter(|one| one.fate == Fate::Acked)
    }

    /// The first acknowledgement of a row that was sent at `since` or later.
    pub fn first_ack(&self, since: Instant) -> Option<&Attempt> {
        self.acks().find(|one| one.begun >= since)
    }

    /// The same, of another host than `not`.
    pub fn first_ack_not_of(&self, since: Instant, not: Option<usize>) -> Option<&Attempt> {
        self.acks().find(|one| one.begun >= since && Some(one.host) != not)
    }

    /// The last acknowledgement.
    pub fn last_ack(&self) -> Option<&Attempt> {
        self.acks().last()
    }

    /// The longest time between two acknowledgements that ended at `since` or later, and up to
    /// `until`, where one that has not ended is cut off.
    pub fn longest_gap(&self, since: Instant, until: Instant) -> Gap {
        let before = self.acks().filter(|one| one.done < since).last();
        // A gap that a fault made begins with the last acknowledgement before the fault.
        let mut from = before.map_or(since, |one| one.done);
        let mut longest = Gap { from, to: from };
        let after = self.acks().filter(|one| one.done >= since && one.done <= until);
        for done in after.map(|one| one.done).chain([until]) {
            let gap = Gap { from, to: done };
            if gap.length() > longest.length() {
                longest = gap;
            }
            from = done;
        }
        longest
    }

    /// Pairs of hosts of which each acknowledged a row that was sent after the other had
    /// acknowledged one, both ways round: two primaries at the same time. Names the two hosts and
    /// for how long. A primary that comes back after a failback is not one: between its
    /// acknowledgements it was silent, so only acknowledgements within `window` of each other count.
    pub fn overlaps(&self, window: Duration) -> Vec<(usize, usize, Duration)> {
        let mut acks: Vec<&Attempt> = self.acks().collect();
        acks.sort_by_key(|one| one.done);
        let mut found: BTreeMap<(usize, usize), Duration> = BTreeMap::new();
        let mut last: BTreeMap<usize, Instant> = BTreeMap::new();
        for ack in &acks {
            // Another host acknowledged after this host's previous one, and this host does again,
            // for a row that was sent after that.
            let previous = last.get(&ack.host).copied();
            for (other, at) in last.iter().filter(|(other, _)| **other != ack.host) {
                let Some(previous) = previous else { continue };
                let between = *at > previous && ack.begun > *at;
                let near = ack.done.saturating_duration_since(previous) <= window;
                if between && near {
                    let pair = (ack.host.min(*other), ack.host.max(*other));
                    let length = ack.done.saturating_duration_since(*at);
                    let longest = found.entry(pair).or_default();
                    *longest = (*longest).max(length);
                }
            }
            last.insert(ack.host, ack.done);
        }
        found.into_iter().map(|((one, other), length)| (one, other, length)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACKED: Fate = Fate::Acked;

    /// Rows as (host, sent, done, fate), in milliseconds after the returned instant.
    fn ledger(rows: &[(usize, u64, u64, Fate)]) -> (Ledger, impl Fn(u64) -> Instant + use<>) {
        let start = Instant::now();
        let at = move |ms| start + Duration::from_millis(ms);
        let mut ledger = Ledger::default();
        for (id, (host, begun, done, fate)) in rows.iter().enumerate() {
            let (begun, done) = (at(*begun), at(*done));
            ledger.note(Attempt { id: id as i64, host: *host, begun, done, fate: *fate });
        }
        (ledger, at)
    }

    fn gap(ledger: &Ledger, since: Instant, until: Instant) -> u64 {
        ledger.longest_gap(since, until).length().as_millis() as u64
    }

    #[test]
    fn a_gap_runs_from_the_last_acknowledgement_before_the_fault_to_the_next_one() {
        let (ledger, at) = ledger(&[
            (0, 0, 1, ACKED),
            (0, 5, 6, ACKED),
            (0, 10, 1_010, Fate::Unknown),
            (1, 1_020, 1_025, Fate::Failed),
            (1, 1_030, 1_036, ACKED),
            (1, 1_040, 1_046, ACKED),
        ]);
        assert_eq!(gap(&ledger, at(8), at(1_050)), 1_030);
        assert_eq!(gap(&ledger, at(1_037), at(1_050)), 10, "the old one does not count again");
        assert_eq!(gap(&ledger, at(8), at(5_000)), 3_954, "one that has not ended counts so far");
        assert_eq!(ledger.first_ack(at(8)).map(|one| one.done), Some(at(1_036)));
        assert_eq!(ledger.summary(), Summary { acked: 4, failed: 1, unknown: 1 });
    }

    #[test]
    fn a_row_sent_before_the_fault_and_answered_after_it_is_no_first_acknowledgement() {
        let (ledger, at) = ledger(&[(0, 5, 20, ACKED), (1, 30, 31, ACKED)]);
        assert_eq!(ledger.first_ack(at(10)).map(|one| one.id), Some(1));
    }

    #[test]
    fn without_any_acknowledgement_the_gap_is_the_whole_time() {
        let (ledger, at) = ledger(&[(0, 5, 20, Fate::Failed)]);
        assert_eq!(gap(&ledger, at(10), at(400)), 390);
        assert_eq!(ledger.last_ack(), None);
    }

    #[test]
    fn two_hosts_that_acknowledge_in_turn_overlap_and_a_handover_does_not() {
        let window = Duration::from_secs(1);
        let handover = [(0, 0, 1, ACKED), (0, 5, 6, ACKED), (1, 50, 51, ACKED), (1, 60, 61, ACKED)];
        assert_eq!(ledger(&handover).0.overlaps(window), []);
        let both = [(0, 0, 1, ACKED), (1, 5, 6, ACKED), (0, 10, 12, ACKED)];
        let expected = vec![(0, 1, Duration::from_millis(6))];
        assert_eq!(ledger(&both).0.overlaps(window), expected);
        let failback = [(0, 0, 1, ACKED), (1, 5, 6, ACKED), (0, 9_000, 9_001, ACKED)];
        assert_eq!(ledger(&failback).0.overlaps(window), []);
        // Sent before the other's acknowledgement: it may have been committed before it, too.
        let late = [(0, 0, 1, ACKED), (1, 3, 6, ACKED), (0, 4, 12, ACKED)];
        assert_eq!(ledger(&late).0.overlaps(window), []);
    }
}
