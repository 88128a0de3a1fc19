//! A cluster of real processes for one test, and what the tests ask of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use regent_core::command::Expect;
use regent_core::id::{ElectionName, Locality};
use regent_lab::process::Fault;
use regent_lab::{Connections, Lab, Plan, Profile, View};
use regent_rpc::client::{CallError, Client, ClientOptions};
use regent_rpc::convert::common::Freshness;
use regent_rpc::tls::{Tls, TlsFiles};

/// The binary under test.
pub const REGENT: &str = env!("CARGO_BIN_EXE_regent");
/// How long anything may take that should take milliseconds: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A directory that is removed when the test ends.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(what: &str) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("regent-it-{}-{number}-{what}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Copies a directory with all that is in it; `to` is made when it is missing.
pub fn copy_dir(from: &Path, to: &Path) {
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

/// A running cluster; ended and removed when dropped, also when the test fails.
pub struct Cluster {
    pub lab: Lab,
    pub connections: Connections,
    pub scratch: Scratch,
}

impl Cluster {
    pub async fn up(what: &str, nodes: u64) -> Self {
        let scratch = Scratch::new(what);
        let plan = Plan {
            dir: scratch.path().join("lab"),
            binary: REGENT.into(),
            nodes,
            profile: Profile::Lan,
            network: false,
        };
        let (lab, _) = regent_lab::up(&plan).await.unwrap_or_else(|e| panic!("lab up: {e}"));
        let connections = Connections::new(&lab, &lab.certificates().admin).unwrap();
        Self { lab, connections, scratch }
    }

    /// A client with one of the lab's identities: "admin", "operator", "client", "auditor",
    /// "router".
    pub fn client(&self, identity: &str) -> Client {
        self.client_of(identity, &self.lab.endpoints())
    }

    /// The same, of some of the nodes.
    pub fn client_of(&self, identity: &str, endpoints: &[String]) -> Client {
        self.client_with(self.tls(identity), endpoints)
    }

    /// The same, with files that the test asks how often they were read again.
    pub fn client_with(&self, tls: Arc<Tls>, endpoints: &[String]) -> Client {
        let options = ClientOptions { timeout: PATIENCE, ..ClientOptions::default() };
        Client::new(endpoints, tls, options).unwrap()
    }

    pub fn tls(&self, identity: &str) -> Arc<Tls> {
        let all = self.lab.certificates();
        let pair = match identity {
            "admin" => all.admin,
            "operator" => all.operator,
            "client" => all.client,
            "router" => all.router,
            _ => all.auditor,
        };
        Tls::load(TlsFiles {
            cert: pair.cert,
            key: pair.key,
            ca: all.ca,
            revoked: None,
            trust: Some(self.lab.trust_domain.clone()),
        })
        .unwrap()
    }

    /// Waits until all nodes follow one leader.
    pub async fn ready(&self) -> View {
        regent_lab::wait_ready(&self.lab, &self.connections, PATIENCE)
            .await
            .unwrap_or_else(|e| panic!("not ready: {e}"))
    }

    /// Who leads, once a majority of the nodes says so.
    pub async fn leader(&self) -> u64 {
        let mut leader = 0;
        until("a leader", async || {
            let view = regent_lab::view(&self.lab, &self.connections).await;
            let following = |id| view.nodes.iter().filter(|n| n.leader == id).count();
            leader = view.leader;
            leader != 0 && following(leader) * 2 > view.nodes.len()
        })
        .await;
        leader
    }

    pub fn signal(&self, id: u64, fault: Fault) {
        regent_lab::signal(self.lab.node(id).unwrap(), fault).unwrap();
    }

    /// Kills a node and waits until its process is gone.
    pub async fn kill(&self, id: u64) {
        self.signal(id, Fault::Kill);
        let process = self.lab.node(id).unwrap().process.clone().unwrap();
        assert!(process.wait_gone(PATIENCE).await, "node {id} survived SIGKILL");
    }

    pub fn restart(&mut self, id: u64) {
        regent_lab::restart(&mut self.lab, id).unwrap();
    }

    /// Runs a verb as a user would, with the lab's admin identity.
    pub fn verb(&self, args: &[&str]) -> Output {
        self.verb_as("admin", args)
    }

    /// The same with another of the lab's identities.
    pub fn verb_as(&self, identity: &str, args: &[&str]) -> Output {
        let dir = self.lab.dir.to_str().unwrap();
        let as_whom = ["lab", "exec", "--as", identity, "--dir", dir, "--"];
        Command::new(REGENT).args(as_whom).args(args).output().unwrap()
    }

    /// The same, which must succeed; returns what it printed as JSON.
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        let out = self.verb(&all);
        assert!(
            out.status.success(),
            "{args:?} failed: {}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        let text = String::from_utf8(out.stdout).unwrap();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &self.lab.nodes {
            let _ = regent_lab::signal(node, Fault::Kill);
        }
        if std::thread::panicking() {
            for node in &self.lab.nodes {
                let text = std::fs::read_to_string(&node.log).unwrap_or_default();
                let lines: Vec<_> = text.lines().collect();
                let from = lines.len().saturating_sub(15);
                eprintln!("--- node {} ---\n{}", node.id, lines[from..].join("\n"));
            }
        }
    }
}

/// Waits for a condition, with a deadline.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what} did not come within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn election(name: &str) -> ElectionName {
    ElectionName::parse(name).unwrap()
}

/// One write that leaves a row of its own, so that a lost one cannot hide behind a later one.
pub async fn mark(client: &Client, name: &str) -> Result<(), CallError> {
    client.put_election(&election(name), &Locality::default(), Expect::Absent).await.map(|_| ())
}

/// The names of all rows written by [`mark`] that begin with `prefix`.
pub async fn marks(client: &Client, prefix: &str) -> Vec<String> {
    let all = client.list_elections(prefix, Freshness::Linearizable).await.unwrap();
    all.elections.into_iter().map(|e| e.name).collect()
}
