//! DNS from whole nodes.

use std::net::SocketAddr;
use std::time::Duration;

use regent_core::authz::Role;
use regent_core::command::Expect;
use regent_core::id::InstanceName;
use regent_core::role::observe::{Observation, Probe, Receiver, Run};
use regent_core::spec::ServiceSpec;
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::figures::{page, service};
use super::rig::{PATIENCE, Rig};
use crate::config::Dns;

const A: u16 = 1;
const NOERROR: u8 = 0;
const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;

fn question(name: &str) -> Vec<u8> {
    let mut bytes = vec![0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(A.to_be_bytes());
    bytes.extend([0, 1]);
    bytes
}

/// The code of the answer, and how many records there are.
async fn ask(at: SocketAddr, name: &str) -> (u8, u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&question(name), at).await.unwrap();
    let mut reply = [0; 1500];
    let received = tokio::time::timeout(PATIENCE, socket.recv(&mut reply)).await;
    received.expect("an answer in time").unwrap();
    (reply[3] & 0x0f, u16::from_be_bytes([reply[6], reply[7]]))
}

async fn until(at: SocketAddr, name: &str, wanted: (u8, u16)) -> Vec<(u8, u16)> {
    let begun = Instant::now();
    let mut seen = Vec::new();
    loop {
        seen.push(ask(at, name).await);
        seen.dedup();
        if seen.last() == Some(&wanted) {
            return seen;
        }
        assert!(begun.elapsed() < PATIENCE, "{name}: {seen:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn with_dns() -> (Rig, SocketAddr) {
    let mut rig = Rig::start(1).await;
    rig.kill(1).await;
    let (listen, zone) = ("127.0.0.1:0".into(), "db.test".into());
    rig.reconfigure(1, |config| {
        config.dns = Some(Dns { listen, zone, ttl: "1s".into(), ns: Vec::new() });
    });
    rig.restart(1).await.unwrap();
    let at = rig.node(1).dns_addr().expect("it was told to");
    (rig, at)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_answers_dns_once_it_knows_and_hears_of_services_as_they_come_and_go() {
    let (rig, at) = with_dns().await;
    // Neither "no such name" nor "nobody" may be believed of a node that has just started.
    let first = until(at, "primary.orders.db.test", (NXDOMAIN, 0)).await;
    assert_eq!(first, [(SERVFAIL, 0), (NXDOMAIN, 0)]);

    let operator = rig.client(Role::Operator);
    let dotted = ServiceSpec { name: "a.b".parse().unwrap(), ..service() };
    operator.apply_service(&dotted, Expect::Any, false).await.unwrap();
    operator.apply_service(&service(), Expect::Any, false).await.unwrap();
    for name in ["primary.orders.db.test", "replicas.orders.db.test", "orders.db.test"] {
        until(at, name, (NOERROR, 0)).await;
    }
    assert_eq!(ask(at, "primary.a.b.db.test").await, (NXDOMAIN, 0));
    assert_eq!(ask(at, "b.orders.db.test").await, (NOERROR, 1));

    let shell = rig.node(1).shell().clone();
    let b: InstanceName = "b".parse().unwrap();
    let attached = shell.relay.attach(shell.clock.clone(), &service().name, &b);
    let well = Observation {
        run: Run::Standby,
        receiver: Some(Receiver { from: None, streams: true, silent_ms: 0 }),
        probe: Probe::Answered(1),
        ..Observation::default()
    };
    let says = tokio::spawn(async move {
        loop {
            attached.observed(well.clone());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    until(at, "replicas.orders.db.test", (NOERROR, 1)).await;
    says.abort();
    assert_eq!(ask(at, "primary.orders.db.test").await, (NOERROR, 0));
    assert!(page(rig.node(1).http_addr()).await["regent_dns_questions_count"]);

    operator.delete_service(&service().name, Expect::Any).await.unwrap();
    until(at, "primary.orders.db.test", (NXDOMAIN, 0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_port_for_dns_that_is_taken_stops_the_start_and_names_it() {
    let taken = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut rig = Rig::start(1).await;
    rig.kill(1).await;
    let listen = taken.local_addr().unwrap().to_string();
    let config = rig.config_of(1);
    let zone = "db.test".into();
    let dns = Some(Dns { listen: listen.clone(), zone, ttl: "1s".into(), ns: Vec::new() });
    let began = crate::run::Node::start(crate::config::NodeConfig { dns, ..config }).await;
    let told = began.err().expect("the port is taken").to_string();
    assert!(told.contains(&listen) && told.contains("DNS"), "{told}");
}
