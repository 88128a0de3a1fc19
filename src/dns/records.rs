//! What endpoints are in DNS: addresses, aliases and ports.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use hickory_proto::rr::rdata::{CNAME, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use regent_core::id::Locality;
use regent_core::route::near::{Distance, Tier, reads};
use regent_core::route::table::{Endpoint, Routes};

use crate::zone::{Role, Zone, name_of};

/// Where an instance is, as it was declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Ip(IpAddr),
    Name(Name),
}

/// Host and port of a declared address; `None`: DNS cannot say it. A name of this very zone would be
/// an alias that leads back here.
pub(crate) fn host(zone: &Zone, address: &str) -> Option<(Host, u16)> {
    if let Ok(socket) = address.parse::<SocketAddr>() {
        return Some((Host::Ip(socket.ip()), socket.port()));
    }
    let (host, port) = address.rsplit_once(':')?;
    let name = name_of(host).ok().filter(|name| !zone.holds(name))?;
    Some((Host::Name(name), port.parse().ok()?))
}

/// Who has `role`, the nearest first. `turn` is another number with each question: those who are
/// equally near take turns in coming first.
pub(crate) fn endpoints<'a>(
    routes: &'a Routes,
    role: Role,
    place: &Locality,
    turn: u16,
) -> Vec<Tier<'a>> {
    let mut tiers = match role {
        Role::Primary => {
            let primary = routes.write.primary().into_iter();
            let tier = |one| Tier { distance: Distance::Primary, endpoints: vec![one] };
            primary.map(tier).collect()
        }
        Role::Replicas => reads(routes, place),
    };
    for tier in &mut tiers {
        let count = tier.endpoints.len();
        tier.endpoints.rotate_left(usize::from(turn) % count.max(1));
    }
    tiers
}

/// Addresses of `tiers`, for a question about `name`. Addresses have no order that lasts, so the
/// primary, which is the last resort of reads, is among them only where nobody else is.
pub(crate) fn addresses(
    zone: &Zone,
    name: &Name,
    wanted: RecordType,
    tiers: &[Tier<'_>],
) -> Vec<Record> {
    let hosts = |last_resort: bool| -> Vec<Host> {
        let of = tiers.iter().filter(|tier| (tier.distance == Distance::Primary) == last_resort);
        let hosts = of.flat_map(|tier| &tier.endpoints).map(|one| host(zone, &one.address));
        hosts.flatten().map(|(host, _)| host).collect()
    };
    let mut told = hosts(false);
    if told.is_empty() {
        told = hosts(true);
    }
    of_hosts(zone, name, wanted, told)
}

/// The address of one instance.
pub(crate) fn of_one(zone: &Zone, name: &Name, wanted: RecordType, one: &Endpoint) -> Vec<Record> {
    let host = host(zone, &one.address).map(|(host, _)| host);
    of_hosts(zone, name, wanted, host.into_iter().collect())
}

/// An alias stands alone (RFC 1034), and stands for one: where one host has an IP address, those with
/// names are left out, and of several names there is the first.
fn of_hosts(zone: &Zone, name: &Name, wanted: RecordType, hosts: Vec<Host>) -> Vec<Record> {
    let mut seen = BTreeSet::new();
    let ips = hosts.iter().filter_map(|host| match host {
        Host::Ip(ip) => Some(*ip),
        Host::Name(_) => None,
    });
    let ips: Vec<_> = ips.filter(|ip| seen.insert(*ip)).collect();
    let record = |data| Record::from_rdata(name.clone(), zone.ttl, data);
    if ips.is_empty() {
        let alias = hosts.into_iter().find_map(|host| match host {
            Host::Name(of) => Some(record(RData::CNAME(CNAME(of)))),
            Host::Ip(_) => None,
        });
        return alias.into_iter().collect();
    }
    ips.into_iter().map(|ip| record(RData::from(ip))).filter(is(wanted)).collect()
}

fn is(wanted: RecordType) -> impl Fn(&Record) -> bool {
    move |record| record.record_type() == wanted
}

/// Ports of `tiers`, the nearest tier with the lowest priority, and the addresses of their targets.
/// A target must be no alias (RFC 2782), so an instance that is declared by a host's name is named
/// by that.
pub(crate) fn ports(
    zone: &Zone,
    name: &Name,
    routes: &Routes,
    tiers: &[Tier<'_>],
) -> (Vec<Record>, Vec<Record>) {
    let (mut answers, mut more) = (Vec::new(), Vec::new());
    for (priority, tier) in (0..).zip(tiers) {
        for one in &tier.endpoints {
            let Some((host, port)) = host(zone, &one.address) else { continue };
            let target = match host {
                Host::Name(name) => name,
                Host::Ip(ip) => {
                    let own = zone.of_instance(routes.service.as_str(), one.instance.as_str());
                    let Some(own) = own else { continue };
                    more.push(Record::from_rdata(own.clone(), zone.ttl, RData::from(ip)));
                    own
                }
            };
            let weight = u16::try_from(one.weight).unwrap_or(u16::MAX);
            let data = RData::SRV(SRV::new(priority, weight, port, target));
            answers.push(Record::from_rdata(name.clone(), zone.ttl, data));
        }
    }
    (answers, more)
}
