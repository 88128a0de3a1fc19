//! What every service's messages share: names, epochs, localities, conditions, stamps.

use regent_core::command::{Expect, Request};
use regent_core::id::{
    ClientId, ElectionName, Epoch, Incarnation, InstanceName, Locality, NameError, NodeId,
    PartitionName, Revision, Serial, ServiceName,
};
use regent_core::limits::{MAX_NAME_BYTES, MAX_TEXT_BYTES, MAX_VALUE_BYTES};

use super::Invalid;
use crate::pb::v1;

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Freshness {
    /// Everything acknowledged before the call is seen.
    #[default]
    Linearizable,
    /// At most this many milliseconds old.
    MaxAgeMs(u64),
}

/// Where a watch goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum From {
    /// With a snapshot of all that is there.
    #[default]
    Snapshot,
    /// After this revision of this incarnation.
    After(Incarnation, Revision),
}

/// Reads a name of any kind.
fn name<T>(
    field: &str,
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, NameError>,
) -> Result<T, Invalid> {
    parse(text).map_err(|problem| Invalid::new(field, problem.to_string(), "give another name"))
}

/// A service's name.
///
/// # Errors
/// [`Invalid`] names `field`.
pub fn service_name(field: &str, text: &str) -> Result<ServiceName, Invalid> {
    name(field, text, ServiceName::parse)
}

/// An instance's name.
///
/// # Errors
/// [`Invalid`] names `field`.
pub fn instance_name(field: &str, text: &str) -> Result<InstanceName, Invalid> {
    name(field, text, InstanceName::parse)
}

/// An election's name.
///
/// # Errors
/// [`Invalid`] names `field`.
pub fn election_name(field: &str, text: &str) -> Result<ElectionName, Invalid> {
    name(field, text, ElectionName::parse)
}

/// A partition's name.
///
/// # Errors
/// [`Invalid`] names `field`.
pub fn partition_name(field: &str, text: &str) -> Result<PartitionName, Invalid> {
    name(field, text, PartitionName::parse)
}

/// Free text of people.
///
/// # Errors
/// [`Invalid`] when it is longer than [`MAX_TEXT_BYTES`] or holds control characters, which could
/// forge lines in a terminal or a log.
pub fn text(field: &str, text: &str) -> Result<String, Invalid> {
    if text.len() > MAX_TEXT_BYTES {
        let problem = format!("it has {} bytes, the most is {MAX_TEXT_BYTES}", text.len());
        return Err(Invalid::new(field, problem, "shorten it"));
    }
    if let Some(c) = text.chars().find(|c| c.is_control() && *c != '\n' && *c != '\t') {
        let problem = format!("it has the control character {c:?}");
        return Err(Invalid::new(field, problem, "remove it"));
    }
    Ok(text.to_owned())
}

/// A proclaimed value.
///
/// # Errors
/// [`Invalid`] when it is longer than [`MAX_VALUE_BYTES`].
pub fn value(field: &str, bytes: &[u8]) -> Result<Vec<u8>, Invalid> {
    if bytes.len() > MAX_VALUE_BYTES {
        let problem = format!("it has {} bytes, the most is {MAX_VALUE_BYTES}", bytes.len());
        return Err(Invalid::new(field, problem, "publish an address, not a document"));
    }
    Ok(bytes.to_vec())
}

/// A number that must not be 0.
///
/// # Errors
/// [`Invalid`] names `field`.
pub fn positive(field: &str, number: u64) -> Result<u64, Invalid> {
    if number == 0 {
        return Err(Invalid::new(field, "it is 0 or not set", "set it"));
    }
    Ok(number)
}

/// A locality; not set means "not said".
///
/// # Errors
/// [`Invalid`] names the part that is too long or has a character that names may not have.
pub fn locality(field: &str, locality: Option<v1::Locality>) -> Result<Locality, Invalid> {
    let Some(v1::Locality { region, zone, host }) = locality else {
        return Ok(Locality::default());
    };
    for (part, text) in [("region", &region), ("zone", &zone), ("host", &host)] {
        let at = || format!("{field}.{part}");
        if text.len() > MAX_NAME_BYTES {
            let problem = format!("it has {} bytes, the most is {MAX_NAME_BYTES}", text.len());
            return Err(Invalid::new(at(), problem, "shorten it"));
        }
        if let Some(c) = text.chars().find(|c| c.is_control() || *c == '/') {
            return Err(Invalid::new(at(), format!("it has {c:?}"), "remove it"));
        }
    }
    Ok(Locality { region, zone, host })
}

/// A locality for the wire.
pub fn locality_out(locality: &Locality) -> v1::Locality {
    v1::Locality {
        region: locality.region.clone(),
        zone: locality.zone.clone(),
        host: locality.host.clone(),
    }
}

/// An epoch that must be given.
///
/// # Errors
/// [`Invalid`] names `field`.
pub fn epoch(field: &str, epoch: Option<v1::Epoch>) -> Result<Epoch, Invalid> {
    match epoch {
        Some(epoch) => Ok(epoch_in(epoch)),
        None => Err(Invalid::new(field, "it is not set", "name the epoch you hold")),
    }
}

/// An epoch of the wire.
pub fn epoch_in(epoch: v1::Epoch) -> Epoch {
    Epoch { incarnation: epoch.incarnation, revision: Revision(epoch.revision) }
}

/// An epoch for the wire.
pub fn epoch_out(epoch: Epoch) -> v1::Epoch {
    v1::Epoch { incarnation: epoch.incarnation, revision: epoch.revision.0 }
}

/// A condition; not set means any state will do.
///
/// # Errors
/// [`Invalid`] for `absent: false` and `revision: 0`, which could be meant either way.
pub fn expect(field: &str, expect: Option<v1::Expect>) -> Result<Expect, Invalid> {
    use v1::expect::Condition;
    match expect.and_then(|e| e.condition) {
        None => Ok(Expect::Any),
        Some(Condition::Absent(true)) => Ok(Expect::Absent),
        Some(Condition::Absent(false)) => Err(Invalid::new(
            format!("{field}.absent"),
            "false says nothing",
            "set it to true, or leave the condition out",
        )),
        Some(Condition::Revision(0)) => Err(Invalid::new(
            format!("{field}.revision"),
            "no row was changed at revision 0",
            "use absent for a row that must not exist",
        )),
        Some(Condition::Revision(revision)) => Ok(Expect::Revision(Revision(revision))),
    }
}

/// A condition for the wire.
pub fn expect_out(expect: Expect) -> Option<v1::Expect> {
    use v1::expect::Condition;
    let condition = match expect {
        Expect::Any => return None,
        Expect::Absent => Condition::Absent(true),
        Expect::Revision(revision) => Condition::Revision(revision.0),
    };
    Some(v1::Expect { condition: Some(condition) })
}

/// A request id; not set means the write is not deduplicated.
///
/// # Errors
/// [`Invalid`] when one half of it is 0.
pub fn request(field: &str, id: Option<v1::RequestId>) -> Result<Option<Request>, Invalid> {
    let Some(id) = id else { return Ok(None) };
    let client = positive(&format!("{field}.client"), id.client)?;
    let serial = positive(&format!("{field}.serial"), id.serial)?;
    Ok(Some(Request { client: ClientId(client), serial: Serial(serial) }))
}

/// A request id for the wire.
pub fn request_out(request: Request) -> v1::RequestId {
    v1::RequestId { client: request.client.0, serial: request.serial.0 }
}

/// How fresh a read must be.
pub fn freshness(read: Option<v1::Read>) -> Freshness {
    match read {
        None | Some(v1::Read { max_age_ms: 0 }) => Freshness::Linearizable,
        Some(v1::Read { max_age_ms }) => Freshness::MaxAgeMs(max_age_ms),
    }
}

/// A freshness for the wire.
pub fn freshness_out(freshness: Freshness) -> Option<v1::Read> {
    match freshness {
        Freshness::Linearizable => None,
        Freshness::MaxAgeMs(max_age_ms) => Some(v1::Read { max_age_ms }),
    }
}

/// Where a watch goes on.
///
/// # Errors
/// [`Invalid`] for a revision without the incarnation it belongs to: after a restore the same
/// number is another history.
pub fn watch_from(field: &str, from: Option<v1::WatchFrom>) -> Result<From, Invalid> {
    match from {
        None | Some(v1::WatchFrom { revision: 0, .. }) => Ok(From::Snapshot),
        Some(v1::WatchFrom { incarnation: 0, .. }) => Err(Invalid::new(
            format!("{field}.incarnation"),
            "a revision is given without its incarnation",
            "give both as the stream's stamps said them",
        )),
        Some(from) => Ok(From::After(
            Incarnation { counter: from.incarnation, id: from.incarnation_id },
            Revision(from.revision),
        )),
    }
}

/// Where a watch goes on, for the wire.
pub fn watch_from_out(from: From) -> Option<v1::WatchFrom> {
    match from {
        From::Snapshot => None,
        From::After(incarnation, revision) => Some(v1::WatchFrom {
            revision: revision.0,
            incarnation: incarnation.counter,
            incarnation_id: incarnation.id,
        }),
    }
}

/// Which state an answer was read from.
pub fn stamp_out(
    incarnation: Incarnation,
    revision: Revision,
    node: NodeId,
    age_ms: u64,
) -> v1::Stamp {
    v1::Stamp {
        incarnation: incarnation.counter,
        incarnation_id: incarnation.id,
        revision: revision.0,
        node: node.0,
        age_ms,
    }
}

/// The incarnation and revision of a stamp.
pub fn stamp_in(stamp: &v1::Stamp) -> (Incarnation, Revision) {
    let incarnation = Incarnation { counter: stamp.incarnation, id: stamp.incarnation_id };
    (incarnation, Revision(stamp.revision))
}
