//! Tests of what each kind of client is sent, read back with the generated messages.

use super::*;
use crate::client::Flavour;
use crate::names::Side;
use crate::testing::{at, client, envoy, one, routes, to};
use base::health_check::HealthChecker::HttpHealthCheck;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3 as eds;
use envoy_types::pb::envoy::config::listener::v3::{self as lds, Listener};
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::filters::network::{
    http_connection_manager::v3::{HttpConnectionManager, http_connection_manager::RouteSpecifier},
    tcp_proxy::v3::TcpProxy,
};
use envoy_types::pb::google::protobuf::value::Kind as Is;
use regent_core::route::table::{Closed, Routes, Write};

fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}

fn read<M: Message + Default + prost::Name>(any: &Any) -> M {
    assert_eq!(any.type_url, M::type_url());
    M::decode(any.value.as_slice()).expect("it is what it says")
}

fn sent<M: Message + Default + prost::Name>(kind: Kind, text: &str, client: &Client) -> M {
    read(&lasting(kind, &name(text), client).expect("there is one").body)
}

fn assigned(routes: &Routes, side: Side, client: &Client) -> eds::ClusterLoadAssignment {
    read(&endpoints(routes, side, client).resource.expect("it is known").body)
}

fn address(address: Option<&base::Address>) -> String {
    use base::{address::Address::SocketAddress, socket_address::PortSpecifier::PortValue};
    match address.and_then(|one| one.address.as_ref()) {
        Some(SocketAddress(one)) => match one.port_specifier {
            Some(PortValue(port)) => format!("{}:{port}", one.address),
            _ => "no port".into(),
        },
        _ => "none".into(),
    }
}

/// One line per group: priority, locality, weight, then its endpoints.
fn told(assignment: &eds::ClusterLoadAssignment) -> String {
    let mut lines = Vec::new();
    for group in &assignment.endpoints {
        let place = group.locality.clone().expect("each has one");
        let weight = group.load_balancing_weight.expect("each has one").value;
        let mut line = format!(
            "{} {}/{}/{} w{weight}:",
            group.priority, place.region, place.zone, place.sub_zone
        );
        for host in &group.lb_endpoints {
            let Some(eds::lb_endpoint::HostIdentifier::Endpoint(one)) = &host.host_identifier
            else {
                panic!("an endpoint by name")
            };
            let weight = host.load_balancing_weight.expect("each has one").value;
            let fields = &host.metadata.as_ref().expect("each has one").filter_metadata["regent"];
            let field = |key: &str| match &fields.fields[key].kind {
                Some(Is::StringValue(text)) => text.clone(),
                other => panic!("{other:?}"),
            };
            let closed = host.health_status == base::HealthStatus::Unhealthy as i32;
            line += if closed { " closed" } else { "" };
            line += &format!(
                " {}={}@{} w{weight}",
                field("instance"),
                address(one.address.as_ref()),
                field("epoch")
            );
            if let Some(check) = &one.health_check_config {
                line += &match (&check.address, check.disable_active_health_check) {
                    (_, true) => " unchecked".to_owned(),
                    (None, _) => format!(" check=:{}", check.port_value),
                    (Some(at), _) => {
                        format!(" check={},{}", address(Some(at)), check.port_value)
                    }
                };
            }
        }
        lines.push(line);
    }
    lines.join("\n")
}

#[test]
fn a_listener_that_stands_for_none_has_no_route_and_is_not_the_one_that_comes() {
    let closed = closed_listener("s.write");
    let listener: Listener = read(&closed.body);
    let api = listener.api_listener.and_then(|api| api.api_listener).expect("it has one");
    let manager: HttpConnectionManager = read(&api);
    let Some(RouteSpecifier::RouteConfig(routes)) = manager.route_specifier else {
        panic!("{:?}", manager.route_specifier)
    };
    assert!(routes.virtual_hosts.is_empty(), "{routes:?}");
    let name = name("s.write");
    let open = lasting(Kind::Listener, &name, &client()).expect("there is");
    assert_eq!(open.name, closed.name);
    assert_ne!(open.version, closed.version);
}

#[test]
fn a_grpc_client_finds_its_cluster_through_a_listener_and_a_route() {
    let listener: Listener = sent(Kind::Listener, "s.write", &client());
    assert_eq!((listener.name.as_str(), listener.address), ("s.write", None));
    let api = listener.api_listener.and_then(|api| api.api_listener).expect("it has one");
    let manager: HttpConnectionManager = read(&api);
    let filters: Vec<_> = manager.http_filters.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(filters, ["router"]);
    let rds = format!("{:?}", manager.route_specifier);
    assert!(rds.contains("Ads(") && rds.contains("route_config_name: \"s.write\""), "{rds}");

    let route: RouteConfiguration = sent(Kind::Route, "s.write", &client());
    let host = &route.virtual_hosts[0];
    assert_eq!((route.name.as_str(), &host.domains[..]), ("s.write", &["*".to_owned()][..]));
    let only = format!("{:?}", host.routes);
    assert!(only.contains("Prefix(\"\")") && only.contains("Cluster(\"s.write\")"), "{only}");

    let cluster: Cluster = sent(Kind::Cluster, "s.write", &client());
    let eds = format!("{:?}", cluster.eds_cluster_config);
    assert!(cluster.name == "s.write" && eds.contains("Ads("), "{eds}");
    assert!(cluster.health_checks.is_empty() && cluster.connect_timeout.is_none());
}

#[test]
fn an_envoy_listens_where_its_metadata_says_and_proxies_tcp() {
    let client = envoy(&["s.write"]);
    let listener: Listener = sent(Kind::Listener, "s.write", &client);
    assert_eq!(address(listener.address.as_ref()), "127.0.0.1:6000");
    assert_eq!(listener.api_listener, None);
    let filter = &listener.filter_chains[0].filters[0];
    let Some(lds::filter::ConfigType::TypedConfig(config)) = &filter.config_type else {
        panic!("{filter:?}")
    };
    let proxy: TcpProxy = read(config);
    let idle = proxy.idle_timeout.expect("it has one").seconds;
    assert_eq!((proxy.stat_prefix.as_str(), idle), ("s.write", 86_400));
    assert!(format!("{:?}", proxy.cluster_specifier).contains("Cluster(\"s.write\")"));
    assert_eq!(lasting(Kind::Listener, &name("s.read"), &client), None);
    assert!(lasting(Kind::Cluster, &name("s.read"), &client).is_some(), "a listener of its own");
}

#[test]
fn an_envoy_checks_writes_hard_and_reads_softly() {
    let client = envoy(&["s.write", "s.read"]);
    let cases =
        [("s.write", 0.0, "/primary", 100, 150, 3), ("s.read", 50.0, "/health", 500, 300, 2)];
    for (name, panic, path, interval_ms, timeout_ms, unhealthy) in cases {
        let cluster: Cluster = sent(Kind::Cluster, name, &client);
        assert_eq!(cluster.connect_timeout, Some(lasts(Duration::from_secs(1))));
        let lb = cluster.common_lb_config.expect("it has one");
        assert_eq!(lb.update_merge_window, Some(lasts(Duration::ZERO)), "a new primary at once");
        let threshold = lb.healthy_panic_threshold;
        assert_eq!(threshold.map(|percent| percent.value), Some(panic));
        assert!(cluster.close_connections_on_host_health_failure);
        assert!(cluster.ignore_health_on_host_removal);
        let [check] = &cluster.health_checks[..] else { panic!("{:?}", cluster.health_checks) };
        let interval = Some(lasts(Duration::from_millis(interval_ms)));
        assert_eq!([check.interval, check.no_traffic_interval], [interval; 2]);
        let nanos =
            |of: Option<_>| of.map(|it: envoy_types::pb::google::protobuf::Duration| it.nanos);
        assert!(nanos(check.unhealthy_interval) <= nanos(interval));
        assert_eq!([check.unhealthy_edge_interval, check.healthy_edge_interval], [interval; 2]);
        assert_eq!(check.timeout, Some(lasts(Duration::from_millis(timeout_ms))));
        assert_eq!(check.unhealthy_threshold, Some(number(unhealthy)));
        assert_eq!(check.healthy_threshold, Some(number(1)));
        let Some(HttpHealthCheck(http)) = &check.health_checker else { panic!("{check:?}") };
        assert_eq!(http.path, path);
    }
}

#[test]
fn writes_go_to_one_endpoint_at_the_first_priority_or_to_none() {
    let table = routes("s", 173, to("a", 1));
    assert_eq!(
        told(&assigned(&table, Side::Write, &client())),
        "0 eu/a/ w100: a=10.0.0.1:5432@1.173 w100"
    );
    let closed = [
        Closed::NoPrimary,
        Closed::Fenced { kind: "failover" },
        Closed::Promoting,
        Closed::Lapsed,
        Closed::Undeclared,
        Closed::Unproven { holds: false },
    ];
    for closed in closed {
        let table = routes("s", 173, Write::Nobody(closed));
        assert_eq!(assigned(&table, Side::Write, &client()).endpoints, [], "{closed:?}");
    }
}

#[test]
fn an_envoy_is_told_who_takes_no_writes_so_that_it_cuts_who_is_still_there() {
    let client = envoy(&["s.write"]);
    let mut table = routes("s", 173, to("b", 2));
    let mut lagging = one("a", 1, at("eu", "a"));
    (lagging.weight, lagging.lag_bytes) = (10, 1 << 22);
    table.former = Some(lagging.clone());
    table.all = vec![lagging, one("b", 2, at("eu", "a")), one("c", 3, at("us", "a"))];
    let wanted = "0 eu/a/ w200: b=10.0.0.2:5432@1.173 w100 unchecked \
        closed a=10.0.0.1:5432@1.173 w100 unchecked";
    assert_eq!(told(&assigned(&table, Side::Write, &client)), wanted);
    table.write = Write::Nobody(Closed::Lapsed);
    let closed = told(&assigned(&table, Side::Write, &client));
    assert_eq!(closed, "0 eu/a/ w100: closed a=10.0.0.1:5432@1.173 w100 unchecked");
    let plain = Client { flavour: Flavour::Grpc, ..client };
    assert_eq!(told(&assigned(&table, Side::Write, &plain)), "");
}

#[test]
fn a_primary_that_serves_on_without_coordinators_is_not_taken_back() {
    let table = routes("s", 173, Write::Nobody(Closed::Unproven { holds: true }));
    assert_eq!(endpoints(&table, Side::Write, &client()).resource, None);
    assert!(endpoints(&table, Side::Read, &client()).resource.is_some());
}

#[test]
fn nothing_is_said_of_reads_by_a_node_that_does_not_know_the_standbys_yet() {
    let table = routes("s", 173, to("p", 1));
    let table = Routes { reads_unknown: true, ..table };
    assert_eq!(endpoints(&table, Side::Read, &client()).resource, None);
    assert!(endpoints(&table, Side::Write, &client()).resource.is_some());
}

#[test]
fn reads_go_near_first_by_weight_and_to_the_primary_last() {
    let mut table = routes("s", 7, to("p", 1));
    let mut lagging = one("lagging", 2, at("eu", "a"));
    lagging.weight = 10;
    let mut idle = one("idle", 3, at("eu", "a"));
    idle.weight = 0;
    let mut nowhere = one("nowhere", 6, at("", ""));
    nowhere.weight = u32::MAX;
    table.reads =
        vec![lagging, idle, one("b", 4, at("eu", "b")), one("far", 5, at("us", "a")), nowhere];
    let here = Client { locality: at("eu", "a"), ..client() };
    let wanted = "\
0 eu/a/ w11: idle=10.0.0.3:5432@1.7 w1 lagging=10.0.0.2:5432@1.7 w10
1 eu/b/ w100: b=10.0.0.4:5432@1.7 w100
2 /unknown/ w100: nowhere=10.0.0.6:5432@1.7 w100
2 us/a/ w100: far=10.0.0.5:5432@1.7 w100
3 eu/a/ w100: p=10.0.0.1:5432@1.7 w100";
    assert_eq!(told(&assigned(&table, Side::Read, &here)), wanted);
}

#[test]
fn a_place_that_is_called_unknown_is_the_same_as_none_and_named_once() {
    let mut table = routes("s", 7, Write::Nobody(Closed::Lapsed));
    table.reads = vec![one("a", 1, at("", "")), one("b", 2, at("", "unknown"))];
    assert_eq!(
        told(&assigned(&table, Side::Read, &client())),
        "0 /unknown/ w200: a=10.0.0.1:5432@1.7 w100 b=10.0.0.2:5432@1.7 w100"
    );
}

#[test]
fn who_has_no_address_of_its_own_is_left_out_and_leaves_no_gap() {
    let mut table = routes("s", 7, to("p", 1));
    let mut named = one("named", 2, at("eu", "a"));
    named.address = "db-2.internal:5432".into();
    let mut portless = one("portless", 2, at("eu", "a"));
    portless.address = "10.0.0.9:0".into();
    let mut six = one("six", 2, at("us", "a"));
    six.address = "[fd00::2]:5432".into();
    table.reads = vec![named, portless, six, one("twin", 1, at("us", "a"))];
    let here = Client { locality: at("eu", "a"), ..client() };
    let assigned = endpoints(&table, Side::Read, &here);
    let why: Vec<_> = assigned.unroutable.iter().map(ToString::to_string).collect();
    let wanted = [
        "named is left out of the endpoints: \"db-2.internal:5432\" is no IP address and port",
        "portless is left out of the endpoints: 10.0.0.9:0 has no port",
        "p is left out of the endpoints: another instance has 10.0.0.1:5432 already",
    ];
    assert_eq!(why, wanted);
    let sent = read(&assigned.resource.expect("it is known").body);
    assert_eq!(told(&sent), "0 us/a/ w200: six=fd00::2:5432@1.7 w100 twin=10.0.0.1:5432@1.7 w100");
}

#[test]
fn an_envoy_is_told_where_to_check_and_a_grpc_client_is_not() {
    let client = envoy(&["s.write"]);
    let cases = [
        ("10.0.0.1:8009", " check=10.0.0.1:8009,8009"),
        ("db-1.internal:8009", " check=:8009"),
        ("", " unchecked"),
        ("db-1.internal", " unchecked"),
        ("db-1.internal:0", " unchecked"),
    ];
    for (check, wanted) in cases {
        let mut primary = one("a", 1, at("eu", "a"));
        primary.check = check.into();
        let table = routes("s", 7, Write::To(primary));
        let line = told(&assigned(&table, Side::Write, &client));
        assert_eq!(line, format!("0 eu/a/ w100: a=10.0.0.1:5432@1.7 w100{wanted}"));
        let plain = Client { flavour: Flavour::Grpc, ..client.clone() };
        assert!(!told(&assigned(&table, Side::Write, &plain)).contains("check"));
    }
}

#[test]
fn a_version_is_the_epoch_and_a_hash_that_is_the_same_everywhere() {
    let table = routes("s", 173, to("a", 1));
    let version = |table: &Routes| {
        endpoints(table, Side::Write, &client()).resource.expect("it is known").version
    };
    assert_eq!(version(&table), "1.173-94111269ef07945d");
    let elsewhere = Routes { at: (table.at.0, regent_core::id::Revision(9_999)), ..table.clone() };
    assert_eq!(version(&elsewhere), version(&table), "at which revision it was read is not said");
    assert_ne!(version(&routes("s", 174, to("a", 1))), version(&table));
    let cluster = lasting(Kind::Cluster, &name("s.read"), &envoy(&["s.read"])).expect("there is");
    assert_eq!((cluster.version.len(), cluster.of), (16, None));
}

#[test]
fn an_answer_with_one_resource_has_its_version_and_others_do_not_depend_on_the_order() {
    let all: Vec<_> = ["a.read", "b.read"]
        .iter()
        .map(|one| lasting(Kind::Route, &name(one), &client()).expect("there is"))
        .collect();
    assert_eq!(version_of(&all[..1]), all[0].version);
    assert_eq!(version_of(&all), version_of(all.iter().rev()));
    assert_ne!(version_of(&all), version_of(&[]));
}
