//! Which standbys take reads, as the leader judges it from what their agents say.
//!
//! Hysteresis: what is plain (no standby runs there any more) counts at once; what may pass (a lag,
//! a broken stream, a slow login) counts after it lasted; who was out comes back after it was well
//! for a while. What is not known any more changes nothing: a standby that stopped reporting may
//! serve as well as before, and with the coordinators gone it is all that there is (fail-static). Of
//! whom nobody has said anything yet, the first plain look is believed: a leader that has just been
//! started must not take back what others know.

use serde::{Deserialize, Serialize};

use crate::decide::facts::Fact;
use crate::role::observe::{Observation, Run};
use crate::time::{Micros, Reading};

/// A standby that lags by more takes no more reads: one segment of WAL.
pub const MAX_READ_LAG_BYTES: u64 = 16 << 20;
/// It must be this near to take them again.
const NEAR_BYTES: u64 = MAX_READ_LAG_BYTES / 2;
/// What may pass counts after this long.
const OUT_AFTER: Micros = Micros::from_ms(2_000);
/// Who was out is back after so long without a fault.
const BACK_AFTER: Micros = Micros::from_ms(1_000);
/// The lag is told from here on: less is no news to anybody, and changes all the time.
const TOLD_LAG_BYTES: u64 = 64 << 10;
/// An older report says nothing: ten intervals of an agent.
const FRESH: Micros = Micros::from_ms(2_000);

/// What is said of one instance to all nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fitness {
    /// It is a standby that takes reads.
    pub reads: bool,
    /// How far its replay is behind what it received, rounded up to a power of two; 0 is less than
    /// 64 KiB.
    pub lag_bytes: u64,
    /// Where its agent answers health checks, as it said it; empty: it has not.
    pub check: String,
}

impl Fitness {
    /// `host:port` where its agent answers health checks; empty: it has not said. `address`: the
    /// instance's own, whose host it is where it named none.
    pub fn check_of(&self, address: &str) -> String {
        match (self.check.strip_prefix(':'), address.rsplit_once(':')) {
            (Some(port), Some((host, _))) => format!("{host}:{port}"),
            _ => self.check.clone(),
        }
    }

    /// Share of the reads, in percent of a standby that is up to date.
    pub fn weight(&self) -> u32 {
        match self.lag_bytes {
            0..=0x10_0000 => 100,
            0x10_0001..=NEAR_BYTES => 50,
            _ => 10,
        }
    }
}

/// How an instance looks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Well,
    /// It may pass.
    Poor,
    /// It is no standby.
    Not,
}

/// The leader's memory of one instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judge {
    /// `None`: nobody has said anything of it yet.
    fitness: Option<Fitness>,
    /// Since when it looks otherwise than it is counted.
    differs: Option<Reading>,
}

impl Judge {
    /// One that goes on from what another leader said last, if that was heard.
    pub fn resume(fitness: Option<Fitness>) -> Self {
        Self { fitness, differs: None }
    }

    /// What is said of it.
    pub fn fitness(&self) -> Option<&Fitness> {
        self.fitness.as_ref()
    }

    /// Looks again; whether what is said of it has changed.
    pub fn look(&mut self, fact: Option<&Fact>, now: Reading) -> bool {
        let Some(fact) = fact.filter(|fact| fact.lost.is_none() && fact.age(now) <= FRESH) else {
            self.differs = None;
            return false;
        };
        let seen = &fact.observation;
        let looks = look(seen, self.fitness.as_ref().is_some_and(|fitness| fitness.reads));
        let Some(reads) = self.count(looks, now) else { return false };
        let before = self.fitness.clone();
        let fitness = self.fitness.get_or_insert_default();
        fitness.reads = reads;
        if !seen.check.is_empty() {
            fitness.check.clone_from(&seen.check);
        }
        fitness.lag_bytes = match looks {
            Look::Not => 0,
            _ => rounded(seen.replay_lag_bytes),
        };
        self.fitness != before
    }

    /// Whether it takes reads by now; `None`: that cannot be said yet.
    fn count(&mut self, looks: Look, now: Reading) -> Option<bool> {
        let counted = self.fitness.as_ref().map(|fitness| fitness.reads);
        let patience = match (counted, looks) {
            (Some(true), Look::Well) | (Some(false), Look::Poor | Look::Not) => {
                self.differs = None;
                return counted;
            }
            (None, Look::Well) | (None | Some(true), Look::Not) => Micros(0),
            (None | Some(true), Look::Poor) => OUT_AFTER,
            (Some(false), Look::Well) => BACK_AFTER,
        };
        let since = *self.differs.get_or_insert(now);
        if now.since(since) < patience {
            return counted;
        }
        self.differs = None;
        Some(looks == Look::Well)
    }
}

fn look(seen: &Observation, counted: bool) -> Look {
    if seen.run != Run::Standby {
        return Look::Not;
    }
    let most = if counted { MAX_READ_LAG_BYTES } else { NEAR_BYTES };
    let streams = seen.receiver.as_ref().is_some_and(|receiver| receiver.streams);
    match streams && seen.probe.is_answered() && seen.replay_lag_bytes <= most {
        true => Look::Well,
        false => Look::Poor,
    }
}

/// Every byte of lag would be a change for every router otherwise.
fn rounded(bytes: u64) -> u64 {
    match bytes {
        0..TOLD_LAG_BYTES => 0,
        some => some.checked_next_power_of_two().unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
#[path = "tests/fitness.rs"]
mod tests;
