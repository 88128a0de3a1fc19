//! Which records are there, as ranges: a history of millions has a handful of them.

use std::collections::BTreeMap;

/// Records that are not there, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// First number missing.
    pub first: u64,
    /// Last number missing.
    pub last: u64,
}

impl Missing {
    /// How many.
    pub fn count(&self) -> u64 {
        self.last - self.first + 1
    }

    /// The last `most` of them: newest first is what people ask for, and what is still to be had.
    #[must_use]
    pub fn newest(self, most: u64) -> Self {
        Self { first: self.first.max(self.last.saturating_sub(most.saturating_sub(1))), ..self }
    }
}

/// Stored numbers, as disjoint ranges that do not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges {
    by_first: BTreeMap<u64, u64>,
}

impl Ranges {
    pub(super) fn insert(&mut self, number: u64) {
        let (mut first, mut last) = (number, number);
        if let Some((&before, &end)) = self.by_first.range(..=number).next_back() {
            if end >= number {
                return;
            }
            if end + 1 == number {
                first = before;
            }
        }
        if let Some(end) = self.by_first.remove(&(number.saturating_add(1))) {
            last = end;
        }
        self.by_first.insert(first, last);
    }

    /// Forgets `from` to `to`, both included.
    pub(super) fn remove(&mut self, from: u64, to: u64) {
        let touched: Vec<(u64, u64)> = self
            .by_first
            .range(..=to)
            .rev()
            .take_while(|(_, last)| **last >= from)
            .map(|(first, last)| (*first, *last))
            .collect();
        for (first, last) in touched {
            self.by_first.remove(&first);
            if first < from {
                self.by_first.insert(first, from - 1);
            }
            if last > to {
                self.by_first.insert(to + 1, last);
            }
        }
    }

    pub(super) fn oldest(&self) -> Option<u64> {
        self.by_first.keys().next().copied()
    }

    pub(super) fn newest(&self) -> Option<u64> {
        self.by_first.values().next_back().copied()
    }

    /// What is missing from `wanted` to `head`, oldest first.
    pub(super) fn missing(&self, wanted: u64, head: u64) -> Vec<Missing> {
        let mut missing = Vec::new();
        let mut next = wanted.max(1);
        for (&first, &last) in &self.by_first {
            if first > head {
                break;
            }
            if first > next {
                missing.push(Missing { first: next, last: first - 1 });
            }
            next = next.max(last.saturating_add(1));
        }
        if next <= head {
            missing.push(Missing { first: next, last: head });
        }
        missing
    }
}
