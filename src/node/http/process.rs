//! What the kernel says about this process: memory, processor time, open files.
//!
//! Read from /proc at each scrape; a value that cannot be read keeps its last figure, for a missing
//! figure is no reason to fail a scrape.

use std::time::Instant;

use super::metrics::Metrics;

/// Bytes of a page on every machine Regent runs on (x86_64 and aarch64 with 4 KiB pages); a wrong
/// guess only scales a figure for people, and asking libc would need `unsafe`.
const PAGE_BYTES: i64 = 4096;
/// Clock ticks a second in /proc/self/stat; fixed by the kernel's user interface.
const TICKS_PER_SECOND: f64 = 100.0;

/// Fills the process family before each scrape.
pub fn watch_process(metrics: &Metrics) {
    let started = Instant::now();
    metrics.before_scrape(move |metrics| {
        metrics.process_uptime.set(started.elapsed().as_secs_f64());
        if let Some(bytes) = resident_bytes() {
            metrics.process_resident.set(bytes);
        }
        if let Some(seconds) = cpu_seconds() {
            metrics.process_cpu.set(seconds);
        }
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            metrics.process_open_files.set(i64::try_from(files.count()).unwrap_or(i64::MAX));
        }
    });
}

/// Resident memory of this process in bytes.
pub fn resident_bytes() -> Option<i64> {
    // VmRSS is in KiB whatever the page size; statm is the fallback where status is filtered.
    let status = std::fs::read_to_string("/proc/self/status").ok();
    let from_status = status.as_deref().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<i64>().ok().map(|kib| kib * 1024)
    });
    from_status.or_else(|| {
        let text = std::fs::read_to_string("/proc/self/statm").ok()?;
        text.split(' ').nth(1)?.parse::<i64>().ok().map(|pages| pages * PAGE_BYTES)
    })
}

/// Processor seconds this process has used, user and system.
pub fn cpu_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The program's name may hold spaces and brackets: fields are counted after the last bracket.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let user: f64 = fields.nth(11)?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_says_what_it_uses() {
        let metrics = Metrics::new();
        watch_process(&metrics);
        let text = metrics.render();
        assert!(resident_bytes().expect("linux") > 1024 * 1024);
        assert!(cpu_seconds().expect("linux") >= 0.0);
        let line = text
            .lines()
            .find(|line| line.starts_with("regent_process_open_files_count "))
            .expect("a line");
        assert_ne!(line, "regent_process_open_files_count 0");
    }
}
