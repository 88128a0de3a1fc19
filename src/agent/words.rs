//! What the agent says: its start, receipts and other asks, observations, and what others on the host may
//! read.

use std::time::{Duration, Instant};

use regent_core::role::observe::{Guarded, Run};
use regent_core::role::{AgentStart, Armed, Position, Proof, Receipt};
use regent_rpc::client::SessionLease;
use regent_rpc::convert::agent::Ask;

use crate::run::Agent;
use crate::status::Published;

/// An ask without an answer is asked again after this long.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// A refusal that lasts is told at once, then once in this time.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// Refusals of one start in a row.
#[derive(Debug, Default)]
pub struct Refusals {
    /// How many.
    pub times: u64,
    said: Option<(String, Instant)>,
}

impl Refusals {
    /// Counts one more; whether people have to be told of it again.
    pub fn is_worth_a_line(&mut self, why: &str) -> bool {
        self.times += 1;
        let known =
            self.said.as_ref().is_some_and(|(said, at)| said == why && at.elapsed() < TELL_AGAIN);
        if !known {
            self.said = Some((why.to_owned(), Instant::now()));
        }
        !known
    }
}

impl Agent {
    /// What the coordinators must know before they accept this start.
    pub(crate) fn start(&mut self, session: &SessionLease) -> AgentStart {
        let book = &self.notes.book;
        let data = self.local.identity(book.led);
        self.said_end = data.is_none_or(|data| data.position.is_some());
        let fencer = if self.guard.is_armed() { Armed::Armed } else { Armed::Weak };
        AgentStart {
            session: session.id(),
            nonce: self.nonce,
            boot: book.boot,
            disk: book.disk,
            seen: book.seen(),
            data,
            fencer,
            run: self.guard.run(),
        }
    }

    pub(crate) fn send_receipt(&mut self) {
        let Some(pledge) = self.notes.book.pledge.clone() else { return };
        let receipt = Receipt {
            instance: self.tools.me.clone(),
            fence: pledge.fence,
            proof: pledge.proof,
            position: pledge.position,
            boot: self.notes.book.boot,
            nonce: self.nonce,
            generation: self.local.generation,
            is_proven: pledge.is_proven,
        };
        let stopped = self.stopped().filter(|_| pledge.proof >= Proof::Stopped);
        self.ask("receipt", Ask::Receipt(Box::new(receipt), stopped));
    }

    /// Where the WAL of a database ends that is down is found out after it was accepted.
    pub(crate) fn say_end(&mut self) {
        let known = self.told.accepted && !self.said_end && self.local.position().is_some();
        if let Some(session) = self.session.clone().filter(|_| known) {
            let start = self.start(&session);
            self.ask("start", Ask::Start(Box::new(start)));
        }
    }

    /// Asks once, and again only after a while: an answer changes the world.
    pub(crate) fn ask(&mut self, what: &'static str, ask: Ask) {
        let Some(sender) = &self.sender else { return };
        let again = self
            .asked
            .get(what)
            .is_none_or(|(asked, at)| *asked != ask || at.elapsed() >= ASK_AGAIN);
        if !again {
            return;
        }
        self.asks += 1;
        if sender.ask(self.asks, ask.clone()).is_err() {
            self.sender = None;
            return;
        }
        self.asked.insert(what, (ask, Instant::now()));
    }

    /// Whether commits wait for this instance, among others.
    fn is_counted(&self) -> bool {
        let set = self.instruction.as_ref().and_then(|told| told.set.as_ref());
        set.is_some_and(|set| set.members.contains(&self.tools.me))
    }

    /// An observation, when it is time or something happened.
    pub(crate) fn say(&mut self) {
        let Some(sender) = &self.sender else { return };
        if self.reported.is_some_and(|at| at.elapsed() < self.report_every) {
            return;
        }
        let now = regent_fencer::clock::now();
        let mut seen = self.local.observation(&self.told, &self.notes.book, now);
        seen.sights = self.sights.now();
        seen.check.clone_from(&self.check);
        seen.guard = Guarded {
            slowest_fence_ms: self.guard.fences().slowest_ms(),
            fence_budget_ms: self.guard.fences().budget_ms(),
            watchdog_ms: self.guard.watchdog().map_or(0, |watchdog| watchdog.timeout_ms),
        };
        if sender.observe(seen).is_err() {
            self.sender = None;
        }
        self.reported = Some(Instant::now());
    }

    pub(crate) fn publish(&mut self) {
        let run = self.local.run();
        let naming = self.local.named(self.naming);
        let (reads, streams) = (self.local.open && run == Run::Standby, self.local.streams());
        let now = regent_fencer::clock::now();
        // A coordinator that has lost the others hears it, too, and cannot tell it anything new.
        let renewed = self.session.as_ref().and_then(|session| session.deadline());
        let attached = self.sender.is_some();
        let heard = attached && renewed.is_some_and(|renewed| now.is_before(renewed.until));
        let steady = self.steady.look(streams, heard, now);
        let now = Published {
            service: self.tools.me.to_string(),
            run: run.as_str(),
            open: naming.may_serve(),
            reads,
            takes_reads: reads && steady,
            held: naming.may_serve() && !self.told.holds_lease,
            answers: self.local.seen.is_some() && self.local.probe.is_answered(),
            epoch: self.notes.book.led.to_string(),
            streams,
            lag_bytes: self.local.seen.as_ref().map_or(0, |(seen, _)| seen.replay_lag_bytes),
            position: self.local.position().as_ref().map(Position::to_string).unwrap_or_default(),
            doing: self.local.doing.clone(),
            problem: self.local.problem.clone(),
            attached,
            armed: self.guard.is_armed(),
            is_sync: run == Run::Standby && self.is_counted(),
            slowest_fence_ms: self.guard.fences().slowest_ms(),
            fence_budget_ms: self.guard.fences().budget_ms(),
            watchdog_ms: self.guard.watchdog().map_or(0, |watchdog| watchdog.timeout_ms),
        };
        let mut page = self.page.lock();
        page.naming = naming;
        if page.published != now {
            page.published = now;
            let text = page.published.clone();
            drop(page);
            self.status.write(&text, &self.guard);
            // What changed is told at once.
            self.reported = None;
        }
    }
}
