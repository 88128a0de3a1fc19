//! What all parts of one simulated run share: its randomness, its trace, the state of the network.
//!
//! Nothing here, and nothing that uses it, may draw from anything but the world's generator: a run
//! is a function of its seed, or a failing seed could not be replayed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use regent_core::time::Reading;
use regent_raft::store::sim_disk::split_mix;
use tokio::time::Instant;

use super::check::Checker;
use super::client::Client;
use super::node::Handle;
use super::options::Options;

/// Somebody on the network: nodes count from 1, clients from 1001.
pub type Addr = u64;

/// The world of one run; clones share it.
#[derive(Clone)]
pub struct World(Arc<Shared>);

struct Shared {
    options: Options,
    started: Instant,
    within_a1: bool,
    inner: Mutex<Inner>,
    checker: Mutex<Checker>,
}

struct Inner {
    random: u64,
    hash: u64,
    events: u64,
    weather: Weather,
    running: BTreeMap<u64, Handle>,
    clients: BTreeMap<Addr, Client>,
    clocks: BTreeMap<Addr, i64>,
}

/// What the network does to messages.
#[derive(Clone, Debug, Default)]
pub struct Weather {
    /// Ordered pairs between which nothing gets through.
    pub blocked: BTreeSet<(Addr, Addr)>,
    /// Messages lost, in per mille.
    pub loss: u64,
    /// Messages delivered twice, in per mille.
    pub duplicates: u64,
    /// Longest usual way, in microseconds.
    pub latency_us: u64,
    /// Messages that take up to 50 times as long, in per mille.
    pub stragglers: u64,
}

impl Weather {
    /// A good day.
    pub fn fair() -> Self {
        Self { latency_us: 2_000, ..Self::default() }
    }
}

/// What became of a question.
pub enum Answer<T> {
    /// It was answered in time.
    Got(T),
    /// Nobody listens there.
    Refused,
    /// No answer in time.
    Lost,
}

impl<T> Answer<T> {
    /// The answer, if there is one.
    pub fn got(self) -> Option<T> {
        match self {
            Self::Got(value) => Some(value),
            Self::Refused | Self::Lost => None,
        }
    }
}

impl World {
    /// A world at virtual time zero.
    pub fn new(seed: u64, options: Options) -> Self {
        let mut random = seed ^ 0x5eed_5eed_5eed_5eed;
        split_mix(&mut random);
        Self(Arc::new(Shared {
            started: Instant::now(),
            within_a1: !seed.is_multiple_of(4),
            checker: Mutex::new(Checker::new(&options)),
            options,
            inner: Mutex::new(Inner {
                random,
                hash: 0xcbf2_9ce4_8422_2325,
                events: 0,
                weather: Weather::fair(),
                running: BTreeMap::new(),
                clients: BTreeMap::new(),
                clocks: BTreeMap::new(),
            }),
        }))
    }

    /// The run's options.
    pub fn options(&self) -> &Options {
        &self.0.options
    }

    /// Whether all clocks of this run keep PROTOCOL.md A1. In every fourth run they do
    /// not, and what rests on clocks is not promised (S5).
    pub fn within_a1(&self) -> bool {
        self.0.within_a1
    }

    /// The keeper of the invariants. Never hold it over an await.
    pub fn checker(&self) -> parking_lot::MutexGuard<'_, Checker> {
        self.0.checker.lock()
    }

    /// A number below `end`.
    pub fn below(&self, end: u64) -> u64 {
        split_mix(&mut self.0.inner.lock().random) % end.max(1)
    }

    /// A number from `low` to `high`.
    pub fn between(&self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True so many times in a thousand.
    pub fn chance(&self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// One of these.
    pub fn pick<T: Clone>(&self, from: &[T]) -> Option<T> {
        if from.is_empty() {
            None
        } else {
            Some(from[self.below(from.len() as u64) as usize].clone())
        }
    }

    /// A seed for something that draws by itself.
    pub fn seed(&self) -> u64 {
        split_mix(&mut self.0.inner.lock().random)
    }

    /// Virtual time since the start.
    pub fn elapsed(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// Real (virtual) time in microseconds; starts high so that slow clocks stay positive.
    fn real_us(&self) -> u64 {
        1_000_000_000 + self.elapsed().as_micros() as u64
    }

    /// How many parts per million the clock of `who` runs fast.
    pub fn set_clock(&self, who: Addr, ppm: i64) {
        self.0.inner.lock().clocks.insert(who, ppm);
    }

    /// What the clock of `who` shows.
    pub fn reading(&self, who: Addr) -> Reading {
        let ppm = self.0.inner.lock().clocks.get(&who).copied().unwrap_or(0);
        let real = i128::from(self.real_us());
        let shown = real + real * i128::from(ppm) / 1_000_000;
        Reading::at_us(shown as u64)
    }

    /// Adds to the trace: three numbers are hashed always, the text is only made when it is shown.
    pub fn trace(&self, a: u64, b: u64, c: u64, text: impl FnOnce() -> String) {
        let at = self.elapsed();
        let mut inner = self.0.inner.lock();
        inner.events += 1;
        for part in [at.as_nanos() as u64, a, b, c] {
            let mut state = inner.hash ^ part;
            inner.hash = split_mix(&mut state);
        }
        drop(inner);
        if self.0.options.trace {
            println!("{:>12.6} {}", at.as_secs_f64(), text());
        }
    }

    /// Adds a line to the trace.
    pub fn note(&self, text: String) {
        let sum = text.bytes().fold(7_u64, |sum, b| sum.wrapping_mul(31).wrapping_add(b.into()));
        self.trace(1, sum, 0, || text);
    }

    /// Something that must never be was seen. The first one counts.
    pub fn violation(&self, text: String) {
        let at = self.elapsed().as_secs_f64();
        self.note(format!("VIOLATION {text}"));
        self.checker().violated(format!("at {at:.6} s: {text}"));
    }

    /// Hash over the whole trace, and how many events are in it.
    pub fn trace_hash(&self) -> (u64, u64) {
        let inner = self.0.inner.lock();
        (inner.hash, inner.events)
    }

    /// Changes the weather.
    pub fn weather(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut self.0.inner.lock().weather);
    }

    /// Puts a node on the network, or takes it off.
    pub fn set_running(&self, id: u64, handle: Option<Handle>) {
        let mut inner = self.0.inner.lock();
        match handle {
            Some(handle) => inner.running.insert(id, handle),
            None => inner.running.remove(&id),
        };
    }

    /// A running node.
    pub fn running(&self, id: u64) -> Option<Handle> {
        self.0.inner.lock().running.get(&id).cloned()
    }

    /// All running nodes.
    pub fn nodes(&self) -> Vec<Handle> {
        self.0.inner.lock().running.values().cloned().collect()
    }

    /// Puts a client on the network, in place of its former self.
    pub fn set_client(&self, client: Client) {
        self.0.inner.lock().clients.insert(client.addr, client);
    }

    /// All clients, dead ones too.
    pub fn clients(&self) -> Vec<Client> {
        self.0.inner.lock().clients.values().cloned().collect()
    }

    /// The run is over: lets go of everybody, who all hold on to this world.
    pub fn close(&self) {
        let mut inner = self.0.inner.lock();
        let gone = (std::mem::take(&mut inner.running), std::mem::take(&mut inner.clients));
        drop(inner);
        drop(gone);
    }

    /// Whether a message would get through now.
    pub fn open(&self, from: Addr, to: Addr) -> bool {
        !self.0.inner.lock().weather.blocked.contains(&(from, to))
    }

    /// How long a message takes now.
    pub fn latency(&self) -> Duration {
        // Copied out, not cloned with its set of cuts: this is asked for every message.
        let (most, stragglers) = {
            let inner = self.0.inner.lock();
            (inner.weather.latency_us, inner.weather.stragglers)
        };
        let mut us = self.between(200, most.max(201));
        if self.chance(stragglers) {
            us *= self.between(2, 50);
        }
        Duration::from_micros(us)
    }

    /// Whether this message is lost, or delivered twice.
    pub fn fate(&self) -> (bool, bool) {
        let (loss, duplicates) = {
            let inner = self.0.inner.lock();
            (inner.weather.loss, inner.weather.duplicates)
        };
        (self.chance(loss), self.chance(duplicates))
    }

    /// Brings a message over; false when it got lost.
    pub async fn hop(&self, from: Addr, to: Addr) -> bool {
        let (lost, _) = self.fate();
        tokio::time::sleep(self.latency()).await;
        let arrived = !lost && self.open(from, to);
        self.trace(from, to, u64::from(arrived), || {
            format!("{from} > {to}{}", if arrived { "" } else { " lost" })
        });
        arrived
    }
}
