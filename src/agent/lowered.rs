//! Commits that wait for less than their set (PROTOCOL.md D, `SyncSetTampered`): what is said of them,
//! and what a strict policy has done about them.

use std::time::Duration;

use regent_core::role::observe::Run;
use regent_engine::{LoweredSession, Override};

use crate::local::{Local, Told};

/// Strange names are told after this long: one look may be older than the last change of ours, and
/// a false alarm about promised rows is worse than one that comes with the next report.
const STRANGE_TOLD_AFTER: Duration = Duration::from_millis(250);
/// Sessions that are named; of the others only how many.
const NAMED: usize = 3;

/// Who is to be shut out.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Roles and databases.
    pub refused: Vec<Override>,
    /// Sessions.
    pub ended: Vec<LoweredSession>,
}

impl Local {
    /// The sessions were looked at.
    pub fn looked_into(&mut self, lowered: regent_engine::Lowered) {
        if !self.running {
            return;
        }
        if let Some(why) = &lowered.unseen
            && self.lowered.unseen.is_none()
        {
            tracing::warn!(why, "sessions that lower synchronous_commit can hardly be seen");
        }
        self.lowered = lowered;
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
    pub(crate) fn is_lowered(&self, told: &Told) -> bool {
        let wanted = self.wanted(told);
        // Nobody has looked since an agent of before let clients in: it may have refused some.
        self.refused.as_ref() != Some(&wanted.refused) || !wanted.ended.is_empty()
    }

    /// Whether a strict policy wants clients out until the names are the set's again.
    pub(crate) fn is_strange(&self, told: &Told) -> bool {
        told.is_strict && self.has_strange_names()
    }

    fn has_strange_names(&self) -> bool {
        let strange = self.strange_names.is_some_and(|it| it.elapsed() >= STRANGE_TOLD_AFTER);
        strange && self.run() == Run::Primary && self.in_force.is_some() && !self.has_its_names()
    }

    /// How somebody lowered what commits wait for.
    pub(crate) fn tampered(&self, told: &Told) -> String {
        let Some((seen, _)) = &self.seen else { return String::new() };
        let mut found = Vec::new();
        if self.has_strange_names() {
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
