//! Keeps many sessions alive over a few streams, in batches: what a sidecar of a host with many
//! services does, and what 100,000 of them look like to the cluster.
//!
//! No client library here: it keeps each lease by the book, and costs accordingly. This one only
//! counts: what was extended, what had to be sent again, what was lost.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use regent_rpc::pb::v1;
use regent_rpc::pb::v1::election_service_client::ElectionServiceClient;
use regent_rpc::pb::v1::renewed::Outcome as Renewal;
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::report::{Latencies, latencies, note};

/// Renewals in one message; the nodes take 1,000.
const MOST_PER_MESSAGE: usize = 1_000;
/// How often a stream looks for sessions that are due: as often as the cluster commits.
const TICK: Duration = Duration::from_millis(20);
/// Adding up histograms costs thousands of additions: twice a second is enough.
const HAND_OVER_TICKS: u32 = 25;
/// Before a broken stream is opened again, at another connection.
const PAUSE: Duration = Duration::from_millis(50);

/// One session to be kept.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// Its id.
    pub session: u64,
    /// Its nonce.
    pub nonce: u64,
    /// Highest grant it holds; 0: none.
    pub grant: u64,
    /// Its ttl, in milliseconds.
    pub ttl_ms: u64,
}

/// What happened.
#[derive(Default)]
pub struct Counts {
    /// Renewals acknowledged.
    pub extended: AtomicU64,
    /// Renewals to be sent again (too old, half-dead link).
    pub resent: AtomicU64,
    /// Sessions that are gone.
    pub lost: AtomicU64,
    /// Sessions whose acknowledgement came later than their ttl after the one before.
    pub overdue: AtomicU64,
    /// Streams that broke.
    pub broken: AtomicU64,
}

/// Streams that keep sessions alive until dropped.
pub struct Renewer {
    /// What happened so far.
    pub counts: Arc<Counts>,
    latencies: Arc<Mutex<Latencies>>,
    inputs: Vec<mpsc::UnboundedSender<Kept>>,
    next: AtomicU64,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Renewer {
    /// Starts `streams` streams over these connections.
    pub fn start(channels: &[Channel], streams: usize, interval: Duration) -> Self {
        let counts = Arc::new(Counts::default());
        let latencies = Arc::new(Mutex::new(latencies()));
        let mut inputs = Vec::new();
        let mut tasks = Vec::new();
        for at in 0..streams.max(1) {
            let (input, added) = mpsc::unbounded_channel();
            let stream = Stream {
                channels: channels.to_vec(),
                at,
                interval,
                counts: Arc::clone(&counts),
                latencies: Arc::clone(&latencies),
                own: self::latencies(),
                sessions: Vec::new(),
                places: HashMap::new(),
                queue: BinaryHeap::new(),
                ticks: 0,
            };
            inputs.push(input);
            tasks.push(tokio::spawn(stream.run(added)));
        }
        Self { counts, latencies, inputs, next: AtomicU64::new(0), tasks }
    }

    /// Keeps one more session alive from now on.
    pub fn keep(&self, kept: Kept) {
        let at = self.next.fetch_add(1, Ordering::Relaxed) as usize % self.inputs.len();
        // A stream ends only with the whole renewer.
        let _ = self.inputs[at].send(kept);
    }

    /// Latencies since the last call, from sending to acknowledgement.
    pub async fn take_latencies(&self) -> Latencies {
        std::mem::replace(&mut *self.latencies.lock().await, latencies())
    }
}

impl Drop for Renewer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

struct Slot {
    kept: Kept,
    number: u64,
    acked: u64,
    /// When `number` was sent first.
    sent: Instant,
    /// When the newest acknowledged one was sent: the lease counts from there.
    lease_from: Instant,
    gone: bool,
}

struct Stream {
    channels: Vec<Channel>,
    at: usize,
    interval: Duration,
    counts: Arc<Counts>,
    latencies: Arc<Mutex<Latencies>>,
    own: Latencies,
    sessions: Vec<Slot>,
    places: HashMap<u64, usize>,
    /// Which session is to be renewed when.
    queue: BinaryHeap<Reverse<(Instant, usize)>>,
    ticks: u32,
}

impl Stream {
    async fn run(mut self, mut added: mpsc::UnboundedReceiver<Kept>) {
        loop {
            let channel = self.channels[self.at % self.channels.len()].clone();
            self.serve(channel, &mut added).await;
            self.counts.broken.fetch_add(1, Ordering::Relaxed);
            self.at += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// One stream, until it breaks.
    async fn serve(&mut self, channel: Channel, added: &mut mpsc::UnboundedReceiver<Kept>) {
        // Few: a stream that does not take more is slow, and old renewals are of no use (C5).
        let (send, requests) = mpsc::channel(8);
        let mut client = ElectionServiceClient::new(channel);
        let opened = client.keep_alive(ReceiverStream::new(requests)).await;
        let Ok(response) = opened else { return };
        let mut answers = response.into_inner();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => self.answered(&answer),
                    Ok(None) | Err(_) => return,
                },
                Some(kept) = added.recv() => self.add(kept),
                _ = tick.tick() => {
                    while let Some(message) = self.due() {
                        if send.try_send(message).is_err() {
                            break;
                        }
                    }
                    self.hand_over();
                }
            }
        }
    }

    fn add(&mut self, kept: Kept) {
        self.places.insert(kept.session, self.sessions.len());
        // The first renewals are spread over the interval, or all would always come at once.
        let spread = self.interval.mul_f64(rand::random_range(0.0..1.0));
        let now = Instant::now();
        let sent = now.checked_sub(spread).unwrap_or(now);
        // One whose grant nobody has named yet is in a hurry (C8).
        let due = if kept.grant > 0 { now } else { sent + self.interval };
        self.queue.push(Reverse((due, self.sessions.len())));
        self.sessions.push(Slot { kept, number: 0, acked: 0, sent, lease_from: now, gone: false });
    }

    /// The session to renew next, if its time has come.
    fn next_due(&mut self, now: Instant) -> Option<usize> {
        let Reverse((due, at)) = *self.queue.peek()?;
        (due <= now).then(|| {
            self.queue.pop();
            at
        })
    }

    /// The next message: sessions whose time has come, the most urgent first.
    fn due(&mut self) -> Option<v1::KeepAliveRequest> {
        let now = Instant::now();
        let mut renewals = Vec::new();
        while renewals.len() < MOST_PER_MESSAGE {
            let Some(at) = self.next_due(now) else {
                break;
            };
            let slot = &mut self.sessions[at];
            if slot.gone {
                continue;
            }
            slot.number += 1;
            slot.sent = now;
            self.queue.push(Reverse((now + self.interval, at)));
            renewals.push(v1::Renewal {
                session: slot.kept.session,
                nonce: slot.kept.nonce,
                number: slot.number,
                acked: slot.acked,
                known_grant: slot.kept.grant,
                report: None,
            });
        }
        (!renewals.is_empty()).then_some(v1::KeepAliveRequest { renewals, probe: 0 })
    }

    fn answered(&mut self, answer: &v1::KeepAliveResponse) {
        let now = Instant::now();
        for renewed in &answer.renewed {
            let Some(slot) =
                self.places.get(&renewed.session).and_then(|at| self.sessions.get_mut(*at))
            else {
                continue;
            };
            match renewed.outcome() {
                Renewal::Extended => {
                    self.counts.extended.fetch_add(1, Ordering::Relaxed);
                    slot.acked = slot.acked.max(renewed.number);
                    slot.kept.grant = slot.kept.grant.max(renewed.grant);
                    if renewed.number == slot.number {
                        note(&mut self.own, now.duration_since(slot.sent));
                        let ttl = Duration::from_millis(slot.kept.ttl_ms);
                        if now.duration_since(slot.lease_from) > ttl {
                            self.counts.overdue.fetch_add(1, Ordering::Relaxed);
                        }
                        slot.lease_from = slot.sent;
                    }
                }
                Renewal::SessionGone | Renewal::NonceStale => {
                    if !slot.gone {
                        slot.gone = true;
                        self.counts.lost.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Renewal::Resend | Renewal::NumberStale | Renewal::Unspecified => {
                    self.counts.resent.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Hands latencies to whoever prints them, now and then, without ever waiting for him.
    fn hand_over(&mut self) {
        self.ticks = self.ticks.wrapping_add(1);
        if !self.ticks.is_multiple_of(HAND_OVER_TICKS) || self.own.is_empty() {
            return;
        }
        if let Ok(mut all) = self.latencies.try_lock() {
            all.add(&self.own).expect("both histograms grow as needed");
            self.own.reset();
        }
    }
}
