//! A pause, as the holder's agent obeys it in lease mode (PROTOCOL.md E5): its fencer gets no deadline,
//! so that the primary does not end with its lease.
//!
//! ```text
//! told of pause p ──> renewals name p ──> one of them is in the log ──> disarm
//! told that it is over ──> arm ──> armed ──> renewals name none
//! ```
//! The order is the rule. A lapse proves an end only if the last renewal *in the log* names no pause, so
//! a fencer without a deadline must never stand behind one that does not: neither one that was on its
//! way when the fencer was disarmed, nor one that is sent before it is armed again.

use crate::id::Revision;
use crate::mutant::{Mutant, leaves_out};

/// What an agent knows of a pause at one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pausing {
    /// The pause it was told of.
    pub told: Option<Revision>,
    /// The pause that the newest renewal names which is known to be in the log.
    pub committed: Option<Revision>,
    /// The pause for which the fencer was told to give its deadline up, and has not answered yet: it may
    /// have none any more.
    pub posted: Option<Revision>,
    /// Something runs under the fencer, and it has no deadline.
    pub unbounded: bool,
    /// The newest pause the fencer obeyed; 0: none ever.
    pub obeyed: Revision,
}

impl Pausing {
    /// What renewals are to name.
    pub fn says(&self) -> Option<Revision> {
        let still = (self.unbounded && self.obeyed.0 > 0).then_some(self.obeyed);
        self.told.or(self.posted).or(still)
    }

    /// The pause for which the fencer may lose its deadline, and is not to get a later one.
    pub fn may_disarm(&self) -> Option<Revision> {
        let any = leaves_out(Mutant::PauseCommitted);
        self.told.filter(|pause| any || self.committed == Some(*pause))
    }

    /// Whether what runs may go on without any lease: the pause was obeyed, and stands.
    pub fn is_free(&self) -> bool {
        self.unbounded && self.told == Some(self.obeyed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_way_into_a_pause_and_out_of_it() {
        let pause = Some(Revision(7));
        let told = Pausing { told: pause, ..Pausing::default() };
        assert_eq!((told.says(), told.may_disarm(), told.is_free()), (pause, None, false));
        let committed = Pausing { committed: pause, ..told };
        assert_eq!((committed.may_disarm(), committed.is_free()), (pause, false));
        let unanswered = Pausing { told: None, posted: pause, ..committed };
        assert_eq!((unanswered.says(), unanswered.may_disarm()), (pause, None));
        let free = Pausing { unbounded: true, obeyed: Revision(7), ..committed };
        assert_eq!((free.says(), free.is_free()), (pause, true));
        let over = Pausing { told: None, ..free };
        assert_eq!((over.says(), over.may_disarm(), over.is_free()), (pause, None, false));
        let armed = Pausing { unbounded: false, ..over };
        assert_eq!(armed.says(), None);
        let again = Pausing { told: Some(Revision(9)), ..over };
        assert_eq!((again.says(), again.may_disarm()), (Some(Revision(9)), None));
    }

    /// Agent, fencer and log, with every renewal and every message as late as they please.
    #[derive(Default)]
    struct World {
        told: Option<Revision>,
        sent: Vec<(u64, Option<Revision>)>,
        log: Option<(u64, Option<Revision>)>,
        heard: Option<(u64, Option<Revision>)>,
        number: u64,
        posted: Option<Revision>,
        /// On their way to the fencer, in order: to disarm for a pause, or to arm.
        posts: std::collections::VecDeque<Option<Revision>>,
        /// Whether the fencer is without a deadline, and by which pause it was last; then what it is
        /// taken for.
        fencer: (bool, Revision),
        status: (bool, Revision),
    }

    impl World {
        fn pausing(&self) -> Pausing {
            let committed = self.heard.and_then(|(_, pause)| pause);
            let (told, posted, (unbounded, obeyed)) = (self.told, self.posted, self.status);
            Pausing { told, committed, posted, unbounded, obeyed }
        }

        fn step(&mut self, what: u8, at: u64) {
            let pausing = self.pausing();
            match what {
                0 => self.told = Some(Revision(at)),
                1 => self.told = None,
                2 => {
                    self.number += 1;
                    self.sent.push((self.number, pausing.says()));
                }
                3 if !self.sent.is_empty() => {
                    let one = self.sent.remove(at as usize % self.sent.len());
                    self.log = self.log.max(Some(one));
                }
                4 => self.heard = self.log,
                5 => {
                    if let Some(pause) = pausing.may_disarm() {
                        self.posted = Some(pause);
                        self.posts.push_back(self.posted);
                    }
                }
                6 if pausing.may_disarm().is_none() => self.posts.push_back(None),
                7 => match self.posts.pop_front() {
                    Some(Some(pause)) => self.fencer = (true, pause),
                    Some(None) => self.fencer.0 = false,
                    None => {}
                },
                8 => {
                    self.status = self.fencer;
                    self.posted = self.posted.filter(|pause| *pause > self.status.1);
                }
                _ => {}
            }
        }
    }

    proptest! {
        #[test]
        fn a_fencer_without_a_deadline_never_stands_behind_a_renewal_that_names_no_pause(
            steps in proptest::collection::vec(0..9u8, 1..200),
        ) {
            let mut world = World { log: Some((0, None)), heard: Some((0, None)), ..World::default() };
            for (at, what) in (1u64..).zip(steps) {
                world.step(what, at);
                let named = world.log.and_then(|(_, pause)| pause);
                prop_assert!(!world.fencer.0 || named.is_some(), "step {}", at);
            }
        }
    }
}
