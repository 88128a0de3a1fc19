//! What metrics are made of: counters, gauges, distributions, and labels from closed sets.
//!
//! Labels are closed sets of the code, never names that clients choose: a hostile client must not
//! be able to grow the registry.

use std::fmt::{self, Debug};
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::RwLock;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::counter::Counter as RawCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge as RawGauge;
use prometheus_client::metrics::histogram::Histogram as RawHistogram;
use prometheus_client::metrics::{MetricType, TypedMetric};
use regent_core::reply::Reply;
use regent_raft::store::figures::{FLUSH_BOUNDS_US, LogFigures};
use regent_rpc::convert::status::{Refused as Details, rule};
use tonic::{Code, Status};

/// A number that only rises.
pub type Counter = RawCounter<u64, AtomicU64>;
/// A whole number that moves both ways.
pub type Gauge = RawGauge<i64, AtomicI64>;
/// A fractional number that moves both ways.
pub type GaugeF = RawGauge<f64, AtomicU64>;
/// A distribution.
pub type Histogram = RawHistogram;

/// One label with values from a closed set of the code.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Kind {
    /// Which of the set.
    pub kind: &'static str,
}

/// Labels of a refused call.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Refused {
    /// The caller's role.
    pub role: &'static str,
    /// What it tried.
    pub verb: &'static str,
}

/// Labels of the build.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Build {
    /// Crate version.
    pub version: &'static str,
}

/// Makes one metric; the types that need buckets differ from those that need nothing.
pub(super) trait Declared {
    /// As the table names it.
    const KIND: &'static str;
    /// The metric at zero.
    fn declared() -> Self;
}

impl Declared for Counter {
    const KIND: &'static str = "counter";
    fn declared() -> Self {
        Self::default()
    }
}
impl Declared for Gauge {
    const KIND: &'static str = "gauge";
    fn declared() -> Self {
        Self::default()
    }
}
impl Declared for GaugeF {
    const KIND: &'static str = "gauge";
    fn declared() -> Self {
        Self::default()
    }
}
impl Declared for Histogram {
    const KIND: &'static str = "histogram";
    fn declared() -> Self {
        // The classes of flushes serve commits and round trips too.
        Self::new(FLUSH_BOUNDS_US.map(seconds))
    }
}
impl<L: Clone + Eq + std::hash::Hash> Declared for Family<L, Counter> {
    const KIND: &'static str = "counter";
    fn declared() -> Self {
        Self::default()
    }
}
impl<L: Clone + Eq + std::hash::Hash> Declared for Family<L, Gauge> {
    const KIND: &'static str = "gauge";
    fn declared() -> Self {
        Self::default()
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1_000_000.0
}

/// The values of a label, as an enum.
pub trait Label: Copy + 'static {
    /// All of them, in the order of [`Label::place`].
    const ALL: &'static [&'static str];
    /// Which of [`Label::ALL`].
    fn place(self) -> usize;
}

/// What became of a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proposed {
    /// Applied, and it did what it says.
    Done,
    /// Applied, and the state machine said no.
    Rejected,
    /// Nobody led, or no quorum answered who did: it was not done.
    NoLeader,
    /// No answer in time: it may still be done.
    Unknown,
    /// Too much was under way: it was not done.
    Overloaded,
    /// The leader's disk does not take writes.
    Storage,
    /// Anything else; the log says what.
    Failed,
}

impl Label for Proposed {
    const ALL: &'static [&'static str] =
        &["done", "rejected", "no_leader", "unknown", "overloaded", "storage", "failed"];
    fn place(self) -> usize {
        self as usize
    }
}

impl Proposed {
    /// What `outcome` was.
    pub fn of(outcome: &Result<Reply, Status>) -> Self {
        let status = match outcome {
            Ok(Reply::Rejected(_)) => return Self::Rejected,
            Ok(_) => return Self::Done,
            Err(status) => status,
        };
        let details = Details::from_status(status);
        match details.as_ref().map(|details| details.rule.as_str()) {
            Some(rule::NOT_LEADER) => Self::NoLeader,
            Some(rule::OUTCOME_UNKNOWN) => Self::Unknown,
            Some(rule::OVERLOADED) => Self::Overloaded,
            Some(rule::STORAGE) => Self::Storage,
            _ => Self::Failed,
        }
    }

    /// Whether it went through the log.
    pub fn is_applied(self) -> bool {
        matches!(self, Self::Done | Self::Rejected)
    }
}

/// How a call was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// As asked; of a stream: it was begun.
    Ok,
    /// The caller was told no: wrong, too late, not allowed, too much.
    Refused,
    /// The node could not: no leader, no answer in time, a bug.
    Error,
    /// The caller went away before there was an answer.
    Abandoned,
}

impl Label for Answered {
    const ALL: &'static [&'static str] = &["ok", "refused", "error", "abandoned"];
    fn place(self) -> usize {
        self as usize
    }
}

impl From<Code> for Answered {
    fn from(code: Code) -> Self {
        match code {
            Code::Ok => Self::Ok,
            Code::Unknown
            | Code::DeadlineExceeded
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => Self::Error,
            _ => Self::Refused,
        }
    }
}

/// Counters by the values of one label, looked up once: counting is one addition.
#[derive(Debug)]
pub struct Outcomes<L> {
    family: Family<Kind, Counter>,
    counters: Arc<[Counter]>,
    label: PhantomData<fn(L)>,
}

impl<L> Clone for Outcomes<L> {
    fn clone(&self) -> Self {
        let (family, counters) = (self.family.clone(), self.counters.clone());
        Self { family, counters, label: PhantomData }
    }
}

impl<L: Label> Outcomes<L> {
    /// Counts one.
    pub fn inc(&self, label: L) {
        self.counters[label.place()].inc();
    }
}

impl<L: Label> Declared for Outcomes<L> {
    const KIND: &'static str = "counter";
    fn declared() -> Self {
        let family = Family::<Kind, Counter>::default();
        let counter = |kind: &&'static str| family.get_or_create_owned(&Kind { kind });
        let counters = L::ALL.iter().map(counter).collect();
        Self { family, counters, label: PhantomData }
    }
}

impl<L: Label + Debug> EncodeMetric for Outcomes<L> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        self.family.encode(encoder)
    }
    fn metric_type(&self) -> MetricType {
        Counter::TYPE
    }
}

/// A distribution of batch sizes.
#[derive(Clone, Debug)]
pub struct RenewalHistogram(Histogram);

impl RenewalHistogram {
    /// Counts one batch of `count` renewals.
    pub fn observe(&self, count: usize) {
        self.0.observe(u32::try_from(count).map_or(f64::from(u32::MAX), f64::from));
    }
}

impl Declared for RenewalHistogram {
    const KIND: &'static str = "histogram";
    fn declared() -> Self {
        // 1 to 16,384 renewals, by four: beyond an entry's bound of 10,000 there is nothing.
        Self(Histogram::new((0..8).map(|step| f64::from(1_u32 << (2 * step)))))
    }
}

impl EncodeMetric for RenewalHistogram {
    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        self.0.encode(encoder)
    }
    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// The log's own distribution of flush times, shown as it was read last: the log counts by itself,
/// and nothing is observed twice.
#[derive(Clone, Debug)]
pub struct FlushHistogram(Arc<RwLock<LogFigures>>);

impl FlushHistogram {
    /// Shows `figures` from now on.
    pub fn show(&self, figures: LogFigures) {
        *self.0.write() = figures;
    }
}

impl Declared for FlushHistogram {
    const KIND: &'static str = "histogram";
    fn declared() -> Self {
        Self(Arc::default())
    }
}

impl EncodeMetric for FlushHistogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let figures = *self.0.read();
        let bounds = FLUSH_BOUNDS_US.into_iter().map(seconds).chain([f64::INFINITY]);
        let classes: Vec<(f64, u64)> = bounds.zip(figures.flushes).collect();
        let (sum, count) = (seconds(figures.flush_us), figures.flush_count());
        encoder.encode_histogram::<NoLabelSet>(sum, count, &classes, None)
    }
    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// Shows a number that somebody else counts.
pub(crate) fn show(counter: &Counter, value: u64) {
    counter.inner().store(value, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use regent_rpc::convert::status;

    #[test]
    fn each_outcome_of_a_proposal_has_its_name() {
        let wait = Duration::from_millis(1);
        let of = |status: Status| Proposed::ALL[Proposed::of(&Err(status)).place()];
        assert_eq!(of(status::not_leader(None, wait)), "no_leader");
        assert_eq!(of(status::outcome_unknown("?")), "unknown");
        assert_eq!(of(status::overloaded("full", wait)), "overloaded");
        assert_eq!(of(status::unavailable(rule::STORAGE, "full", wait)), "storage");
        assert_eq!(of(Status::internal("a bug")), "failed");
    }

    #[test]
    fn a_call_that_the_node_could_not_answer_is_an_error_and_one_it_would_not_is_refused() {
        assert_eq!(Answered::from(Code::Ok), Answered::Ok);
        for code in [Code::PermissionDenied, Code::NotFound, Code::ResourceExhausted] {
            assert_eq!(Answered::from(code), Answered::Refused);
        }
        for code in [Code::Unavailable, Code::Internal, Code::DeadlineExceeded] {
            assert_eq!(Answered::from(code), Answered::Error);
        }
    }
}
