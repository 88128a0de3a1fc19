//! Routes, for the wire.

use regent_core::id::{Epoch, Locality};
use regent_core::route::near::{self, Distance, Tier};
use regent_core::route::table::{Closed, Endpoint, Routes, Write};

use super::common::{epoch_out, locality_out};
use crate::pb::v1;

/// The routes as a client at `client` sees them.
pub fn routes_out(routes: &Routes, client: &Locality) -> v1::Routes {
    let (write, closed, holds) = match &routes.write {
        Write::To(endpoint) => (Some(endpoint_out(endpoint)), String::new(), false),
        Write::Nobody(why) => {
            (None, why.to_string(), matches!(why, Closed::Unproven { holds: true }))
        }
    };
    v1::Routes {
        service: routes.service.to_string(),
        epoch: (routes.epoch != Epoch::NONE).then(|| epoch_out(routes.epoch)),
        revision: routes.at.1.0,
        write,
        closed,
        holds,
        unproven: matches!(routes.write, Write::Nobody(Closed::Unproven { .. })),
        drains: matches!(routes.write, Write::Nobody(Closed::Draining)),
        reads_unknown: routes.reads_unknown,
        reads: near::reads(routes, client).iter().map(tier_out).collect(),
        instances: routes.all.iter().map(endpoint_out).collect(),
    }
}

fn tier_out(tier: &Tier<'_>) -> v1::RouteTier {
    use v1::route_tier::Distance as D;
    let distance = match tier.distance {
        Distance::Zone => D::Zone,
        Distance::Region => D::Region,
        Distance::Remote => D::Remote,
        Distance::Primary => D::Primary,
    };
    let endpoints = tier.endpoints.iter().map(|one| endpoint_out(one)).collect();
    v1::RouteTier { distance: distance.into(), endpoints }
}

fn endpoint_out(endpoint: &Endpoint) -> v1::RouteEndpoint {
    v1::RouteEndpoint {
        instance: endpoint.instance.to_string(),
        address: endpoint.address.clone(),
        check: endpoint.check.clone(),
        locality: Some(locality_out(&endpoint.locality)),
        lag_bytes: endpoint.lag_bytes,
        weight: endpoint.weight,
    }
}
