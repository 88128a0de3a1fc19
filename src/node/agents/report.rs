//! What the leader's decider said last of each service, for people who ask why nothing happens.
//!
//! A line belongs to the service that it begins with: `orders: ...`. One that is said again at the
//! next look is kept and not logged again.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use regent_core::decide::Line;
use regent_core::decide::roles::verdict::Verdict;
use regent_core::id::ServiceName;
use regent_core::time::WallMs;

/// Lines of one service: more than a person reads, of which the newest are kept.
const MAX_LINES: usize = 32;

/// A line and when it was said first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// When it was first said in a row.
    pub at: WallMs,
    /// What.
    pub line: Line,
}

/// The newest lines.
#[derive(Debug, Default)]
pub struct Reports {
    lines: Mutex<BTreeMap<String, Vec<Said>>>,
    verdicts: Mutex<BTreeMap<Verdict, u64>>,
}

impl Reports {
    /// Takes the report of one look; returns the lines that were not said at the one before. What
    /// was said of a service stays until something else is said of it.
    pub fn take(&self, report: Vec<Line>, at: WallMs) -> Vec<Line> {
        if report.is_empty() {
            return Vec::new();
        }
        let mut by_service: BTreeMap<String, Vec<Line>> = BTreeMap::new();
        for line in report {
            let service = line.text.split_once(": ").map_or("", |(service, _)| service);
            by_service.entry(service.to_owned()).or_default().push(line);
        }
        let (mut news, mut lines) = (Vec::new(), self.lines.lock());
        for (service, said) in by_service {
            let before = lines.remove(&service).unwrap_or_default();
            let skipped = said.len().saturating_sub(MAX_LINES);
            let said = said.into_iter().skip(skipped).map(|line| {
                match before.iter().find(|old| old.line == line) {
                    Some(old) => old.clone(),
                    None => {
                        news.push(line.clone());
                        Said { at, line }
                    }
                }
            });
            let said = said.collect();
            lines.insert(service, said);
        }
        news
    }

    /// How many primaries each verdict was found of at the last look.
    pub fn count(&self, found: impl Iterator<Item = Verdict>) {
        let mut verdicts = self.verdicts.lock();
        verdicts.clear();
        for verdict in found {
            *verdicts.entry(verdict).or_default() += 1;
        }
    }

    /// The counts.
    pub fn verdicts(&self) -> BTreeMap<Verdict, u64> {
        self.verdicts.lock().clone()
    }

    /// What was said last of `service`.
    pub fn of(&self, service: &ServiceName) -> Vec<Said> {
        self.lines.lock().get(service.as_str()).cloned().unwrap_or_default()
    }

    /// Only what is said of services that `exist` is kept.
    pub fn keep_only(&self, exist: impl Fn(&str) -> bool) {
        self.lines.lock().retain(|service, _| service.is_empty() || exist(service));
    }

    /// Another node leads.
    pub fn clear(&self) {
        self.lines.lock().clear();
        self.verdicts.lock().clear();
    }
}
