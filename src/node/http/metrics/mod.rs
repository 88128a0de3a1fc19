//! What a node counts and measures, as Prometheus scrapes it.
//!
//! `table` declares every metric, `types` is what they are made of. Whatever is written on the
//! way of a request costs an atomic addition: labels are looked up when the node starts.

mod table;
mod types;

pub use table::{MetricRow, Metrics, metric_table};
pub use types::{
    Answered, Build, Counter, FlushHistogram, Gauge, GaugeF, Histogram, Kind, Label, Outcomes,
    Proposed, Refused, RenewalHistogram,
};

pub(crate) use types::show;
