//! What a simulated primary does for a switchover that is announced: it checkpoints beside its steps,
//! while it serves (`src/agent/prepare.rs`).

use regent_core::id::Revision;
use regent_core::time::Micros;

use super::net::End;
use super::world::World;
use crate::agents::machine::{MS, SECOND, Time};

/// What becomes dirty within this long is written by the stop itself.
const STILL_CLEAN: Micros = Micros(SECOND);
/// After a checkpoint that failed.
const PAUSE: Time = SECOND;

impl World {
    /// Asks for what is announced, of a primary that answers.
    pub(super) fn prepare(&mut self, i: usize) {
        let now = self.hosts[i].machine.read(self.now);
        let agent = self.agent(i);
        let told = agent.instruction.as_ref().and_then(|told| told.prepare);
        if !agent.local.announce(told, now) {
            return;
        }
        agent.reported = None;
        if let Some((operation, _)) = agent.local.announced {
            self.checkpoint(i, operation);
        }
    }

    fn checkpoint(&mut self, i: usize, operation: Revision) {
        // Nothing rests on what is said of it: some say so at once.
        let wait = match self.random.below(100) {
            0..5 => 0,
            5..15 => self.random.between(SECOND, 8 * SECOND),
            _ => self.random.between(5 * MS, 300 * MS),
        };
        let (run, place) = (self.run_of(i), self.agent_place(i));
        self.later(wait, place, move |world| {
            if world.agent(i).local.announced.is_none_or(|(announced, _)| announced != operation) {
                return;
            }
            if world.run_of(i) != run || !world.answers(End::Instance(i), i) {
                return world.later(PAUSE, place, move |world| world.checkpoint(i, operation));
            }
            let now = world.hosts[i].machine.read(world.now);
            let agent = world.agent(i);
            agent.local.checkpointed(operation, now);
            agent.reported = None;
            world.turn(i);
        });
    }

    /// Whether a stop has little left to write.
    pub(super) fn is_clean(&self, i: usize) -> bool {
        let agent = self.hosts[i].agent.as_ref();
        let at = agent.and_then(|agent| agent.local.prepared).map(|(_, at)| at);
        let now = self.hosts[i].machine.read(self.now);
        at.is_some_and(|at| now.since(at) <= STILL_CLEAN)
    }
}
