//! Services: declarations in, rows out.
//!
//! Only what a type cannot hold is refused here; whether a declaration makes sense is judged by
//! the core's validation, which names every problem at once.

use regent_core::id::{Revision, ServiceName};
use regent_core::limits::{MAX_INSTANCES, MAX_PARTITIONS, MAX_TEXT_BYTES};
use regent_core::spec::{
    AwaitRouters, CoordinatorLoss, Engine, InstanceSpec, LossBound, LoweredSync, Mode, OnViolation,
    Policy, Scope, ServiceSpec, Survive, TooFewSync, TopologyKind,
};
use regent_core::state::partition::Partition;
use regent_core::state::service::{Life, Quarantine, Service};
use regent_core::timing::TtlAsk;

use super::Invalid;
use super::common::{
    epoch_in, epoch_out, instance_name, locality, locality_out, partition_name, service_name, text,
};
use crate::pb::v1;

/// A declaration of the wire.
///
/// # Errors
/// [`Invalid`] names the field, `instances[1].address` for example.
pub fn spec_in(spec: v1::ServiceSpec) -> Result<ServiceSpec, Invalid> {
    use v1::service_spec::{Engine as E, Kind as K};
    let engine = match known("engine", E::try_from(spec.engine), spec.engine)? {
        E::Unspecified | E::Postgres => Engine::Postgres,
        E::Exec => Engine::Exec,
    };
    let topology = match known("topology", K::try_from(spec.topology), spec.topology)? {
        K::Unspecified | K::ActivePassive => TopologyKind::ActivePassive,
        K::ActiveActive => TopologyKind::ActiveActive,
    };
    bounded("instances", spec.instances.len(), MAX_INSTANCES)?;
    bounded("partitions", spec.partitions.len(), MAX_PARTITIONS)?;
    let instances = spec.instances.into_iter().enumerate();
    let partitions = spec.partitions.iter().enumerate();
    let Some(policy) = spec.policy else {
        return Err(Invalid::new("policy", "it is not set", "give at least mode and ttl"));
    };
    Ok(ServiceSpec {
        name: service_name("name", &spec.name)?,
        description: text("description", &spec.description)?,
        engine,
        topology,
        instances: instances
            .map(|(at, one)| instance_in(one).map_err(|e| e.within(&format!("instances[{at}]"))))
            .collect::<Result<_, _>>()?,
        partitions: partitions
            .map(|(at, name)| partition_name(&format!("partitions[{at}]"), name))
            .collect::<Result<_, _>>()?,
        policy: policy_in(&policy).map_err(|e| e.within("policy"))?,
    })
}

/// A declaration for the wire.
pub fn spec_out(spec: &ServiceSpec) -> v1::ServiceSpec {
    use v1::service_spec::{Engine as E, Kind as K};
    let engine = match spec.engine {
        Engine::Postgres => E::Postgres,
        Engine::Exec => E::Exec,
    };
    let topology = match spec.topology {
        TopologyKind::ActivePassive => K::ActivePassive,
        TopologyKind::ActiveActive => K::ActiveActive,
    };
    v1::ServiceSpec {
        name: spec.name.to_string(),
        description: spec.description.clone(),
        engine: engine.into(),
        topology: topology.into(),
        instances: spec.instances.iter().map(instance_out).collect(),
        partitions: spec.partitions.iter().map(ToString::to_string).collect(),
        policy: Some(policy_out(&spec.policy)),
    }
}

fn instance_in(instance: v1::InstanceSpec) -> Result<InstanceSpec, Invalid> {
    if instance.address.len() > MAX_TEXT_BYTES {
        return Err(Invalid::new("address", "it is too long", "use <host>:<port>"));
    }
    Ok(InstanceSpec {
        name: instance_name("name", &instance.name)?,
        locality: locality("locality", instance.locality)?,
        address: text("address", &instance.address)?,
        priority: instance.priority,
    })
}

fn instance_out(instance: &InstanceSpec) -> v1::InstanceSpec {
    v1::InstanceSpec {
        name: instance.name.to_string(),
        locality: Some(locality_out(&instance.locality)),
        address: instance.address.clone(),
        priority: instance.priority,
    }
}

/// A policy of the wire; what is not set takes its default.
///
/// # Errors
/// [`Invalid`] for a mode or ttl that is not set: they have no default that suits everybody.
pub fn policy_in(policy: &v1::Policy) -> Result<Policy, Invalid> {
    use v1::policy as p;
    let mode = match known("mode", p::Mode::try_from(policy.mode), policy.mode)? {
        p::Mode::Lease => Mode::Lease,
        p::Mode::Quorum => Mode::Quorum,
        p::Mode::Unspecified => {
            let fix = "use \"quorum\" (synchronous) or \"lease\" (asynchronous)";
            return Err(Invalid::new("mode", "it is not set", fix));
        }
    };
    let Some(ttl_ms) = policy.ttl_ms else {
        return Err(Invalid::new("ttl_ms", "it is not set", "10 s is usual"));
    };
    let few = policy.on_too_few_sync;
    let on_too_few_sync = match known("on_too_few_sync", p::TooFewSync::try_from(few), few)? {
        p::TooFewSync::Unspecified | p::TooFewSync::Block => TooFewSync::Block,
        p::TooFewSync::Degrade => TooFewSync::Degrade,
    };
    let lowered = policy.on_lowered_sync;
    let on_lowered_sync =
        match known("on_lowered_sync", p::LoweredSync::try_from(lowered), lowered)? {
            p::LoweredSync::Unspecified | p::LoweredSync::Report => LoweredSync::Report,
            p::LoweredSync::Strict => LoweredSync::Strict,
        };
    let loss = policy.on_coordinator_loss;
    let on_coordinator_loss =
        match known("on_coordinator_loss", p::CoordinatorLoss::try_from(loss), loss)? {
            p::CoordinatorLoss::Unspecified if mode == Mode::Quorum => CoordinatorLoss::Hold,
            p::CoordinatorLoss::Unspecified | p::CoordinatorLoss::Stop => CoordinatorLoss::Stop,
            p::CoordinatorLoss::Hold => CoordinatorLoss::Hold,
        };
    let scope = policy.max_failover_scope;
    let max_failover_scope = match known("max_failover_scope", p::Scope::try_from(scope), scope)? {
        p::Scope::Zone => Scope::Zone,
        p::Scope::Unspecified | p::Scope::Region => Scope::Region,
        p::Scope::Any => Scope::Any,
    };
    let survive = match known("survive", p::Survive::try_from(policy.survive), policy.survive)? {
        p::Survive::Unspecified | p::Survive::Instance => Survive::Instance,
        p::Survive::Zone => Survive::Zone,
        p::Survive::Region => Survive::Region,
    };
    let usual = Policy::default_for(mode);
    Ok(Policy {
        mode,
        ttl_ms,
        sync_standbys: policy.sync_standbys.unwrap_or(usual.sync_standbys),
        min_sync_standbys: policy.min_sync_standbys.unwrap_or(usual.min_sync_standbys),
        on_too_few_sync,
        on_lowered_sync,
        on_coordinator_loss,
        loss_bound: loss_in(policy, mode, ttl_ms)?,
        max_failover_scope,
        survive,
        restart_grace_ms: policy.restart_grace_ms.unwrap_or(usual.restart_grace_ms),
        failover_cooldown_ms: policy.failover_cooldown_ms.unwrap_or(usual.failover_cooldown_ms),
        await_routers: policy.await_routers.as_ref().map_or(usual.await_routers, |it| {
            let usual = usual.await_routers;
            AwaitRouters { percent: it.percent, within_ms: it.within_ms.unwrap_or(usual.within_ms) }
        }),
    })
}

/// The loss bound and its defaults (PROTOCOL.md H): quorum 0; lease `ttl + 2 renew intervals` and
/// no bound in bytes, which are an estimate only; above it, ask.
fn loss_in(policy: &v1::Policy, mode: Mode, ttl_ms: u64) -> Result<LossBound, Invalid> {
    use v1::policy::OnViolation as V;
    let (bytes, ms) = match mode {
        Mode::Quorum => (0, 0),
        Mode::Lease => {
            let interval_ms = TtlAsk::default_interval_ms(ttl_ms);
            (u64::MAX, ttl_ms.saturating_add(2 * interval_ms))
        }
    };
    let wire = policy.loss_on_violation;
    Ok(LossBound {
        max_bytes: policy.loss_max_bytes.unwrap_or(bytes),
        max_ms: policy.loss_max_ms.unwrap_or(ms),
        on_violation: match known("loss_on_violation", V::try_from(wire), wire)? {
            V::Unspecified | V::Ask => OnViolation::Ask,
            V::Refuse => OnViolation::Refuse,
            V::Accept => OnViolation::Accept,
        },
    })
}

/// A policy for the wire; everything is set.
pub fn policy_out(policy: &Policy) -> v1::Policy {
    use v1::policy as p;
    v1::Policy {
        mode: match policy.mode {
            Mode::Lease => p::Mode::Lease,
            Mode::Quorum => p::Mode::Quorum,
        }
        .into(),
        ttl_ms: Some(policy.ttl_ms),
        sync_standbys: Some(policy.sync_standbys),
        min_sync_standbys: Some(policy.min_sync_standbys),
        on_too_few_sync: match policy.on_too_few_sync {
            TooFewSync::Block => p::TooFewSync::Block,
            TooFewSync::Degrade => p::TooFewSync::Degrade,
        }
        .into(),
        on_lowered_sync: match policy.on_lowered_sync {
            LoweredSync::Report => p::LoweredSync::Report,
            LoweredSync::Strict => p::LoweredSync::Strict,
        }
        .into(),
        on_coordinator_loss: match policy.on_coordinator_loss {
            CoordinatorLoss::Stop => p::CoordinatorLoss::Stop,
            CoordinatorLoss::Hold => p::CoordinatorLoss::Hold,
        }
        .into(),
        loss_max_bytes: Some(policy.loss_bound.max_bytes),
        loss_max_ms: Some(policy.loss_bound.max_ms),
        loss_on_violation: match policy.loss_bound.on_violation {
            OnViolation::Refuse => p::OnViolation::Refuse,
            OnViolation::Ask => p::OnViolation::Ask,
            OnViolation::Accept => p::OnViolation::Accept,
        }
        .into(),
        max_failover_scope: match policy.max_failover_scope {
            Scope::Zone => p::Scope::Zone,
            Scope::Region => p::Scope::Region,
            Scope::Any => p::Scope::Any,
        }
        .into(),
        survive: match policy.survive {
            Survive::Instance => p::Survive::Instance,
            Survive::Zone => p::Survive::Zone,
            Survive::Region => p::Survive::Region,
        }
        .into(),
        restart_grace_ms: Some(policy.restart_grace_ms),
        failover_cooldown_ms: Some(policy.failover_cooldown_ms),
        await_routers: Some(p::AwaitRouters {
            percent: policy.await_routers.percent,
            within_ms: Some(policy.await_routers.within_ms),
        }),
    }
}

/// A service for the wire, with its partitions.
pub fn service_out<'a>(
    service: &Service,
    partitions: impl IntoIterator<Item = (&'a str, &'a Partition)>,
) -> v1::Service {
    v1::Service {
        spec: Some(spec_out(&service.spec)),
        life: life_text(service.life).to_owned(),
        created: service.created.0,
        changed: service.changed.0,
        quarantine: service
            .quarantine
            .as_ref()
            .map(|q| v1::Quarantine { since: q.since.0, why: q.why.clone() }),
        partitions: partitions.into_iter().map(|(name, row)| partition_out(name, row)).collect(),
    }
}

fn partition_out(name: &str, partition: &Partition) -> v1::Partition {
    v1::Partition {
        name: name.to_owned(),
        epoch: Some(epoch_out(partition.epoch)),
        owner: partition.owner.as_ref().map(ToString::to_string).unwrap_or_default(),
        changed: partition.changed.0,
    }
}

/// A service's row of the wire; its partitions are read with [`partition_in`].
///
/// # Errors
/// [`Invalid`] names the field: the other side speaks another version.
pub fn service_in(service: v1::Service) -> Result<Service, Invalid> {
    let spec = service.spec.ok_or_else(|| Invalid::new("spec", "it is not set", "set it"))?;
    Ok(Service {
        spec: spec_in(spec).map_err(|e| e.within("spec"))?,
        life: life_in(&service.life)?,
        created: Revision(service.created),
        changed: Revision(service.changed),
        quarantine: service.quarantine.map(|q| Quarantine { since: Revision(q.since), why: q.why }),
    })
}

/// A partition's row of the wire.
///
/// # Errors
/// [`Invalid`] names the field.
pub fn partition_in(
    partition: v1::Partition,
) -> Result<(regent_core::id::PartitionName, Partition), Invalid> {
    let owner = match partition.owner.as_str() {
        "" => None,
        owner => Some(instance_name("owner", owner)?),
    };
    Ok((
        partition_name("name", &partition.name)?,
        Partition {
            epoch: epoch_in(partition.epoch.unwrap_or_default()),
            owner,
            changed: Revision(partition.changed),
        },
    ))
}

/// The service a request names.
///
/// # Errors
/// [`Invalid`] for a missing `spec`, else as [`spec_in`], with `spec.` before the field.
pub fn applied_spec(spec: Option<v1::ServiceSpec>) -> Result<ServiceSpec, Invalid> {
    let spec = spec.ok_or_else(|| Invalid::new("spec", "it is not set", "declare a service"))?;
    spec_in(spec).map_err(|e| e.within("spec"))
}

/// A filter by name; empty means all.
///
/// # Errors
/// [`Invalid`] names `field`.
pub fn service_filter(field: &str, name: &str) -> Result<Option<ServiceName>, Invalid> {
    match name {
        "" => Ok(None),
        name => service_name(field, name).map(Some),
    }
}

/// One word for a service's life.
pub fn life_text(life: Life) -> &'static str {
    match life {
        Life::Declared => "declared",
        Life::Unadopted => "unadopted",
        Life::Established => "established",
    }
}

fn life_in(text: &str) -> Result<Life, Invalid> {
    match text {
        "declared" => Ok(Life::Declared),
        "unadopted" => Ok(Life::Unadopted),
        "established" => Ok(Life::Established),
        other => {
            Err(Invalid::new("life", format!("{other:?} is not known"), "update this program"))
        }
    }
}

fn known<T, E>(field: &str, value: Result<T, E>, number: i32) -> Result<T, Invalid> {
    value.map_err(|_| {
        Invalid::new(field, format!("{number} is not known here"), "is the client newer?")
    })
}

fn bounded(field: &str, count: usize, most: usize) -> Result<(), Invalid> {
    if count > most {
        let problem = format!("it has {count} entries, the most is {most}");
        return Err(Invalid::new(field, problem, "split the service"));
    }
    Ok(())
}
