//! Renews all sessions of a client over one stream, and changes nodes when it falls silent.
//!
//! ```text
//! sessions ─due─► one message ─► current node ──committed answers──► holder clocks
//!                                spare node(s): stream open, nothing sent (no dial on a change)
//! ```
//! If this task is late, frozen or dead, nothing is held longer than it may be: the holder clocks
//! (C1) count from transmissions and are asked by whoever acts, never by this task.
//!
//! Only *committed* answers are signs of life. A node that is cut off from the others may answer
//! "send again" for ever, and a client that stayed with it would lose its leases for nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use regent_core::agent::Reports;
use regent_core::command::FullRenewal;
use regent_core::id::{RenewalNumber, Revision, SessionId};
use regent_core::lease::HolderClock;
use regent_core::lease::holder::{Answer, VoidReason};
use regent_core::reply::RenewalOutcome;
use regent_core::time::{Micros, Reading};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::clocks::Clocks;
use super::nodes::{Node, Nodes};
use crate::clock::Clock;
use crate::convert::election::{renewal_out, renewed_in};
use crate::limits::MAX_RENEWALS_PER_MESSAGE;
use crate::pb::v1;

/// Longest silence before the next node is tried (PROTOCOL.md C6, `session_silent_timeout`).
const SILENT_AT_MOST: Duration = Duration::from_millis(300);
/// Sessions due within this are renewed together.
const TOGETHER: Micros = Micros::from_ms(2);
/// The keeper looks at its sessions at least this often: tokio's timers stop in a suspend.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// A node whose stream broke gets another one after this.
const REOPEN_AFTER: Duration = Duration::from_millis(250);
/// Messages waiting for a stream. A full queue is a dead stream.
const QUEUE: usize = 256;

/// A session that is being kept.
pub(super) struct Kept {
    clock: Mutex<HolderClock>,
    /// Highest grant that an acknowledgement has named.
    grant: AtomicU64,
    /// The renewal that the present validity counts from; written with the clock locked.
    pub extended: AtomicU64,
    /// What renewals are to say of the role that this session holds.
    reports: Mutex<Reports>,
    /// Rises when something happened that somebody may wait for: a grant, a confirmation, an end.
    happened: watch::Sender<u64>,
}

impl Kept {
    pub fn new(clock: HolderClock) -> Self {
        let (grant, extended) = (AtomicU64::new(0), AtomicU64::new(0));
        let reports = Mutex::default();
        Self { clock: Mutex::new(clock), reports, grant, extended, happened: watch::Sender::new(0) }
    }

    pub fn reports(&self) -> MutexGuard<'_, Reports> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn clock(&self) -> MutexGuard<'_, HolderClock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the cluster has ended the session, or is told so by somebody else. One that is over
    /// only because this machine's clock cannot be trusted still keeps others waiting.
    pub fn is_gone(&self) -> bool {
        self.clock().void_reason().is_some_and(|reason| match reason {
            VoidReason::SessionGone
            | VoidReason::NonceStale
            | VoidReason::IncarnationChanged
            | VoidReason::Closed => true,
            VoidReason::ClockChanged | VoidReason::ClockDiffers => false,
        })
    }

    pub fn grant(&self) -> Revision {
        Revision(self.grant.load(Ordering::Acquire))
    }

    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.happened.subscribe()
    }

    pub fn happen(&self) {
        self.happened.send_modify(|count| *count += 1);
    }
}

enum Order {
    Keep(Arc<Kept>),
    /// Renew this session sooner than planned.
    Hurry(SessionId),
    Forget(SessionId),
}

/// Handle on the task; ends it when dropped.
pub(super) struct Keeper {
    orders: mpsc::UnboundedSender<Order>,
    task: JoinHandle<()>,
}

impl Keeper {
    pub fn start(nodes: Arc<Nodes>, clock: Arc<dyn Clock>, spares: usize) -> Self {
        let (orders, inbox) = mpsc::unbounded_channel();
        let task = tokio::spawn(Task::new(nodes, clock, spares).run(inbox));
        Self { orders, task }
    }

    /// Renews this session from now on.
    pub fn keep(&self, kept: Arc<Kept>) {
        let _ = self.orders.send(Order::Keep(kept));
    }

    pub fn hurry(&self, session: SessionId) {
        let _ = self.orders.send(Order::Hurry(session));
    }

    pub fn forget(&self, session: SessionId) {
        let _ = self.orders.send(Order::Forget(session));
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Entry {
    kept: Arc<Kept>,
    /// The time its valid heap entry names; others of it are left-overs.
    planned_us: u64,
    /// The newest number sent has no committed answer yet.
    waiting: bool,
    ttl_ms: u64,
}

/// A stream to one node.
struct Slot {
    address: String,
    id: u64,
    tx: mpsc::Sender<v1::KeepAliveRequest>,
    reader: JoinHandle<()>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// What a stream's reader reports.
enum Event {
    Answers(u64, v1::KeepAliveResponse),
    Closed(u64, Option<Status>),
}

struct Task {
    nodes: Arc<Nodes>,
    clock: Arc<dyn Clock>,
    /// C9: whether that clock is to be trusted.
    clocks: Clocks,
    spares: usize,
    sessions: HashMap<SessionId, Entry>,
    /// How many sessions have which ttl: the shortest one says how long silence may last.
    ttls: BTreeMap<u64, usize>,
    plan: BinaryHeap<Reverse<(u64, SessionId)>>,
    /// The first is in use, the others are spares.
    slots: Vec<Slot>,
    /// Addresses not to be tried before then.
    broken: HashMap<String, Instant>,
    next_slot: u64,
    /// The place in the nodes' list where the stream in use goes.
    at: usize,
    /// Set while something was sent and nothing committed came back since.
    silent_at: Option<Instant>,
    /// Changes of node since the last committed answer.
    changes: u32,
    events: mpsc::Sender<Event>,
    inbox: mpsc::Receiver<Event>,
}

impl Task {
    fn new(nodes: Arc<Nodes>, clock: Arc<dyn Clock>, spares: usize) -> Self {
        let (events, inbox) = mpsc::channel(QUEUE);
        let at = nodes.current().0;
        let clocks = Clocks::new(clock.as_ref());
        Self {
            nodes,
            clock,
            clocks,
            spares,
            sessions: HashMap::new(),
            ttls: BTreeMap::new(),
            plan: BinaryHeap::new(),
            slots: Vec::new(),
            broken: HashMap::new(),
            next_slot: 0,
            at,
            silent_at: None,
            changes: 0,
            events,
            inbox,
        }
    }

    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        loop {
            self.compare_clocks();
            self.renew_due();
            let wake = self.wake_at();
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => {
                        self.obey(order);
                        // Many sessions are opened at once by some clients: one look for all.
                        while let Ok(order) = orders.try_recv() {
                            self.obey(order);
                        }
                    }
                    None => return,
                },
                Some(event) = self.inbox.recv() => {
                    self.hear(event);
                    while let Ok(event) = self.inbox.try_recv() {
                        self.hear(event);
                    }
                }
                () = tokio::time::sleep_until(wake) => {}
            }
            if self.silent_at.is_some_and(|at| at <= Instant::now()) {
                self.change_node("it was silent");
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Keep(kept) => {
                let (session, ttl_ms) = {
                    let clock = kept.clock();
                    (clock.session().session, clock.session().ttl_ms)
                };
                let entry = Entry { kept, planned_us: 0, waiting: false, ttl_ms };
                self.sessions.insert(session, entry);
                *self.ttls.entry(ttl_ms).or_default() += 1;
                self.plan(session);
            }
            Order::Hurry(session) => self.plan(session),
            Order::Forget(session) => {
                self.let_go(session);
            }
        }
    }

    /// Puts a session's next renewal into the plan; a session that is over is let go.
    fn plan(&mut self, session: SessionId) {
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        let due = entry.kept.clock().due_at();
        match due {
            Some(due) => {
                entry.planned_us = due.boottime_us;
                self.plan.push(Reverse((due.boottime_us, session)));
            }
            None => {
                entry.kept.happen();
                self.let_go(session);
            }
        }
    }

    fn let_go(&mut self, session: SessionId) {
        let Some(entry) = self.sessions.remove(&session) else { return };
        if let Some(count) = self.ttls.get_mut(&entry.ttl_ms) {
            *count -= 1;
            if *count == 0 {
                self.ttls.remove(&entry.ttl_ms);
            }
        }
        if self.sessions.is_empty() {
            self.silent_at = None;
        }
    }

    fn renew_due(&mut self) {
        let now = self.clock.now();
        let limit = now.plus(TOGETHER).boottime_us;
        let mut batch = Vec::new();
        while let Some(Reverse((at, session))) = self.plan.peek().copied() {
            if at > limit {
                break;
            }
            self.plan.pop();
            if self.sessions.get(&session).is_some_and(|entry| entry.planned_us == at) {
                batch.extend(self.next(session, now));
                self.plan(session);
            }
        }
        self.send(batch);
    }

    /// A new renewal of a session. `now` was read before: nothing of it can have left yet (C1).
    fn next(&mut self, session: SessionId, now: Reading) -> Option<FullRenewal> {
        let entry = self.sessions.get_mut(&session)?;
        let mut clock = entry.kept.clock();
        clock.due_at()?;
        entry.waiting = true;
        let renewal = clock.next(now);
        let report = entry.kept.reports().sent(renewal.number, now).map(Box::new);
        Some(FullRenewal { renewal, report })
    }

    fn send(&mut self, batch: Vec<FullRenewal>) {
        if batch.is_empty() {
            return;
        }
        self.open_slots();
        for part in batch.chunks(MAX_RENEWALS_PER_MESSAGE) {
            let renewals = part.iter().map(renewal_out).collect();
            let sent = self.slots.first().is_some_and(|slot| {
                slot.tx.try_send(v1::KeepAliveRequest { renewals, probe: 0 }).is_ok()
            });
            if !sent {
                // The silence that follows changes the node, and what was not sent is sent anew.
                break;
            }
        }
        let silent = self.silent_after();
        self.silent_at.get_or_insert_with(|| Instant::now() + silent);
    }

    /// `min(300 ms, ttl/8)` of the shortest session, longer after a whole round of the nodes in
    /// vain: the cluster may be slow, and then changing nodes only adds to its load.
    fn silent_after(&self) -> Duration {
        let least = self.ttls.keys().next().copied().unwrap_or(u64::MAX);
        let eighth = Duration::from_millis(least / 8);
        let base = eighth.min(SILENT_AT_MOST);
        let rounds = self.changes / u32::try_from(self.nodes.all().len()).unwrap_or(1).max(1);
        (base * 2_u32.saturating_pow(rounds.min(8))).min(eighth.max(base))
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Answers(id, answers) => {
                let now = self.clock.now();
                // First: what is answered must not extend what the clock cannot be trusted with.
                if let Some(told) = &answers.clock {
                    self.clocks.heard(id, told, now);
                    self.restored(told.incarnation);
                    self.judge_clock();
                }
                for renewed in &answers.renewed {
                    let Some((session, number, answer)) = renewed_in(renewed) else { continue };
                    if let (Answer::Outcome(_), Some(slot)) = (&answer, self.slots.first())
                        && slot.id == id
                    {
                        self.nodes.renewed(&slot.address);
                    }
                    self.answered(session, number, answer, now);
                }
            }
            Event::Closed(id, status) => {
                let Some(at) = self.slots.iter().position(|slot| slot.id == id) else { return };
                let why =
                    status.map_or_else(|| "it ended the stream".to_owned(), |s| s.to_string());
                if at == 0 {
                    self.change_node(&why);
                } else {
                    self.drop_slot(at);
                }
            }
        }
    }

    fn answered(
        &mut self,
        session: SessionId,
        number: RenewalNumber,
        answer: Answer,
        now: Reading,
    ) {
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        if let Answer::Outcome(RenewalOutcome::Extended { grant, .. }) = answer {
            entry.kept.grant.fetch_max(grant.0, Ordering::AcqRel);
        }
        let (news, due) = {
            let mut clock = entry.kept.clock();
            let before = (clock.void_reason(), clock.due_at());
            let first = clock.valid_until().is_none();
            let extended = clock.answered(number, answer, now);
            if let (true, Some(number)) = (extended, answer_number(answer)) {
                entry.kept.extended.store(number.0, Ordering::Release);
            }
            if let Some(number) = answer_number(answer) {
                entry.kept.reports().committed(number);
            }
            let sooner = clock.due_at() != before.1;
            let news = clock.void_reason() != before.0 || sooner || (extended && first);
            (news || extended, sooner)
        };
        if matches!(answer, Answer::Outcome(_)) {
            entry.waiting = false;
            self.silent_at = None;
            self.changes = 0;
        }
        if news && entry.kept.happened.receiver_count() > 0 {
            entry.kept.happen();
        }
        if due {
            self.plan(session);
        }
    }

    /// Asks every node of the keep-alive for its clock, when it is time (C9).
    fn compare_clocks(&mut self) {
        let Some(ttl_ms) = self.ttls.keys().next().copied() else { return };
        let Some(round) = self.clocks.begin_round(self.clock.as_ref(), ttl_ms) else { return };
        self.judge_clock();
        self.open_slots();
        let ask = v1::KeepAliveRequest { renewals: Vec::new(), probe: round };
        for slot in &self.slots {
            let now = self.clock.now();
            if slot.tx.try_send(ask.clone()).is_ok() {
                self.clocks.ask(slot.id, round, now);
            }
        }
    }

    fn judge_clock(&mut self) {
        if let Some(reason) = self.clocks.verdict(self.clock.as_ref()) {
            tracing::error!(
                ?reason,
                sessions = self.sessions.len(),
                "this machine's clock cannot be trusted: every lease of this client is over"
            );
            self.void(reason, |_| true);
        }
    }

    /// A node of this incarnation answered: sessions of earlier ones were not taken over.
    fn restored(&mut self, incarnation: u64) {
        self.void(VoidReason::IncarnationChanged, |clock| {
            clock.session().incarnation < incarnation
        });
    }

    fn void(&mut self, reason: VoidReason, which: impl Fn(&HolderClock) -> bool) {
        let over: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, entry)| which(&entry.kept.clock()))
            .map(|(session, _)| *session)
            .collect();
        for session in over {
            if let Some(entry) = self.sessions.get(&session) {
                entry.kept.clock().void(reason);
            }
            // Lets it go, and wakes whoever waits for it.
            self.plan(session);
        }
    }

    /// Leaves the node in use and sends everything unanswered to the next one, under new numbers.
    fn change_node(&mut self, why: &str) {
        self.silent_at = None;
        self.changes = self.changes.saturating_add(1);
        if !self.slots.is_empty() {
            tracing::debug!(node = %self.slots[0].address, why, "the keep-alive changes its node");
            self.drop_slot(0);
        }
        self.at += 1;
        if let Some(until) = self.all_broken() {
            // Each refuses at once: another try at once would only be the next of thousands.
            self.silent_at = Some(until);
            return;
        }
        let now = self.clock.now();
        let waiting: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, entry)| entry.waiting)
            .map(|(session, _)| *session)
            .collect();
        let mut batch = Vec::with_capacity(waiting.len());
        for session in waiting {
            batch.extend(self.next(session, now));
            self.plan(session);
        }
        self.send(batch);
    }

    fn drop_slot(&mut self, at: usize) {
        let slot = self.slots.remove(at);
        self.clocks.forget(slot.id);
        self.broken.insert(slot.address.clone(), Instant::now() + REOPEN_AFTER);
    }

    /// Until when no node is to be tried, if that is so of all of them.
    fn all_broken(&self) -> Option<Instant> {
        let nodes = self.nodes.all();
        let until = |node: &Arc<Node>| self.broken.get(&node.address).copied();
        // One that may be tried again has no time, and none is the least of all.
        let until = nodes.iter().map(|node| until(node).filter(|it| *it > Instant::now())).min();
        until.flatten().filter(|_| self.slots.is_empty())
    }

    /// Makes sure that there is a stream in use, and spares.
    fn open_slots(&mut self) {
        let nodes = self.nodes.all();
        let now = Instant::now();
        self.broken.retain(|_, until| *until > now);
        // C9 asks a majority.
        let want = (1 + self.spares).max(nodes.len() / 2 + 1).min(nodes.len());
        for step in 0..nodes.len() {
            if self.slots.len() >= want {
                return;
            }
            let node = &nodes[(self.at + step) % nodes.len()];
            let open = self.slots.iter().any(|slot| slot.address == node.address);
            if !open && !self.broken.contains_key(&node.address) {
                let slot = self.open(node);
                self.slots.push(slot);
            }
        }
        if self.slots.is_empty() {
            // All broke a moment ago: better one of them than none.
            let slot = self.open(&nodes[self.at % nodes.len()]);
            self.slots.push(slot);
        }
    }

    fn open(&mut self, node: &Arc<Node>) -> Slot {
        self.next_slot += 1;
        let id = self.next_slot;
        let (tx, rx) = mpsc::channel(QUEUE);
        let reader = tokio::spawn(read_stream(id, Arc::clone(node), rx, self.events.clone()));
        Slot { address: node.address.clone(), id, tx, reader }
    }

    fn wake_at(&self) -> Instant {
        let mut wait = LOOK_AGAIN;
        if let Some(Reverse((at, _))) = self.plan.peek() {
            let now_us = self.clock.now().boottime_us;
            wait = wait.min(Duration::from_micros(at.saturating_sub(now_us)));
        }
        let wake = Instant::now() + wait;
        self.silent_at.map_or(wake, |at| wake.min(at))
    }
}

/// The renewal that an answer says is in the log.
const fn answer_number(answer: Answer) -> Option<RenewalNumber> {
    match answer {
        Answer::Outcome(RenewalOutcome::Extended { number, .. }) => Some(number),
        Answer::Outcome(RenewalOutcome::NumberStale { have }) => Some(have),
        Answer::Outcome(RenewalOutcome::SessionGone | RenewalOutcome::NonceStale)
        | Answer::Resend => None,
    }
}

async fn read_stream(
    id: u64,
    node: Arc<Node>,
    rx: mpsc::Receiver<v1::KeepAliveRequest>,
    events: mpsc::Sender<Event>,
) {
    let opened = super::election::api(&node.calls).keep_alive(ReceiverStream::new(rx)).await;
    let end = match opened {
        Ok(response) => {
            let mut answers = response.into_inner();
            loop {
                match answers.message().await {
                    Ok(Some(message)) => {
                        if events.send(Event::Answers(id, message)).await.is_err() {
                            return;
                        }
                    }
                    Ok(None) => break None,
                    Err(status) => break Some(status),
                }
            }
        }
        Err(status) => Some(status),
    };
    let _ = events.send(Event::Closed(id, end)).await;
}
