//! A PostgreSQL that somebody else set up, with a standby, its own settings and a client that writes,
//! becomes a service of Regent's.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use regent_core::spec::Mode;
use regent_lab::databases::{Ground, LabInstance, start_agent};

use super::load::Load;
use super::rig::Rig;
use crate::cluster::REGENT;

/// The cluster as its owner runs it; ended when dropped.
pub struct Plain<'g> {
    ground: &'g Ground,
    pub data: PathBuf,
    home: PathBuf,
}

impl<'g> Plain<'g> {
    pub fn new(ground: &'g Ground, instance: &LabInstance) -> Self {
        Self { ground, data: instance.data_dir(), home: instance.dir.clone() }
    }

    pub fn run(&self, program: &str, words: &[&str]) -> Output {
        let program = self.ground.bin_dir.join(program);
        let mut command = match &self.ground.owner {
            Some(owner) => {
                let mut command = Command::new("runuser");
                command.args(["-u", &owner.name, "--"]).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.args(words).current_dir(&self.home).output().unwrap()
    }

    fn done(&self, program: &str, words: &[&str]) {
        let out = self.run(program, words);
        assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
    }

    pub fn start(&self) {
        let log = self.home.join("plain.log");
        let (data, log) = (self.data.to_str().unwrap(), log.to_str().unwrap());
        let socket = format!("-k {}", self.home.display());
        let words = ["start", "-w", "-t", "30", "-o", &socket, "-D", data, "-l", log];
        self.done("pg_ctl", &words);
    }

    fn append(&self, file: &str, lines: &str) {
        let path = self.data.join(file);
        let before = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{before}\n{lines}\n")).unwrap();
    }

    /// Statements of its superuser, by the socket.
    fn sql(&self, port: u16, database: &str, text: &str) {
        let (port, home) = (port.to_string(), self.home.to_str().unwrap());
        let words = ["-X", "-h", home, "-p", &port, "-U", "postgres", "-d", database, "-c", text];
        self.done("psql", &words);
    }
}

impl Drop for Plain<'_> {
    fn drop(&mut self) {
        let data = self.data.to_str().unwrap();
        if self.data.join("postmaster.pid").exists() {
            drop(self.run("pg_ctl", &["stop", "-m", "immediate", "-D", data]));
        }
    }
}

/// `regent agent adopt` of one instance: what it said, and whether it did it.
fn adopt(instance: &LabInstance, words: &[&str]) -> (serde_json::Value, bool) {
    let out = Command::new(REGENT)
        .args(["-o", "json", "agent", "adopt", "--config"])
        .arg(instance.config())
        .args(words)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let value = serde_json::from_str(&said)
        .unwrap_or_else(|_| panic!("{said}: {}", String::from_utf8_lossy(&out.stderr)));
    (value, out.status.success())
}

fn lines(value: &serde_json::Value) -> String {
    serde_json::to_string(value).unwrap()
}

fn give(ground: &Ground, path: &Path) {
    if let Some(owner) = &ground.owner {
        std::os::unix::fs::chown(path, Some(owner.uid), Some(owner.gid)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_cluster_with_a_standby_is_adopted_and_fails_over_with_its_rows_and_settings() {
    let (mut rig, ground) = Rig::laid_out("adopt", Mode::Quorum).await;
    let instances = rig.instances().to_vec();
    let (first, second) = (&instances[0], &instances[1]);
    let lab = rig.cluster.lab.databases.clone().unwrap();

    // As people set one up.
    let plain = Plain::new(&ground, first);
    let data = plain.data.to_str().unwrap();
    let auth = ["--auth-local=trust", "--auth-host=scram-sha-256"];
    plain.done("initdb", &[&["-k", "-U", "postgres", "-D", data], &auth[..]].concat());
    let home = plain.home.display();
    plain.append(
        "postgresql.conf",
        &format!(
            "port = {}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{home}'\n\
             work_mem = '7MB'\nwal_log_hints = on",
            first.port
        ),
    );
    plain.append(
        "pg_hba.conf",
        "host all app 127.0.0.1/32 scram-sha-256\nhost replication copy 127.0.0.1/32 scram-sha-256",
    );
    plain.start();
    for (user, with) in [("app", "LOGIN"), ("copy", "LOGIN REPLICATION")] {
        let make = format!("CREATE ROLE {user} {with} PASSWORD '{}'", lab.password);
        plain.sql(first.port, "postgres", &make);
    }
    plain.sql(first.port, "postgres", "CREATE DATABASE app OWNER app");
    plain.sql(first.port, "postgres", "ALTER SYSTEM SET maintenance_work_mem = '33MB'");

    // Its standby.
    let standby = Plain::new(&ground, second);
    let pass = second.dir.join("copy.pass");
    std::fs::write(&pass, format!("*:*:*:copy:{}\n", lab.password)).unwrap();
    std::fs::set_permissions(&pass, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    give(&ground, &pass);
    let port = first.port.to_string();
    let source = format!("host=127.0.0.1 port={port} user=copy passfile={}", pass.display());
    let words = ["-R", "-X", "stream", "-c", "fast", "-d", &source, "-D"];
    standby.done("pg_basebackup", &[&words[..], &[standby.data.to_str().unwrap()]].concat());
    let home = standby.home.display();
    standby.append(
        "postgresql.conf",
        &format!("port = {}\nunix_socket_directories = '{home}'", second.port),
    );
    standby.start();

    let load = Load::start(&rig).await;
    load.progress(100).await;

    // Nothing is changed by a look, nor where something speaks against it.
    let (seen, done) = adopt(first, &[]);
    assert!(!done && seen["adopted"] == false, "{seen}");
    assert!(lines(&seen["obstacles"]).contains("--replace-access"), "{seen}");
    assert!(lines(&seen["replaced"]).contains("host all app 127.0.0.1/32"), "{seen}");
    assert!(lines(&seen["replaced"]).contains("listen_addresses = '127.0.0.1'"), "{seen}");
    assert!(lines(&seen["notes"]).contains("walreceiver"), "it streams to one: {seen}");
    let (seen, done) = adopt(first, &["--yes", "--replace-access"]);
    assert!(!done && lines(&seen["obstacles"]).contains("--interrupt"), "{seen}");
    let (seen, done) = adopt(second, &["--yes", "--replace-access", "--interrupt"]);
    assert!(!done && lines(&seen["obstacles"]).contains("primary's host"), "{seen}");
    load.progress(100).await;

    // What interrupts nobody comes first: the primary goes on while its standbys are adopted.
    let (seen, done) = adopt(second, &["--yes", "--replace-access", "--prepare"]);
    assert!(!done && lines(&seen["obstacles"]).contains("only a primary"), "{seen}");
    let (seen, done) = adopt(first, &["--yes", "--replace-access", "--prepare"]);
    assert!(done && seen["prepared"] == true && seen["adopted"] == false, "{seen}");
    for other in &instances[1..] {
        std::fs::copy(first.passfile(), other.passfile()).unwrap();
        give(&ground, &other.passfile());
    }
    let all = ["--yes", "--replace-access", "--interrupt"];
    let (seen, done) = adopt(second, &all);
    assert!(done && seen["standby"] == true, "{seen}");
    for at in [1, 2] {
        start_agent(&mut rig.cluster.lab, at).unwrap();
    }
    load.progress(100).await;

    let (seen, done) = adopt(first, &all);
    assert!(done && seen["adopted"] == true, "{seen}");
    let closed = Instant::now();
    let stopped = Duration::from_millis(seen["stopped_ms"].as_u64().expect("it ran"));
    let out = plain.run("postgres", &["-D", data]);
    assert!(!out.status.success(), "closed on disk");
    start_agent(&mut rig.cluster.lab, 0).unwrap();
    let resumed = load.resumed(closed, None).await;
    assert_eq!(resumed.host, 0);
    let interrupted = resumed.done - closed + stopped;
    eprintln!("no row was taken for {interrupted:?}");
    assert!(interrupted < Duration::from_secs(10), "{interrupted:?}");
    let (seen, done) = adopt(first, &all);
    assert!(!done && lines(&seen["obstacles"]).contains("already"), "{seen}");

    assert_eq!(rig.redundant().await, 0, "who was primary stays it");
    assert!(!rig.log(1).contains("cloning") && !rig.log(1).contains("Clone("), "it was a copy");
    load.progress(100).await;

    // Its settings and its rows are there on whoever comes next.
    let fault = Instant::now();
    rig.kill_host(0);
    let new = load.resumed(fault, Some(0)).await.host;
    load.progress(100).await;
    let session = rig.access.writable_host(new, Duration::from_secs(5)).await.unwrap();
    for (setting, value) in [("work_mem", "7MB"), ("maintenance_work_mem", "33MB")] {
        let row = session.client().query_one(&format!("SHOW {setting}"), &[]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), value, "{setting}");
    }
    let sql = "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'regent%' AND rolsuper";
    let row = session.client().query_one(sql, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 0, "no superuser of Regent's");
    assert_eq!(rig.heal().await, new);
    load.all_kept(&rig).await;
    let kept = first.state_dir().join("engine/adopted/pg_hba.conf");
    assert!(std::fs::read_to_string(kept).unwrap().contains("host all app 127.0.0.1/32"));
}
