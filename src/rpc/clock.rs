//! Reading the clocks of this machine. The only place that does; everything else is handed
//! [`Reading`]s, so that a test can hand in its own.
//!
//! `std::time::Instant` and tokio's are CLOCK_MONOTONIC and stop in a suspend: a lease counted with
//! them would outlive itself. So both CLOCK_BOOTTIME (goes on) and CLOCK_MONOTONIC_RAW (is not
//! slewed) are read, and the longer difference is believed (PROTOCOL.md C).

use std::time::{SystemTime, UNIX_EPOCH};

use regent_core::time::{Reading, WallMs};
use rustix::time::{ClockId, Timespec, clock_gettime};

/// Where readings come from.
pub trait Clock: Send + Sync + 'static {
    /// Both lease clocks, read one right after the other.
    fn now(&self) -> Reading;
    /// Wall time, for people only.
    fn wall(&self) -> WallMs;
    /// Names this boot of the machine; `None` where nobody knows.
    fn boot(&self) -> Option<String> {
        boot_id().ok()
    }
}

/// The clocks of the kernel this process runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Reading {
        Reading {
            boottime_us: micros(clock_gettime(ClockId::Boottime)),
            raw_us: micros(clock_gettime(ClockId::MonotonicRaw)),
        }
    }

    fn wall(&self) -> WallMs {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        WallMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

fn micros(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000).saturating_add(nanos / 1_000)
}

/// Names this boot of the machine: readings of two boots must never be compared.
///
/// # Errors
/// When `/proc` is not there or not readable.
pub fn boot_id() -> std::io::Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_move_forward_and_are_in_microseconds() {
        let clock = SystemClock;
        let (first, wall) = (clock.now(), std::time::Instant::now());
        while wall.elapsed().as_millis() < 2 {
            std::hint::spin_loop();
        }
        let passed = clock.now().since(first);
        assert!(passed.0 >= 1_900, "{passed}");
        assert!(passed.0 < 60_000_000, "{passed}");
        assert!(clock.wall().0 > 1_600_000_000_000);
    }

    #[test]
    fn a_boot_has_a_name() {
        assert_eq!(boot_id().expect("linux").len(), 36);
    }
}
