//! Whether a standby takes reads while its stream is interrupted.
//!
//! In each role change no standby streams for a moment, and where the coordinators are gone a primary
//! that had to end leaves standbys that have no upstream and hold everything: readers stay. Only where
//! the coordinators hear it, and could have told it whom to follow, is a standby that goes on without a
//! stream left behind.

use regent_core::time::{Micros, Reading};

/// As long as the leader is patient before it says so to routers.
const PATIENCE: Micros = Micros::from_ms(2_000);

/// The memory of one instance.
#[derive(Clone, Copy, Debug, Default)]
pub struct Steady {
    /// When it last counted for certain.
    counted: Option<Reading>,
}

impl Steady {
    /// Whether it counts as one that streams. `heard`: by coordinators that are
    /// together.
    pub fn look(&mut self, streams: bool, heard: bool, now: Reading) -> bool {
        // Cut off, what it was stays.
        if streams || (!heard && self.counted.is_some()) {
            self.counted = Some(now);
        }
        let lasts = |counted: &Reading| now.since(*counted) < PATIENCE;
        self.counted = self.counted.filter(lasts);
        self.counted.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(looks: &[(u64, bool, bool)]) -> Vec<bool> {
        let mut steady = Steady::default();
        let at = |ms: u64| Reading::at_us(ms * 1_000);
        looks
            .iter()
            .map(|(ms, streams, attached)| steady.look(*streams, *attached, at(*ms)))
            .collect()
    }

    #[test]
    fn a_stream_that_is_interrupted_counts_for_a_while() {
        let seen = looks(&[
            (0, false, true),
            (1_000, true, true),
            (2_999, false, true),
            (3_000, false, true),
            (3_100, true, true),
        ]);
        assert_eq!(seen, [false, true, true, false, true]);
    }

    #[test]
    fn with_the_coordinators_gone_it_stays_what_it_was() {
        let seen = looks(&[
            (0, true, true),
            (1_000, false, true),
            (1_500, false, false),
            (90_000, false, false),
            (90_100, false, true),
            (91_900, false, true),
            (92_000, false, true),
            (92_100, false, false),
        ]);
        assert_eq!(seen, [true, true, true, true, true, true, false, false]);
    }
}
