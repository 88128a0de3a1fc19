//! Routes through whole nodes.

use regent_core::authz::Role;
use regent_core::command::Expect;
use regent_core::id::InstanceName;
use regent_core::role::observe::{Observation, Probe, Receiver, Run};
use regent_core::spec::ServiceSpec;
use regent_rpc::client::Client;
use regent_rpc::pb::v1;
use regent_rpc::pb::v1::routing_service_client::RoutingServiceClient;
use tonic::Code;
use tonic::transport::Channel;

use super::figures::service;
use super::rig::{PATIENCE, Rig, eventually};

fn routing(client: &Client) -> RoutingServiceClient<Channel> {
    RoutingServiceClient::new(client.channels().swap_remove(0).1)
}

fn watch(router: &str) -> v1::WatchRoutesRequest {
    v1::WatchRoutesRequest { service: "orders".into(), router: router.into(), client: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_node_knows_which_standbys_take_reads_and_who_follows_where() {
    let rig = Rig::start(3).await;
    rig.client(Role::Operator).apply_service(&service(), Expect::Any, false).await.unwrap();
    let leader = rig.leader().await;
    let [near, far] = [0, 1].map(|n| (leader + n) % 3 + 1);
    let router = rig.client_as(Role::Router, "lb", &[rig.address(near)]);
    eventually("the service is there", || {
        rig.node(near).shell().state.read().services().contains_key("orders")
    })
    .await;
    let mut stream = routing(&router).watch(watch("a")).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap().routes.unwrap();
    assert_eq!((first.reads.len(), first.write), (0, None));
    assert_eq!(first.closed, "it has no primary yet");

    // Standby b says over a third node that it is well.
    let shell = rig.node(far).shell().clone();
    let b: InstanceName = "b".parse().unwrap();
    let attached = shell.relay.attach(shell.clock.clone(), &service().name, &b);
    let well = Observation {
        run: Run::Standby,
        receiver: Some(Receiver { from: None, streams: true, silent_ms: 0 }),
        probe: Probe::Answered(1),
        check: ":8008".into(),
        ..Observation::default()
    };
    let says = tokio::spawn(async move {
        loop {
            attached.observed(well.clone());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
    let reads = async {
        loop {
            let next = stream.message().await.unwrap().unwrap();
            let Some(routes) = next.routes.filter(|routes| !routes.reads.is_empty()) else {
                continue;
            };
            return routes.reads;
        }
    };
    let reads = tokio::time::timeout(PATIENCE, reads).await.expect("b takes reads");
    let one = &reads[0].endpoints[0];
    assert_eq!((one.instance.as_str(), one.check.as_str()), ("b", "b.example.org:8008"));
    says.abort();

    // It may say what it applied, for itself; and each node can tell of it.
    let epoch = v1::Epoch { incarnation: 0, revision: 0 };
    let applied = v1::AckRoutesRequest {
        service: "orders".into(),
        router: "a".into(),
        epoch: Some(epoch),
        revision: first.revision,
    };
    routing(&router).ack(applied.clone()).await.unwrap();
    let other = v1::AckRoutesRequest { router: "b".into(), ..applied.clone() };
    let refused = routing(&router).ack(other).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let future = v1::AckRoutesRequest { revision: u64::MAX, ..applied };
    let refused = routing(&router).ack(future).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let observer = rig.client_as(Role::Observer, "eve", &[rig.address(far)]);
    let ask = v1::ListRoutersRequest { service: "orders".into() };
    let listed = routing(&observer).list_routers(ask.clone()).await.unwrap().into_inner();
    let [one] = &listed.routers[..] else { panic!("{listed:?}") };
    assert_eq!((one.principal.as_str(), one.name.as_str(), one.node), ("router/lb", "a", near));
    assert_eq!((one.revision, one.epoch), (first.revision, Some(epoch)));
    assert!(listed.silent_nodes.is_empty());
    drop(stream);
    let gone = || rig.node(near).shell().routers.of(&service().name, near).is_empty();
    eventually("it is forgotten", gone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn routes_are_for_those_who_may_read_services_and_of_services_that_are_there() {
    let rig = Rig::start(1).await;
    let stranger = routing(&rig.client(Role::Client)).watch(watch("")).await.unwrap_err();
    assert_eq!(stranger.code(), Code::PermissionDenied);
    let mut router = routing(&rig.client(Role::Router));
    assert_eq!(router.watch(watch("")).await.unwrap_err().code(), Code::NotFound);
    let none = v1::ResolveRequest { service: "nothing".into(), client: None };
    assert_eq!(router.resolve(none).await.unwrap_err().code(), Code::NotFound);
    let bad = v1::ResolveRequest { service: "a b".into(), client: None };
    assert_eq!(router.resolve(bad).await.unwrap_err().code(), Code::InvalidArgument);
}

/// The age of a state is read from the state: a node that locked it twice stood still for ever once
/// an entry was applied in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn those_who_ask_for_routers_hold_up_no_entry() {
    let rig = Rig::start(1).await;
    let operator = rig.client(Role::Operator);
    operator.apply_service(&service(), Expect::Any, false).await.unwrap();
    let asks: Vec<_> = (0..3)
        .map(|_| {
            let mut routing = routing(&rig.client(Role::Observer));
            tokio::spawn(async move {
                loop {
                    let ask = v1::ListRoutersRequest { service: "orders".into() };
                    routing.list_routers(ask).await.unwrap();
                }
            })
        })
        .collect();
    let writes = async {
        for n in 0..500 {
            let spec = ServiceSpec { description: n.to_string(), ..service() };
            operator.apply_service(&spec, Expect::Any, false).await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, writes).await.expect("entries are applied");
    for ask in asks {
        ask.abort();
    }
}
