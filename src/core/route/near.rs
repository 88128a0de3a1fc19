//! The read routes of a service as a client in some place sees them: the nearest first.
//!
//! Tiers have no gaps, because gRPC's clients refuse those (gRFC A27), and no tier is shared by near
//! and far: a router that spills over moves to the next one as a whole.

use super::table::{Endpoint, Routes};
use crate::id::Locality;

/// Endpoints of one priority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tier<'a> {
    /// How near.
    pub distance: Distance,
    /// By name of the instance.
    pub endpoints: Vec<&'a Endpoint>,
}

/// How far an instance is from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Distance {
    /// In its zone.
    Zone,
    /// In its region.
    Region,
    /// Elsewhere, or nobody knows where the client is.
    Remote,
    /// The primary: it takes reads when no standby does.
    Primary,
}

impl Distance {
    /// From `client` to `there`. A client that names no zone is as near to all of its region, and one
    /// that names no region is in the only one that there is.
    pub fn between(client: &Locality, there: &Locality) -> Self {
        let same = |a: &str, b: &str| !a.is_empty() && a == b;
        if !client.region.is_empty() && client.region != there.region {
            return Self::Remote;
        }
        match (same(&client.zone, &there.zone), same(&client.region, &there.region)) {
            (true, _) => Self::Zone,
            (false, true) => Self::Region,
            (false, false) => Self::Remote,
        }
    }
}

/// The read routes for a client at `client`, the nearest tier first; none is empty.
pub fn reads<'a>(routes: &'a Routes, client: &Locality) -> Vec<Tier<'a>> {
    let standbys = routes.reads.iter().map(|one| (Distance::between(client, &one.locality), one));
    let primary = routes.write.primary().map(|one| (Distance::Primary, one));
    let mut ranked: Vec<_> = standbys.chain(primary).collect();
    ranked.sort_by_key(|(distance, one)| (*distance, &one.instance));
    let mut tiers: Vec<Tier<'a>> = Vec::new();
    for (distance, one) in ranked {
        match tiers.last_mut().filter(|tier| tier.distance == distance) {
            Some(tier) => tier.endpoints.push(one),
            None => tiers.push(Tier { distance, endpoints: vec![one] }),
        }
    }
    tiers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Epoch, Incarnation, Revision};
    use crate::route::table::{Closed, Write};

    fn at(region: &str, zone: &str) -> Locality {
        Locality { region: region.into(), zone: zone.into(), host: String::new() }
    }

    fn one(name: &str, locality: Locality) -> Endpoint {
        Endpoint {
            instance: name.parse().expect("a name"),
            address: format!("{name}:5432"),
            check: String::new(),
            locality,
            lag_bytes: 0,
            weight: 100,
        }
    }

    fn routes(write: Write, reads: Vec<Endpoint>) -> Routes {
        let service = "s".parse().expect("a name");
        let at = (Incarnation::default(), Revision(1));
        Routes {
            service,
            epoch: Epoch::NONE,
            at,
            write,
            former: None,
            reads,
            reads_unknown: false,
            all: Vec::new(),
        }
    }

    fn told(routes: &Routes, client: &Locality) -> String {
        let tier = |tier: &Tier<'_>| {
            let names: Vec<_> = tier.endpoints.iter().map(|one| one.instance.as_str()).collect();
            format!("{:?}[{}]", tier.distance, names.join(" "))
        };
        reads(routes, client).iter().map(tier).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_nearest_come_first_and_the_primary_last() {
        let standbys = vec![
            one("far", at("us", "a")),
            one("b", at("eu", "b")),
            one("a2", at("eu", "a")),
            one("a1", at("eu", "a")),
        ];
        let table = routes(Write::To(one("p", at("eu", "a"))), standbys);
        let cases = [
            (at("eu", "a"), "Zone[a1 a2] Region[b] Remote[far] Primary[p]"),
            (at("eu", "c"), "Region[a1 a2 b] Remote[far] Primary[p]"),
            // The same name of a zone in another region is another zone.
            (at("us", "b"), "Region[far] Remote[a1 a2 b] Primary[p]"),
            (at("us", ""), "Region[far] Remote[a1 a2 b] Primary[p]"),
            (at("", ""), "Remote[a1 a2 b far] Primary[p]"),
            (at("", "b"), "Zone[b] Remote[a1 a2 far] Primary[p]"),
        ];
        for (client, wanted) in cases {
            assert_eq!(told(&table, &client), wanted, "{client:?}");
        }
    }

    #[test]
    fn zones_without_regions_are_near_and_far_too_and_no_tier_is_empty() {
        let standbys = vec![one("a", at("", "a")), one("b", at("", "b"))];
        let table = routes(Write::Nobody(Closed::Lapsed), standbys);
        assert_eq!(told(&table, &at("", "b")), "Zone[b] Remote[a]");
        assert_eq!(told(&routes(Write::Nobody(Closed::Lapsed), vec![]), &at("", "b")), "");
    }
}
