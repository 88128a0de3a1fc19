//! The page of each agent that health checks ask (`src/agent/http.rs`), and the judge of what it says
//! (S8): nobody is named the primary beyond its right, whatever its loop waits for, nor beside another
//! whose grant rests on its end.
//!
//! The judge reckons in real time, from when something was sent that came back, and knows nothing of what
//! an agent believes.

use std::collections::BTreeMap;

use regent_core::agent::Naming;
use regent_core::id::{Epoch, RenewalNumber, SessionId};
use regent_core::limits::PAUSE_MARGIN_MS;
use regent_core::spec::Mode;

use super::host::FENCE_BUDGET_MS;
use super::plan::service_name;
use super::world::{Place, World};
use crate::agents::machine::{MS, SECOND, Time};

/// Renewals of a session that are remembered: holder clocks remember as many.
const MAX_SENT: usize = 64;

/// What the judge knows of those who may be named.
#[derive(Default)]
pub struct Pages {
    /// When the renewals of each host's session left.
    sent: BTreeMap<usize, (SessionId, BTreeMap<RenewalNumber, Time>)>,
    /// Until when the lease of each may last.
    leased: BTreeMap<usize, Time>,
    /// When the newest commit of each was begun that came back as a certificate.
    certified: BTreeMap<usize, Time>,
}

/// C1, F: how long a right of this `ttl_ms` may last in real time. A clock that is slow by rho makes of the
/// short time to live no more than the whole one, and may stand still for a margin.
const fn lasts(ttl_ms: u64) -> Time {
    (ttl_ms + PAUSE_MARGIN_MS).saturating_sub(FENCE_BUDGET_MS) * MS
}

impl Pages {
    /// A renewal leaves.
    pub fn renewal_sent(&mut self, i: usize, of: SessionId, number: RenewalNumber, now: Time) {
        let (session, sent) = self.sent.entry(i).or_insert_with(|| (of, BTreeMap::new()));
        if *session != of {
            (*session, *sent) = (of, BTreeMap::new());
        }
        sent.insert(number, now);
        if sent.len() > MAX_SENT {
            sent.pop_first();
        }
    }

    /// The log has taken this renewal, and its holder hears of it.
    pub fn renewal_taken(&mut self, i: usize, of: SessionId, number: RenewalNumber, ttl_ms: u64) {
        let sent = self.sent.get(&i).filter(|(session, _)| *session == of);
        let Some(at) = sent.and_then(|(_, sent)| sent.get(&number)) else { return };
        let until = self.leased.entry(i).or_default();
        *until = (*until).max(at + lasts(ttl_ms));
    }

    /// A commit that was begun then counts as a certificate.
    pub fn certified(&mut self, i: usize, begun: Time) {
        let newest = self.certified.entry(i).or_default();
        *newest = (*newest).max(begun);
    }

    fn until(&self, i: usize, ttl_ms: u64) -> Time {
        let leased = self.leased.get(&i).copied().unwrap_or_default();
        leased.max(self.certified.get(&i).map_or(0, |begun| begun + lasts(ttl_ms)))
    }
}

impl World {
    /// The end of a turn: what the page tells until the next.
    pub(super) fn publish(&mut self, i: usize) {
        let agent = self.agent(i);
        agent.page = (agent.local.named(agent.naming), agent.book.led);
    }

    /// Nothing comes of an agent for a while: its process stands still, or only its loop does, which waits
    /// for the notebook's disk, and whoever asks its page is answered.
    pub(super) fn hang_agent(&mut self, i: usize, until: Time) {
        let whole = self.beside.chance(500);
        if let Some(agent) = self.hosts[i].agent.as_mut() {
            agent.frozen_until = until;
            agent.silent_until = if whole { until } else { 0 };
        }
    }

    /// Somebody asks all pages, again and again.
    pub(super) fn ask_pages(&mut self) {
        let wait = self.beside.between(5 * MS, 120 * MS);
        self.later(wait, Place::World, Self::ask_pages);
        self.judge_pages();
    }

    /// The epoch under which the agent of a host names itself to whoever asks it now.
    fn named(&self, i: usize) -> Option<Epoch> {
        let host = &self.hosts[i];
        let awake = host.up && host.machine.runs(self.now);
        let agent = host.agent.as_ref().filter(|it| awake && it.silent_until <= self.now)?;
        let (naming, epoch) = agent.page;
        naming.holds(host.machine.read(self.now)).then_some(epoch)
    }

    /// S8, at this instant.
    pub(super) fn judge_pages(&mut self) {
        for i in 0..self.hosts.len() {
            if let Some(epoch) = self.named(i).filter(|_| self.options.pages) {
                self.judge_named(i, epoch);
            }
        }
    }

    fn judge_named(&mut self, i: usize, epoch: Epoch) {
        let at = format!("at {}.{:06} s", self.now / SECOND, self.now % SECOND);
        let agent = self.agent(i);
        let held_up = agent.frozen_until;
        let ttl_ms = agent.instruction.as_ref().map_or(0, |told| told.spec.policy.ttl_ms);
        self.check.stats.named += 1;
        self.check.stats.held_up += u64::from(held_up > self.now);
        let name = self.hosts[i].name;
        if !self.check.is_granted(epoch, name) {
            let text = format!("S8: {at} {i} is named under {epoch}, never granted to it");
            return self.check.broken(text);
        }
        let until = self.pages.until(i, ttl_ms);
        if self.now > until && !self.goes_by_pause(i, epoch) {
            let late = (self.now - until) / MS;
            let text = format!("S8: {at} {i} is named under {epoch}, {late} ms after its right");
            self.check.broken_within(text);
        }
        if let Some(next) = self.check.replaced(epoch, name) {
            let text = format!("S8: {at} {i} is named under {epoch}, whose end {next} rests on");
            // Where names stand for the end of a primary nobody waits for its lease, and an image of a disk
            // gives receipts in the place of the disk (A2).
            match self.plan.mode == Mode::Quorum && self.check.copied {
                true => self.check.stats.overlaps += 1,
                false => self.check.broken_within(text),
            }
        }
    }

    /// E5: it is named for as long as a pause stands, and its lapse would prove nothing: its last word in the
    /// log is that it goes by one, or there is none of its present session.
    fn goes_by_pause(&self, i: usize, epoch: Epoch) -> bool {
        let page = self.hosts[i].agent.as_ref().map(|agent| agent.page.0);
        let row = self.coord.state.holders().get(&service_name());
        let last = row.and_then(|row| row.renewal.as_ref()).filter(|last| last.epoch == epoch);
        let own = last.filter(|it| it.instance == self.name_of(i));
        page == Some(Naming::Paused) && own.is_none_or(|it| it.report.pause.is_some())
    }
}
