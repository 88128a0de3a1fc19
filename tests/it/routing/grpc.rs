//! A real gRPC library as a client of xDS, started with the bootstrap that `routes export` prints.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use regent_lab::ports;
use regent_lab::process::Fault;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use super::stage::{ORDERS, Stage};
use crate::cluster::{Cluster, until};

/// A program that serves as instances and calls them by name of the service.
pub struct Program {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Program {
    /// With the bootstrap as `routes export` prints it to a router with these options.
    pub fn start(cluster: &Cluster, options: &[&str], ports: &[u16]) -> Self {
        let mut args = vec!["routes", "export", ORDERS, "--format", "grpc"];
        args.extend(options);
        let printed = cluster.verb_as("router", &args);
        let said = String::from_utf8_lossy(&printed.stderr).into_owned();
        assert!(printed.status.success(), "{said}");
        assert!(said.contains("GRPC_XDS_BOOTSTRAP") && said.contains("xds:///orders.write"));
        let bootstrap = cluster.scratch.path().join("xds.json");
        std::fs::write(&bootstrap, printed.stdout).unwrap();
        let root = env!("CARGO_MANIFEST_DIR");
        let log = std::fs::File::create(cluster.scratch.path().join("xds.log")).unwrap();
        let mut child = Command::new(format!("{root}/target/tools/venv/bin/python"))
            .arg(format!("{root}/tests/it/python/xds.py"))
            .args(ports.iter().zip(["a", "b", "c"]).map(|(port, name)| format!("{name}={port}")))
            .env("GRPC_XDS_BOOTSTRAP", bootstrap)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("scripts/setup was run");
        let to = child.stdin.take().unwrap();
        let from = BufReader::new(child.stdout.take().unwrap());
        let mut program = Self { child, to, from };
        assert_eq!(program.hear()["ready"], ports.len());
        program
    }

    fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn tell(&mut self, what: &Value) {
        writeln!(self.to, "{what}").unwrap();
    }

    /// One call.
    pub fn call(&mut self, target: &str) -> Value {
        self.tell(&json!({ "call": target, "timeout": 10 }));
        self.hear()
    }

    /// Calls until `name` answers.
    pub fn reaches(&mut self, target: &str, name: &str) -> Value {
        self.tell(&json!({ "until": target, "said": name }));
        let said = self.hear();
        assert_eq!(said["said"], name, "{target}: {said}");
        said
    }

    /// Calls while `other` becomes the primary, from before it is asked for.
    pub async fn follows(&mut self, stage: &Stage, other: &str) -> Value {
        self.tell(&json!({ "until": "orders.write", "said": other }));
        stage.switch_to(other).await;
        let said = self.hear();
        assert_eq!(said["said"], other, "{said}");
        said
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn local(ports: &[u16]) -> Vec<String> {
    ports.iter().map(|port| format!("127.0.0.1:{port}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_client_finds_the_primary_follows_it_and_goes_on_without_nodes() {
    let ports = ports::free(2).unwrap();
    let stage = Stage::up("grpc", 3, &local(&ports)).await;
    let mut program = Program::start(&stage.cluster, &["--id", "web", "--zone", "b"], &ports);
    program.reaches("orders.write", "a");
    program.reaches("orders.read", "b");

    program.follows(&stage, "b").await;
    program.reaches("orders.read", "a");
    program.follows(&stage, "a").await;
    program.reaches("orders.read", "b");
    until("it acknowledges the epoch", async || {
        let router = stage.router("web");
        let current = stage.routes()["routes"]["epoch"]["text"].clone();
        router.is_some_and(|one| one["epoch"]["text"] == current && one["protocol"] == "ads")
    })
    .await;

    // What there is not is told at once: a library by itself would wait for 15 s.
    for nothing in ["nothing.write", "orders", "orders.wirte"] {
        let said = program.call(nothing);
        assert_eq!(said["code"], "UNAVAILABLE", "{nothing}: {said}");
        assert!(said["ms"].as_f64().unwrap() < 5_000.0, "{nothing}: {said}");
        assert!(said["details"].as_str().unwrap().contains(nothing), "{said}");
    }

    for node in &stage.cluster.lab.nodes {
        stage.cluster.signal(node.id, Fault::Kill);
    }
    for node in &stage.cluster.lab.nodes {
        assert!(node.process.as_ref().unwrap().wait_gone(crate::cluster::PATIENCE).await);
    }
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        assert_eq!(program.call("orders.read")["said"], "b");
        assert_eq!(program.call("orders.write")["said"], "a");
    }
}

/// One address that stands for all nodes: each connection goes to the first that takes it.
async fn stand_for(listener: TcpListener, nodes: Vec<String>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let nodes = nodes.clone();
        tokio::spawn(async move {
            for node in nodes {
                if let Ok(mut node) = TcpStream::connect(node).await {
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut node).await;
                    return;
                }
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_client_that_knows_all_nodes_by_one_name_leaves_one_that_is_gone() {
    let ports = ports::free(2).unwrap();
    let mut stage = Stage::up("one-name", 3, &local(&ports)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let all = listener.local_addr().unwrap().to_string();
    let nodes = stage.cluster.lab.endpoints();
    stage.spawn(stand_for(listener, nodes));
    let mut program = Program::start(&stage.cluster, &["--nodes-at", &all], &ports);
    program.reaches("orders.write", "a");
    program.reaches("orders.read", "b");
    let at = |stage: &Stage| stage.router("grpc")?["node"].as_u64();
    for (gone, next, [from, to]) in [(1, 2, ["a", "b"]), (2, 1, ["b", "a"])] {
        until("it is known where", async || at(&stage) == Some(gone)).await;
        stage.cluster.kill(gone).await;
        // What it had it goes on with, and no call fails: neither for a node that dies nor for one
        // that has just started. That one may send reads to the primary for a while: it has not
        // heard of the standbys yet.
        until("it is at another node", async || {
            assert_eq!(program.call("orders.write")["said"], from);
            let read = program.call("orders.read");
            assert!(read["said"].is_string(), "{read}");
            at(&stage) == Some(next)
        })
        .await;
        program.reaches("orders.read", to);
        program.follows(&stage, to).await;
        program.reaches("orders.read", from);
        stage.cluster.restart(gone);
        stage.cluster.ready().await;
    }
}
