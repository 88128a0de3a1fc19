//! Clusters: how the endpoints of a side are used.

use envoy_types::pb::envoy::config::cluster::v3 as cds;
use envoy_types::pb::envoy::config::core::v3 as base;
use envoy_types::pb::envoy::r#type::v3::Percent;

use super::{Resource, here, lasts, number};
use crate::client::{Client, Flavour};
use crate::names::{Kind, Name, Side};
use crate::tuning::{
    CLOSE_ON_FAILED_CHECK, CONNECT_TIMEOUT, Check, IGNORE_HEALTH_ON_REMOVAL, UPDATE_MERGE_WINDOW,
    panic_threshold,
};

/// The cluster; its endpoints come on the same stream.
pub(super) fn cluster(name: &Name, client: &Client) -> Resource {
    let plain = cds::Cluster {
        name: name.to_string(),
        cluster_discovery_type: Some(cds::cluster::ClusterDiscoveryType::Type(
            cds::cluster::DiscoveryType::Eds as i32,
        )),
        eds_cluster_config: Some(cds::cluster::EdsClusterConfig {
            eds_config: Some(here()),
            service_name: String::new(),
        }),
        lb_policy: cds::cluster::LbPolicy::RoundRobin as i32,
        ..Default::default()
    };
    let cluster = match client.flavour {
        Flavour::Grpc => plain,
        Flavour::Envoy => cds::Cluster {
            connect_timeout: Some(lasts(CONNECT_TIMEOUT)),
            common_lb_config: Some(cds::cluster::CommonLbConfig {
                healthy_panic_threshold: Some(Percent { value: panic_threshold(name.side) }),
                update_merge_window: Some(lasts(UPDATE_MERGE_WINDOW)),
                ..Default::default()
            }),
            health_checks: vec![check(name.side)],
            close_connections_on_host_health_failure: CLOSE_ON_FAILED_CHECK,
            ignore_health_on_host_removal: IGNORE_HEALTH_ON_REMOVAL,
            ..plain
        },
    };
    Resource::new(Kind::Cluster, name.to_string(), None, &cluster)
}

fn check(side: Side) -> base::HealthCheck {
    use base::health_check::{HealthChecker, HttpHealthCheck};
    let check = Check::of(side);
    let interval = Some(lasts(check.interval));
    let http = HttpHealthCheck { path: check.path.into(), ..Default::default() };
    base::HealthCheck {
        timeout: Some(lasts(check.timeout)),
        // Envoy's default without traffic is a minute, in which a fence would not be noticed.
        interval,
        no_traffic_interval: interval,
        unhealthy_interval: Some(lasts(check.unhealthy_interval)),
        unhealthy_edge_interval: interval,
        healthy_edge_interval: interval,
        unhealthy_threshold: Some(number(check.unhealthy_threshold)),
        healthy_threshold: Some(number(check.healthy_threshold)),
        health_checker: Some(HealthChecker::HttpHealthCheck(http)),
        ..Default::default()
    }
}
