//! What a promotion in lease mode could lose (PROTOCOL.md H), from the log alone.
//!
//! ```text
//! holder's clock  ──sampled w──────sampled w'──sent n──────────────── out ──>
//!                       │              │         └── ttl·(1−rho) ────┘
//!                  candidate holds w,  not w'
//!                       └───────────── ms: what was acknowledged in between ──┘
//! ```
//! Both instants are of the holder's own clock, so that no way of a message makes the figure too
//! small. Bytes are what the last watermark says the candidate lacks, and what the measured rate adds
//! until the holder was out: an estimate.

use super::judge::Case;
use crate::id::InstanceName;
use crate::lease::Rules;
use crate::role::{CompleteProof, HolderInstant, Loss, OutProof, Position, Proof, Watermark};
use crate::state::role::holder::LastRenewal;
use crate::time::Micros;

impl Case<'_> {
    /// What promoting `candidate` could lose at most; nothing in it is known while the old primary is
    /// not out, because each moment adds to it.
    pub fn loss(&self, candidate: &InstanceName) -> Loss {
        match self.complete(candidate, Loss::default()) {
            // A policy that accepts any loss has none proved away.
            Ok(CompleteProof::WithinBound | CompleteProof::Approved) | Err(_) => {}
            Ok(_) => return Loss { ms: Some(0), bytes: Some(0) },
        }
        self.bounded(candidate).unwrap_or_default()
    }

    /// Whether a figure that somebody names is at least what the log says; below the level at which
    /// renewals say anything, there is nothing to compare it with.
    ///
    /// # Errors
    /// What the log says.
    pub(super) fn is_not_below(&self, candidate: &InstanceName, named: Loss) -> Result<(), String> {
        if self.said.is_none() {
            return Ok(());
        }
        let must = self.loss(candidate);
        let covers = |named: Option<u64>, must: Option<u64>| match (named, must) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(named), Some(must)) => named >= must,
        };
        if covers(named.ms, must.ms) && covers(named.bytes, must.bytes) {
            return Ok(());
        }
        Err(format!("{named} is named, and by the log it could be {must}"))
    }

    fn bounded(&self, candidate: &InstanceName) -> Option<Loss> {
        if !self.bound_counts() {
            return None;
        }
        let last = self.last()?;
        let end = self.out_by(self.out().ok()?);
        let receipts = &self.role.fence.as_ref()?.receipts;
        let held = receipts.get(candidate)?.position?;
        // WAL of a later epoch than these watermarks comes from somebody else's history.
        let holds = |mark: &&Watermark| held.epoch <= last.epoch && held.covers(&mark.at);
        let newest = last.marks.iter().rev().find(holds);
        let stood = receipts.get(&last.instance).filter(|it| it.proof >= Proof::Stopped);
        let stood = stood.and_then(|receipt| receipt.position);
        Some(Loss {
            ms: newest.zip(end).map(|(mark, end)| millis(end.since(mark.sampled))),
            bytes: stood
                .and_then(|stood| lacking(&stood, &held))
                .or_else(|| estimate(last, end?, &held)),
        })
    }

    /// By when the holder that acted last was out, on its own clock: by its receipt, or by the end of
    /// what its last renewal could have given it (C1), whichever came first.
    pub(super) fn out_by(&self, out: OutProof) -> Option<HolderInstant> {
        let last = self.last()?;
        if last.epoch != self.role.epoch {
            // If the present one never acted, what counts is when the one before it was out.
            return last.out_by.filter(|_| !self.is_confirmed());
        }
        let lasts = Rules::LAW.short(last.ttl_ms);
        let lapsed = self.has_lapsed_armed().then(|| last.report.sent.plus(lasts));
        let seen = matches!(out, OutProof::Stopped | OutProof::Resigned);
        let stopped = last.stopped.filter(|_| seen).map(|stopped| stopped.at);
        [lapsed, stopped].into_iter().flatten().min()
    }
}

/// Milliseconds, none of them cut off.
fn millis(time: Micros) -> u64 {
    time.0.div_ceil(1_000)
}

/// WAL up to `end` that is not held; `None` where the two are of different histories.
fn lacking(end: &Position, held: &Position) -> Option<u64> {
    (end.epoch == held.epoch).then(|| end.end.0.saturating_sub(held.end.0))
}

/// What is known to be missing, and what was written at the measured rate until `end`.
fn estimate(last: &LastRenewal, end: HolderInstant, held: &Position) -> Option<u64> {
    let (first, newest) = (last.marks.first()?, last.marks.last()?);
    let known = lacking(&newest.at, held)?;
    let (wrote, took) = (lacking(&newest.at, &first.at)?, newest.sampled.since(first.sampled));
    if took == Micros(0) {
        return None;
    }
    let unknown = u128::from(wrote) * u128::from(end.since(newest.sampled).0);
    let unknown = unknown.div_ceil(u128::from(took.0));
    Some(known.saturating_add(u64::try_from(unknown).unwrap_or(u64::MAX)))
}
