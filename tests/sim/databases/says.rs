//! What a simulated holder says in its renewals (C4), what it does about a pause (E5), and what it must
//! not forget of a refusal (F): `src/agent/says.rs`, by the same rules.

use regent_core::agent::Pausing;
use regent_core::id::{Nonce, Revision};
use regent_core::lease::holder::VoidReason;
use regent_core::mutant::{Mutant, leaves_out};
use regent_core::role::{HolderInstant, HolderReport, MachineBoot, StopInstant};
use regent_core::spec::Mode;

use super::agent::DISARM_AGAIN;
use super::world::World;

impl World {
    /// Renewals say this from now on.
    pub(super) fn carry(&mut self, i: usize) {
        let report = (self.agent(i).mark.0 > 0).then(|| self.holder_report(i));
        if let Some(open) = &mut self.agent(i).session {
            open.reports.carry(report);
        }
    }

    fn holder_report(&mut self, i: usize) -> HolderReport {
        let (pausing, boot) = (self.pausing(i), MachineBoot(self.hosts[i].boot));
        let armed = self.plan.armed();
        let agent = self.agent(i);
        HolderReport {
            armed,
            boot,
            sent: HolderInstant::default(),
            watermark: agent.local.watermark(),
            pause: pausing.says(),
            policy: agent.instruction.as_ref().map_or(Revision(0), |told| told.policy),
            set: agent.local.in_force,
        }
    }

    /// When nothing was left of the last run, of an instance that is down.
    pub(super) fn stopped(&self, i: usize) -> Option<StopInstant> {
        let host = &self.hosts[i];
        let receipt = host.fencer.receipt.as_ref().filter(|_| !host.runs_fenced())?;
        let last = host.agent.as_ref().map_or(0, |agent| agent.local.last_end);
        // One that an earlier fencer left may be of an earlier run than the last.
        let own = receipt.fencer == Nonce(host.fencer.life);
        (own && receipt.sequence >= last).then(|| StopInstant {
            boot: MachineBoot(receipt.boot_id.parse().unwrap_or(0)),
            at: HolderInstant(receipt.ended_at.boottime_us),
        })
    }

    pub(super) fn pausing(&mut self, i: usize) -> Pausing {
        let now = self.now;
        let agent = self.agent(i);
        let posted = agent
            .disarmed
            .filter(|(at, pause)| now - at < DISARM_AGAIN && *pause > agent.fencer.pause);
        let told = agent.instruction.as_ref();
        let told = told.filter(|told| told.spec.policy.mode == Mode::Lease);
        let committed = agent.session.as_ref().and_then(|open| open.reports.last_committed());
        Pausing {
            told: told.and_then(|told| told.paused),
            committed: committed.and_then(|report| report.pause),
            posted: posted.map(|(_, pause)| pause),
            unbounded: agent.fencer.unbounded,
            obeyed: agent.fencer.pause,
        }
    }

    pub(super) fn disarm_for(&mut self, i: usize, pause: Revision, unbounded: bool) {
        let now = self.now;
        let agent = self.agent(i);
        let asked = agent.disarmed.is_some_and(|(at, _)| now - at < DISARM_AGAIN);
        if unbounded || asked || !agent.local.running {
            return;
        }
        agent.disarmed = Some((now, pause));
        agent.armed_until = None;
        self.check.stats.paused += 1;
        self.say(|| format!("{i}: paused, its fencer loses its deadline"));
        self.post_disarm(i, Some(pause));
    }

    /// F: the session of the holder was refused.
    pub(super) fn note_refusal(&mut self, i: usize) {
        let agent = self.agent(i);
        let open = agent.session.as_ref().filter(|_| agent.mark.0 > 0);
        let over = open.and_then(|open| open.clock.void_reason());
        let refused = matches!(over, Some(VoidReason::SessionGone | VoidReason::NonceStale));
        if refused && !agent.book.latched && !leaves_out(Mutant::CertificatesLatched) {
            self.note(i, regent_core::agent::Notebook::refused);
        }
    }

    /// A renewal of the present grant was acknowledged: what was refused before is over.
    pub(super) fn unlatch(&mut self, i: usize) {
        if self.agent(i).book.latched {
            self.note(i, regent_core::agent::Notebook::renewed);
        }
    }
}
