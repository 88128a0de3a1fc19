//! Attempts that were refused before they became commands, on their way into the audit chain (S14).
//!
//! Coalesced and bounded: whoever knocks a thousand times a second makes one record a second with a
//! count, and strangers with a thousand names make one "others" record; an attacker must not be
//! able to fill the log with his refusals.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use regent_core::authz::{Principal, Verb};
use regent_core::command::{Command, Refusal};
use regent_core::limits::MAX_REFUSALS_PER_ENTRY;
use tokio::time::Instant;

use crate::shell::Shell;

/// How often what was collected is put into the log.
pub const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// Longest text of a stranger that is kept.
const MAX_WORDS_BYTES: usize = 200;
/// How long one record may take; it is kept and tried again after that.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    by: String,
    verb: Verb,
    resource: String,
    reason: String,
}

/// Refused attempts not yet in the log.
#[derive(Default)]
pub struct Refusals {
    kinds: Mutex<BTreeMap<Kind, u32>>,
}

impl Refusals {
    /// Notes one attempt.
    pub fn note(&self, by: &str, verb: Verb, resource: &str, reason: &str) {
        let kind = Kind { by: plain(by), verb, resource: plain(resource), reason: plain(reason) };
        self.add(kind, 1);
    }

    fn add(&self, kind: Kind, count: u32) {
        let mut kinds = self.kinds.lock();
        // One place is kept for "others", so that no attempt goes uncounted.
        let full = kinds.len() >= MAX_REFUSALS_PER_ENTRY - 1;
        let kind = if full && !kinds.contains_key(&kind) {
            Kind { by: "(others)".into(), resource: String::new(), reason: "many".into(), ..kind }
        } else {
            kind
        };
        // Others differ by verb at most; beyond the bound they share the first one's.
        let key = match kinds.len() < MAX_REFUSALS_PER_ENTRY || kinds.contains_key(&kind) {
            true => kind,
            false => match kinds.keys().find(|k| k.by == "(others)") {
                Some(others) => others.clone(),
                None => return,
            },
        };
        let total = kinds.entry(key).or_default();
        *total = total.saturating_add(count);
    }

    /// Everything noted since the last call.
    fn take(&self) -> Vec<Refusal> {
        let kinds = std::mem::take(&mut *self.kinds.lock());
        kinds
            .into_iter()
            .map(|(k, count)| Refusal {
                by: k.by,
                verb: k.verb,
                resource: k.resource,
                reason: k.reason,
                count,
            })
            .collect()
    }

    fn put_back(&self, refusals: Vec<Refusal>) {
        for r in refusals {
            let kind = Kind { by: r.by, verb: r.verb, resource: r.resource, reason: r.reason };
            self.add(kind, r.count);
        }
    }

    /// Puts what was noted into the log. What could not be committed is kept for the next time.
    pub async fn flush(&self, shell: &Shell, by: &Principal) {
        let refusals = self.take();
        if refusals.is_empty() {
            return;
        }
        let until = Instant::now() + PROPOSE_TIMEOUT;
        let command = Command::RecordRefusals { refusals: refusals.clone() };
        if let Err(error) = shell.propose(by.clone(), None, &command, until).await {
            tracing::debug!(%error, "refused attempts could not be recorded yet");
            self.put_back(refusals);
        }
    }
}

/// At most [`MAX_WORDS_BYTES`] of a stranger's text, without anything that could forge a line.
fn plain(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { '?' } else { c });
    let mut out = String::new();
    for c in clean {
        if out.len() + c.len_utf8() > MAX_WORDS_BYTES {
            break;
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_attempts_of_one_kind_are_one_record_with_a_count() {
        let it = Refusals::default();
        for _ in 0..1000 {
            it.note("observer/eve", Verb::Backup, "cluster", "not allowed");
        }
        let got = it.take();
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].count, 1000);
        assert!(it.take().is_empty());
    }

    #[test]
    fn strangers_with_many_names_cannot_make_an_entry_longer_than_its_bound() {
        let it = Refusals::default();
        for number in 0..10_000u32 {
            let verb = Verb::ALL[number as usize % Verb::ALL.len()];
            it.note(&format!("client/{number}"), verb, "x", "not allowed");
        }
        let got = it.take();
        assert!(got.len() <= MAX_REFUSALS_PER_ENTRY, "{}", got.len());
        assert_eq!(got.iter().map(|r| u64::from(r.count)).sum::<u64>(), 10_000);
    }

    #[test]
    fn hostile_text_is_cut_and_cleaned() {
        let it = Refusals::default();
        it.note(&"é".repeat(5000), Verb::Backup, "a\nb\u{1b}[2J", "");
        let got = it.take();
        assert!(got[0].by.len() <= MAX_WORDS_BYTES);
        assert_eq!(got[0].resource, "a?b?[2J");
    }
}
