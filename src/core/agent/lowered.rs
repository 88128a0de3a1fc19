//! Commits that wait for less than their set (PROTOCOL.md D, `SyncSetTampered`): what is said of them,
//! and whom a strict policy shuts out for it.
//!
//! It must never call names strange that only one look has shown: that may be older than the last change
//! of the agent's own, and a false alarm about promised rows is worse than one that comes a little later.

use super::local::{Local, Told};
use crate::role::observe::Run;
use crate::time::{Micros, Reading};

/// Strange names are told after this long.
const STRANGE_TOLD_AFTER: Micros = Micros::from_ms(250);
/// Sessions that are named; of the others only how many.
const NAMED: usize = 3;

/// A role or a database for which `synchronous_commit` is lower than `on` (S2 needs `on`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// The role, empty for all.
    pub role: String,
    /// The database, empty for all.
    pub database: String,
    /// The value that it sets.
    pub value: String,
}

/// Sessions of clients whose commits wait for less than the names ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lowered {
    /// Those that were seen.
    pub sessions: Vec<LoweredSession>,
    /// Why the server's processes could not be looked into: then only texts of statements were.
    pub unseen: Option<String>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoweredSession {
    /// Process, as the server numbers it.
    pub pid: i32,
    /// Role that it logged in as.
    pub role: String,
    /// Its database.
    pub database: String,
    /// What it has set `synchronous_commit` to.
    pub value: String,
    /// A superuser's: only a signal ends it.
    pub by_signal: bool,
}

/// Who is to be shut out.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Roles and databases.
    pub refused: Vec<Override>,
    /// Sessions.
    pub ended: Vec<LoweredSession>,
}

impl Local {
    /// The sessions were looked at; whether that they can hardly be seen is new.
    pub fn looked_into(&mut self, lowered: Lowered) -> bool {
        if !self.running {
            return false;
        }
        let news = lowered.unseen.is_some() && self.lowered.unseen.is_none();
        self.lowered = lowered;
        news
    }

    /// Whom the policy shuts out, as far as it is known.
    pub fn wanted(&self, told: &Told) -> Wanted {
        if !told.is_strict {
            return Wanted::default();
        }
        let refused = self.seen.as_ref().map(|(seen, _)| seen.overrides.clone());
        Wanted { refused: refused.unwrap_or_default(), ended: self.lowered.sessions.clone() }
    }

    /// Whether somebody has to be shut out, or to be let in again.
    pub(super) fn is_lowered(&self, told: &Told) -> bool {
        let wanted = self.wanted(told);
        // Nobody has looked since an agent of before let clients in: it may have refused some.
        self.refused.as_ref() != Some(&wanted.refused) || !wanted.ended.is_empty()
    }

    /// Whether a strict policy wants clients out until the names are the set's again.
    pub(super) fn is_strange(&self, told: &Told, now: Reading) -> bool {
        told.is_strict && self.has_strange_names(now)
    }

    fn has_strange_names(&self, now: Reading) -> bool {
        let strange = self.strange_names.is_some_and(|it| now.since(it) >= STRANGE_TOLD_AFTER);
        strange && self.run() == Run::Primary && self.in_force.is_some() && !self.has_its_names()
    }

    /// How somebody lowered what commits wait for.
    pub(super) fn tampered(&self, told: &Told, now: Reading) -> String {
        let Some((seen, _)) = &self.seen else { return String::new() };
        let mut found = Vec::new();
        if self.has_strange_names(now) {
            found.push(format!("synchronous_standby_names is {:?}", seen.sync_names));
        }
        let refused = if told.is_strict { " (refused)" } else { "" };
        found.extend(seen.overrides.iter().map(|one| {
            let Override { role, database, value } = one;
            format!("synchronous_commit = {value} for {role:?} in {database:?}{refused}")
        }));
        let sessions = &self.lowered.sessions;
        found.extend(sessions.iter().take(NAMED).map(|one| {
            let LoweredSession { pid, role, database, value, .. } = one;
            format!(
                "synchronous_commit is {value} in the session {pid} of {role:?} in {database:?}"
            )
        }));
        if sessions.len() > NAMED {
            found.push(format!("and in {} more", sessions.len() - NAMED));
        }
        if let (true, Some(why)) = (told.is_strict, &self.lowered.unseen) {
            found.push(format!("sessions can hardly be seen, so the policy is not kept: {why}"));
        }
        found.join("; ")
    }
}
