//! Progress of anything that can take long: a bar on a terminal, nothing in a pipe or for programs.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Output;

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

fn bar(out: Output, total: u64, template: &str) -> ProgressBar {
    if !out.shows_progress() {
        return hidden();
    }
    let style = ProgressStyle::with_template(template).expect("a constant template parses");
    ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_style(style)
}
