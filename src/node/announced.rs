//! What a node's configuration says about the node itself, against what the cluster knows of it.
//!
//! Others dial a node, place it and name it by its row in the membership, which `members add` or the
//! list of the first nodes wrote. What a configuration adds to an empty row is taken over when the
//! node is added; what contradicts the row is refused: a setting that nobody follows is worse than
//! none.

use regent_core::id;
use regent_raft::api::Member;
use regent_rpc::convert::common::locality;
use regent_rpc::pb::raft::Announced;
use regent_rpc::pb::v1::Locality;

use crate::config::NodeConfig;
use crate::shell::Shell;

/// A setting says one thing, the membership another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {own:?} in the node's configuration, but the cluster knows it with {known:?}")]
pub struct Contradiction {
    /// Which setting.
    pub field: &'static str,
    /// What it says.
    pub own: String,
    /// What the cluster knows.
    pub known: String,
}

/// What `config` says about its own node; empty where it says nothing.
pub fn of(config: &NodeConfig) -> Member {
    Member {
        address: config.advertise.grpc.clone(),
        http_address: config.advertise.http.clone(),
        locality: config.locality.clone().into(),
        label: config.label.clone(),
    }
}

/// As it goes over the wire.
pub fn out(own: &Member) -> Announced {
    Announced {
        address: own.address.clone(),
        http_address: own.http_address.clone(),
        region: own.locality.region.clone(),
        zone: own.locality.zone.clone(),
        host: own.locality.host.clone(),
        label: own.label.clone(),
    }
}

/// Reads it.
///
/// # Errors
/// Says what cannot be.
pub fn read(told: Announced) -> Result<Member, String> {
    let Announced { address, http_address, region, zone, host, label } = told;
    let place = Some(Locality { region, zone, host });
    let place = locality("locality", place).map_err(|bad| bad.to_string())?;
    Ok(Member { address, http_address, locality: place, label })
}

/// `known`, with what only `own` says.
///
/// # Errors
/// The first thing in which the two contradict each other.
pub fn merge(known: &Member, own: &Member) -> Result<Member, Contradiction> {
    let one = |field, known: &String, own: &String| match (known.is_empty(), own.is_empty()) {
        (true, _) => Ok(own.clone()),
        (_, true) => Ok(known.clone()),
        _ if known == own => Ok(known.clone()),
        _ => Err(Contradiction { field, own: own.clone(), known: known.clone() }),
    };
    Ok(Member {
        address: one("advertise.grpc", &known.address, &own.address)?,
        http_address: one("advertise.http", &known.http_address, &own.http_address)?,
        locality: id::Locality {
            region: one("locality.region", &known.locality.region, &own.locality.region)?,
            zone: one("locality.zone", &known.locality.zone, &own.locality.zone)?,
            host: one("locality.host", &known.locality.host, &own.locality.host)?,
        },
        label: one("label", &known.label, &own.label)?,
    })
}

/// What of `own` the cluster does not follow. An empty row counts: it is not filled any more.
pub fn contradiction(known: &Member, own: &Member) -> Option<Contradiction> {
    let merged = match merge(known, own) {
        Ok(merged) => merged,
        Err(contradiction) => return Some(contradiction),
    };
    let fields = |it: &Member| {
        let id::Locality { region, zone, host } = it.locality.clone();
        [
            ("advertise.grpc", it.address.clone()),
            ("advertise.http", it.http_address.clone()),
            ("locality.region", region),
            ("locality.zone", zone),
            ("locality.host", host),
            ("label", it.label.clone()),
        ]
    };
    fields(&merged)
        .into_iter()
        .zip(fields(known))
        .find(|(own, known)| own != known)
        .map(|((field, own), (_, known))| Contradiction { field, own, known })
}

impl Shell {
    /// Why this node's configuration is not the one of the member it is; `None`: it is, or the node
    /// is no member yet.
    pub fn misdescribed(&self) -> Option<String> {
        let status = self.leadership.status();
        let (_, known, _) = status.members.iter().find(|(id, _, _)| *id == self.node)?;
        let found = contradiction(known, &of(&self.config))?;
        Some(format!(
            "{found}; take the setting out of the configuration, or add the node anew with \
             `regent members add`"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(zone: &str, label: &str) -> Member {
        let locality = id::Locality { zone: zone.into(), ..id::Locality::default() };
        Member { locality, label: label.into(), ..Member::default() }
    }

    #[test]
    fn a_new_node_fills_what_was_left_empty_and_contradicts_nothing() {
        let known = member("d", "");
        assert_eq!(merge(&known, &member("", "x")), Ok(member("d", "x")));
        assert_eq!(merge(&known, &member("d", "")), Ok(known.clone()));
        let wrong = merge(&known, &member("e", "")).expect_err("another zone");
        assert_eq!((wrong.field, &*wrong.own, &*wrong.known), ("locality.zone", "e", "d"));
    }

    #[test]
    fn what_a_member_is_configured_with_is_what_the_cluster_follows() {
        let known = member("d", "");
        for own in [member("", ""), member("d", "")] {
            assert_eq!(contradiction(&known, &own), None);
        }
        for (own, field) in [(member("e", ""), "locality.zone"), (member("d", "x"), "label")] {
            assert_eq!(contradiction(&known, &own).map(|it| it.field), Some(field));
        }
    }
}
