//! Progress of anything that can take long: a bar on a terminal, nothing in a pipe or for programs.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Output;

/// How often a bar of seconds, or one that only turns, is drawn.
const TICK: Duration = Duration::from_millis(200);

/// A bar that is not shown.
pub fn hidden() -> ProgressBar {
    ProgressBar::hidden()
}

/// A bar over `total` bytes.
pub fn bytes(out: Output, what: &str, total: u64) -> ProgressBar {
    bar(out, total, &format!("{what} {{bar:30}} {{bytes}} of {{total_bytes}} ({{bytes_per_sec}})"))
}

/// A bar over `total` things.
pub fn count(out: Output, what: &str, total: u64) -> ProgressBar {
    bar(out, total, &format!("{what} {{bar:30}} {{pos}} of {{len}} {{msg}}"))
}

/// Seconds of something that takes `whole`, however it goes. Gone when dropped.
pub fn seconds(out: Output, what: &str, whole: Duration) -> Ending {
    let bar = count(out, what, whole.as_secs());
    if bar.is_hidden() {
        return Ending { bar, task: None };
    }
    let (shown, begun) = (bar.clone(), Instant::now());
    let task = tokio::spawn(async move {
        loop {
            shown.set_position(begun.elapsed().as_secs().min(whole.as_secs()));
            tokio::time::sleep(TICK).await;
        }
    });
    Ending { bar, task: Some(task) }
}

/// Something whose end nobody knows: turns, and says for how long. Gone when dropped.
pub fn turning(out: Output, what: &str) -> Ending {
    if !out.shows_progress() {
        return Ending { bar: hidden(), task: None };
    }
    let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}")
        .expect("a constant template parses");
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style);
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(TICK);
    Ending { bar, task: None }
}

/// A bar that moves by itself, until this is dropped.
pub struct Ending {
    bar: ProgressBar,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Ending {
    /// Says what is being waited for now.
    pub fn say(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
        self.bar.finish_and_clear();
    }
}

fn bar(out: Output, total: u64, template: &str) -> ProgressBar {
    if !out.shows_progress() {
        return hidden();
    }
    let style = ProgressStyle::with_template(template).expect("a constant template parses");
    ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_style(style)
}
