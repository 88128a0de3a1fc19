//! What happened when, in milliseconds since the beginning, and what was claimed.

use std::sync::Mutex;
use std::time::Instant;

use serde_json::{Value, json};

use crate::error::{CliError, Outcome};
use crate::render::Output;

/// Lines and claims, in order.
pub struct Timeline {
    out: Output,
    start: Instant,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    lines: Vec<Value>,
    claims: Vec<(&'static str, bool)>,
    report: Value,
}

impl Timeline {
    /// A timeline that begins now.
    pub fn new(out: Output) -> Self {
        Self { out, start: Instant::now(), kept: Mutex::default() }
    }

    /// Something happened now.
    pub fn say(&self, what: impl Into<String>) {
        self.at(Instant::now(), what);
    }

    /// Something happened then.
    pub fn at(&self, at: Instant, what: impl Into<String>) {
        let (what, ms) = (what.into(), self.ms(at));
        self.print(&format!("{ms:>6} ms  {what}"));
        self.kept().lines.push(json!({ "ms": ms, "what": what }));
    }

    /// The observer saw something.
    pub fn saw(&self, what: &str, detail: Value) {
        let ms = self.ms(Instant::now());
        self.print(&format!("{ms:>6} ms      observer: {what}"));
        self.kept().lines.push(json!({ "ms": ms, "observer": detail }));
    }

    /// Whether something is as it must be.
    pub fn claim(&self, what: &'static str, holds: bool) {
        let ms = self.ms(Instant::now());
        self.print(&format!("{ms:>6} ms  {} {what}", if holds { "✓" } else { "✗ NOT SO:" }));
        self.kept().claims.push((what, holds));
    }

    /// What it comes to: `text` for people, `value` for programs.
    pub fn report(&self, value: Value, text: &str) {
        self.print(text);
        self.kept().report = value;
    }

    /// Prints everything as one value, for programs.
    pub fn finish(&self) {
        if !self.out.is_json() {
            return;
        }
        let kept = self.kept();
        let claims: Vec<Value> = kept
            .claims
            .iter()
            .map(|(what, holds)| json!({ "claim": what, "holds": holds }))
            .collect();
        let value = json!({ "timeline": kept.lines, "report": kept.report, "claims": claims });
        self.out.value(|| value, String::new);
    }

    /// Whether all claims hold, and there were any.
    ///
    /// # Errors
    /// Names those that do not.
    pub fn verdict(&self) -> Outcome {
        let kept = self.kept();
        let broken: Vec<_> = kept.claims.iter().filter(|(_, holds)| !holds).collect();
        if broken.is_empty() && !kept.claims.is_empty() {
            return Ok(());
        }
        let error = CliError::internal("the demo was not as claimed");
        Err(broken
            .into_iter()
            .fold(error, |error, (what, _)| error.because(format!("not so: {what}"))))
    }

    fn print(&self, line: &str) {
        if !self.out.is_json() {
            self.out.value(|| Value::Null, || line.to_owned());
        }
    }

    fn ms(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().expect("nobody panics while holding it")
    }
}
