//! A cluster of real nodes with a CA of its own, on random ports.

use std::path::PathBuf;
use std::time::Duration;

use regent_core::authz::Role;
use regent_core::id::NodeId;
use regent_rpc::client::{Client, ClientOptions};
use regent_rpc::pki;
use regent_rpc::tls::{Tls, TlsFiles};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::config::{InitialMember, Limits, Listen, Log, NodeConfig, Otlp, Place, Profile};
use crate::run::{Node, RunError};
use crate::testing::TempDir;

/// Anything that has not happened by then never will.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Some nodes, their directories and their CA.
pub struct Rig {
    dir: TempDir,
    configs: Vec<NodeConfig>,
    pub nodes: Vec<Option<Node>>,
}

impl Rig {
    /// Starts `count` nodes; returns once all are ready.
    pub async fn start(count: u64) -> Self {
        let dir = TempDir::new("cluster");
        let pki_dir = dir.path().join("pki");
        pki::init(&pki_dir, "test", 30, false).unwrap();
        let mut ports = Vec::new();
        for id in 1..=count {
            issue(&pki_dir, Role::Node, &id.to_string());
            let grpc = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
            ports.push((grpc, http));
        }
        let initial: Vec<InitialMember> = ports
            .iter()
            .zip(1..)
            .map(|((grpc, http), id)| InitialMember {
                id: NodeId(id),
                address: grpc.local_addr().unwrap().to_string(),
                http_address: http.local_addr().unwrap().to_string(),
                locality: Place { zone: format!("z{id}"), ..Place::default() },
                label: format!("n{id}"),
            })
            .collect();
        let mut rig = Self { dir, configs: Vec::new(), nodes: Vec::new() };
        for member in &initial {
            let config = NodeConfig {
                initial_members: initial.clone(),
                ..rig.config(member.id, &member.address, &member.http_address)
            };
            rig.configs.push(config);
        }
        for (config, (grpc, http)) in rig.configs.clone().into_iter().zip(ports) {
            let node = Node::start_on(config, grpc, http).await.unwrap();
            rig.nodes.push(Some(node));
        }
        for node in rig.nodes.iter().flatten() {
            node.ready(PATIENCE).await.unwrap();
        }
        rig
    }

    /// The configuration of node `id` with these addresses.
    pub fn config(&self, id: NodeId, grpc: &str, http: &str) -> NodeConfig {
        let pki = self.dir.path().join("pki");
        NodeConfig {
            node_id: id,
            cluster: "test".into(),
            data_dir: self.data_dir(id),
            listen: Listen { grpc: grpc.into(), http: http.into(), http_plaintext: true },
            advertise: Default::default(),
            locality: Place::default(),
            label: String::new(),
            tls: crate::config::Tls {
                cert: pki.join(format!("node-{id}.crt")),
                key: pki.join(format!("node-{id}.key")),
                ca: pki.join("bundle.crt"),
                trust_domain: "test".into(),
                revoked: None,
            },
            profile: Profile::Lan,
            timing: None,
            join: false,
            initial_members: Vec::new(),
            limits: Limits::default(),
            log: Log::default(),
            otlp: Otlp::default(),
            dns: None,
        }
    }

    /// Where node `id` keeps its data.
    pub fn data_dir(&self, id: NodeId) -> PathBuf {
        self.dir.path().join(format!("node-{id}"))
    }

    /// Issues a certificate for a new node.
    pub fn issue_node(&self, id: NodeId) {
        issue(&self.dir.path().join("pki"), Role::Node, &id.to_string());
    }

    /// A client in `role` that speaks to the nodes at `endpoints` only.
    pub fn client_of(&self, role: Role, endpoints: &[String]) -> Client {
        self.client_as(role, "tester", endpoints)
    }

    /// The same with a name of its own.
    pub fn client_as(&self, role: Role, name: &str, endpoints: &[String]) -> Client {
        let pki = self.dir.path().join("pki");
        let stem = format!("{role}-{}", name.replace('/', "+"));
        let cert = pki.join(format!("{stem}.crt"));
        if !cert.exists() {
            issue(&pki, role, name);
        }
        let tls = Tls::load(TlsFiles {
            cert,
            key: pki.join(format!("{stem}.key")),
            ca: pki.join("bundle.crt"),
            revoked: None,
            trust: None,
        })
        .unwrap();
        let options = ClientOptions { timeout: PATIENCE, ..ClientOptions::default() };
        Client::new(endpoints, tls, options).unwrap()
    }

    /// A client in `role` of the whole cluster.
    pub fn client(&self, role: Role) -> Client {
        let all: Vec<String> = self.configs.iter().map(|c| c.listen.grpc.clone()).collect();
        self.client_of(role, &all)
    }

    /// The address of node `id`.
    pub fn address(&self, id: u64) -> String {
        self.configs[id as usize - 1].listen.grpc.clone()
    }

    /// The configuration of node `id` of the beginning.
    pub fn config_of(&self, id: u64) -> NodeConfig {
        self.configs[id as usize - 1].clone()
    }

    /// Changes how node `id` is configured from its next start on.
    pub fn reconfigure(&mut self, id: u64, change: impl FnOnce(&mut NodeConfig)) {
        change(&mut self.configs[id as usize - 1]);
    }

    /// Waits until node `id` stops by itself, and says why.
    pub async fn failed(&mut self, id: u64) -> String {
        let node = self.nodes[id as usize - 1].as_mut().expect("it runs");
        let why = tokio::time::timeout(PATIENCE, node.failed()).await;
        let why = why.unwrap_or_else(|_| panic!("node {id} goes on"));
        self.kill(id).await;
        why
    }

    /// The running node `id`.
    pub fn node(&self, id: u64) -> &Node {
        self.nodes[id as usize - 1].as_ref().expect("it runs")
    }

    /// Stops node `id` without handing anything over.
    pub async fn kill(&mut self, id: u64) {
        self.nodes[id as usize - 1].take().expect("it runs").kill().await;
    }

    /// Starts node `id` again on its own ports.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub async fn restart(&mut self, id: u64) -> Result<(), RunError> {
        let node = start_again(&self.configs[id as usize - 1]).await?;
        self.nodes[id as usize - 1] = Some(node);
        Ok(())
    }

    /// The node that leads, as the running ones see it.
    pub async fn leader(&self) -> u64 {
        let mut found = 0;
        eventually("a leader that all see", || {
            let seen: Vec<_> =
                self.nodes.iter().flatten().map(|n| n.shell().leadership.status().leader).collect();
            match seen.first() {
                Some(Some(leader)) if seen.iter().all(|s| s == &seen[0]) => {
                    found = leader.0;
                    true
                }
                _ => false,
            }
        })
        .await;
        found
    }
}

/// Starts a node on ports that its process before has just left.
///
/// # Errors
/// As [`Node::start`].
pub async fn start_again(config: &NodeConfig) -> Result<Node, RunError> {
    let until = Instant::now() + PATIENCE;
    loop {
        // Connections of the process before may still hold the port.
        match Node::start(config.clone()).await {
            Err(RunError::Listen { .. }) if Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            other => return other,
        }
    }
}

fn issue(dir: &std::path::Path, role: Role, name: &str) {
    let names = vec!["127.0.0.1".to_owned()];
    let request = pki::Request { names, days: 7, ..pki::Request::new(role, name) };
    pki::issue(dir, &request).unwrap();
}

/// Waits until `done` says so.
pub async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "never came: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Copies a directory, as an image of a disk would.
pub fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
