//! Observations. They are hot and come from every agent five times a second, so what is too long is
//! shortened where it is said, and refused where it is heard.

use regent_core::id::Revision;
use regent_core::limits::{MAX_INSTANCES, MAX_TEXT_BYTES};
use regent_core::role::Lsn;
use regent_core::role::observe::{
    Canary, Guarded, Observation, Probe, Receiver, Run, Sender, Sight,
};

use super::Invalid;
use super::cluster::address;
use super::common::{epoch_out, instance_name, text};
use super::role::{bounded, epoch_or_none, number_in, number_out, position_in, position_out};
use crate::pb::v1;

/// Text of PostgreSQL or of the system, made fit to be sent: an agent's own words must never make
/// a node refuse what it says.
fn clipped(text: &str) -> String {
    let mut clean = String::with_capacity(text.len().min(MAX_TEXT_BYTES));
    for c in text.chars() {
        if clean.len() + c.len_utf8() > MAX_TEXT_BYTES {
            break;
        }
        clean.push(if c.is_control() && c != '\n' && c != '\t' { ' ' } else { c });
    }
    clean
}

/// An observation for the wire.
pub fn observation_out(seen: &Observation) -> v1::Observation {
    use v1::observation::Run as R;
    let run = match seen.run {
        Run::Down => R::Down,
        Run::Starting => R::Starting,
        Run::Standby => R::Standby,
        Run::Primary => R::Primary,
        Run::Stopping => R::Stopping,
        Run::Rebuilding => R::Rebuilding,
    };
    v1::Observation {
        run: run.into(),
        stopped_in_order: seen.stopped_in_order,
        position: seen.position.as_ref().map(position_out),
        replay_lag_bytes: seen.replay_lag_bytes,
        receiver: seen.receiver.as_ref().map(|receiver| v1::Receiver {
            from: receiver.from.as_ref().map(ToString::to_string).unwrap_or_default(),
            streams: receiver.streams,
            silent_ms: receiver.silent_ms,
        }),
        senders: seen.senders.iter().take(MAX_INSTANCES).map(sender_out).collect(),
        probe: probe_out(&seen.probe),
        canary: seen
            .canary
            .as_ref()
            .map(|canary| v1::Canary { age_ms: canary.age_ms, returned: canary.returned }),
        set_in_force: seen.set_in_force.map_or(0, |set| set.0),
        covered: seen.covered.map_or(0, |set| set.0),
        prepared: seen.prepared.map_or(0, |operation| operation.0),
        serving: Some(epoch_out(seen.serving)),
        sights: seen.sights.iter().take(MAX_INSTANCES).map(sight_out).collect(),
        seen: Some(number_out(seen.seen)),
        doing: clipped(&seen.doing),
        problem: clipped(&seen.problem),
        tampered: clipped(&seen.tampered),
        works: seen.works,
        disk_free_bytes: seen.disk_free_bytes,
        slowest_fence_ms: seen.guard.slowest_fence_ms,
        fence_budget_ms: seen.guard.fence_budget_ms,
        watchdog_ms: seen.guard.watchdog_ms,
        check: seen.check.clone(),
    }
}

fn sender_out(sender: &Sender) -> v1::Sender {
    v1::Sender {
        to: sender.to.to_string(),
        streams: sender.streams,
        is_sync: sender.is_sync,
        flushed: sender.flushed.0,
    }
}

fn sight_out(sight: &Sight) -> v1::Sight {
    v1::Sight {
        instance: sight.instance.to_string(),
        answered_ms: sight.answered_ms,
        refused: sight.refused,
        tried_ms: sight.tried_ms,
    }
}

fn probe_out(probe: &Probe) -> Option<v1::Probe> {
    use v1::probe::Outcome;
    let outcome = match probe {
        Probe::Unknown => return None,
        Probe::Answered(ms) => Outcome::AnsweredMs(*ms),
        Probe::Failed { since_ms, why } => {
            Outcome::Failed(v1::ProbeFailed { since_ms: *since_ms, why: clipped(why) })
        }
    };
    Some(v1::Probe { outcome: Some(outcome) })
}

/// An observation of the wire.
///
/// # Errors
/// [`Invalid`] names the field.
pub fn observation_in(seen: v1::Observation) -> Result<Observation, Invalid> {
    use v1::observation::Run as R;
    let run = match R::try_from(seen.run) {
        Ok(R::Down) => Run::Down,
        Ok(R::Starting) => Run::Starting,
        Ok(R::Standby) => Run::Standby,
        Ok(R::Primary) => Run::Primary,
        Ok(R::Stopping) => Run::Stopping,
        Ok(R::Rebuilding) => Run::Rebuilding,
        Err(_) => {
            let problem = format!("{} is not known", seen.run);
            return Err(Invalid::new("run", problem, "run a version that knows it"));
        }
    };
    bounded("senders", seen.senders.len(), MAX_INSTANCES)?;
    bounded("sights", seen.sights.len(), MAX_INSTANCES)?;
    let revision = |number: u64| (number > 0).then_some(Revision(number));
    Ok(Observation {
        run,
        stopped_in_order: seen.stopped_in_order,
        position: seen.position.map(position_in),
        replay_lag_bytes: seen.replay_lag_bytes,
        receiver: seen.receiver.map(receiver_in).transpose()?,
        senders: seen.senders.into_iter().map(sender_in).collect::<Result<_, _>>()?,
        probe: probe_in(seen.probe)?,
        canary: seen.canary.map(|c| Canary { age_ms: c.age_ms, returned: c.returned }),
        set_in_force: revision(seen.set_in_force),
        covered: revision(seen.covered),
        prepared: revision(seen.prepared),
        serving: epoch_or_none(seen.serving),
        sights: seen.sights.into_iter().map(sight_in).collect::<Result<_, _>>()?,
        seen: number_in(seen.seen),
        doing: text("doing", &seen.doing)?,
        problem: text("problem", &seen.problem)?,
        tampered: text("tampered", &seen.tampered)?,
        works: seen.works,
        disk_free_bytes: seen.disk_free_bytes,
        guard: Guarded {
            slowest_fence_ms: seen.slowest_fence_ms,
            fence_budget_ms: seen.fence_budget_ms,
            watchdog_ms: seen.watchdog_ms,
        },
        check: check(seen.check)?,
    })
}

/// Where health checks are answered, as an agent says it. It goes into configurations of routers, so
/// nothing but an address may stand in it.
///
/// # Errors
/// [`Invalid`] names `check`.
pub fn check(said: String) -> Result<String, Invalid> {
    match said.strip_prefix(':') {
        None if said.is_empty() => Ok(said),
        Some(port) => address("check", &format!("localhost:{port}")).map(|_| said),
        None => address("check", &said),
    }
}

fn receiver_in(receiver: v1::Receiver) -> Result<Receiver, Invalid> {
    let from = match receiver.from.as_str() {
        "" => None,
        from => Some(instance_name("receiver.from", from)?),
    };
    Ok(Receiver { from, streams: receiver.streams, silent_ms: receiver.silent_ms })
}

fn sender_in(sender: v1::Sender) -> Result<Sender, Invalid> {
    Ok(Sender {
        to: instance_name("senders.to", &sender.to)?,
        streams: sender.streams,
        is_sync: sender.is_sync,
        flushed: Lsn(sender.flushed),
    })
}

fn sight_in(sight: v1::Sight) -> Result<Sight, Invalid> {
    Ok(Sight {
        instance: instance_name("sights.instance", &sight.instance)?,
        answered_ms: sight.answered_ms,
        refused: sight.refused,
        tried_ms: sight.tried_ms,
    })
}

fn probe_in(probe: Option<v1::Probe>) -> Result<Probe, Invalid> {
    use v1::probe::Outcome;
    Ok(match probe.and_then(|probe| probe.outcome) {
        None => Probe::Unknown,
        Some(Outcome::AnsweredMs(ms)) => Probe::Answered(ms),
        Some(Outcome::Failed(v1::ProbeFailed { since_ms, why })) => {
            Probe::Failed { since_ms, why: text("probe.failed.why", &why)? }
        }
    })
}
