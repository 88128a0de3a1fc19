//! Backup, restore and quorum-loss recovery: epochs rise, incarnations differ, what was held before
//! is void (S3, PROTOCOL.md G).

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

use regent_core::authz::Role;
use regent_core::id::Epoch;
use regent_rpc::client::{CampaignOptions, Client, Session, SessionOptions};
use regent_rpc::pb::v1;
use regent_rpc::pb::v1::election_service_client::ElectionServiceClient;

use crate::cluster::{Cluster, PATIENCE, REGENT, election, mark, marks, until};

/// A node started beside the lab; ended when dropped.
struct Alone {
    process: Child,
    client: Client,
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn run(args: &[&str]) -> Output {
    Command::new(REGENT).args(args).output().unwrap()
}

/// Everything a verb printed: the report says what it saw, the error why it stopped.
fn both(out: &Output) -> String {
    let (said, why) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    format!("{}\n{said}{why}", out.status)
}

fn succeed(args: &[&str]) -> String {
    let out = run(args);
    assert!(out.status.success(), "{args:?}: {}", both(&out));
    String::from_utf8(out.stdout).unwrap()
}

async fn start(cluster: &Cluster, config: &Path, endpoint: String) -> Alone {
    let log = std::fs::File::create(config.with_extension("log")).unwrap();
    let process = Command::new(REGENT)
        .args(["server", "--config", config.to_str().unwrap()])
        .stderr(log)
        .spawn()
        .unwrap();
    let client = cluster.client_of("admin", &[endpoint]);
    let alone = Alone { process, client };
    until("the node to lead alone", async || {
        let quick = alone.client.with_timeout(std::time::Duration::from_millis(500));
        quick.status().await.is_ok_and(|status| status.leader != 0)
    })
    .await;
    alone
}

/// A configuration for a node the old cluster never knew: other id, ports, data, certificate.
fn new_config(cluster: &Cluster, id: u64) -> (PathBuf, String) {
    let pki = cluster.lab.pki_dir();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let request = regent_rpc::pki::Request {
        names,
        ..regent_rpc::pki::Request::new(Role::Node, id.to_string())
    };
    regent_rpc::pki::issue(&pki, &request).unwrap();
    let ports = regent_lab::ports::free(2).unwrap();
    let endpoint = format!("127.0.0.1:{}", ports[0]);
    let dir = cluster.scratch.path().join(format!("restored-{id}"));
    std::fs::create_dir_all(&dir).unwrap();
    let text = format!(
        r#"node_id = {id}
cluster = "{cluster}"
data_dir = "{data}"

[listen]
grpc = "{endpoint}"
http = "127.0.0.1:{http}"

[tls]
cert = "{pki}/node-{id}.crt"
key = "{pki}/node-{id}.key"
ca = "{pki}/bundle.crt"
trust_domain = "{trust}"

[[initial_members]]
id = {id}
address = "{endpoint}"
http_address = "127.0.0.1:{http}"
"#,
        cluster = cluster.lab.cluster,
        data = dir.join("data").display(),
        http = ports[1],
        pki = pki.display(),
        trust = cluster.lab.trust_domain,
    );
    let path = dir.join("node.toml");
    std::fs::write(&path, text).unwrap();
    (path, endpoint)
}

async fn incarnation(client: &Client) -> (u64, u64) {
    let stamp = client.status().await.unwrap().stamp.unwrap();
    (stamp.incarnation, stamp.incarnation_id)
}

async fn campaign(client: &Client) -> (Session, Epoch) {
    let session = Session::open(client, SessionOptions::default()).await.unwrap();
    let lease = session.campaign(&election("job"), b"v", CampaignOptions::default()).await.unwrap();
    let epoch = lease.epoch();
    // Held until the cluster ends: dropping it would resign.
    std::mem::forget(lease);
    (session, epoch)
}

/// What a client of the old cluster still has in its hands.
struct Left {
    session: u64,
    nonce: u64,
    epoch: v1::Epoch,
    from: v1::WatchFrom,
}

impl Left {
    /// A session with a known nonce, and the lead of an election of its own.
    async fn of(old: &Client) -> Self {
        let (_, channel) = old.channels().swap_remove(0);
        let mut api = ElectionServiceClient::new(channel);
        let nonce = 77;
        let id = |serial| Some(v1::RequestId { client: 4_242, serial });
        let ask = v1::OpenSessionRequest {
            request: id(1),
            ttl_ms: 600_000,
            nonce,
            ..v1::OpenSessionRequest::default()
        };
        let session = api.open_session(ask).await.unwrap().into_inner().session;
        let ask = v1::CampaignRequest {
            request: id(2),
            election: "left".into(),
            session,
            nonce,
            ..v1::CampaignRequest::default()
        };
        let won = api.campaign(ask).await.unwrap().into_inner();
        let stamp = won.stamp.unwrap();
        let from = v1::WatchFrom {
            revision: stamp.revision,
            incarnation: stamp.incarnation,
            incarnation_id: stamp.incarnation_id,
        };
        Self { session, nonce, epoch: won.epoch.unwrap(), from }
    }

    /// None of it is worth anything in `restored`.
    async fn assert_void(&self, restored: &Client) {
        let (_, channel) = restored.channels().swap_remove(0);
        let mut api = ElectionServiceClient::new(channel);
        let from = Some(self.from);
        let ask = v1::ObserveRequest { all: true, from, ..v1::ObserveRequest::default() };
        let why = match api.observe(ask).await {
            Ok(stream) => stream.into_inner().message().await.expect_err("an old watch goes on"),
            Err(status) => status,
        };
        assert_eq!(why.code(), tonic::Code::OutOfRange, "{why}");

        let renewal = v1::Renewal {
            session: self.session,
            nonce: self.nonce,
            number: 1,
            acked: 0,
            known_grant: self.epoch.revision,
            report: None,
        };
        let ask = v1::KeepAliveRequest { renewals: vec![renewal], probe: 0 };
        let mut answers =
            api.keep_alive(tonic::codegen::tokio_stream::once(ask)).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap();
        let outcomes: Vec<_> = answer.renewed.iter().map(v1::Renewed::outcome).collect();
        assert_eq!(outcomes, [v1::renewed::Outcome::SessionGone]);

        let ask = v1::ProclaimRequest {
            request: Some(v1::RequestId { client: 4_243, serial: 1 }),
            election: "left".into(),
            session: self.session,
            epoch: Some(self.epoch),
            value: "still me".into(),
        };
        let why = api.proclaim(ask).await.expect_err("an old epoch proclaims");
        let said_no = matches!(why.code(), tonic::Code::FailedPrecondition | tonic::Code::NotFound);
        assert!(said_no, "{why:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_restores_of_one_backup_raise_epochs_differ_and_void_what_was_held() {
    let cluster = Cluster::up("restore", 3).await;
    let admin = cluster.client("admin");
    mark(&admin, "mark/before").await.unwrap();
    let (_session, first) = campaign(&admin).await;
    let left = Left::of(&admin).await;
    let backup: PathBuf = cluster.scratch.path().join("cluster.backup");
    let file = backup.to_str().unwrap();
    let out = cluster.verb(&["backup", "-f", file]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    mark(&admin, "mark/after").await.unwrap();
    let life = incarnation(&admin).await;

    let mut lives = vec![life];
    for id in [1_000, 1_001] {
        let (config, endpoint) = new_config(&cluster, id);
        let config_text = config.to_str().unwrap();
        // The dry run writes nothing.
        let dry = succeed(&["restore", "--config", config_text, "--from", file]);
        assert!(dry.contains("ttl waited out") && dry.contains("10m"), "{dry}");
        assert!(!config.with_file_name("data").join("raft").exists());
        let hold = ["--hold-grants", "1s"];
        let restore = ["restore", "--config", config_text, "--from", file, "--yes"];
        let done = succeed(&[&restore[..], &hold].concat());
        assert!(done.contains("warning"), "it waits less than a holder of before may: {done}");
        let alone = start(&cluster, &config, endpoint).await;
        assert_eq!(marks(&alone.client, "mark/").await, ["mark/before"]);
        lives.push(incarnation(&alone.client).await);
        left.assert_void(&alone.client).await;
        // What the backup's holder held is void: the election is free, under a higher epoch.
        let (_, epoch) = campaign(&alone.client).await;
        assert!(epoch > first, "S3 over a restore: {first} -> {epoch}");
    }
    assert!(lives[1].0 > life.0 && lives[2].0 > life.0, "{lives:?}");
    assert_ne!(lives[1].1, lives[2].1, "two restores of one backup look alike");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_backup_is_refused_and_changes_nothing() {
    let cluster = Cluster::up("damaged", 1).await;
    let backup = cluster.scratch.path().join("cluster.backup");
    let file = backup.to_str().unwrap();
    assert!(cluster.verb(&["backup", "-f", file]).status.success());
    let mut bytes = std::fs::read(&backup).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&backup, bytes).unwrap();
    let (config, _) = new_config(&cluster, 1_000);
    let out = run(&["restore", "--config", config.to_str().unwrap(), "--from", file, "--yes"]);
    assert!(!out.status.success());
    assert!(String::from_utf8_lossy(&out.stderr).contains("backup"), "{out:?}");
    assert!(!config.with_file_name("data").join("raft").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_survivor_of_a_lost_majority_goes_on_in_a_new_incarnation() {
    let cluster = Cluster::up("recover", 3).await;
    let admin = cluster.client("admin");
    mark(&admin, "mark/kept").await.unwrap();
    let (_session, first) = campaign(&admin).await;
    let life = incarnation(&admin).await;
    let survivor = cluster.lab.nodes[0].clone();
    let config = survivor.config.to_str().unwrap().to_owned();
    // While the others answer, it is refused.
    cluster.kill(survivor.id).await;
    let refused = run(&["recover", "--config", &config, "--yes"]);
    assert_eq!(refused.status.code(), Some(1), "{}", both(&refused));
    let why = both(&refused);
    assert!(why.contains("node 2, 3 still answers"), "{why}");
    for node in &cluster.lab.nodes[1..] {
        cluster.kill(node.id).await;
    }
    succeed(&["recover", "--config", &config]);
    let reason = ["--reason", "burnt", "--hold-grants", "1s"];
    succeed(&[&["recover", "--config", config.as_str(), "--yes"], &reason[..]].concat());
    let alone = start(&cluster, &survivor.config, survivor.grpc.clone()).await;
    assert!(incarnation(&alone.client).await.0 > life.0);
    assert_eq!(marks(&alone.client, "mark/").await, ["mark/kept"]);
    let (_, epoch) = tokio::time::timeout(PATIENCE, campaign(&alone.client)).await.unwrap();
    assert!(epoch > first, "S3 over a recovery: {first} -> {epoch}");
}
