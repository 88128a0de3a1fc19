//! Routes as routers see them, with real databases: followed at each node, and exported.

use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use regent_core::spec::Mode;
use regent_lab::databases::{SERVICE, proxy};
use regent_lab::ports;
use regent_lab::writer::{Access, Pace};
use regent_rpc::pb::v1;
use regent_rpc::pb::v1::routing_service_client::RoutingServiceClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::load::Load;
use super::rig::Rig;
use crate::cluster::{REGENT, until};
use crate::routing::hostile::besiege;

/// What one node told a router, in its order.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<v1::Routes>>>);

impl Told {
    /// Follows the routes at node `id`, and acknowledges all of it.
    fn follow(rig: &Rig, id: u64) -> (Self, JoinHandle<()>) {
        let told = Self::default();
        let kept = told.clone();
        let endpoint = rig.cluster.lab.node(id).unwrap().grpc.clone();
        let client = rig.cluster.client_of("router", &[endpoint]);
        let task = tokio::spawn(async move {
            let mut routing = RoutingServiceClient::new(client.channels().swap_remove(0).1);
            let (service, router) = (SERVICE.to_owned(), format!("at-{id}"));
            let zone = v1::Locality { region: "lab".into(), zone: "b".into(), host: String::new() };
            let ask = v1::WatchRoutesRequest { service, router, client: Some(zone) };
            let mut stream = routing.watch(ask.clone()).await.unwrap().into_inner();
            while let Ok(Some(message)) = stream.message().await {
                let Some(routes) = message.routes else { continue };
                let ack = v1::AckRoutesRequest {
                    service: ask.service.clone(),
                    router: ask.router.clone(),
                    epoch: routes.epoch,
                    revision: routes.revision,
                };
                routing.ack(ack).await.unwrap();
                kept.0.lock().unwrap().push(routes);
            }
        });
        (told, task)
    }

    /// Who takes reads now, the nearest first.
    fn readers(&self) -> Vec<String> {
        let told = self.0.lock().unwrap();
        let reads = told.iter().last().map(|it| it.reads.as_slice()).unwrap_or_default();
        reads.iter().flat_map(|tier| &tier.endpoints).map(|one| one.instance.clone()).collect()
    }

    /// Who took writes, each stretch once.
    fn writes(&self) -> Vec<Option<String>> {
        let told = self.0.lock().unwrap();
        let mut writes: Vec<_> =
            told.iter().map(|it| it.write.as_ref().map(|one| one.instance.clone())).collect();
        writes.dedup();
        writes
    }
}

fn output(rig: &Rig, args: &[&str]) -> String {
    let out = rig.cluster.verb(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn at_every_node_the_old_primary_leaves_the_routes_before_the_new_one_is_in() {
    let rig = Rig::up("routes", Mode::Quorum).await;
    let old = rig.redundant().await;
    let load = Load::start(&rig).await;
    let followed: Vec<_> = (1..=3).map(|id| Told::follow(&rig, id)).collect();
    let first = rig.name(old).to_string();
    for (told, _) in &followed {
        let named = || told.writes().last() == Some(&Some(first.clone()));
        until("the primary is named", async || named()).await;
        until("both standbys take reads", async || told.readers().len() == 3).await;
    }
    let new = (old + 1) % 3;
    let second = rig.name(new).to_string();
    output(&rig, &["switchover", SERVICE, "--to", &second, "--reason", "a test"]);
    until("the switchover is done", async || rig.role().await.holder == second).await;
    assert_eq!(rig.redundant().await, new);
    until("both standbys take reads", async || followed[0].0.readers().len() == 3).await;
    let fault = Instant::now();
    rig.kill_host(new);
    assert_ne!(load.resumed(fault, Some(new)).await.host, new);
    let last = rig.role().await.holder;
    let all = [Some(first), None, Some(second.clone()), None, Some(last.clone())];
    for (told, _) in &followed {
        until("the last primary is named", async || told.writes() == all).await;
        let told = told.0.lock().unwrap();
        let epochs: Vec<_> =
            told.iter().map(|it| it.epoch.map(|e| (e.incarnation, e.revision))).collect();
        assert!(epochs.is_sorted(), "{epochs:?}");
        assert!(told.iter().map(|it| it.revision).is_sorted());
        // The client is in zone b: its standby comes first, the primary last.
        for routes in told.iter() {
            let primary = routes.write.as_ref().map(|one| &one.instance);
            let reads: Vec<_> = routes.reads.iter().flat_map(|tier| &tier.endpoints).collect();
            let but_last = reads.iter().take(reads.len().saturating_sub(1));
            assert!(but_last.clone().all(|one| Some(&one.instance) != primary), "{routes:?}");
            assert!(routes.reads.iter().all(|tier| !tier.endpoints.is_empty()));
        }
    }
    // A dead standby takes no reads.
    until("one standby takes reads", async || {
        let readers = followed[0].0.readers();
        readers.len() == 2 && !readers.contains(&second)
    })
    .await;
    let shown = output(&rig, &["routes", SERVICE, "-o", "json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["routes"]["write"]["instance"], last.as_str());
    let routers = shown["routers"].as_array().unwrap();
    assert_eq!(routers.len(), 3, "{shown:#}");
    assert!(routers.iter().all(|one| one["principal"] == "router/lab"), "{shown:#}");
    let epoch = &shown["routes"]["epoch"]["text"];
    assert!(routers.iter().all(|one| one["epoch"]["text"] == *epoch), "{shown:#}");
    for (_, task) in followed {
        task.abort();
    }
    load.all_kept(&rig).await;
}

/// A HAProxy that runs what `routes export` printed.
struct Exported {
    child: Child,
    write: u16,
}

impl Exported {
    fn start(rig: &Rig, more: &[&str]) -> Self {
        let [write, read] = ports::free(2).unwrap()[..] else { panic!("two ports") };
        let (write_at, read_at) = (format!("127.0.0.1:{write}"), format!("127.0.0.1:{read}"));
        let mut args = vec!["routes", "export", SERVICE, "--format", "haproxy"];
        args.extend(["--write", &write_at, "--read", &read_at, "--max-sessions", "400"]);
        args.extend(more);
        let config = rig.cluster.scratch.path().join(format!("haproxy-{write}.cfg"));
        std::fs::write(&config, output(rig, &args)).unwrap();
        let child = Command::new(proxy::program().expect("HAProxy is installed"))
            .args(["-db", "-f"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, write }
    }

    fn access(&self, rig: &Rig) -> Access {
        Access { via: Some(("127.0.0.1".into(), self.write)), ..rig.access.clone() }
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exported_configurations_of_haproxy_follow_a_switchover_and_cut_old_sessions() {
    let rig = Rig::up("exported", Mode::Quorum).await;
    let mut primary = rig.redundant().await;
    for more in [&["--agent-check"][..], &[]] {
        let haproxy = Exported::start(&rig, more);
        let access = haproxy.access(&rig);
        let open = access.writable_within(Pace::STEADY, 0, Duration::from_secs(10)).await;
        let (old, at) = open.unwrap();
        assert_eq!(at, primary, "{more:?}");
        let next = (primary + 1) % 3;
        let name = rig.name(next).to_string();
        output(&rig, &["switchover", SERVICE, "--to", &name, "--reason", "a test"]);
        until("the old session is cut", async || old.client().is_closed()).await;
        let open = access.writable_within(Pace::STEADY, 0, Duration::from_secs(10)).await;
        assert_eq!(open.unwrap().1, next, "{more:?}");
        until("the switchover is done", async || rig.role().await.holder == name).await;
        primary = rig.redundant().await;
        assert_eq!(primary, next);
    }
    told_at_once(&rig, primary).await;
    among_strangers(&rig).await;
    for (more, is_standby) in [(&[][..], "f"), (&["--reads"][..], "t")] {
        let mut args = vec!["routes", "export", SERVICE, "--format", "libpq"];
        args.extend(more);
        let string = output(&rig, &args);
        let Access { user, password, dbname, .. } = &rig.access;
        let whole = format!("{} user={user} password={password} dbname={dbname}", string.trim());
        let psql = Command::new("psql")
            .args(["-XAtc", "SELECT pg_is_in_recovery()"])
            .arg(whole)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&psql.stdout).trim().to_owned();
        assert_eq!(said, is_standby, "{}", String::from_utf8_lossy(&psql.stderr));
    }
}

/// What a balancer is told at the port of an agent's health checks.
async fn told(at: &str, asks: &str) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(asks.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_string(&mut answer));
    read.await.expect("it is answered").unwrap();
    answer
}

/// Strangers at the port of an agent's health checks keep no balancer from its answers.
async fn among_strangers(rig: &Rig) {
    let primary = &rig.instances()[rig.redundant().await];
    let agent = primary.process.clone().unwrap();
    let before = agent.usage().unwrap().rss_kib;
    let _strangers = besiege(&primary.http);
    let http = "GET /primary HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n";
    for _ in 0..20 {
        assert!(told(&primary.http, http).await.starts_with("HTTP/1.1 200"));
        assert!(told(&primary.http, "write\n").await.starts_with("up"));
    }
    let used = agent.usage().expect("it lives").rss_kib.saturating_sub(before);
    assert!(used < 64 * 1024, "{used} KiB more");
}

/// HAProxy that would look once in ten seconds is told in far less.
async fn told_at_once(rig: &Rig, primary: usize) {
    let socket = rig.cluster.scratch.path().join("haproxy.sock");
    let socket = socket.to_str().unwrap();
    let haproxy = Exported::start(rig, &["--check-interval-ms", "10000", "--socket", socket]);
    let access = haproxy.access(rig);
    let _sync = Synced(
        Command::new(REGENT)
            .args(["lab", "exec", "--as", "router", "--dir"])
            .arg(rig.dir())
            .args(["--", "haproxy-sync", SERVICE, "--socket", socket])
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let (old, at) = access.writable_within(Pace::STEADY, 0, Duration::from_secs(10)).await.unwrap();
    assert_eq!(at, primary);
    until("it is told of", async || {
        let shown = output(rig, &["routes", SERVICE, "-o", "json"]);
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        let routers = shown["routers"].as_array().unwrap();
        routers.iter().any(|one| {
            one["name"].as_str().is_some_and(|name| name.starts_with("haproxy-sync-"))
                && one["revision"] != 0
        })
    })
    .await;
    let next = (primary + 1) % 3;
    let (name, asked) = (rig.name(next).to_string(), Instant::now());
    output(rig, &["switchover", SERVICE, "--to", &name, "--reason", "a test"]);
    until("the old session is cut", async || old.client().is_closed()).await;
    let open = access.writable_within(Pace::STEADY, 0, Duration::from_secs(8)).await;
    assert_eq!(open.unwrap().1, next);
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    until("the switchover is done", async || rig.role().await.holder == name).await;
    rig.redundant().await;
}

struct Synced(Child);

impl Drop for Synced {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
