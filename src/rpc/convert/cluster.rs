//! The cluster's own messages: timing and members.

use regent_core::id::{Locality, NodeId};
use regent_core::timing::Timing;

use super::Invalid;
use super::common::{locality, positive, text};
use crate::pb::v1;

/// A timing for the wire.
pub fn timing_out(timing: &Timing) -> v1::Timing {
    v1::Timing {
        heartbeat_ms: timing.heartbeat_ms,
        election_min_ms: timing.election_min_ms,
        election_max_ms: timing.election_max_ms,
        commit_tick_ms: timing.commit_tick_ms,
        round_ms: timing.round_ms,
        dial_ms: timing.dial_ms,
    }
}

/// A timing of the wire.
///
/// # Errors
/// [`Invalid`] when it contradicts itself.
pub fn timing_in(timing: v1::Timing) -> Result<Timing, Invalid> {
    let timing = Timing {
        heartbeat_ms: timing.heartbeat_ms,
        election_min_ms: timing.election_min_ms,
        election_max_ms: timing.election_max_ms,
        commit_tick_ms: timing.commit_tick_ms,
        round_ms: timing.round_ms,
        dial_ms: timing.dial_ms,
    };
    // `check` multiplies by 3; a day is far above anything sensible and far below an overflow.
    let largest = 86_400_000;
    for (field, ms) in [
        ("heartbeat_ms", timing.heartbeat_ms),
        ("election_min_ms", timing.election_min_ms),
        ("election_max_ms", timing.election_max_ms),
        ("commit_tick_ms", timing.commit_tick_ms),
        ("round_ms", timing.round_ms),
        ("dial_ms", timing.dial_ms),
    ] {
        if ms > largest {
            return Err(Invalid::new(field, format!("{ms} is more than a day"), "lower it"));
        }
    }
    timing.check().map_err(|e| Invalid::new(e.field, e.problem, e.fix))?;
    Ok(timing)
}

/// A node that is to be added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMember {
    /// `host:port` of its gRPC port.
    pub address: String,
    /// `host:port` of its HTTP port.
    pub http_address: String,
    /// Where it runs.
    pub locality: Locality,
    /// For people.
    pub label: String,
}

/// A node that is to be added.
///
/// # Errors
/// [`Invalid`] names the field.
pub fn new_member(request: &v1::AddMemberRequest) -> Result<NewMember, Invalid> {
    Ok(NewMember {
        address: address("address", &request.address)?,
        http_address: match request.http_address.as_str() {
            "" => String::new(),
            http => address("http_address", http)?,
        },
        locality: locality("locality", request.locality.clone())?,
        label: text("label", &request.label)?,
    })
}

/// A node's id.
///
/// # Errors
/// [`Invalid`] when it is 0.
pub fn node_id(field: &str, id: u64) -> Result<NodeId, Invalid> {
    positive(field, id).map(NodeId)
}

/// `host:port`.
///
/// # Errors
/// [`Invalid`] names `field`.
pub fn address(field: &str, address: &str) -> Result<String, Invalid> {
    let fix = "use <host>:<port>";
    let Some((host, port)) = address.rsplit_once(':') else {
        return Err(Invalid::new(field, format!("{address:?} has no port"), fix));
    };
    let host_ok = !host.is_empty()
        && host.len() <= 255
        && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._:[]".contains(c));
    if !host_ok {
        return Err(Invalid::new(field, format!("{host:?} is no host"), fix));
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(address.to_owned()),
        _ => Err(Invalid::new(field, format!("{port:?} is no port"), fix)),
    }
}
