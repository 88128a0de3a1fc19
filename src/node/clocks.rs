//! The lease clocks of this node (C2, C3), fed from what is applied and from read index rounds.

use std::sync::Arc;

use parking_lot::Mutex;
use regent_core::effect::ClockEffect;
use regent_core::id::{Revision, SessionId};
use regent_core::lease::{NodeClock, Rules};
use regent_core::state::State;
use regent_core::time::Reading;
use regent_rpc::clock::Clock;
use tokio::sync::watch;

/// One [`NodeClock`] behind a lock, with the clock it is read against.
pub struct NodeClocks {
    clock: Arc<dyn Clock>,
    inner: Mutex<NodeClock>,
    /// Whether there are sessions.
    occupied: watch::Sender<bool>,
}

impl NodeClocks {
    /// No sessions yet.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let occupied = watch::Sender::new(false);
        Self { clock, inner: Mutex::new(NodeClock::new(Rules::LAW)), occupied }
    }

    /// An entry was applied; `state` is the state after it.
    pub fn applied(&self, state: &State, index: Revision, effects: &[ClockEffect]) {
        // Read before the lock is waited for would be earlier, and C2 must not count from earlier
        // than the apply itself; so after it.
        let mut inner = self.inner.lock();
        let now = self.clock.now();
        let sessions = state.sessions();
        inner.apply(index, effects, now, |id| sessions.get(&id).map(|s| s.ttl_ms));
        self.note_sessions(&inner);
    }

    /// The state was replaced: everything counts from now, nothing is believed.
    pub fn installed(&self, state: &State) {
        let mut inner = self.inner.lock();
        let sessions = state.sessions().iter().map(|(id, session)| (*id, session.ttl_ms));
        inner.reset(state.revision(), sessions, self.clock.now());
        self.note_sessions(&inner);
    }

    fn note_sessions(&self, inner: &NodeClock) {
        let now = inner.session_count() > 0;
        self.occupied.send_if_modified(|before| std::mem::replace(before, now) != now);
    }

    /// Returns while there are sessions: what only matters to them sleeps until then.
    pub async fn occupied(&self) {
        let waited = self.occupied.subscribe().wait_for(|there_are| *there_are).await.is_ok();
        debug_assert!(waited, "the sender lives as long as `self`");
    }

    /// A read index round sent at `sent` was answered.
    pub fn read_index_answered(&self, sent: Reading, answer: Revision) {
        self.inner.lock().read_index_answered(sent, answer);
    }

    /// How long from now the next round is due; `None` while there are no sessions.
    pub fn next_round_in(&self) -> Option<std::time::Duration> {
        let due = self.inner.lock().next_read_index_due()?;
        Some(std::time::Duration::from_micros(due.since(self.clock.now()).0))
    }

    /// Whether this node may name `session` as a holder now (C3).
    pub fn believed_live(&self, session: SessionId) -> bool {
        self.inner.lock().believed_live(session, self.clock.now())
    }

    /// This node's clock was wrong: what was counted is void (C9).
    pub fn restart(&self) {
        self.inner.lock().restart(self.clock.now());
    }

    /// Runs `f` on the clock itself, with the present reading.
    pub fn with<T>(&self, f: impl FnOnce(&mut NodeClock, Reading) -> T) -> T {
        let mut inner = self.inner.lock();
        let now = self.clock.now();
        f(&mut inner, now)
    }

    /// Sessions known.
    pub fn session_count(&self) -> usize {
        self.inner.lock().session_count()
    }
}

impl crate::watch::Believes for NodeBelief {
    fn believed_live(&self, session: SessionId) -> bool {
        self.clocks.believed_live(session)
    }

    fn age_ms(&self) -> u64 {
        // Watches are told what the rounds prove; before the first one nothing is.
        self.age.get().and_then(|age| age()).unwrap_or(u64::MAX)
    }
}

/// How old the state is, as far as this node can prove.
pub type Age = Box<dyn Fn() -> Option<u64> + Send + Sync>;

/// What watches must know of the clocks.
pub struct NodeBelief {
    /// The lease clocks.
    pub clocks: Arc<NodeClocks>,
    /// Set once the read barrier runs.
    pub age: std::sync::OnceLock<Age>,
}
