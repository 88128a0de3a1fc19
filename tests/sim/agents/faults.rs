//! What breaks: nodes and clients freeze, suspend, are paused by a hypervisor, die, are cut off;
//! links go deaf in one direction; leadership moves for no reason.

use super::machine::{MS, SECOND, Time};
use super::queue::Event;
use super::world::World;

/// Mean time between two faults.
const BETWEEN: Time = 5 * SECOND;

impl World {
    /// Something breaks, and the next fault is planned.
    pub fn fault(&mut self) {
        let next = self.now + self.random.about(BETWEEN);
        self.queue.push(next, Event::Fault);
        // Leaders and holders are where it hurts.
        let n = if self.random.chance(500) {
            self.log.leader
        } else {
            self.random.index(self.nodes.len())
        };
        let c = self.random.index(self.clients.len());
        let kind = self.random.below(20);
        self.trace(&[7, kind, n as u64, c as u64]);
        match kind {
            0..3 => {
                let for_us = self.random.between(20 * MS, 10 * SECOND);
                self.nodes[n].machine.freeze(self.now, for_us);
            }
            3 => {
                let for_us = self.random.between(SECOND, 90 * SECOND);
                self.nodes[n].machine.suspend(self.now, for_us);
            }
            4 => {
                let class = self.class;
                self.nodes[n].machine.pause(self.now, class, &mut self.random);
            }
            5..7 => self.crash(n),
            7..9 => {
                self.nodes[n].cut = true;
                let for_us = self.random.between(100 * MS, 60 * SECOND);
                self.queue.push(self.now + for_us, Event::Reconnect { node: n });
            }
            9..11 => self.elect(),
            11..13 => {
                let for_us = self.random.between(50 * MS, 100 * SECOND);
                self.clients[c].machine.freeze(self.now, for_us);
                // A pause hurts most in the last moments of a lease that is not renewed any more.
                if self.random.chance(500) {
                    let at = self.now + self.random.between(MS, 20 * SECOND);
                    self.queue.push(at, Event::Pause { client: c });
                }
            }
            13 => {
                let for_us = self.random.between(SECOND, 100 * SECOND);
                self.clients[c].machine.suspend(self.now, for_us);
            }
            14..16 => self.queue.push(self.now, Event::Pause { client: c }),
            16..19 => {
                self.clients[c].deaf = true;
                let for_us = self.random.between(100 * MS, 90 * SECOND);
                self.queue.push(self.now + for_us, Event::Hear { client: c });
            }
            _ => self.clients[c].die(),
        }
    }

    fn crash(&mut self, n: usize) {
        if !self.nodes[n].up {
            return;
        }
        let orderly = self.random.chance(500);
        let node = &mut self.nodes[n];
        node.up = false;
        if orderly {
            node.disk = node.state.clone();
        }
        let for_us = self.random.between(200 * MS, 20 * SECOND);
        self.queue.push(self.now + for_us, Event::Restart { node: n });
    }

    /// A node is connected to the others again.
    pub fn reconnect(&mut self, n: usize) {
        self.nodes[n].cut = false;
        if self.nodes[n].up {
            self.catch_up(n);
        }
        // One that comes back may stir up an election, and even win it.
        if self.random.chance(300) {
            self.elect();
        }
    }
}
