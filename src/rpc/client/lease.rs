//! Sessions and leases: keeping the right to act, and knowing at each instant whether it is there.
//!
//! ```no_run
//! # use regent_rpc::client::*;
//! # async fn run(client: Client) -> Result<(), Box<dyn std::error::Error>> {
//! let session = Session::open(&client, SessionOptions::default()).await?;
//! let lease = session
//!     .campaign(&"orders".parse()?, b"10.0.0.7:5432", CampaignOptions::default())
//!     .await?;
//! while lease.is_held() {
//!     // One small act, carrying `lease.epoch()` to the resource, which refuses lower ones.
//! }
//! # Ok(()) }
//! ```
//!
//! [`Lease::is_held`] is false before the cluster can have given the lease to another, whatever
//! happens to networks, nodes, or this process (a freeze, a suspend): it reads both clocks itself
//! and depends on no task being alive. It cannot stop an act that is under way; so acts are small,
//! or the resource checks the epoch.
//!
//! # Dropping
//!
//! A lease that is dropped is over at once and resigned in the background, however long it takes
//! to reach the cluster while the session lives; a session whose last
//! handle (its leases are handles, too) is dropped is closed in the background. Both are a courtesy
//! to those who wait: without them the leases run out by themselves. To know that it was done, call
//! [`Lease::resign`] and [`Session::close`].

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use regent_core::id::{ElectionName, Epoch, Locality, Nonce, SessionId};
use regent_core::lease::holder::{HolderSession, Standing, VoidReason};
use regent_core::lease::{HolderClock, Rules};
use regent_core::time::Reading;
use tokio::sync::oneshot;

use super::keeper::Kept;
use super::resign::Resignation;
use super::seat::{Seat, Seats};
use super::{CallError, CallErrorKind, Client};
use crate::convert::common::locality_out;
use crate::convert::election::{Campaigned, FENCE_BUDGET_MS, campaigned};
use crate::pb::v1;

/// Somebody who waits looks again at least this often, even if nothing was announced: timers stop
/// in a suspend.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// One who waits in a queue asks for its place this often, should an announcement have gone lost.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// What a session is to be.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// How long the cluster waits without a renewal. Refused when C6 does not allow it; the
    /// smallest allowed one is in `status`.
    pub ttl: Duration,
    /// How often to renew; `None`: `min(500 ms, ttl/10)`.
    pub renew_interval: Option<Duration>,
    /// How long this client needs to stop acting. A lease is over this long before its time.
    pub fence_budget: Duration,
    /// For people: host and program.
    pub label: String,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(10),
            renew_interval: None,
            fence_budget: Duration::from_millis(FENCE_BUDGET_MS),
            label: String::new(),
        }
    }
}

/// How to campaign.
#[derive(Clone, Debug, Default)]
pub struct CampaignOptions {
    /// Higher goes first.
    pub priority: i32,
    /// Where this client is.
    pub locality: Locality,
    /// Give up after this; `None`: wait as long as it takes.
    pub wait: Option<Duration>,
}

/// Why there is no lease, or not any more.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LeaseError {
    /// The cluster did not do it.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The session is over, and everything it held with it: open a new one.
    #[error("the session is over: {}", void_text(*.0))]
    SessionOver(VoidReason),
    /// The lease is over.
    #[error("the lease of {election} under epoch {epoch} is over")]
    Over {
        /// Which election.
        election: ElectionName,
        /// The epoch that is over.
        epoch: Epoch,
    },
    /// Another campaign or lease of the same session has this election.
    #[error("this session already campaigns in or leads {0}")]
    SeatTaken(ElectionName),
    /// Others led for as long as this client wanted to wait.
    #[error("{election} was not won within {} ms", waited.as_millis())]
    NotWon {
        /// Which election.
        election: ElectionName,
        /// How long it waited.
        waited: Duration,
    },
}

fn void_text(reason: VoidReason) -> &'static str {
    match reason {
        VoidReason::SessionGone => "the cluster says that it is not open",
        VoidReason::NonceStale => "another start of this client owns it",
        VoidReason::ClockChanged => "this machine's clock changed",
        VoidReason::IncarnationChanged => "the cluster was restored",
        VoidReason::ClockDiffers => "this machine's clock differs from the cluster's",
        VoidReason::Closed => "it was closed",
    }
}

/// An open session. Clones are handles on the same one.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    kept: Arc<Kept>,
    session: SessionId,
    nonce: Nonce,
    seats: Seats,
    closed: AtomicBool,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("id", &self.inner.session).finish_non_exhaustive()
    }
}

impl Session {
    /// Opens a session and renews it from now on.
    ///
    /// # Errors
    /// [`CallError`]; a ttl that is too short is refused with the smallest one that is not.
    pub async fn open(client: &Client, options: SessionOptions) -> Result<Self, CallError> {
        // Random per session: a restarted client must never be taken for the one before.
        let nonce = Nonce(rand::random_range(1..=u64::MAX));
        let ask = v1::OpenSessionRequest {
            request: None,
            ttl_ms: millis(options.ttl),
            renew_interval_ms: options.renew_interval.map_or(0, millis),
            fence_budget_ms: millis(options.fence_budget),
            nonce: nonce.0,
            label: options.label,
        };
        let opened = client.open_session(&ask).await?;
        let session = SessionId(opened.session);
        let rules = Rules { rho_ppm: opened.rho_ppm.max(Rules::LAW.rho_ppm), ..Rules::LAW };
        let of = HolderSession {
            session,
            nonce,
            incarnation: opened.stamp.map_or(0, |stamp| stamp.incarnation),
            ttl_ms: opened.ttl_ms,
            renew_interval_ms: opened.renew_interval_ms,
            fence_budget_ms: opened.fence_budget_ms,
        };
        let kept = Arc::new(Kept::new(HolderClock::new(of, rules)));
        client.keeper().keep(Arc::clone(&kept));
        let inner = Inner {
            client: client.clone(),
            kept,
            session,
            nonce,
            seats: Seats::default(),
            closed: AtomicBool::new(false),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Its id.
    pub fn id(&self) -> SessionId {
        self.inner.session
    }

    pub(super) fn kept(&self) -> &Kept {
        &self.inner.kept
    }

    pub(super) fn now(&self) -> Reading {
        self.inner.now()
    }

    /// Renews sooner than planned.
    pub(super) fn hurry(&self) {
        self.inner.client.keeper().hurry(self.inner.session);
    }

    /// Why it is over, if it is.
    pub fn over(&self) -> Option<VoidReason> {
        self.inner.kept.clock().void_reason()
    }

    /// Whether a renewal was acknowledged so recently that leases of this session may be acted on.
    pub fn is_live(&self) -> bool {
        let now = self.inner.now();
        let clock = self.inner.kept.clock();
        clock.valid_until().is_some_and(|until| before(now, until))
    }

    /// Asks for the leadership of `election` and waits until it is granted *and* a renewal that
    /// names the grant is acknowledged (C8). A call that is dropped half-way leaves the queue in
    /// the background.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub async fn campaign(
        &self,
        election: &ElectionName,
        value: &[u8],
        options: CampaignOptions,
    ) -> Result<Lease, LeaseError> {
        let Some(seat) = self.inner.seats.take(election) else {
            return Err(LeaseError::SeatTaken(election.clone()));
        };
        let mut place = Place::new(Arc::clone(&self.inner), election.clone(), seat);
        let win = self.win(&place, value, &options);
        let won = match options.wait {
            None => win.await,
            Some(wait) => match tokio::time::timeout(wait, win).await {
                Ok(won) => won,
                Err(_) => Err(LeaseError::NotWon { election: election.clone(), waited: wait }),
            },
        };
        place.epoch = Some(won?);
        Ok(Lease { place })
    }

    async fn win(
        &self,
        place: &Place,
        value: &[u8],
        options: &CampaignOptions,
    ) -> Result<Epoch, LeaseError> {
        let inner = &self.inner;
        let bid = v1::CampaignRequest {
            request: None,
            election: place.election.to_string(),
            session: inner.session.0,
            nonce: inner.nonce.0,
            priority: options.priority,
            locality: Some(locality_out(&options.locality)),
            value: bytes::Bytes::copy_from_slice(value),
        };
        let mut confirmed = None;
        loop {
            let (mut happened, known) = (inner.kept.subscribe(), inner.kept.grant());
            if let Some(reason) = self.over() {
                return Err(LeaseError::SessionOver(reason));
            }
            let answer = {
                let mut lane = place.seat.lane.lock().await;
                inner.client.campaign(lane.next(), &bid).await
            };
            match answer.map(|answer| campaigned(&answer)) {
                // Granted before the renewal that confirmed it, and still granted after: so it was
                // not taken back as unused in between (C8). From here on only the end of the
                // session or a resignation frees it.
                Ok(Campaigned::Granted(epoch)) if confirmed == Some(epoch) => return Ok(epoch),
                Ok(Campaigned::Granted(epoch)) => {
                    inner.kept.clock().granted(epoch);
                    inner.client.keeper().hurry(inner.session);
                    confirmed = Some(epoch);
                    if !inner.confirmed(epoch).await {
                        // It was given up before, or ran out before it began: the next one.
                        confirmed = None;
                        place.resign(epoch).await?;
                    }
                }
                Ok(Campaigned::Queued(_)) => {
                    if let Some(lost) = confirmed.take() {
                        inner.kept.clock().give_up(lost);
                    }
                    let granted = async {
                        while happened.changed().await.is_ok() {
                            let over = inner.kept.clock().void_reason().is_some();
                            if over || inner.kept.grant() > known {
                                return;
                            }
                        }
                    };
                    let _ = tokio::time::timeout(ASK_AGAIN, granted).await;
                }
                // Nobody answers at the moment. The call itself has paused between its attempts.
                Err(error) if error.is_transient() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Ends the session: all its leases are over at once and go to the next.
    ///
    /// # Errors
    /// [`CallError`]: the cluster may not know yet; the leases are over here all the same.
    pub async fn close(self) -> Result<(), CallError> {
        self.inner.end();
        self.inner.client.close_session(self.inner.session, self.inner.nonce).await.map(|_| ())
    }

    /// Renews it no more and does not close it either: it lapses in its time, unless another one is
    /// bound in its place before. A lease that is closed proves less than one that lapsed.
    pub fn abandon(&self) {
        self.inner.end();
    }
}

impl Inner {
    fn now(&self) -> Reading {
        self.client.inner.clock.now()
    }

    fn standing(&self, epoch: Epoch) -> Standing {
        let mut clock = self.kept.clock();
        // Read while the lock is held: nobody's later reading can have been judged before.
        clock.standing(self.now(), epoch)
    }

    /// Waits until a renewal that names `epoch` is acknowledged; false when it is over instead.
    async fn confirmed(&self, epoch: Epoch) -> bool {
        let mut happened = self.kept.subscribe();
        loop {
            match self.standing(epoch) {
                Standing::Held => return true,
                Standing::Over => return false,
                Standing::Unconfirmed => {
                    let _ = tokio::time::timeout(LOOK_AGAIN, happened.changed()).await;
                }
            }
        }
    }

    /// Nothing of this session is held from here on. Returns whether it was open.
    fn end(&self) -> bool {
        let was_open = !self.closed.swap(true, Ordering::AcqRel);
        self.kept.clock().void(VoidReason::Closed);
        self.kept.happen();
        if was_open && let Some(keeper) = self.client.inner.keeper.get() {
            keeper.forget(self.session);
        }
        was_open
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let gone = self.kept.is_gone();
        if self.end() && !gone {
            let (client, session, nonce) = (self.client.clone(), self.session, self.nonce);
            in_background(async move {
                if let Err(error) = client.close_session(session, nonce).await {
                    tracing::debug!(%session, %error, "a dropped session was not closed");
                }
            });
        }
    }
}

/// A place in an election, waiting or leading. Given up when dropped.
struct Place {
    inner: Arc<Inner>,
    election: ElectionName,
    seat: Arc<Seat>,
    /// The epoch it leads under; `None` while it waits.
    epoch: Option<Epoch>,
    given_up: AtomicBool,
}

impl Place {
    fn new(inner: Arc<Inner>, election: ElectionName, seat: Arc<Seat>) -> Self {
        Self { inner, election, seat, epoch: None, given_up: AtomicBool::new(false) }
    }

    /// Gives back a grant that cannot be acted on, on the seat's lane. The place stays taken.
    async fn resign(&self, epoch: Epoch) -> Result<(), CallError> {
        let inner = &self.inner;
        let (session, nonce) = (inner.session, inner.nonce);
        let mut lane = self.seat.lane.lock().await;
        let id = lane.next();
        let told = inner.client.resign(id, &self.election, session, nonce, Some(epoch)).await;
        match told {
            // Another grant, or none, is in force: the next campaign tells which.
            Err(error) if error.kind() == CallErrorKind::Refused => Ok(()),
            told => told.map(|_| ()),
        }
    }

    /// Over from here on. The first to say so gets the work of telling the cluster.
    fn give_up(&self) -> Option<Resignation> {
        if self.given_up.swap(true, Ordering::AcqRel) {
            return None;
        }
        let inner = &self.inner;
        if let Some(epoch) = self.epoch {
            inner.kept.clock().give_up(epoch);
            inner.kept.happen();
        }
        Some(Resignation {
            client: inner.client.clone(),
            kept: Arc::clone(&inner.kept),
            session: inner.session,
            nonce: inner.nonce,
            election: self.election.clone(),
            epoch: self.epoch,
            generation: self.seat.free(),
            seat: Arc::clone(&self.seat),
        })
    }

    fn give_up_in_background(&self) {
        let Some(work) = self.give_up() else { return };
        in_background(work.run(oneshot::channel().0));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.give_up_in_background();
    }
}

/// Outside a runtime there is nobody to do it; the leases run out then.
fn in_background(work: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(work);
    }
}

/// The right to act for an election.
pub struct Lease {
    place: Place,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease")
            .field("election", &self.place.election)
            .field("epoch", &self.epoch())
            .finish_non_exhaustive()
    }
}

impl Lease {
    /// Which election.
    pub fn election(&self) -> &ElectionName {
        &self.place.election
    }

    /// The fencing token: give it to the resource with each act.
    pub fn epoch(&self) -> Epoch {
        self.place.epoch.unwrap_or(Epoch::NONE)
    }

    /// Whether acting is allowed now. Costs two readings of the clock and a lock that is held for
    /// nanoseconds. Once false it stays false.
    pub fn is_held(&self) -> bool {
        self.place.inner.standing(self.epoch()) == Standing::Held
    }

    /// How long acting is allowed if nothing more is heard; zero when it is not.
    pub fn held_for(&self) -> Duration {
        if !self.is_held() {
            return Duration::ZERO;
        }
        let inner = &self.place.inner;
        let until = inner.kept.clock().valid_until();
        until.map_or(Duration::ZERO, |until| between(inner.now(), until))
    }

    /// Ends when the lease is over, for whatever reason. The cluster is then told, so that a
    /// session that lives on does not keep the election from others.
    pub async fn lost(&self) {
        let inner = &self.place.inner;
        let mut happened = inner.kept.subscribe();
        while inner.standing(self.epoch()) != Standing::Over {
            let until = inner.kept.clock().valid_until();
            let left = until.map_or(Duration::ZERO, |until| between(inner.now(), until));
            // A little later than the deadline, never in a hot loop before it.
            let wait = (left + Duration::from_millis(1)).min(LOOK_AGAIN);
            let _ = tokio::time::timeout(wait, happened.changed()).await;
        }
        self.place.give_up_in_background();
    }

    /// Publishes `value` under this epoch.
    ///
    /// # Errors
    /// [`LeaseError::Over`] without asking when the lease is over; else what the cluster said.
    pub async fn proclaim(&self, value: &[u8]) -> Result<(), LeaseError> {
        let (election, epoch) = (&self.place.election, self.epoch());
        if !self.is_held() {
            return Err(LeaseError::Over { election: election.clone(), epoch });
        }
        let inner = &self.place.inner;
        inner.client.proclaim(election, inner.session, epoch, value).await?;
        Ok(())
    }

    /// Gives the lease up. It is over here before the cluster hears of it.
    ///
    /// # Errors
    /// [`CallError`]: the cluster may not know yet. If nobody could be reached, it is told again in
    /// the background for as long as the session lives.
    pub async fn resign(self) -> Result<(), CallError> {
        let Some(work) = self.place.give_up() else { return Ok(()) };
        let (first, told) = oneshot::channel();
        // In its own task: a caller that stops waiting does not stop the resignation.
        tokio::spawn(work.run(first));
        told.await.unwrap_or(Ok(()))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Whether `now` is before `until` on both clocks.
fn before(now: Reading, until: Reading) -> bool {
    now.boottime_us < until.boottime_us && now.raw_us < until.raw_us
}

/// Time from `now` to `until` on the clock that gets there first.
fn between(now: Reading, until: Reading) -> Duration {
    let boot = until.boottime_us.saturating_sub(now.boottime_us);
    let raw = until.raw_us.saturating_sub(now.raw_us);
    Duration::from_micros(boot.min(raw))
}
