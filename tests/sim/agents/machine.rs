//! A machine: two clocks as a function of real time, and whether anything on it runs.
//!
//! Within A1 a clock runs within rho of real time and stands still for less than the pause margin;
//! beyond it anything goes, and the checker expects other things.

use regent_core::limits::{PAUSE_MARGIN_MS, RHO_PPM};
use regent_core::time::Reading;

use super::Class;
use super::random::Random;

/// Real time since the beginning of the run, in microseconds.
pub type Time = u64;

/// A millisecond of it.
pub const MS: Time = 1_000;
/// A second of it.
pub const SECOND: Time = 1_000_000;

/// One machine.
#[derive(Clone, Debug)]
pub struct Machine {
    boot_ppm: i64,
    raw_ppm: i64,
    /// Clock values, in millionths of a microsecond, at `anchor`.
    boot: u128,
    raw: u128,
    anchor: Time,
    /// Clocks that stand still show this; they never go back.
    floor: Reading,
    /// Nothing on it runs until then (SIGSTOP, suspend, pause); clocks differ in what they do.
    pub asleep_until: Time,
    /// The last pause of its clocks; A1 allows one pause of less than the margin at a time, and a
    /// lease must have been renewed before the next.
    pub paused_at: Option<Time>,
}

impl Machine {
    /// A machine with rates drawn for the class, and clocks that began at odd values.
    pub fn new(class: Class, random: &mut Random) -> Self {
        let most = match class {
            Class::Within => RHO_PPM as i64,
            Class::Beyond => 4 * RHO_PPM as i64,
        };
        let mut rate = || match random.below(4) {
            0 => most,
            1 => -most,
            2 => 0,
            _ => random.between(0, 2 * most as u64) as i64 - most,
        };
        let boot_ppm = rate();
        let raw_ppm = rate();
        // Both come from one crystal; only slewing tells them apart.
        let raw_ppm = if random.chance(700) { boot_ppm } else { raw_ppm };
        Self { raw_ppm, ..Self::at_rate(boot_ppm, random) }
    }

    /// A machine whose clocks run at this rate, and began at odd values.
    pub fn at_rate(ppm: i64, random: &mut Random) -> Self {
        let start = u128::from(random.between(1, 1_000)) * u128::from(SECOND) * 1_000_000;
        Self {
            boot_ppm: ppm,
            raw_ppm: ppm,
            boot: start,
            raw: start,
            anchor: 0,
            floor: Reading::default(),
            asleep_until: 0,
            paused_at: None,
        }
    }

    /// What its clocks show at `now`, which must not be before the last change of their course.
    pub fn read(&self, now: Time) -> Reading {
        let passed = u128::from(now.saturating_sub(self.anchor));
        let shown = |value: u128, ppm: i64| {
            let scaled = value + passed * (1_000_000 + ppm) as u128;
            (scaled / 1_000_000) as u64
        };
        Reading {
            boottime_us: shown(self.boot, self.boot_ppm).max(self.floor.boottime_us),
            raw_us: shown(self.raw, self.raw_ppm).max(self.floor.raw_us),
        }
    }

    /// About when its clocks will have gone on by `local_us`, rounded up.
    pub fn real_after(&self, now: Time, local_us: u64) -> Time {
        let slower = self.boot_ppm.min(self.raw_ppm);
        now + (u128::from(local_us) * 1_000_000 / (1_000_000 + slower) as u128) as u64 + 1
    }

    fn settle(&mut self, now: Time) {
        let passed = u128::from(now.saturating_sub(self.anchor));
        self.boot += passed * (1_000_000 + self.boot_ppm) as u128;
        self.raw += passed * (1_000_000 + self.raw_ppm) as u128;
        self.anchor = now;
    }

    /// Its programs stand still, its clocks run.
    pub fn freeze(&mut self, now: Time, for_us: Time) {
        self.asleep_until = self.asleep_until.max(now + for_us);
    }

    /// Programs and the raw clock stand still, CLOCK_BOOTTIME goes on.
    pub fn suspend(&mut self, now: Time, for_us: Time) {
        self.stand_still(now, for_us, false);
    }

    /// A hypervisor stops everything, clocks too. Within the class only briefly, and not again
    /// before every lease of before is renewed or over.
    pub fn pause(&mut self, now: Time, class: Class, random: &mut Random) {
        let margin = PAUSE_MARGIN_MS * MS;
        let for_us = match class {
            Class::Within if self.paused_at.is_some_and(|at| now < at + 200 * SECOND) => return,
            Class::Within if random.chance(500) => margin - 1,
            Class::Within => random.between(1, margin - 1),
            Class::Beyond => random.between(1, 20 * margin),
        };
        self.paused_at = Some(now);
        self.stand_still(now, for_us, true);
    }

    /// From `now` until `now + for_us` the raw clock (and the other, if `both`) shows the same: it is
    /// set back by what it will have gained, and shows the floor until it has.
    fn stand_still(&mut self, now: Time, for_us: Time, both: bool) {
        self.floor = self.read(now);
        self.settle(now);
        let gain = |ppm: i64| u128::from(for_us) * (1_000_000 + ppm) as u128;
        self.raw -= gain(self.raw_ppm).min(self.raw);
        if both {
            self.boot -= gain(self.boot_ppm).min(self.boot);
        }
        self.asleep_until = self.asleep_until.max(now + for_us);
    }

    /// Whether anything runs on it.
    pub fn runs(&self, now: Time) -> bool {
        now >= self.asleep_until
    }
}
