//! Agents and operations through whole nodes.

use std::time::Duration;

use regent_core::authz::Role;
use regent_core::command::Expect;
use regent_core::id::{InstanceName, Nonce, SessionId};
use regent_core::role::observe::{Observation, Run};
use regent_core::role::{AgentStart, Armed, DirectiveNumber};
use regent_rpc::client::{AgentStream, Client, Session, SessionOptions, Wanted};
use regent_rpc::convert::agent::{FromCoordinator, HELLO, Hello};
use regent_rpc::convert::common::Freshness;
use regent_rpc::convert::status::Refused;
use regent_rpc::pb::v1;
use regent_rpc::pb::v1::agent_service_client::AgentServiceClient;
use tonic::Code;

use super::figures::service;
use super::rig::{PATIENCE, Rig, eventually};

pub(super) fn hello(instance: &str, session: SessionId) -> Hello {
    let start = AgentStart {
        session,
        nonce: Nonce(7),
        boot: 0,
        disk: 8,
        seen: DirectiveNumber::default(),
        data: None,
        fencer: Armed::Armed,
        run: Nonce(0),
    };
    Hello { service: "orders".parse().unwrap(), instance: instance.parse().unwrap(), start }
}

async fn refused(client: &Client, instance: &str) -> Code {
    let attached = AgentStream::connect(client, hello(instance, SessionId(1)), PATIENCE).await;
    attached.expect_err("it may not attach").status.code()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn only_the_agent_of_a_declared_instance_attaches_and_only_as_that_one() {
    let rig = Rig::start(1).await;
    let all = [rig.address(1)];
    rig.client(Role::Operator).apply_service(&service(), Expect::Any, false).await.unwrap();
    for role in [Role::Operator, Role::Client, Role::Node, Role::Admin] {
        let name = if role == Role::Node { "9" } else { "orders/a" };
        let client = rig.client_as(role, name, &all);
        assert_eq!(refused(&client, "a").await, Code::PermissionDenied, "{role}");
    }
    let other = rig.client_as(Role::Agent, "orders/b", &all);
    assert_eq!(refused(&other, "a").await, Code::PermissionDenied);
    let nameless = rig.client_as(Role::Agent, "orders", &all);
    assert_eq!(refused(&nameless, "a").await, Code::PermissionDenied);
    let stranger = rig.client_as(Role::Agent, "orders/x", &all);
    assert_eq!(refused(&stranger, "x").await, Code::NotFound);

    let agent = rig.client_as(Role::Agent, "orders/a", &all);
    let session = Session::open(&agent, SessionOptions::default()).await.unwrap();
    let lease = session.hold();
    eventually("a renewal is acknowledged", || lease.deadline().is_some()).await;
    assert!(lease.deadline().unwrap().number.0 > 0);
    let attached = AgentStream::connect(&agent, hello("a", session.id()), PATIENCE).await;
    let mut stream = attached.unwrap();
    let first = tokio::time::timeout(PATIENCE, stream.receiver.next()).await.unwrap();
    let first = first.unwrap().expect("the stream is open");
    assert!(matches!(first, FromCoordinator::Answer(HELLO, _)), "{first:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stream_that_says_nothing_that_it_should_is_refused() {
    let rig = Rig::start(1).await;
    rig.client(Role::Operator).apply_service(&service(), Expect::Any, false).await.unwrap();
    let agent = rig.client_as(Role::Agent, "orders/a", &[rig.address(1)]);
    let (_, channel) = agent.channels().remove(0);
    let attach = async |messages: Vec<v1::AgentMessage>| {
        let said = futures::stream::iter(messages);
        AgentServiceClient::new(channel.clone()).attach(said).await.unwrap_err()
    };
    assert_eq!(attach(Vec::new()).await.code(), Code::InvalidArgument);
    let nothing = attach(vec![v1::AgentMessage::default()]).await;
    assert_eq!(Refused::from_status(&nothing).unwrap().field, "message");
    let large = v1::Observation { doing: "x".repeat(80 * 1024), ..v1::Observation::default() };
    let message = Some(v1::agent_message::Message::Observation(large));
    let large = attach(vec![v1::AgentMessage { message }]).await;
    assert_eq!(large.code(), Code::OutOfRange, "{large}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_an_agent_sees_reaches_the_leader_through_any_node_and_the_next_leader_too() {
    let rig = Rig::start(3).await;
    rig.client(Role::Operator).apply_service(&service(), Expect::Any, false).await.unwrap();
    let leader = rig.leader().await;
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let shell = rig.node(follower).shell();
    let orders = service().name;
    let attach = |instance: &str| {
        let instance: InstanceName = instance.parse().unwrap();
        shell.relay.attach(shell.clock.clone(), &orders, &instance)
    };
    let (a, stranger) = (attach("a"), attach("x"));
    stranger.observed(Observation::default());
    a.observed(Observation { run: Run::Primary, ..Observation::default() });
    let name: InstanceName = "a".parse().unwrap();
    let run = |node: u64| {
        let facts = rig.node(node).shell().desk.facts();
        facts.of(&orders, &name).map(|fact| (fact.observation.run, fact.lost.is_some()))
    };
    eventually("the leader has it", || run(leader) == Some((Run::Primary, false))).await;
    let facts = rig.node(leader).shell().desk.facts().of(&orders, &"x".parse().unwrap()).cloned();
    assert_eq!(facts, None, "nobody has declared it");
    assert_eq!(run(follower), None, "only a leader has facts");

    // The next one gets it without the agent saying it again.
    rig.node(leader).shell().consensus.transfer_leader(None).await.unwrap();
    let mut next = leader;
    eventually("another leads", || {
        let led = rig.node(leader).shell().leadership.now();
        next = led.map_or(leader, |led| led.node.0);
        next != leader
    })
    .await;
    eventually("the next leader has it", || run(next) == Some((Run::Primary, false))).await;
    eventually("the last leader has forgotten it", || run(leader).is_none()).await;
    drop(a);
    eventually("it is gone", || run(next) == Some((Run::Primary, true))).await;
    eventually("that is settled", || shell.relay.count() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_leader_explains_a_service_and_says_what_stands_against_an_operation() {
    let rig = Rig::start(3).await;
    let operator = rig.client(Role::Operator);
    operator.apply_service(&service(), Expect::Any, false).await.unwrap();
    let leader = rig.leader().await;
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let shell = rig.node(leader).shell();
    let name = service().name;
    let attached = shell.relay.attach(shell.clock.clone(), &name, &"a".parse().unwrap());
    attached.observed(Observation { run: Run::Standby, ..Observation::default() });
    // Asked at another node, the client is sent to the leader.
    let client = rig.client_of(Role::Observer, &[rig.address(follower)]);
    let mut fact = None;
    let until = tokio::time::Instant::now() + PATIENCE;
    while fact.is_none() && tokio::time::Instant::now() < until {
        let explained = client.explain(&name).await.unwrap();
        assert_eq!(explained.instances.len(), 3);
        assert!(explained.role.is_none(), "no agent has started");
        fact = explained.instances[0].fact.clone();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let seen = fact.expect("the leader has heard of it").observation.unwrap();
    assert_eq!(seen.run(), v1::observation::Run::Standby);

    let wanted = |reason: &str| Wanted {
        service: name.clone(),
        to: None,
        reason: reason.to_owned(),
        seen: None,
    };
    let none = operator.switchover(&wanted("a drill")).await.unwrap_err();
    assert_eq!(none.refused.unwrap().rule, "not_adopted");
    let why = operator.switchover(&wanted(" ")).await.unwrap_err();
    assert_eq!(why.refused.unwrap().field, "reason");
    let may_not = client.failover(&wanted("a drill")).await.unwrap_err();
    assert_eq!(may_not.status.code(), Code::PermissionDenied);
    let approve = operator.answer_approval(&name, regent_core::id::Revision(1), true, "yes").await;
    assert_eq!(approve.unwrap_err().status.code(), Code::PermissionDenied);
    let read = Freshness::Linearizable;
    assert!(client.list_roles(None, read).await.unwrap().roles.is_empty());
    assert!(client.list_operations(None, read).await.unwrap().operations.is_empty());
    assert!(client.list_approvals(None, true, read).await.unwrap().operations.is_empty());
    let missing = client.show_operation(&name, None, read).await.unwrap_err();
    assert_eq!(missing.status.code(), Code::NotFound);

    let mut watch = client.watch_operations(&name).await.unwrap();
    let first = tokio::time::timeout(PATIENCE, watch.message()).await.unwrap().unwrap().unwrap();
    assert!(first.role.is_none() && first.stamp.is_some());
    let again = service();
    let again = regent_core::spec::ServiceSpec { description: "again".into(), ..again };
    operator.apply_service(&again, Expect::Any, false).await.unwrap();
    let next = tokio::time::timeout(PATIENCE, watch.message()).await.unwrap().unwrap().unwrap();
    assert!(next.stamp.unwrap().revision > first.stamp.unwrap().revision);
}
