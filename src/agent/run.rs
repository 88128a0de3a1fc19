//! The agent's loop: hears coordinators, fencer and database, asks the core what comes next, has it
//! done, one step at a time.
//!
//! It must never wait in the loop for anything but the notebook's fsync: whatever may hang (a
//! server, a step, a node) runs beside it and reports back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use regent_core::agent::notebook::Taken;
use regent_core::agent::{Local, Naming, Right, Step, Told, next};
use regent_core::id::{Epoch, InstanceName, Nonce, RenewalNumber, Revision};
use regent_core::role::Order;
use regent_core::role::observe::Run;
use regent_core::spec::{LoweredSync, Policy};
use regent_core::time::{Micros, Reading};
use regent_engine as engine;
use regent_rpc::client::{AgentSender, SessionLease};
use regent_rpc::convert::agent::{Ask, HELLO, Instruction, Outcome};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use crate::guard::{Guard, News};
use crate::link::Heard;
use crate::local::{millis, seen};
use crate::notes::Notes;
use crate::senses::NoLogin;
use crate::sights::Sights;
use crate::start::StartError;
use crate::status::{Page, Status};
use crate::steady::Steady;
use crate::steps::{Change, StepError, TRY_AGAIN, Tools};
use crate::words::Refusals;

/// The loop looks at clocks at least this often.
const TICK: Duration = Duration::from_millis(20);
/// Steps of one turn: no order has more in a row that are over at once.
const MAX_STEPS: usize = 4;

/// A step that has failed this many times in a row is tried at longer intervals.
const HOPEFUL: u32 = 50;
const TRY_LATER: Duration = Duration::from_secs(2);
/// What is down follows a primary that is only being promoted after this long at the latest: it may be
/// the very standby that the first commit waits for.
const PROMOTES_WITHIN: Duration = Duration::from_millis(150);

/// What the tasks beside the loop report.
pub enum Report {
    /// The database's facts, or why there are none, and when they were asked for.
    Seen(Reading, Result<engine::Observation, String>),
    /// A fresh connection.
    Probed(Result<Duration, NoLogin>),
    /// An own commit: when it was begun, under which set, whether it returned.
    Canary(Reading, Option<Revision>, bool),
    /// What a stop would have to write is written, for this switchover.
    Prepared(Revision),
    /// Sessions of clients whose commits wait for less than they should.
    Sessions(engine::Lowered),
    /// A step is over.
    Done(Step, Result<Change, StepError>),
    /// What lies on disk after a step that was aborted or failed.
    Inspected(engine::Discovery),
}

/// Everything the loop owns.
pub struct Agent {
    pub(crate) notes: Notes,
    pub(crate) local: Local,
    pub(crate) tools: Tools,
    pub(crate) guard: Guard,
    pub(crate) sights: Sights,
    pub(crate) page: Arc<Mutex<Page>>,
    pub(crate) steady: Steady,
    pub(crate) status: Status,
    pub(crate) report_every: Duration,
    /// Where routers are told to ask.
    pub(crate) check: String,
    pub(crate) fence_budget_ms: u64,
    pub(crate) nonce: Nonce,
    /// Asks for a look at the database now.
    pub(crate) look: Arc<Notify>,
    /// Asks for a commit now, under this set.
    pub(crate) canary: tokio::sync::watch::Sender<Option<Revision>>,
    /// Asks for a checkpoint, for this switchover.
    pub(crate) prepare: tokio::sync::watch::Sender<Option<Revision>>,
    pub(crate) reports: mpsc::UnboundedSender<Report>,
    // --- what was told ---
    pub(crate) told: Told,
    pub(crate) session: Option<SessionLease>,
    pub(crate) mark: Revision,
    pub(crate) instruction: Option<Box<Instruction>>,
    pub(crate) sender: Option<AgentSender>,
    // --- at work ---
    pub(crate) right: Right,
    pub(crate) naming: Naming,
    pub(crate) arms: u64,
    pub(crate) armed_until: Option<Reading>,
    /// When the fencer was last asked to give up its deadline for a pause.
    pub(crate) disarmed: Option<(Instant, Revision)>,
    /// The renewal acknowledged last when the database ended by itself.
    pub(crate) crashed_at: Option<RenewalNumber>,
    /// The agent ends: its fencer is gone.
    pub(crate) is_over: bool,
    pub(crate) busy: Option<(Step, JoinHandle<()>)>,
    /// Nothing is begun before it is known what lies on disk.
    pub(crate) inspects: bool,
    /// Failures in a row of the step that is tried.
    pub(crate) failures: u32,
    /// The coordinators were told where the WAL ends, if there is any.
    pub(crate) said_end: bool,
    /// Starts that were refused in a row.
    pub(crate) refused: Refusals,
    pub(crate) not_before: Option<Instant>,
    pub(crate) asked: BTreeMap<&'static str, (Ask, Instant)>,
    pub(crate) asks: u64,
    pub(crate) reported: Option<Instant>,
    pub(crate) last_said: String,
}

impl Agent {
    /// Runs until told to end. What runs goes on running under the fencer.
    ///
    /// # Errors
    /// [`StartError::FencerGone`].
    pub async fn run(
        mut self,
        mut heard: mpsc::Receiver<Heard>,
        mut news: mpsc::UnboundedReceiver<News>,
        mut done: mpsc::UnboundedReceiver<Report>,
        stop: impl Future<Output = ()>,
    ) -> Result<(), StartError> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => return Ok(()),
                Some(heard) = heard.recv() => self.hear(heard),
                Some(news) = news.recv() => self.news(news),
                Some(report) = done.recv() => self.report(report),
                _ = ticks.tick() => {}
            }
            if self.is_over {
                return Err(StartError::FencerGone);
            }
            self.turn();
        }
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Session(session, answer) => {
                self.note_refusal();
                let start = self.start(&session);
                if self.session.as_ref().map(SessionLease::id) != Some(session.id()) {
                    self.mark = Revision(0);
                    self.crashed_at = None;
                }
                self.session = Some(session);
                let _ = answer.send(start);
            }
            Heard::Attached(sender) => {
                tracing::info!("attached to a coordinator");
                self.sender = Some(sender);
                self.asked.clear();
                self.reported = None;
            }
            Heard::Detached(why) => {
                if self.sender.take().is_some() || self.last_said != why {
                    tracing::info!(why, "not attached to a coordinator");
                    self.last_said = why;
                }
            }
            Heard::Answer(number, outcome) => self.answered(number, outcome),
            Heard::Instruction(told) => self.instructed(told),
            Heard::Renewed => {}
        }
    }

    fn answered(&mut self, number: u64, outcome: Outcome) {
        match outcome {
            Outcome::Accepted { boot, mark, .. } => {
                let nonce = self.nonce;
                let noted = self.notes.change(|book| book.accepted(nonce, boot));
                if let Err(error) = noted {
                    tracing::error!(%error, "the notebook cannot be written");
                    return;
                }
                self.told.accepted = boot > 0;
                self.refused = Refusals::default();
                self.take_mark(mark);
            }
            Outcome::Committed { receipt, .. } => {
                if let (Some((fence, proof)), Some(pledge)) =
                    (receipt, self.notes.book.pledge.as_ref())
                {
                    let position = pledge.position.filter(|_| pledge.proof == proof);
                    self.told.committed = Some((fence, proof, position));
                }
                self.asked.clear();
            }
            Outcome::Refused(refused) => {
                if number == HELLO {
                    self.told.accepted &= refused.transient;
                    if refused.rule == "instance_quarantined" && self.local.running {
                        // B: what forgot its promises neither streams nor acknowledges.
                        self.interrupt();
                        if self.busy.is_none() {
                            self.spawn(Step::Kill);
                        }
                    }
                }
                if number != HELLO {
                    self.said_end = false;
                    tracing::warn!(rule = refused.rule, why = refused.why, number, "refused");
                } else if self.refused.is_worth_a_line(&refused.why) {
                    let times = self.refused.times;
                    let (rule, why) = (refused.rule, refused.why);
                    tracing::warn!(rule, why, times, "this start of the agent is refused");
                }
            }
        }
    }

    fn take_mark(&mut self, mark: Revision) {
        // Sessions and grants are numbered by the same log: a mark from before this session is that
        // of another one, said late, and naming it here would confirm what nobody granted.
        let Some(session) = &self.session else { return };
        if mark.0 > session.id().0 && mark != self.mark {
            self.mark = mark;
            // The renewal that names the grant says what it has to (C4).
            self.carry();
            if let Some(session) = &self.session {
                session.granted(mark);
            }
        }
    }

    fn instructed(&mut self, told: Box<Instruction>) {
        let directive = &told.directive;
        let taken = self.notes.change(|book| book.take(directive));
        match taken {
            Err(error) => {
                tracing::error!(%error, "the notebook cannot be written: nothing is obeyed");
                return;
            }
            Ok(Taken::Stale { have }) => {
                let got = directive.number();
                tracing::warn!(?have, ?got, "refused a directive below the highest seen (S4)");
                return;
            }
            Ok(Taken::New) => {
                tracing::info!(%directive, "told");
                self.local.diverged = None;
                self.local.replayed = None;
                self.told.committed = None;
                // A primary that is only being promoted has no history yet to compare with, and what else
                // runs on this machine need not wait for that.
                let follows = matches!(directive.order, Order::Follow { .. });
                let waits = follows && !told.promoted && self.local.run() == Run::Down;
                self.not_before = waits.then(|| Instant::now() + PROMOTES_WITHIN);
                self.failures = 0;
                self.interrupt();
            }
            Ok(Taken::Same) => {}
        }
        if told.promoted && self.failures == 0 {
            self.not_before = None;
        }
        let another = told.holder.as_ref().is_some_and(|holder| *holder != self.tools.me);
        if self.notes.book.led != Epoch::NONE && (another || told.fence.is_some()) {
            self.latch("another may be primary");
        }
        self.instruction = Some(told.clone());
        self.take_mark(told.mark);
        self.told.timeline = told.timeline;
        self.told.expected = told.expected;
        self.told.promoted = if told.promoted { told.epoch } else { Epoch::NONE };
        // What is announced closes its routes itself.
        self.told.unrouted =
            told.promoted && !told.routes_open && told.fence.is_none() && told.prepare.is_none();
        self.told.is_strict = told.spec.policy.on_lowered_sync == LoweredSync::Strict;
        self.told.covered = told.set.as_ref().filter(|_| told.covered).map(|set| set.revision);
        if let Some(set) = self.told.covered
            && let Err(error) = self.notes.change(|book| book.covered(set))
        {
            tracing::error!(%error, "the notebook cannot be written: no certificate counts");
        }
        self.tools.declared.clone_from(&told.spec.instances);
        self.told.addresses =
            told.spec.instances.iter().map(|one| (one.address.clone(), one.name.clone())).collect();
        // Each look costs the other host a process: only those whose silence means something are looked at.
        let upstream = told.upstream().map(|one| one.name.clone());
        let matters = |name: &InstanceName| {
            (told.holder.as_ref() == Some(name) || upstream.as_ref() == Some(name))
                && *name != self.tools.me
        };
        let neighbours: BTreeMap<InstanceName, String> = told
            .spec
            .instances
            .iter()
            .filter(|one| matters(&one.name))
            .map(|one| (one.name.clone(), one.address.clone()))
            .collect();
        self.sights.aim(&self.tools.engine, &neighbours, self.report_every);
        self.look.notify_one();
    }

    /// A new directive does not wait for a step of the old one that may take long.
    fn interrupt(&mut self) {
        let run = self.local.run();
        if let Some((step, task)) = self.busy.take_if(|(step, _)| step.is_interrupted(run)) {
            tracing::info!(?step, "interrupted by a new directive");
            task.abort();
            self.local.rebuilding = false;
            if step.rebuilds() {
                self.inspect();
            }
        }
    }

    /// A directory that was left half done is no database: it is looked at before anything is made
    /// of it, and before anything is said of it.
    fn inspect(&mut self) {
        self.inspects = true;
        let (tools, reports) = (self.tools.clone(), self.reports.clone());
        tokio::spawn(async move {
            let _ = reports.send(Report::Inspected(tools.inspect().await));
        });
    }

    fn report(&mut self, report: Report) {
        let now = regent_fencer::clock::now();
        match report {
            Report::Seen(asked, Ok(facts)) => {
                if self.local.running {
                    let streamed = self.local.streams();
                    self.local.observed(asked, seen(facts), now);
                    if self.busy.is_none() && self.local.judge_names(now) {
                        let found = self.local.shown_names();
                        tracing::warn!(
                            found,
                            "the names were changed by hand: the committed ones are put back"
                        );
                    }
                    if streamed && !self.local.streams() {
                        // The primary may be gone: what is seen of it is news for everybody.
                        self.sights.hurry();
                        self.reported = None;
                    }
                }
            }
            Report::Seen(_, Err(why)) => {
                if self.local.running && self.local.seen.is_some() {
                    self.local.problem = why;
                }
            }
            Report::Probed(_) if !self.local.running => {}
            Report::Probed(Ok(took)) => self.local.answered(millis(took)),
            Report::Probed(Err(NoLogin { why, works, tried })) => {
                let tried = Micros(u64::try_from(tried.as_micros()).unwrap_or(u64::MAX));
                self.local.unanswered(why, works, now.minus(tried), now);
            }
            Report::Canary(sent, set, returned) => {
                self.local.committed(returned, now);
                // F: names that are not the committed set's make no certificate.
                let sound = returned && self.local.has_its_names();
                if let (true, Some(set)) = (sound, set) {
                    self.right.certified(sent, set, self.notes.book.latched);
                }
            }
            Report::Prepared(operation) => self.prepared(operation),
            Report::Sessions(lowered) => {
                if self.local.looked_into(lowered) {
                    let why = self.local.lowered.unseen.as_deref();
                    tracing::warn!(
                        why,
                        "sessions that lower synchronous_commit can hardly be seen"
                    );
                }
            }
            Report::Done(step, outcome) => self.done(&step, outcome),
            Report::Inspected(found) => {
                self.inspects = false;
                if !self.local.running {
                    self.local.discovered(crate::local::found(&found));
                }
            }
        }
    }

    fn done(&mut self, step: &Step, outcome: Result<Change, StepError>) {
        if self.busy.as_ref().is_none_or(|(busy, _)| busy != step) {
            return;
        }
        self.busy = None;
        self.local.is_over(step);
        match outcome {
            Ok(change) => {
                tracing::info!(?step, "done");
                self.failures = 0;
                self.local.problem.clear();
                change(&mut self.local);
                if step.ends() {
                    self.renounce();
                }
                if matches!(step, Step::Close) && self.may_stay_shut() {
                    self.armed_until = None;
                    self.guard.disarm();
                }
            }
            Err(error) => {
                let problem = error.to_string();
                if problem == self.local.problem {
                    tracing::debug!(?step, %error, "failed again");
                } else {
                    tracing::warn!(?step, %error, "failed");
                }
                self.local.problem = problem;
                self.failures = self.failures.saturating_add(1);
                self.local.failed(step, self.guard.is_running());
                if !self.local.running && !step.ends() {
                    self.inspect();
                }
                let pause = if self.failures > HOPEFUL { TRY_LATER } else { TRY_AGAIN };
                self.not_before = Some(Instant::now() + pause);
            }
        }
        self.look.notify_one();
        self.reported = None;
    }

    pub(crate) fn policy(&self) -> Option<&Policy> {
        self.instruction.as_ref().map(|told| &told.spec.policy)
    }

    /// Until when writes may be served, and by it what the fencer and the core are told.
    fn rights(&mut self) {
        let now = regent_fencer::clock::now();
        let held = self
            .session
            .as_ref()
            .is_some_and(|session| self.mark.0 > 0 && session.is_held(self.mark));
        let deadline = self.session.as_ref().and_then(SessionLease::deadline);
        // E4: after a crash only a renewal that was acknowledged later counts.
        let newer = deadline.is_some_and(|deadline| Some(deadline.number) > self.crashed_at);
        let held = held && newer && self.notes.book.is_of_grant(self.mark);
        self.right.lease = deadline.filter(|_| held).map(|deadline| deadline.until);
        let set = self.local.in_force;
        let unprotected = self.notes.book.unprotected;
        let budget = self.fence_budget_ms;
        let until = self
            .policy()
            .and_then(|policy| self.right.until(policy, set, unprotected, budget, now));
        self.told.holds_lease = held;
        if self.told.holds_lease {
            self.unlatch();
        }
        let pausing = self.pausing();
        self.naming = match self.leads() {
            true => Naming::decide(until, pausing.is_free(), now),
            false => Naming::Never,
        };
        self.told.may_serve = self.naming.may_serve();
        if !self.leads() {
            return;
        }
        match (pausing.may_disarm(), until) {
            (Some(pause), _) => self.disarm_for(pause, pausing.unbounded),
            (None, Some(until)) if !self.stays_shut() => self.arm(until),
            (None, _) => {}
        }
    }

    fn leads(&self) -> bool {
        let directive = self.notes.book.directive.as_ref();
        directive.is_some_and(|directive| matches!(directive.order, Order::Lead { .. }))
    }

    /// One turn: rights, the next step, words to the coordinators.
    fn turn(&mut self) {
        self.note_refusal();
        self.rights();
        self.carry();
        let answers =
            self.instruction.as_ref().and_then(|told| told.upstream()).is_some_and(|up| {
                self.sights.now().iter().any(|sight| {
                    sight.instance == up.name && sight.answered_ms.is_some_and(|ms| ms < 1_000)
                })
            });
        self.told.upstream_answers = answers;
        // What only the notebook had to be asked for is over at once: what follows it does not wait.
        for _ in 0..MAX_STEPS {
            let free = self.busy.is_none() && !self.inspects;
            if !free || self.not_before.is_some_and(|at| Instant::now() < at) {
                break;
            }
            let world = self.local.world(&self.told, regent_fencer::clock::now());
            let step = next(&self.notes.book, &world);
            let goes_on = matches!(step, Step::Pledge(_) | Step::NoteLead(_) | Step::ConfirmSet(_));
            self.take(step);
            if !goes_on {
                break;
            }
        }
        let wants =
            self.local.in_force.filter(|_| self.local.run() == Run::Primary && self.leads());
        self.canary.send_if_modified(|now| std::mem::replace(now, wants) != wants);
        self.prepare();
        if self.sights.has_news() {
            self.reported = None;
        }
        self.say_end();
        self.say();
        self.publish();
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Rest => self.local.doing.clear(),
            Step::Stuck(why) => self.local.doing = why.to_owned(),
            Step::Pledge(pledge) => {
                let noted = self.notes.change(|book| book.pledge(pledge));
                if let Err(error) = noted {
                    tracing::error!(%error, "the notebook cannot be written: nothing is promised");
                    self.not_before = Some(Instant::now() + TRY_AGAIN);
                    return;
                }
                self.send_receipt();
            }
            Step::SendReceipt => self.send_receipt(),
            Step::NoteLead(epoch) => {
                if let Err(error) = self.notes.change(|book| book.led = epoch) {
                    tracing::error!(%error, "the notebook cannot be written: nothing is led");
                    self.not_before = Some(Instant::now() + TRY_AGAIN);
                }
            }
            Step::ConfirmSet(set) => {
                // The same names again, on a running primary: returns once they are in force.
                self.local.names = self.local.names.filter(|names| *names != set);
            }
            Step::ReportCovered(set) => {
                let epoch = self.notes.book.led;
                self.ask("covered", Ask::Covered { epoch, set });
            }
            Step::ReportPromoted(epoch) => {
                let at = self.local.position().unwrap_or_default();
                let (timeline, mut switch) = (at.timeline, at.end);
                // Said again, it is the same promotion.
                if let Some((Ask::Promoted { epoch: of, timeline: on, switch: said }, _)) =
                    self.asked.get("promoted")
                    && (*of, *on) == (epoch, timeline)
                {
                    switch = *said;
                }
                self.ask("promoted", Ask::Promoted { epoch, timeline, switch });
            }
            step => self.spawn(step),
        }
    }

    fn spawn(&mut self, step: Step) {
        self.local.begins(&step);
        let arm = match step {
            Step::StartPrimary | Step::Promote(_) => {
                let Some(until) = self.right.lease else { return };
                self.armed_until = Some(until);
                Some(self.next_arm(until))
            }
            _ => None,
        };
        self.tools.led = self.notes.book.may_carry();
        self.tools.checkpointed = self.local.prepared.map(|(_, at)| at);
        self.tools.lowered = self.local.wanted(&self.told);
        let (tools, reports, doing) = (self.tools.clone(), self.reports.clone(), step.clone());
        let task = tokio::spawn(async move {
            let outcome = tools.run(&doing, arm).await;
            let _ = reports.send(Report::Done(doing, outcome));
        });
        self.busy = Some((step, task));
    }
}
