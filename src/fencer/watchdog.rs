//! Feeds a watchdog (PROTOCOL.md A3): until `deadline - its timeout` and no longer, so that a fencer
//! that is stopped, or a kernel that no longer runs it, ends in a reset before the deadline
//! is over. The device's timeout must already be set to what the options name: setting it here would
//! need an ioctl, and a device nobody configured should not be trusted with a default.
//!
//! A fencer that was killed leaves it counting: its agent must launch the next one, which feeds again,
//! within the timeout, or the machine is reset although nothing runs.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use regent_core::time::Reading;

use crate::lease::Lease;
use crate::options::WatchdogOptions;

/// Feedings in each timeout.
const FEEDS: u64 = 4;

/// An open watchdog. Dropping it without [`Watchdog::close`] leaves it running, on purpose.
pub(crate) struct Watchdog {
    file: File,
    timeout_us: u64,
    fed_at: Option<u64>,
}

impl Watchdog {
    pub(crate) fn open(options: &WatchdogOptions) -> io::Result<Self> {
        // Both ways, so that opening a FIFO waits for nobody.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
            .open(&options.path)
            .or_else(|_| OpenOptions::new().write(true).open(&options.path))?;
        let timeout_us = options.timeout_ms.max(1).saturating_mul(1000);
        Ok(Self { file, timeout_us, fed_at: None })
    }

    /// Feeds if it is time to and allowed, and says in how many microseconds to come again. With
    /// nothing `alive`, nothing can outlive the deadline, and it is always fed.
    pub(crate) fn tend(&mut self, lease: &Lease, alive: bool, now: Reading) -> u64 {
        let every = self.timeout_us / FEEDS;
        let since = self.fed_at.map(|at| now.boottime_us.saturating_sub(at));
        if since.is_some_and(|since| since < every) {
            return every - since.unwrap_or(0);
        }
        let allowed = !alive || lease.left_us(now).is_none_or(|left_us| left_us >= self.timeout_us);
        if allowed && !(alive && lease.view().fired) && self.file.write_all(b"\0").is_ok() {
            self.fed_at = Some(now.boottime_us);
        }
        every
    }

    /// Orderly end: the magic byte tells the driver to stop counting.
    pub(crate) fn close(mut self) {
        let _ = self.file.write_all(b"V");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::wire::Arm;
    use regent_core::id::{Epoch, RenewalNumber};

    #[test]
    fn it_is_fed_until_its_timeout_before_the_deadline_and_closed_by_the_magic_byte() {
        let path = std::env::temp_dir().join(format!("regent-watchdog-{}", std::process::id()));
        std::fs::write(&path, b"").unwrap();
        let options = WatchdogOptions { path: path.clone(), timeout_ms: 100 };
        let mut watchdog = Watchdog::open(&options).unwrap();
        let mut lease = Lease::default();
        let until = Reading::at_us(1_000_000);
        lease.arm(&Arm { epoch: Epoch::NONE, number: RenewalNumber(0), until }).unwrap();
        for us in (0..2_000_000).step_by(5_000) {
            watchdog.tend(&lease, true, Reading::at_us(us));
        }
        assert_eq!(watchdog.fed_at, Some(900_000));
        watchdog.tend(&lease, false, Reading::at_us(2_000_000));
        assert_eq!(watchdog.fed_at, Some(2_000_000));
        watchdog.close();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!((bytes.len(), bytes.last()), (37 + 1 + 1, Some(&b'V')));
    }
}
