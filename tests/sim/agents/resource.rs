//! Writes to what the elections guard, on their way.

use std::collections::BTreeMap;

use regent_core::id::{ElectionName, Epoch};

use super::Mutant;
use super::machine::{MS, SECOND};
use super::queue::Event;
use super::random::Random;
use super::world::World;
use crate::resource::Resource;

/// The guarded resources, by election.
pub struct Resources {
    all: BTreeMap<ElectionName, Resource>,
    /// Its own chance: what writes do must not shift what everybody else meets.
    random: Random,
}

impl Resources {
    pub fn new(seed: u64) -> Self {
        Self { all: BTreeMap::new(), random: Random::new(seed ^ 0x0077_7269_7465) }
    }
}

impl World {
    /// A client writes wherever it acts.
    pub fn write(&mut self, c: usize) {
        let acts = self.clients[c].acts(self.now, self.mutant);
        let acts: Vec<_> = acts.into_iter().map(|(name, epoch)| (name.clone(), epoch)).collect();
        let random = &mut self.resources.random;
        for (election, epoch) in acts {
            let most = if random.chance(100) { 60 * SECOND } else { 10 * MS };
            let at = self.now + random.between(MS / 10, most);
            self.queue.push(at, Event::Write { election, epoch });
        }
    }

    /// A write arrives, and has an effect or not.
    pub fn write_arrives(&mut self, election: &ElectionName, epoch: Epoch) {
        let guarded = self.mutant != Some(Mutant::UnguardedResource);
        let newest = self.check.newest(election);
        let resource = self.resources.all.entry(election.clone()).or_default();
        let written = resource.write(epoch, newest, guarded);
        self.trace(&[8, epoch.revision.0, u64::from(written == Ok(true))]);
        match written {
            Ok(true) => self.check.stats.writes += 1,
            Ok(false) => self.check.stats.refused += 1,
            Err(text) => self.check.broken(format!("S4: {election}: {text}")),
        }
    }
}
