//! The JSON form of what nodes answer: stable names, numbers in the unit that the name says.

use regent_rpc::pb::v1;
use serde_json::{Value, json};

use super::text;

/// An epoch: both parts, and the text that people and programs compare by eye.
pub fn epoch(epoch: &Option<v1::Epoch>) -> Value {
    epoch.as_ref().map_or(Value::Null, |epoch| {
        json!({
            "incarnation": epoch.incarnation,
            "revision": epoch.revision,
            "text": text::epoch(epoch),
        })
    })
}

/// Where something runs.
pub fn locality(locality: &Option<v1::Locality>) -> Value {
    let part = locality.clone().unwrap_or_default();
    json!({ "region": part.region, "zone": part.zone, "host": part.host })
}

/// Which state an answer was read from.
pub fn stamp(stamp: &Option<v1::Stamp>) -> Value {
    stamp.as_ref().map_or(Value::Null, |stamp| {
        json!({
            "incarnation": stamp.incarnation,
            "incarnation_id": format!("{:016x}", stamp.incarnation_id),
            "revision": stamp.revision,
            "node": stamp.node,
            "age_ms": stamp.age_ms,
        })
    })
}

/// A proclaimed value: as text where it is text, else in hexadecimal under another name, so that a
/// program never mistakes one for the other.
fn value(bytes: &[u8]) -> (&'static str, Value) {
    match std::str::from_utf8(bytes) {
        Ok(text) => ("value", Value::from(text)),
        Err(_) => ("value_hex", Value::from(text::hex(bytes))),
    }
}

/// One election.
pub fn election(election: &v1::Election) -> Value {
    let holder = election.holder.as_ref().map(|holder| {
        let (name, value) = value(&holder.value);
        json!({
            "session": holder.session,
            "owner": holder.owner,
            "label": holder.label,
            "epoch": epoch(&holder.epoch),
            name: value,
            "locality": locality(&holder.locality),
            "priority": holder.priority,
            "confirmed": holder.confirmed,
            "ttl_ms": holder.ttl_ms,
        })
    });
    let queue: Vec<Value> = election
        .queue
        .iter()
        .map(|candidate| {
            json!({
                "session": candidate.session,
                "owner": candidate.owner,
                "priority": candidate.priority,
                "locality": locality(&candidate.locality),
                "since": candidate.since,
            })
        })
        .collect();
    json!({
        "name": election.name,
        "epoch": epoch(&election.epoch),
        "holder": holder,
        "queue": queue,
        "preferred": locality(&election.preferred),
        "changed": election.changed,
    })
}

/// One member.
pub fn member(member: &v1::Member) -> Value {
    json!({
        "id": member.id,
        "address": member.address,
        "http_address": member.http_address,
        "locality": locality(&member.locality),
        "voter": member.voter,
        "leader": member.leader,
        "behind": member.behind,
        "label": member.label,
    })
}

/// One node's own view of itself and the cluster.
pub fn status(status: &v1::StatusResponse) -> Value {
    let node = status.node.clone().unwrap_or_default();
    let timing = status.timing.unwrap_or_default();
    json!({
        "stamp": stamp(&status.stamp),
        "cluster": status.cluster,
        "leader": status.leader,
        "leader_address": status.leader_address,
        "term": status.term,
        "feature_level": status.feature_level,
        "state_hash": status.state_hash,
        "timing": {
            "heartbeat_ms": timing.heartbeat_ms,
            "election_min_ms": timing.election_min_ms,
            "election_max_ms": timing.election_max_ms,
            "commit_tick_ms": timing.commit_tick_ms,
            "round_ms": timing.round_ms,
            "dial_ms": timing.dial_ms,
        },
        "sessions": status.sessions,
        "elections": status.elections,
        "services": status.services,
        "quarantined": status.quarantined,
        "audit_records": status.audit_records,
        "least_ttl_ms": status.least_ttl_ms,
        "grants_held_ms": status.grants_held_ms,
        "members": status.members.iter().map(member).collect::<Vec<_>>(),
        "node": {
            "id": node.id,
            "version": node.version,
            "role": node.role,
            "last_log": node.last_log,
            "applied": node.applied,
            "snapshot": node.snapshot,
            "boot": node.boot,
            "storage_problem": node.storage_problem,
            "certificate_expires_in_ms": node.certificate_expires_in_ms,
            "ca_expires_in_ms": node.ca_expires_in_ms,
            "uptime_ms": node.uptime_ms,
            "clock_skew_ppm": node.clock_skew_ppm,
        },
    })
}

/// One service.
pub fn service(service: &v1::Service) -> Value {
    let spec = service.spec.clone().unwrap_or_default();
    let policy = spec.policy.unwrap_or_default();
    let instances: Vec<Value> = spec
        .instances
        .iter()
        .map(|instance| {
            json!({
                "name": instance.name,
                "locality": locality(&instance.locality),
                "address": instance.address,
                "priority": instance.priority,
            })
        })
        .collect();
    let partitions: Vec<Value> = service
        .partitions
        .iter()
        .map(|partition| {
            json!({
                "name": partition.name,
                "epoch": epoch(&partition.epoch),
                "owner": partition.owner,
                "changed": partition.changed,
            })
        })
        .collect();
    json!({
        "name": spec.name,
        "description": spec.description,
        "engine": text::word(spec.engine().as_str_name()),
        "topology": text::word(spec.topology().as_str_name()),
        "instances": instances,
        "partitions": partitions,
        "policy": {
            "mode": text::word(policy.mode().as_str_name()),
            "ttl_ms": policy.ttl_ms,
            "sync_standbys": policy.sync_standbys,
            "min_sync_standbys": policy.min_sync_standbys,
            "on_lowered_sync": text::word(policy.on_lowered_sync().as_str_name()),
            "on_too_few_sync": text::word(policy.on_too_few_sync().as_str_name()),
            "on_coordinator_loss": text::word(policy.on_coordinator_loss().as_str_name()),
            "loss_bound": {
                "max_bytes": policy.loss_max_bytes,
                "max_ms": policy.loss_max_ms,
                "on_violation": text::word(policy.loss_on_violation().as_str_name()),
            },
            "max_failover_scope": text::word(policy.max_failover_scope().as_str_name()),
            "survive": text::word(policy.survive().as_str_name().trim_start_matches("SURVIVE_")),
            "restart_grace_ms": policy.restart_grace_ms,
            "failover_cooldown_ms": policy.failover_cooldown_ms,
            "await_routers": {
                "percent": policy.await_routers.as_ref().map_or(0, |it| it.percent),
                "within_ms": policy.await_routers.as_ref().and_then(|it| it.within_ms),
            },
        },
        "life": service.life,
        "created": service.created,
        "changed": service.changed,
        "quarantine": service.quarantine.as_ref().map(|q| json!({ "since": q.since, "why": q.why })),
    })
}

/// One audit record.
pub fn audit(record: &v1::AuditRecord) -> Value {
    json!({
        "number": record.number,
        "revision": record.revision,
        "incarnation": record.incarnation,
        "at": text::instant(record.at_ms),
        "at_ms": record.at_ms,
        "who": record.who,
        "what": record.what,
        "resource": record.resource,
        "why": record.why,
        "outcome": record.outcome,
        "before": text::hex(&record.before),
        "hash": text::hex(&record.hash),
    })
}
