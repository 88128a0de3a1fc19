//! What renewals say of this instance while it holds the role (PROTOCOL.md C4), when its last process had
//! ended (H), what deadlines its fencer gets, what it does about a pause (E5), and what it must not
//! forget of a refusal (F).

use std::time::{Duration, Instant};

use regent_core::agent::{Data, OnDisk, Pausing, may_stay_shut};
use regent_core::id::{Epoch, RenewalNumber, Revision};
use regent_core::lease::holder::VoidReason;
use regent_core::role::{Armed, HolderInstant, HolderReport, MachineBoot, StopInstant};
use regent_core::spec::Mode;
use regent_core::time::Reading;
use regent_fencer::Arm;
use regent_fencer::wire::Status;
use regent_rpc::client::SessionLease;

use crate::run::Agent;

/// A disarming that the fencer has not confirmed is asked for again after this long.
const DISARM_AGAIN: Duration = Duration::from_secs(1);

impl Agent {
    /// Renewals say this from now on.
    pub(crate) fn carry(&self) {
        if let Some(session) = &self.session {
            session.carry((self.mark.0 > 0).then(|| self.holder_report()));
        }
    }

    fn holder_report(&self) -> HolderReport {
        HolderReport {
            armed: match self.guard.is_armed() && !self.guard.fences().are_slow() {
                true => Armed::Armed,
                false => Armed::Weak,
            },
            boot: machine_boot(&self.guard.status().boot_id),
            // Filled in when it is sent.
            sent: HolderInstant::default(),
            watermark: self.local.watermark(),
            pause: self.pausing().says(),
            policy: self.instruction.as_ref().map_or(Revision(0), |told| told.policy),
            set: self.local.in_force,
        }
    }

    /// When nothing was left of the last run, of an instance that is down and whose end the fencer saw.
    pub(crate) fn stopped(&self) -> Option<StopInstant> {
        end_of_last_run(&self.guard.status(), self.local.last_end)
    }

    /// What is known of a pause. In quorum mode the fencer keeps its deadlines: safety rests on the
    /// names, and certificates hold the right up.
    pub(crate) fn pausing(&self) -> Pausing {
        let told = self.instruction.as_ref();
        let told = told.filter(|told| told.spec.policy.mode == Mode::Lease);
        let committed = self.session.as_ref().and_then(SessionLease::last_committed);
        let status = self.guard.status();
        let posted = self
            .disarmed
            .filter(|(at, pause)| at.elapsed() < DISARM_AGAIN && *pause > status.lease.pause);
        Pausing {
            told: told.and_then(|told| told.paused),
            committed: committed.and_then(|report| report.pause),
            posted: posted.map(|(_, pause)| pause),
            unbounded: status.running.is_some() && status.lease.until.is_none(),
            obeyed: status.lease.pause,
        }
    }

    /// A deadline with the next number.
    pub(crate) fn next_arm(&mut self, until: Reading) -> Arm {
        self.arms += 1;
        let epoch = self.notes.book.directive.as_ref().map_or(Epoch::NONE, |it| it.epoch);
        Arm { epoch, number: RenewalNumber(self.arms), until }
    }

    /// F: whether what is shut to clients may run without a deadline.
    pub(crate) fn may_stay_shut(&self) -> bool {
        let may_hold = self.notes.book.may_hold();
        self.policy().is_some_and(|policy| may_stay_shut(policy, may_hold))
    }

    /// Whether it is shut like that: it gets its next deadline with the right to serve. What is left of
    /// the right by which it served is no reason to end it.
    pub(crate) fn stays_shut(&self) -> bool {
        self.armed_until.is_none() && !self.told.may_serve && self.may_stay_shut()
    }

    /// A later deadline goes to the fencer while a primary runs under it.
    pub(crate) fn arm(&mut self, until: Reading) {
        let primary = self.local.running && self.local.data == Data::Present(OnDisk::Primary);
        let later = self.armed_until.is_none_or(|at| at.is_before(until));
        if primary && later {
            self.armed_until = Some(until);
            let arm = self.next_arm(until);
            self.guard.post_arm(arm);
        }
    }

    /// Takes the fencer's deadline away, once the log has it that there is a pause.
    pub(crate) fn disarm_for(&mut self, pause: Revision, unbounded: bool) {
        let asked = self.disarmed.is_some_and(|(at, _)| at.elapsed() < DISARM_AGAIN);
        if unbounded || asked || !self.local.running {
            return;
        }
        tracing::info!(%pause, "paused: the primary does not end with its lease");
        self.disarmed = Some((Instant::now(), pause));
        self.armed_until = None;
        self.guard.disarm_for(pause);
    }

    /// F: the session of the holder was refused. Nothing certifies from here on, over restarts too,
    /// until the log has taken a renewal of the same grant.
    pub(crate) fn note_refusal(&mut self) {
        let over = self.session.as_ref().filter(|_| self.mark.0 > 0).and_then(SessionLease::over);
        let refused = matches!(over, Some(VoidReason::SessionGone | VoidReason::NonceStale));
        if refused {
            self.latch("a renewal was refused");
        }
    }

    pub(crate) fn latch(&mut self, why: &str) {
        if self.notes.book.latched {
            return;
        }
        tracing::info!(why, "no certificate is renewed until the coordinators confirm the lease");
        if let Err(error) = self.notes.change(regent_core::agent::Notebook::refused) {
            tracing::error!(%error, "the notebook cannot be written");
            // What cannot be kept over a restart is kept until then.
            self.notes.book.refused();
        }
    }

    /// A renewal of the present grant was acknowledged: what was refused before is over.
    pub(crate) fn unlatch(&mut self) {
        if !self.notes.book.latched {
            return;
        }
        if let Err(error) = self.notes.change(regent_core::agent::Notebook::renewed) {
            tracing::error!(%error, "the notebook cannot be written: no certificate counts");
        }
    }
}

/// When the last run ended, as its own fencer says. What an earlier fencer left is no word of it: that
/// one may have died with a later run and without a receipt, and an instant too early makes the bound of
/// a loss too small (H).
fn end_of_last_run(status: &Status, last_end: u64) -> Option<StopInstant> {
    let receipt = status.receipt.as_ref().filter(|_| status.running.is_none())?;
    // Word of a later end may have come while its receipt has not been read yet.
    let is_last = receipt.fencer == status.fencer && receipt.sequence >= last_end;
    is_last.then(|| StopInstant {
        boot: machine_boot(&receipt.boot_id),
        at: HolderInstant(receipt.ended_at.boottime_us),
    })
}

/// A kernel's boot id is random: its first half names the boot well enough.
fn machine_boot(boot_id: &str) -> MachineBoot {
    let digits: String = boot_id.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    MachineBoot(u64::from_str_radix(&digits, 16).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use regent_core::id::{Epoch, Nonce, RenewalNumber};
    use regent_fencer::receipt::{Proof, Reason, Receipt};
    use regent_fencer::wire::{LeaseView, Phase, Protection};

    use super::*;

    #[test]
    fn an_end_that_an_earlier_fencer_saw_is_not_said_to_be_the_last() {
        let receipt = Receipt {
            sequence: 3,
            boot_id: "0f4c9a2e-1b7d-4c2a-9d0e-3f1f2a3b4c5d".to_owned(),
            fencer: Nonce(1),
            epoch: Epoch::NONE,
            number: RenewalNumber(0),
            reason: Reason::Deadline,
            exit: None,
            protection: Protection::Namespace,
            proof: Proof::Namespace,
            started_at: None,
            killed_at: Reading::at_us(1),
            ended_at: Reading::at_us(2),
        };
        let status = Status {
            fencer: Nonce(1),
            boot_id: receipt.boot_id.clone(),
            protection: Protection::Namespace,
            agent: None,
            lease: LeaseView::default(),
            phase: Phase::Idle,
            running: None,
            receipt: Some(receipt),
            receipt_error: None,
            now: Reading::at_us(9),
        };
        let end = end_of_last_run(&status, 3).map(|end| end.at);
        assert_eq!(end, Some(HolderInstant(2)));
        assert_eq!(
            end_of_last_run(&status, 4),
            None,
            "the receipt of the last end is not read yet"
        );
        let other = Status { fencer: Nonce(2), ..status };
        assert_eq!(
            end_of_last_run(&other, 0),
            None,
            "the last run may have ended without a receipt"
        );
    }

    #[test]
    fn two_boots_have_two_names() {
        let one = machine_boot("0f4c9a2e-1b7d-4c2a-9d0e-3f1f2a3b4c5d");
        assert_eq!(one, MachineBoot(0x0f4c_9a2e_1b7d_4c2a));
        assert_ne!(one, machine_boot("1f4c9a2e-1b7d-4c2a-9d0e-3f1f2a3b4c5d"));
    }
}
