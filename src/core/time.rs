//! Readings of clocks, as values. The core never reads a clock; shells hand in what they read.
//!
//! A [`Reading`] holds two clocks of one machine, and elapsed time is the longer of the two
//! differences: CLOCK_BOOTTIME counts a suspend, CLOCK_MONOTONIC_RAW is not slewed (PROTOCOL.md C,
//! RELIABILITY 6.1). Wall time ([`WallMs`]) serves humans only and decides nothing.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A length of time in microseconds.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Micros(pub u64);

impl Micros {
    /// From whole milliseconds.
    pub const fn from_ms(ms: u64) -> Self {
        Self(ms.saturating_mul(1000))
    }
    /// Whole milliseconds, rounded down.
    pub const fn as_ms(self) -> u64 {
        self.0 / 1000
    }
    /// Difference, never below zero.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
    /// Sum, never above the largest value.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03} ms", self.0 / 1000, self.0 % 1000)
    }
}

/// One machine's CLOCK_BOOTTIME and CLOCK_MONOTONIC_RAW, read together, in microseconds.
/// Readings of different machines, or of different boots, must never be compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reading {
    /// CLOCK_BOOTTIME: goes on in a suspend, is slewed by NTP.
    pub boottime_us: u64,
    /// CLOCK_MONOTONIC_RAW: stops in a suspend, is never slewed.
    pub raw_us: u64,
}

impl Reading {
    /// A reading on which both clocks show the same; for simulators and tests.
    pub const fn at_us(us: u64) -> Self {
        Self { boottime_us: us, raw_us: us }
    }

    /// Time from `earlier` to `self`: the longer of the two clocks' differences, zero if `earlier`
    /// is later on both.
    #[must_use]
    pub fn since(self, earlier: Self) -> Micros {
        let boot = self.boottime_us.saturating_sub(earlier.boottime_us);
        let raw = self.raw_us.saturating_sub(earlier.raw_us);
        Micros(boot.max(raw))
    }

    /// Whether both clocks are before `deadline`: one that has reached it is enough to end a right.
    #[must_use]
    pub const fn is_before(self, deadline: Self) -> bool {
        self.boottime_us < deadline.boottime_us && self.raw_us < deadline.raw_us
    }

    /// The later of two deadlines. Each clock is taken by itself, so that both were promised.
    #[must_use]
    pub fn later(self, other: Self) -> Self {
        if self.boottime_us >= other.boottime_us { self } else { other }
    }

    /// This reading moved `by` into the past, not below zero.
    #[must_use]
    pub fn minus(self, by: Micros) -> Self {
        Self {
            boottime_us: self.boottime_us.saturating_sub(by.0),
            raw_us: self.raw_us.saturating_sub(by.0),
        }
    }

    /// This reading moved `by` into the future.
    #[must_use]
    pub fn plus(self, by: Micros) -> Self {
        Self {
            boottime_us: self.boottime_us.saturating_add(by.0),
            raw_us: self.raw_us.saturating_add(by.0),
        }
    }
}

/// Milliseconds since 1970 on the proposer's wall clock. For people reading an audit record; no
/// rule may compare it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct WallMs(pub u64);
