//! A cluster of real nodes and a service whose instances are played: ended with the test.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use regent_core::authz::Role;
use regent_core::command::Expect;
use regent_core::id::{InstanceName, Locality, ServiceName};
use regent_core::spec::{Engine, InstanceSpec, Mode, Policy, ServiceSpec, TopologyKind};
use regent_rpc::client::{Client, ClientOptions, Wanted};
use regent_rpc::convert::common::Freshness;
use regent_rpc::pb::v1;
use regent_rpc::pki;
use regent_rpc::tls::{Tls, TlsFiles};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::instances::{Instance, Shared, address, answer_checks, play};
use crate::cluster::{Cluster, PATIENCE, until};
use crate::http_port::ask;

/// What the service is called.
pub const ORDERS: &str = "orders";

/// The nodes and the instances. The tasks that play are ended before the nodes are.
pub struct Stage {
    tasks: JoinSet<()>,
    pub instances: Vec<Instance>,
    pub cluster: Cluster,
    operator: Client,
}

impl Stage {
    /// Instances a, b and so on at these addresses, each in its zone; the first is the primary.
    pub async fn up(what: &str, nodes: u64, addresses: &[String]) -> Self {
        let cluster = Cluster::up(what, nodes).await;
        let operator = cluster.client("operator");
        let mut stage = Self { tasks: JoinSet::new(), instances: Vec::new(), cluster, operator };
        let spec = spec(addresses);
        stage.declare(&spec).await;
        let shared = Shared::new();
        for (at, declared) in (0_u8..).zip(&spec.instances) {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let one = Instance {
                name: declared.name.clone(),
                disk: 100 + u64::from(at),
                check: address(&listener).to_string(),
                leads: Arc::new(AtomicBool::new(false)),
            };
            let client = stage.agent(&spec.name, &one.name);
            stage.tasks.spawn(answer_checks(listener, one.clone()));
            stage.tasks.spawn(play(client, spec.name.clone(), one.clone(), shared.clone()));
            stage.instances.push(one);
        }
        stage.serves("a").await;
        stage
    }

    /// Something that goes on for as long as this test.
    pub fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    fn agent(&self, service: &ServiceName, instance: &InstanceName) -> Client {
        let name = format!("{service}/{instance}");
        let files =
            pki::issue(&self.cluster.lab.pki_dir(), &pki::Request::new(Role::Agent, name)).unwrap();
        let tls = Tls::load(TlsFiles {
            cert: files.cert,
            key: files.key,
            ca: self.cluster.lab.certificates().ca,
            revoked: None,
            trust: Some(self.cluster.lab.trust_domain.clone()),
        });
        let options = ClientOptions { timeout: PATIENCE, ..ClientOptions::default() };
        Client::new(&self.cluster.lab.endpoints(), tls.unwrap(), options).unwrap()
    }

    /// Declares a service, and waits for nothing.
    pub async fn declare(&self, spec: &ServiceSpec) {
        self.operator.apply_service(spec, Expect::Any, false).await.unwrap();
    }

    /// What the coordinators hold about the service, if anything.
    async fn role(&self) -> Option<v1::Role> {
        let roles = self.operator.list_roles(Some(&orders()), Freshness::Linearizable).await;
        roles.unwrap().roles.pop()
    }

    /// Waits until `name` takes writes, and no operation is under way.
    pub async fn serves(&self, name: &str) {
        until(&format!("{name} to be primary"), async || {
            let role = self.role().await;
            let settled = |role: v1::Role| ["", "done"].contains(&role.phase.as_str());
            role.is_some_and(|role| role.holder == name && role.routes_open && settled(role))
        })
        .await;
    }

    /// Asks for another primary, and waits for nothing.
    pub async fn ask_for(&self, name: &str) {
        let wanted = Wanted {
            service: orders(),
            to: Some(name.parse().unwrap()),
            reason: "a test".into(),
            seen: None,
        };
        self.operator.switchover(&wanted).await.unwrap();
    }

    /// Another primary.
    pub async fn switch_to(&self, name: &str) {
        self.ask_for(name).await;
        self.serves(name).await;
    }

    /// What `regent routes` says.
    pub fn routes(&self) -> serde_json::Value {
        self.cluster.json(&["routes", ORDERS])
    }

    /// A node's page of metrics.
    pub fn metrics(&self, node: u64) -> String {
        let all = self.cluster.lab.certificates();
        let address = &self.cluster.lab.node(node).unwrap().http;
        let got = ask(address, &all.ca, Some(&all.auditor), &["/metrics"]);
        got["answers"][0][2].as_str().unwrap_or_else(|| panic!("{got}")).to_owned()
    }

    /// What it says of the router that calls itself `name`.
    pub fn router(&self, name: &str) -> Option<serde_json::Value> {
        let shown = self.routes();
        shown["routers"].as_array().unwrap().iter().find(|one| one["name"] == name).cloned()
    }
}

pub fn orders() -> ServiceName {
    ORDERS.parse().unwrap()
}

/// The service, with instances at these addresses.
pub fn spec(addresses: &[String]) -> ServiceSpec {
    let instance = |(at, address): (u8, &String)| {
        let letter = char::from(b'a' + at);
        InstanceSpec {
            name: letter.to_string().parse().unwrap(),
            locality: Locality {
                region: "lab".into(),
                zone: letter.to_string(),
                host: format!("host-{letter}"),
            },
            address: address.clone(),
            priority: 100 - u32::from(at),
        }
    };
    ServiceSpec {
        name: orders(),
        description: String::new(),
        engine: Engine::Postgres,
        topology: TopologyKind::ActivePassive,
        instances: (0_u8..).zip(addresses).map(instance).collect(),
        partitions: Vec::new(),
        policy: Policy { failover_cooldown_ms: 0, ..Policy::default_for(Mode::Quorum) },
    }
}
