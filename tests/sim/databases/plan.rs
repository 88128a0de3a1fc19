//! What a seed is about: the service's shape and policy, and which faults are frequent.

use regent_core::id::{InstanceName, Locality, ServiceName};
use regent_core::role::Armed;
use regent_core::spec::{
    AwaitRouters, Engine, InstanceSpec, LossBound, Mode, OnViolation, Policy, ServiceSpec,
    TooFewSync, TopologyKind,
};
use regent_core::state::version::{DRAIN_LEVEL, FEATURE_LEVEL, ROLES_LEVEL};

use super::faults::Weights;
use super::{Options, Profile};
use crate::agents::machine::{MS, SECOND, Time};
use crate::agents::random::Random;

/// One seed's choices.
#[derive(Clone, Debug)]
pub struct Plan {
    pub mode: Mode,
    pub instances: usize,
    pub writers: usize,
    pub degrade: bool,
    pub two_needed: bool,
    /// Per mille of the times that people look at which they answer what they are asked.
    pub answers: u64,
    /// Fencers have no namespace: somebody may outlive them for a moment.
    pub weak: bool,
    /// The last instance is never promoted, and may hold more than others.
    pub spare: bool,
    /// One host does not come back in the end: that is no reason for not serving.
    pub missing: bool,
    /// Mean time between two faults.
    pub between: Time,
    pub weights: Weights,
    pub ttl_ms: u64,
    /// Clocks run at the bounds of A1: hosts slow, coordinators fast.
    pub at_bound: bool,
    /// The cluster's feature level at the beginning.
    pub level: u32,
    /// When it is raised to the newest.
    pub raised: Option<Time>,
    /// Switchovers wait for routers, of whom nothing is ever heard.
    pub awaits: bool,
}

impl Plan {
    pub fn draw(options: &Options, random: &mut Random) -> Self {
        let mode = options.mode.unwrap_or(match random.chance(650) {
            true => Mode::Quorum,
            false => Mode::Lease,
        });
        let quorum = mode == Mode::Quorum;
        let levels = options.duration_ms * MS;
        let (level, raised) = match random.below(10) {
            // Below it the figures of a grant are its proposer's, and strangers are believed.
            _ if [Profile::Rogue, Profile::Twins].contains(&options.profile) => {
                (FEATURE_LEVEL, None)
            }
            0..8 if options.profile == Profile::Upgrades => {
                (ROLES_LEVEL, Some(random.between(levels / 3, levels.max(3 * SECOND))))
            }
            _ if options.profile == Profile::Upgrades => (ROLES_LEVEL, None),
            0 => (ROLES_LEVEL, None),
            1..3 => (ROLES_LEVEL, Some(random.between(2 * SECOND, levels.max(3 * SECOND)))),
            _ => (FEATURE_LEVEL, None),
        };
        let instances = [2, 3, 3, 3, 3, 4, 5][random.index(7)];
        Self {
            mode,
            instances,
            writers: 2,
            degrade: quorum && random.chance(80),
            two_needed: quorum && instances > 3 && random.chance(400),
            answers: match options.profile {
                Profile::Upgrades => 900,
                Profile::Rogue | Profile::Splits | Profile::Weak => 300,
                _ if random.chance(150) => 300,
                _ => 0,
            },
            weak: options.profile == Profile::Weak,
            spare: instances > 2 && random.chance(200),
            missing: instances > 2 && random.chance(150),
            between: match options.profile {
                Profile::Flaps | Profile::Splits | Profile::Heirs => 9 * SECOND,
                Profile::Upgrades => 12 * SECOND,
                Profile::Rates => 50 * SECOND,
                _ => [SECOND, 3 * SECOND, 6 * SECOND, 12 * SECOND][random.index(4)],
            },
            weights: options.profile.weights(random),
            ttl_ms: match options.profile {
                Profile::Rates => 30_000,
                // Longer than the way back to a holder that says that it has stopped.
                Profile::Twins => 9_000,
                _ => 3_000,
            },
            at_bound: options.profile == Profile::Rates,
            level,
            raised,
            awaits: level >= DRAIN_LEVEL && random.chance(400),
        }
    }

    /// What agents say of their fencers.
    pub fn armed(&self) -> Armed {
        if self.weak { Armed::Weak } else { Armed::Armed }
    }

    /// The service as it is declared.
    pub fn spec(&self) -> ServiceSpec {
        let usual = Policy::default_for(self.mode);
        let accepts = |bound: LossBound| LossBound { on_violation: OnViolation::Ask, ..bound };
        let policy = Policy {
            ttl_ms: self.ttl_ms,
            failover_cooldown_ms: 0,
            await_routers: match self.awaits {
                true => AwaitRouters { percent: 100, within_ms: 300 },
                false => AwaitRouters::NONE,
            },
            restart_grace_ms: 2_000,
            sync_standbys: match (self.mode, self.two_needed) {
                (Mode::Lease, _) => 0,
                (_, true) => 2,
                _ => 1,
            },
            on_too_few_sync: if self.degrade { TooFewSync::Degrade } else { TooFewSync::Block },
            loss_bound: accepts(LossBound {
                max_ms: match self.mode {
                    Mode::Lease => LossBound::usual_ms(self.ttl_ms.max(3_000)),
                    Mode::Quorum => usual.loss_bound.max_ms,
                },
                ..usual.loss_bound
            }),
            ..usual
        };
        let instances = (0..self.instances).map(|i| InstanceSpec {
            name: instance_name(i),
            locality: Locality { region: "r".into(), zone: format!("z{i}"), host: format!("h{i}") },
            address: address_of(i),
            priority: u32::from(!self.spare || i + 1 < self.instances),
        });
        ServiceSpec {
            name: service_name(),
            description: String::new(),
            engine: Engine::Postgres,
            topology: TopologyKind::ActivePassive,
            instances: instances.collect(),
            partitions: Vec::new(),
            policy,
        }
    }
}

/// The only service.
pub fn service_name() -> ServiceName {
    "s".parse().expect("a name")
}

/// The name of the `i`th instance.
pub fn instance_name(i: usize) -> InstanceName {
    ["a", "b", "c", "d", "e"][i].parse().expect("a name")
}

/// Where it listens.
pub fn address_of(i: usize) -> String {
    format!("{}:5432", instance_name(i))
}

/// Which instance has this name.
pub fn index_of(name: &InstanceName) -> usize {
    usize::from(name.as_str().as_bytes()[0] - b'a')
}
