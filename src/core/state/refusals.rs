//! Refused attempts in the audit chain, bounded: the same one repeated is counted, not listed.
//!
//! A client that is fenced tries again and again, and a hostile one tries everything. Each kind of
//! attempt (who, what, on what, against which rule) is listed when it is seen first and then once
//! per [`REFUSAL_REPEAT_ENTRIES`] entries, with the number of those that were only counted. A
//! principal that makes up ever new kinds has a bounded number listed in that span; the rest is
//! counted under one kind of its own. So every refused attempt is in the chain, by itself or in a
//! number, and nobody can push the records that matter out of its window.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::audit::Note;
use crate::id::Revision;
use crate::limits::{
    MAX_REFUSAL_KINDS, MAX_REFUSAL_KINDS_PER_PRINCIPAL, MAX_TEXT_BYTES, REFUSAL_REPEAT_ENTRIES,
};

/// A kind of refused attempt seen lately.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kind {
    who: String,
    what: String,
    resource: String,
    rule: String,
    listed: Revision,
    more: u64,
}

/// The kinds seen lately, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Refusals {
    kinds: VecDeque<Kind>,
}

/// What is put in place of resource and rule for the kinds of a principal that has too many.
const ANY: &str = "(various)";

impl Refusals {
    /// Takes `count` refused attempts of one kind; gives the records they make.
    pub fn take(&mut self, note: Note, rule: &str, count: u64, revision: Revision) -> Vec<Note> {
        let fresh = |kind: &Kind| revision.0.saturating_sub(kind.listed.0) < REFUSAL_REPEAT_ENTRIES;
        let mut notes = self.retire(&fresh);
        let mine = self.kinds.iter().filter(|kind| kind.who == note.who).count();
        let known = self.kinds.iter_mut().find(|kind| {
            kind.rule == rule
                && kind.what == note.what
                && kind.resource == note.resource
                && kind.who == note.who
        });
        if let Some(kind) = known {
            kind.more = kind.more.saturating_add(count);
            return notes;
        }
        if mine < MAX_REFUSAL_KINDS_PER_PRINCIPAL {
            let kind = Kind {
                who: note.who.clone(),
                what: note.what.to_owned(),
                resource: note.resource.clone(),
                rule: rule.to_owned(),
                listed: revision,
                more: count.saturating_sub(1),
            };
            notes.push(note);
            self.remember(kind, &mut notes);
            return notes;
        }
        let various = self.kinds.iter_mut().find(|k| k.who == note.who && k.resource == ANY);
        if let Some(kind) = various {
            kind.more = kind.more.saturating_add(count);
        } else {
            let kind = Kind {
                who: note.who,
                what: "attempt".to_owned(),
                resource: ANY.to_owned(),
                rule: ANY.to_owned(),
                listed: revision,
                more: count,
            };
            self.remember(kind, &mut notes);
        }
        notes
    }

    /// Forgets the kinds whose span is over, with a record where some were only counted.
    fn retire(&mut self, fresh: &dyn Fn(&Kind) -> bool) -> Vec<Note> {
        let mut notes = Vec::new();
        while self.kinds.front().is_some_and(|kind| !fresh(kind)) {
            notes.extend(self.kinds.pop_front().and_then(Kind::counted));
        }
        notes
    }

    fn remember(&mut self, kind: Kind, notes: &mut Vec<Note>) {
        self.kinds.push_back(kind);
        while self.kinds.len() > MAX_REFUSAL_KINDS {
            notes.extend(self.kinds.pop_front().and_then(Kind::counted));
        }
    }
}

impl Kind {
    fn counted(self) -> Option<Note> {
        (self.more > 0).then(|| Note {
            who: self.who,
            what: "refusals.counted",
            resource: self.resource,
            why: format!("{}: {}", self.what, self.rule),
            outcome: format!("refused {} more times since revision {}", self.more, self.listed),
        })
    }
}

/// A record of one refused attempt; texts from outside are cut.
pub(super) fn note(
    who: &str,
    what: &'static str,
    resource: &str,
    why: &str,
    outcome: &str,
) -> Note {
    let cut = |text: &str| super::describe::clip(text, MAX_TEXT_BYTES).to_owned();
    Note { who: cut(who), what, resource: cut(resource), why: cut(why), outcome: cut(outcome) }
}
