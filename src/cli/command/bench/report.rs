//! What a measurement says: one JSON object, or a few lines.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::command::Context;
use crate::render::table::Table;

/// Latencies in microseconds.
pub type Latencies = Histogram<u64>;

/// Longest latency told apart: ten minutes. The bound is fixed because a saturating record does not
/// make a histogram grow; it silently writes down the largest value it can hold.
const LONGEST_US: u64 = 600_000_000;

/// An empty histogram: three significant digits, up to ten minutes.
pub fn latencies() -> Latencies {
    Histogram::new_with_bounds(1, LONGEST_US, 3).expect("the bounds are in order")
}

/// Adds one latency.
pub fn note(latencies: &mut Latencies, took: Duration) {
    latencies.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
}

/// Microseconds as milliseconds with three decimals.
pub fn ms(us: u64) -> f64 {
    us as f64 / 1_000.0
}

/// What was measured.
pub struct Report {
    /// Which measurement.
    pub name: &'static str,
    /// Operations per second.
    pub ops_s: f64,
    /// Their latencies.
    pub latencies: Latencies,
    /// What could not be done.
    pub errors: u64,
    /// One of the errors, for people.
    pub sample_error: Option<String>,
    /// What only this measurement has.
    pub extra: Map<String, Value>,
}

impl Report {
    /// Prints it.
    pub fn print(&self, context: &Context) {
        let at = |quantile: f64| ms(self.latencies.value_at_quantile(quantile));
        let mut object = Map::new();
        object.insert("bench".into(), json!(self.name));
        object.insert("ops_s".into(), json!((self.ops_s * 10.0).round() / 10.0));
        for (name, quantile) in
            [("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99), ("max_ms", 1.0)]
        {
            object.insert(name.into(), json!(at(quantile)));
        }
        object.insert("errors".into(), json!(self.errors));
        if let Some(error) = &self.sample_error {
            object.insert("sample_error".into(), json!(error));
        }
        object.extend(self.extra.clone());
        context.out.value(
            || Value::Object(object.clone()),
            || {
                let mut table = Table::pairs();
                for (name, value) in &object {
                    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    table.pair(name, text);
                }
                table.to_string()
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_of_a_minute_is_kept_as_a_minute() {
        let mut latencies = latencies();
        note(&mut latencies, Duration::from_secs(60));
        assert!(latencies.equivalent(latencies.max(), 60_000_000));
    }
}
