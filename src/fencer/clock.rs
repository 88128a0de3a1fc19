//! Reads the two lease clocks. The agent's deadlines are absolute readings of the same two clocks of
//! the same boot, so nothing here may use `Instant`, which stops in a suspend.

use regent_core::time::Reading;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// CLOCK_BOOTTIME and CLOCK_MONOTONIC_RAW, read one right after the other, in microseconds.
pub fn now() -> Reading {
    Reading {
        boottime_us: micros(clock_gettime(ClockId::Boottime)),
        raw_us: micros(clock_gettime(ClockId::MonotonicRaw)),
    }
}

fn micros(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000).saturating_add(nanos / 1_000)
}

/// `us` microseconds as the kernel wants them.
pub(crate) fn timespec(us: u64) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(us / 1_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from((us % 1_000_000) * 1_000).unwrap_or(0),
    }
}

/// Names this boot of the machine: readings, pids and start times of two boots must never be
/// compared.
///
/// # Errors
/// When `/proc` is not there or not readable.
pub fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
