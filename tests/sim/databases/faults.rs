//! What breaks, and for how long. A profile says what breaks often.

use super::Profile;
use super::host::Host;
use super::net::End;
use super::plan::index_of;
use super::world::{Place, World};
use crate::agents::machine::{MS, SECOND, Time};
use crate::agents::random::Random;

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    CutFromNodes,
    CutFromPeers,
    CutOff,
    CutOneWay,
    CutNode,
    ServerDies,
    ServerStops,
    AgentDies,
    FencerDies,
    PowerCycle,
    ServerHangs,
    PostmasterHangs,
    AgentHangs,
    HostHangs,
    HostPauses,
    DiskStalls,
    Elect,
    NodeDies,
    Switchover,
    Failover,
    GiveUp,
    /// People begin one thing in the middle of another.
    Meddle,
    Policy,
    Pause,
    DiskGoesBack,
    DiskIsLost,
    /// A host is cloned as it runs, and the clone started elsewhere.
    HostIsCloned,
    /// All nodes are silent.
    NodesGone,
    /// The primary is alone for longer than its lease; perhaps its machine is paused meanwhile.
    LongCut,
    /// People change a primary that no coordinator reaches.
    CutAndFail,
    /// A member of the sync set is away just until it is removed; then primary and member are gone.
    Flap,
    /// A pause that begins just before its primary is alone, and ends before that.
    PauseAndCut,
    /// The primary and one standby are cut from all others.
    Split,
    /// The next primary has what nobody else has, and ends as it is granted.
    HeirDies,
    /// A leader proposes what nobody has decided.
    Rogue,
}

/// How often what happens.
#[derive(Clone, Debug)]
pub struct Weights {
    of: Vec<(Fault, u64)>,
    /// Per mille of steps whose word is lost though they were done.
    pub doubt: u64,
    /// Per mille of detached standbys that lose power right after.
    pub reboot: u64,
    /// Per mille of those that the distribution's unit starts then, and of other power cycles.
    pub stranger: u64,
    /// Per mille of processes that read changed settings late.
    pub late: u64,
}

impl Profile {
    /// The weights of a seed.
    pub fn weights(self, random: &mut Random) -> Weights {
        use Fault::*;
        let usual: &[(Fault, u64)] = &[
            (CutFromNodes, 6),
            (CutFromPeers, 5),
            (CutOff, 6),
            (CutOneWay, 6),
            (CutNode, 3),
            (ServerDies, 8),
            (ServerStops, 2),
            (AgentDies, 6),
            (FencerDies, 2),
            (PowerCycle, 8),
            (ServerHangs, 4),
            (PostmasterHangs, 3),
            (AgentHangs, 5),
            (HostHangs, 4),
            (HostPauses, 2),
            (DiskStalls, 4),
            (Elect, 6),
            (NodeDies, 3),
            (Switchover, 5),
            (Failover, 4),
            (GiveUp, 2),
            (Meddle, 4),
            (Policy, 2),
            (Pause, 2),
            (DiskGoesBack, 3),
            (DiskIsLost, 1),
            (NodesGone, 2),
        ];
        let only: &[(Fault, u64)] = match self {
            Self::Mixed => usual,
            Self::Quiet => &[(ServerDies, 1)],
            Self::Cuts => &[
                (CutFromNodes, 6),
                (CutFromPeers, 4),
                (CutOff, 4),
                (CutOneWay, 3),
                (Elect, 2),
                (AgentDies, 2),
                (PowerCycle, 1),
                (HostHangs, 1),
            ],
            Self::Crashes => &[
                (ServerDies, 4),
                (AgentDies, 4),
                (FencerDies, 2),
                (PowerCycle, 6),
                (Failover, 2),
                (DiskGoesBack, 3),
                (CutFromNodes, 3),
                (CutOff, 2),
            ],
            Self::Switchovers => &[
                (Switchover, 8),
                (Failover, 3),
                (GiveUp, 2),
                (Meddle, 5),
                (ServerDies, 2),
                (PowerCycle, 2),
                (CutOff, 2),
                (Elect, 2),
                (AgentDies, 1),
            ],
            Self::Clocks => &[
                (HostHangs, 4),
                (HostPauses, 4),
                (CutFromNodes, 6),
                (AgentHangs, 4),
                (ServerHangs, 3),
                (CutOff, 4),
                (NodesGone, 1),
                (Elect, 1),
                (Pause, 2),
            ],
            Self::Rates => &[(LongCut, 1)],
            Self::Detaches => &[(CutAndFail, 3), (PowerCycle, 1), (AgentDies, 1), (ServerDies, 1)],
            Self::Flaps => &[(Flap, 1)],
            Self::Splits => &[(Split, 4), (ServerDies, 1)],
            Self::Pauses | Self::Upgrades => &[(PauseAndCut, 4), (ServerDies, 1)],
            Self::Heirs => &[(HeirDies, 4), (ServerDies, 1)],
            Self::Weak => &[
                (ServerDies, 4),
                (AgentHangs, 2),
                (ServerHangs, 2),
                (CutFromNodes, 3),
                (FencerDies, 2),
                (Failover, 2),
                (Switchover, 1),
                (PowerCycle, 1),
            ],
            Self::Twins => &[
                (HostIsCloned, 8),
                (ServerDies, 2),
                (AgentDies, 1),
                (PowerCycle, 1),
                (CutFromNodes, 1),
                (Switchover, 1),
            ],
            Self::Rogue => &[
                (Rogue, 20),
                (ServerDies, 2),
                (CutFromNodes, 2),
                (PowerCycle, 2),
                (Switchover, 3),
                (Failover, 2),
                (CutFromPeers, 1),
            ],
        };
        let mut of = only.to_vec();
        // A seed is about some things more than others.
        for (_, weight) in &mut of {
            *weight *= [0, 1, 1, 2, 4][random.index(5)];
        }
        of.push(only[random.index(only.len())]);
        let quiet = self == Self::Quiet;
        Weights {
            of,
            doubt: if quiet { 0 } else { 5 },
            reboot: match self {
                Self::Quiet => 0,
                Self::Detaches => 500,
                _ => [0, 0, 100, 500][random.index(4)],
            },
            stranger: if self == Self::Detaches { 900 } else { 300 },
            late: if self == Self::Flaps { 500 } else { 40 },
        }
    }
}

/// The next fault, and when the one after it comes.
pub fn next(world: &mut World) {
    if world.now >= world.calm {
        return world.calm_down();
    }
    let between = world.plan.between;
    let wait = world.random.about(between);
    world.later(wait.min(world.calm.saturating_sub(world.now) + 1), Place::World, next);
    let count = if world.random.chance(250) { 2 } else { 1 };
    for _ in 0..count {
        let fault = world.draw();
        world.strike(fault);
    }
}

impl World {
    fn draw(&mut self) -> Fault {
        let all: u64 = self.plan.weights.of.iter().map(|(_, weight)| weight).sum();
        let mut at = self.random.below(all);
        for (fault, weight) in &self.plan.weights.of {
            if at < *weight {
                return *fault;
            }
            at -= weight;
        }
        Fault::ServerDies
    }

    /// Mostly the primary: there it hurts.
    fn victim(&mut self) -> usize {
        let holder = self.coord.role().and_then(|role| role.holder.as_ref()).map(index_of);
        match holder {
            Some(holder) if self.random.chance(500) => holder,
            _ => self.random.index(self.hosts.len()),
        }
    }

    fn lasts(&mut self) -> Time {
        let most = [300 * MS, 2 * SECOND, 6 * SECOND, 20 * SECOND][self.random.index(4)];
        self.random.between(20 * MS, most)
    }

    pub(super) fn cut(&mut self, cuts: Vec<(End, End)>) {
        for (from, to) in &cuts {
            self.net.cut(*from, *to);
        }
        let wait = self.lasts();
        self.later(wait, Place::World, move |world| world.net.heal(&cuts));
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = End> + use<> {
        (0..self.coord.nodes.len()).map(End::Node)
    }

    fn peers(&self, i: usize) -> Vec<End> {
        (0..self.hosts.len()).filter(|other| *other != i).map(End::Instance).collect()
    }

    fn strike(&mut self, fault: Fault) {
        let i = self.victim();
        let me = End::Instance(i);
        self.check.stats.faults += 1;
        self.say(|| format!("-- {fault:?} {i}"));
        let both = |ends: Vec<End>| ends.into_iter().flat_map(|it| [(me, it), (it, me)]).collect();
        let lasts = self.lasts();
        match fault {
            Fault::CutFromNodes => self.cut(both(self.nodes().collect())),
            Fault::CutFromPeers => self.cut(both(self.peers(i))),
            Fault::CutOff => self.cut(both(self.nodes().chain(self.peers(i)).collect())),
            Fault::CutOneWay => {
                let ends: Vec<End> = self.nodes().chain(self.peers(i)).collect();
                let other = ends[self.random.index(ends.len())];
                let out = self.random.chance(500);
                self.cut(vec![if out { (me, other) } else { (other, me) }]);
            }
            Fault::CutNode => {
                let n = self.random.index(self.coord.nodes.len());
                let others = self.nodes().filter(|it| *it != End::Node(n));
                let cuts: Vec<_> =
                    others.flat_map(|it| [(End::Node(n), it), (it, End::Node(n))]).collect();
                self.cut(cuts);
                self.later(lasts, Place::World, move |world| world.node_back(n));
            }
            Fault::ServerDies => self.crash_server(i),
            Fault::ServerStops => self.stop_by_hand(i),
            Fault::AgentDies => self.die(i),
            Fault::FencerDies => self.crash_fencer(i),
            Fault::PowerCycle => {
                let stranger = self.random.chance(self.plan.weights.stranger);
                self.power_cycle(i, lasts, stranger);
            }
            Fault::ServerHangs => {
                let until = self.now + lasts;
                if let Some(server) = self.hosts[i].server.as_mut() {
                    server.frozen_until = until;
                }
            }
            Fault::PostmasterHangs => {
                let until = self.now + lasts;
                if let Some(server) = self.hosts[i].server.as_mut() {
                    server.deaf_until = until;
                }
            }
            Fault::AgentHangs => {
                self.check.hung = self.check.hung.max(lasts);
                self.hang_agent(i, self.now + lasts);
            }
            Fault::HostHangs => {
                self.check.hung = self.check.hung.max(lasts);
                self.hosts[i].machine.freeze(self.now, lasts);
            }
            Fault::HostPauses => {
                let class = self.options.class;
                self.hosts[i].machine.pause(self.now, class, &mut self.random);
            }
            Fault::DiskStalls => {
                let until = self.now + lasts;
                if let Some(server) = self.hosts[i].server.as_mut() {
                    server.stalled_until = until;
                }
            }
            Fault::Elect => self.elect(),
            Fault::NodeDies => {
                let n = self.random.index(self.coord.nodes.len());
                self.node_dies(n, lasts);
            }
            Fault::NodesGone => {
                let all: Vec<End> = self.nodes().collect();
                let mut cuts = Vec::new();
                for i in 0..self.hosts.len() {
                    let me = End::Instance(i);
                    cuts.extend(all.iter().flat_map(|it| [(me, *it), (*it, me)]));
                }
                self.cut(cuts);
            }
            Fault::Switchover | Fault::Failover => {
                let to = self.random.chance(600).then(|| self.name_of(i));
                match fault {
                    Fault::Switchover => self.switch_over(to),
                    _ => self.fail_over(to),
                }
            }
            Fault::GiveUp => self.abort(),
            Fault::Meddle => {
                let more = self.random.between(1, 6);
                self.meddle(more);
            }
            Fault::Policy => {
                // A shorter time to live under a holder hurts if nothing renews it any more.
                if self.random.chance(500) {
                    let wait = self.random.between(100 * MS, 2_500 * MS);
                    let cuts: Vec<_> = self.nodes().flat_map(|it| [(me, it), (it, me)]).collect();
                    let hangs = self.random.chance(400);
                    self.later(wait, Place::World, move |world| {
                        world.cut(cuts);
                        // An agent that stands shuts nobody out: its fencer alone is left.
                        if hangs {
                            world.hang_agent(i, world.now + 6 * SECOND);
                        }
                    });
                }
                self.change_policy();
            }
            Fault::LongCut => self.long_cut(),
            Fault::CutAndFail => self.cut_and_fail(),
            Fault::Flap => self.flap(),
            Fault::Split => self.split(),
            Fault::HeirDies => self.heir_dies(),
            Fault::HostIsCloned => self.host_is_cloned(i),
            Fault::PauseAndCut => self.pause_and_cut(),
            Fault::Rogue => self.rogue(i),
            Fault::Pause => self.pause_for(i, lasts),
            Fault::DiskGoesBack => self.disk_goes_back(i, lasts),
            Fault::DiskIsLost => self.disk_is_lost(i, lasts),
        }
    }

    fn power_cycle(&mut self, i: usize, for_us: Time, stranger: bool) {
        if !self.hosts[i].up {
            return;
        }
        self.power_off(i);
        let stays = if stranger { self.random.between(SECOND, 8 * SECOND) } else { 0 };
        self.later(for_us, Place::World, move |world| world.power_on(i, stays));
    }

    fn node_dies(&mut self, n: usize, for_us: Time) {
        if !self.coord.nodes[n].up {
            return;
        }
        self.coord.nodes[n].up = false;
        for id in self.streams_of(End::Node(n)) {
            self.break_stream(id);
        }
        self.later(for_us, Place::World, move |world| world.restart_node(n));
    }

    /// An image of the disk was taken once; now it is what the host starts from.
    fn disk_goes_back(&mut self, i: usize, for_us: Time) {
        let Host { up, image, book, dir, .. } = &mut self.hosts[i];
        let Some(now) = book.as_ref().filter(|_| *up) else { return };
        // What was acknowledged since the last accepted start is not protected (docs/adr/0010, 1), and
        // an image of while that start was asked for looks like its lost answer.
        let older = image.as_ref().is_some_and(|(_, was)| {
            was.boot < now.boot && was.attempt != now.attempt && was.disk == now.disk
        });
        if !older {
            *image = Some((dir.clone(), now.clone()));
            return;
        }
        let (old, was) = image.take().expect("it is older");
        let disk = was.disk;
        self.power_off(i);
        let host = &mut self.hosts[i];
        host.dir = old;
        host.dir.wal.flushed = host.dir.wal.end();
        host.book = Some(was);
        self.check.went_back(i, disk);
        self.check.stats.went_back += 1;
        self.later(for_us, Place::World, move |world| world.power_on(i, 0));
    }

    fn disk_is_lost(&mut self, i: usize, for_us: Time) {
        let present = self.hosts.iter().filter(|host| host.dir.present && !host.dir.broken).count();
        if !self.hosts[i].up || present < 2 {
            return;
        }
        self.power_off(i);
        self.wipe(i);
        self.later(for_us, Place::World, move |world| world.power_on(i, 0));
    }

    pub(super) fn wipe(&mut self, i: usize) {
        let generation = self.fresh();
        let host = &mut self.hosts[i];
        host.dir = super::postgres::Dir { generation, timelines: 1, ..Default::default() };
        (host.book, host.image) = (None, None);
    }

    /// Somebody stops the server in order, by hand.
    fn stop_by_hand(&mut self, i: usize) {
        if !self.hosts[i].runs_fenced() {
            return;
        }
        let run = self.run_of(i).unwrap_or_default();
        if let Some(server) = self.hosts[i].server.as_mut() {
            (server.stopping, server.open) = (true, false);
            (server.sessions, server.readers) = (Vec::new(), Vec::new());
        }
        self.give_up(i, |_| true);
        self.later(20 * MS, Place::Server(i, run), move |world| {
            world.shut_down_record(i);
            world.later(20 * MS, Place::Server(i, run), move |world| {
                world.hosts[i].dir.clean = world.shutdown_is_last(i);
                world.fenced(i, regent_fencer::receipt::Reason::PostmasterExit, Some(0));
            });
        });
    }

    /// A standby was told to detach: some lose power just then.
    pub fn after_detach(&mut self, i: usize) {
        let (reboot, wait) = (self.plan.weights.reboot, self.random.between(MS, 80 * MS));
        if self.now < self.calm && self.random.chance(reboot) {
            let off = self.random.between(100 * MS, 3 * SECOND);
            let stranger = self.random.chance(self.plan.weights.stranger);
            self.later(wait, Place::World, move |world| world.power_cycle(i, off, stranger));
        } else if self.now < self.calm && self.random.chance(reboot) {
            self.later(wait, Place::Host(i), move |world| world.die(i));
        }
    }

    /// Nothing is broken any more.
    fn calm_down(&mut self) {
        self.say(|| "-- calm".into());
        self.net = super::net::Net::default();
        self.end_twin();
        self.resume();
        if self.plan.missing {
            let i = self.random.index(self.plan.instances);
            self.say(|| format!("-- {i} is gone for good"));
            self.power_off(i);
        }
        // Who stands still wakes up by itself, as was drawn when it began.
        for n in 0..self.coord.nodes.len() {
            self.node_back(n);
        }
        self.later(3 * SECOND, Place::World, Self::is_well);
    }

    fn is_well(&mut self) {
        if self.serves() && self.is_routed() && !self.is_changing() {
            self.finish();
        } else {
            self.later(SECOND, Place::World, Self::is_well);
        }
    }
}
