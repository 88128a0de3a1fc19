//! Endpoints: who takes the sessions of a side now.
//!
//! Everything that a client would refuse the whole answer for is ruled out here: gRPC's clients
//! demand a locality on every group, each one once per priority, no weight of zero, no address
//! twice and no gap between priorities; Envoy demands IP addresses.
//!
//! Who takes writes is one endpoint or none. Nothing is ever below it in priority, for a router would
//! fall back to that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use eds::endpoint::HealthCheckConfig;
use envoy_types::pb::envoy::config::core::v3 as base;
use envoy_types::pb::envoy::config::endpoint::v3 as eds;
use regent_core::id::{Epoch, InstanceName, Locality};
use regent_core::route::near;
use regent_core::route::table::{Closed, Endpoint, Routes, Write};

use super::wire::{Assignment, Group, Host, metadata};
use super::{Resource, number, socket};
use crate::client::{Client, Flavour};
use crate::names::{Kind, Name, Side};
use crate::tuning::MAX_WEIGHT;

/// The endpoints of one side of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Assigned {
    /// What to send. `None`: nothing; what was sent before is not taken back, and who was sent
    /// nothing yet waits, for this node cannot prove that the primary serves and cannot say that it
    /// does not.
    pub resource: Option<Resource>,
    /// Who is left out, and why. In the order of the routes.
    pub unroutable: Vec<Unroutable>,
}

/// An instance that no router can be sent to. To resolve names is the node's business: the routes
/// it passes on are to have addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{instance} is left out of the endpoints: {why}")]
pub struct Unroutable {
    /// Who.
    pub instance: InstanceName,
    /// What is wrong with its address.
    pub why: String,
}

/// The endpoints of `side`, as `client` should see them.
pub fn endpoints(routes: &Routes, side: Side, client: &Client) -> Assigned {
    let nothing_yet = || Assigned { resource: None, unroutable: Vec::new() };
    let tiers = match side {
        Side::Read if routes.reads_unknown => return nothing_yet(),
        Side::Read => {
            let tiers = near::reads(routes, &client.locality).into_iter();
            let takes_reads = |one| Listed { one, open: true };
            tiers.map(|tier| tier.endpoints.into_iter().map(takes_reads).collect()).collect()
        }
        Side::Write if routes.write == Write::Nobody(Closed::Unproven { holds: true }) => {
            return nothing_yet();
        }
        Side::Write => vec![writes(routes, client.flavour)],
    };
    let mut addresses = Addresses::default();
    let mut groups = Vec::new();
    let mut priority = 0;
    for tier in tiers {
        let tier = in_groups(tier, priority, routes.epoch, client.flavour, &mut addresses);
        // A tier of which nobody can be reached takes no priority: there must be no gaps.
        priority += u32::from(!tier.is_empty());
        groups.extend(tier);
    }
    let name = Name { service: routes.service.clone(), side };
    let name = name.to_string();
    let assignment = Assignment { cluster_name: name.clone(), endpoints: groups };
    let resource =
        Resource::new(Kind::Endpoints, name, Some((routes.epoch, routes.at.1)), &assignment);
    Assigned { resource: Some(resource), unroutable: addresses.unroutable }
}

/// An endpoint that is said to a client.
struct Listed<'a> {
    one: &'a Endpoint,
    /// Whether it takes sessions.
    open: bool,
}

/// The primary, if there is one. To an Envoy also the one before, closed, until its change is over:
/// with a host that is left out Envoy keeps its open sessions, but one that it knows and checks it
/// cuts off once its agent says that it is no primary. Not all others: a host that is new is checked
/// at once, one that was known only at its next turn.
fn writes(routes: &Routes, flavour: Flavour) -> Vec<Listed<'_>> {
    let primary = routes.write.primary();
    let closed = routes.former.iter().filter(|_| flavour == Flavour::Envoy);
    // It comes first: if two have one address, it is the primary's.
    let primary = primary.into_iter().map(|one| Listed { one, open: true });
    primary.chain(closed.map(|one| Listed { one, open: false })).collect()
}

/// The endpoints of one priority, by locality. The weight of a locality is that of its endpoints
/// together, so that each gets the same share wherever it is.
fn in_groups(
    tier: Vec<Listed<'_>>,
    priority: u32,
    epoch: Epoch,
    flavour: Flavour,
    addresses: &mut Addresses,
) -> Vec<Group> {
    let mut by_place: BTreeMap<Locality, Vec<Host>> = BTreeMap::new();
    for listed in tier {
        let Some(address) = addresses.take(listed.one) else { continue };
        let place = by_place.entry(place(&listed.one.locality)).or_default();
        place.push(host(&listed, address, epoch, flavour));
    }
    let group = |(locality, lb_endpoints): (Locality, Vec<Host>)| {
        let weights = lb_endpoints.iter().filter_map(|host| host.load_balancing_weight);
        let weight = weights.fold(0_u32, |sum, weight| sum.saturating_add(weight.value));
        let Locality { region, zone, host: sub_zone } = locality;
        Group {
            locality: Some(base::Locality { region, zone, sub_zone }),
            lb_endpoints,
            load_balancing_weight: Some(number(weight)),
            priority,
        }
    };
    by_place.into_iter().map(group).collect()
}

fn host(listed: &Listed<'_>, address: SocketAddr, epoch: Epoch, flavour: Flavour) -> Host {
    let Listed { one, open } = listed;
    let health_check_config = match flavour {
        Flavour::Envoy => Some(check(&one.check)),
        Flavour::Grpc => None,
    };
    let endpoint =
        eds::Endpoint { address: Some(socket(address)), health_check_config, ..Default::default() };
    let said = [("epoch", epoch.to_string()), ("instance", one.instance.to_string())];
    let (health, weight) = match open {
        true => (base::HealthStatus::Unknown, one.weight.clamp(1, MAX_WEIGHT)),
        // Its weight follows its lag, which is nobody's business here.
        false => (base::HealthStatus::Unhealthy, MAX_WEIGHT),
    };
    Host {
        endpoint: Some(endpoint),
        health_status: health as i32,
        metadata: Some(metadata("regent", said)),
        load_balancing_weight: Some(number(weight)),
    }
}

/// Where Envoy asks the agent. A host that is a name is taken to be the instance's own: Envoy takes
/// no names here either. Who has said no port is not asked, and so taken for healthy.
fn check(check: &str) -> HealthCheckConfig {
    if let Ok(address) = check.parse::<SocketAddr>() {
        let port_value = address.port().into();
        return HealthCheckConfig {
            address: Some(socket(address)),
            port_value,
            ..Default::default()
        };
    }
    match check.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok()) {
        Some(port) if port > 0 => {
            HealthCheckConfig { port_value: port.into(), ..Default::default() }
        }
        _ => HealthCheckConfig { disable_active_health_check: true, ..Default::default() },
    }
}

/// A locality must be named, even if nobody said where the instance is.
fn place(locality: &Locality) -> Locality {
    if *locality == Locality::default() {
        return Locality { zone: "unknown".into(), ..Locality::default() };
    }
    locality.clone()
}

/// Those that were given out, each once.
#[derive(Default)]
struct Addresses {
    taken: BTreeSet<SocketAddr>,
    unroutable: Vec<Unroutable>,
}

impl Addresses {
    fn take(&mut self, one: &Endpoint) -> Option<SocketAddr> {
        let why = match one.address.parse::<SocketAddr>() {
            Err(_) => format!("{:?} is no IP address and port", one.address),
            Ok(address) if address.port() == 0 => format!("{address} has no port"),
            Ok(address) if self.taken.insert(address) => return Some(address),
            Ok(address) => format!("another instance has {address} already"),
        };
        self.unroutable.push(Unroutable { instance: one.instance.clone(), why });
        None
    }
}
