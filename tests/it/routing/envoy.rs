//! A real Envoy in trouble: what it refuses is told, what it need not refuse goes on, and it leaves a
//! node that is gone for another one.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use regent_lab::ports;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::instances::{address, serve_sessions};
use super::stage::{ORDERS, Stage};
use crate::cluster::until;
use crate::database::envoy;

/// An Envoy that runs what `routes export` printed, with an admin port.
pub struct Envoy {
    child: Child,
    log: PathBuf,
    pub write: u16,
    admin: u16,
}

impl Envoy {
    /// `read`: where it is to listen for reads; `change`: what else the bootstrap is to say.
    pub fn start(stage: &Stage, id: &str, read: u16, change: impl FnOnce(&mut Value)) -> Self {
        let [write, admin] = ports::free(2).unwrap()[..] else { panic!("two ports") };
        let (write_at, read_at) = (format!("127.0.0.1:{write}"), format!("127.0.0.1:{read}"));
        let args = ["routes", "export", ORDERS, "--format", "envoy", "--id", id];
        let listens = ["--write", &write_at, "--read", &read_at];
        let out = stage.cluster.verb_as("router", &[&args[..], &listens].concat());
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let mut bootstrap: Value = serde_json::from_slice(&out.stdout).unwrap();
        let admin_at = json!({ "address": "127.0.0.1", "port_value": admin });
        bootstrap["admin"] = json!({ "address": { "socket_address": admin_at } });
        change(&mut bootstrap);
        let config = stage.cluster.scratch.path().join(format!("{id}.json"));
        std::fs::write(&config, bootstrap.to_string()).unwrap();
        let log = config.with_extension("log");
        let child = Command::new(envoy::program())
            .arg("-c")
            .arg(config)
            .args(["--concurrency", "1", "-l", "warning", "--disable-hot-restart"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, log, write, admin }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// One of its counters.
    async fn count(&self, name: &str) -> Option<u64> {
        use tokio::io::AsyncWriteExt as _;
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin)).await.ok()?;
        let ask =
            format!("GET /stats?filter=^{name}$ HTTP/1.1\r\nhost: e\r\nconnection: close\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let line = answer.lines().find(|line| line.starts_with(name))?;
        line.rsplit(' ').next()?.parse().ok()
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A session through a port, and who it is with.
pub async fn session(port: u16) -> Option<(TcpStream, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let mut name = [0];
    stream.read_exact(&mut name).await.ok()?;
    Some((stream, char::from(name[0]).to_string()))
}

pub async fn reaches(port: u16, name: &str) {
    until(&format!("a session with {name}"), async || {
        session(port).await.is_some_and(|(_, with)| with == name)
    })
    .await;
}

/// Two instances that greet, and those nodes.
pub async fn staged(what: &str, nodes: u64) -> Stage {
    let mut listeners = Vec::new();
    for _ in 0..2 {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let addresses: Vec<String> = listeners.iter().map(|it| address(it).to_string()).collect();
    let mut stage = Stage::up(what, nodes, &addresses).await;
    for (listener, name) in listeners.into_iter().zip(["a", "b"]) {
        stage.spawn(serve_sessions(listener, name.parse().unwrap()));
    }
    stage
}

#[tokio::test(flavor = "multi_thread")]
async fn what_envoy_refuses_is_shown_with_its_reason_and_the_rest_goes_on() {
    let stage = staged("nack", 1).await;
    // Somebody else has the port for reads.
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let envoy = Envoy::start(&stage, "refuses", address(&taken).port(), |_| {});
    reaches(envoy.write, "a").await;
    let refused = || stage.router("refuses")?["refused"].as_str().map(str::to_owned);
    until("the refusal is shown", async || refused().is_some()).await;
    let why = refused().unwrap();
    assert!(why.contains("orders.read") && why.contains("Address already in use"), "{why}");
    // Other kinds go on: it follows a flip, and that takes nothing back.
    let before = envoy.count("listener_manager.lds.update_attempt").await.unwrap();
    stage.switch_to("b").await;
    reaches(envoy.write, "b").await;
    until("it acknowledges the epoch", async || {
        let shown = stage.routes();
        let router = &shown["routers"][0];
        let (epoch, of) = (&router["epoch"]["text"], &shown["routes"]["epoch"]["text"]);
        epoch == of && router["revision"].as_u64() > Some(0)
    })
    .await;
    assert_eq!(refused(), Some(why));
    // What was refused is not sent again and again.
    assert_eq!(envoy.count("listener_manager.lds.update_attempt").await.unwrap(), before);
    let metrics = stage.metrics(1);
    assert!(metrics.contains("regent_route_refusals_count_total{kind=\"lds\"} 1\n"), "{metrics}");
    assert!(metrics.contains("regent_route_services_count{kind=\"open\"} 1\n"), "{metrics}");

    // What it says of itself is wrong: it is told so, and another one does not suffer.
    let other = Envoy::start(&stage, "misspelt", ports::free(1).unwrap()[0], |bootstrap| {
        bootstrap["node"]["metadata"]["regent"]["services"]["orders"]["wrote"] = json!("x");
    });
    until("it is told what is wrong", async || {
        other.said().contains("node.metadata.regent.services.orders.wrote:")
    })
    .await;
    assert_eq!(session(envoy.write).await.map(|(_, with)| with).as_deref(), Some("b"));
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_leaves_a_node_that_is_gone_and_takes_one_that_has_just_started() {
    let mut stage = staged("leaves", 3).await;
    let read = ports::free(1).unwrap()[0];
    let envoy = Envoy::start(&stage, "leaves", read, |_| {});
    reaches(envoy.write, "a").await;
    reaches(read, "b").await;
    let at = |stage: &Stage| stage.router("leaves")?["node"].as_u64();
    until("it is known where", async || at(&stage).is_some()).await;
    let first = at(&stage).unwrap();
    stage.cluster.kill(first).await;
    let goes_on = async |what: &str, port: u16, name: &str| {
        let (_, with) = session(port).await.unwrap_or_else(|| panic!("{what}: nobody"));
        assert_eq!(with, name, "{what}");
    };
    until("it is at another node", async || {
        goes_on("a node is gone", envoy.write, "a").await;
        goes_on("a node is gone", read, "b").await;
        at(&stage).is_some_and(|node| node != first)
    })
    .await;
    let second = at(&stage).unwrap();
    stage.switch_to("b").await;
    reaches(envoy.write, "b").await;
    reaches(read, "a").await;
    // Only the one that starts now is left to go to, once the others are gone.
    stage.cluster.restart(first);
    stage.cluster.ready().await;
    stage.cluster.kill(second).await;
    until("it is at another node again", async || {
        goes_on("a node is new", envoy.write, "b").await;
        goes_on("a node is new", read, "a").await;
        at(&stage).is_some_and(|node| node != second)
    })
    .await;
    stage.switch_to("a").await;
    reaches(envoy.write, "a").await;
}
