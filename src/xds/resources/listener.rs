//! Listeners and route configurations: how clients reach the cluster of the same name.

use envoy_types::pb::envoy::config::listener::v3 as lds;
use envoy_types::pb::envoy::config::route::v3 as rds;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use hcm::http_connection_manager::RouteSpecifier;

use super::{Resource, here, lasts, packed, socket};
use crate::client::{Client, Flavour};
use crate::names::{Kind, Name};
use crate::tuning::IDLE_TIMEOUT;

/// The listener. An Envoy has one where its metadata says so, and no other.
pub(super) fn listener(name: &Name, client: &Client) -> Option<Resource> {
    let listener = match client.flavour {
        Flavour::Grpc => within_a_client(name),
        Flavour::Envoy => lds::Listener {
            name: name.to_string(),
            address: Some(socket(*client.listens.get(name)?)),
            filter_chains: vec![lds::FilterChain {
                filters: vec![tcp_proxy(name)],
                ..Default::default()
            }],
            ..Default::default()
        },
    };
    Some(Resource::new(Kind::Listener, name.to_string(), None, &listener))
}

/// One that has no route for anything.
pub(super) fn closed(name: &str) -> Resource {
    let nothing =
        rds::RouteConfiguration { name: format!("there is no {name}"), ..Default::default() };
    let listener = api_listener(name, RouteSpecifier::RouteConfig(nothing));
    Resource::new(Kind::Listener, name.to_owned(), None, &listener)
}

fn tcp_proxy(name: &Name) -> lds::Filter {
    let proxy = tcp::TcpProxy {
        stat_prefix: name.to_string(),
        idle_timeout: Some(lasts(IDLE_TIMEOUT)),
        cluster_specifier: Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(name.to_string())),
        ..Default::default()
    };
    lds::Filter {
        name: "envoy.filters.network.tcp_proxy".into(),
        config_type: Some(lds::filter::ConfigType::TypedConfig(packed(&proxy))),
    }
}

fn within_a_client(name: &Name) -> lds::Listener {
    let name = name.to_string();
    let routes = hcm::Rds { config_source: Some(here()), route_config_name: name.clone() };
    api_listener(&name, RouteSpecifier::Rds(routes))
}

fn api_listener(name: &str, routes: RouteSpecifier) -> lds::Listener {
    let router = hcm::HttpFilter {
        name: "router".into(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(packed(&Router::default()))),
        ..Default::default()
    };
    let manager = hcm::HttpConnectionManager {
        stat_prefix: name.to_owned(),
        route_specifier: Some(routes),
        http_filters: vec![router],
        ..Default::default()
    };
    lds::Listener {
        name: name.to_owned(),
        api_listener: Some(lds::ApiListener { api_listener: Some(packed(&manager)) }),
        ..Default::default()
    }
}

/// The route configuration: everything to the cluster.
pub(super) fn route(name: &Name) -> Resource {
    let to_cluster = rds::RouteAction {
        cluster_specifier: Some(rds::route_action::ClusterSpecifier::Cluster(name.to_string())),
        ..Default::default()
    };
    let any_path = rds::RouteMatch {
        path_specifier: Some(rds::route_match::PathSpecifier::Prefix(String::new())),
        ..Default::default()
    };
    let route = rds::RouteConfiguration {
        name: name.to_string(),
        virtual_hosts: vec![rds::VirtualHost {
            name: name.to_string(),
            domains: vec!["*".into()],
            routes: vec![rds::Route {
                r#match: Some(any_path),
                action: Some(rds::route::Action::Route(to_cluster)),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    };
    Resource::new(Kind::Route, name.to_string(), None, &route)
}
