//! A primary and its standbys as real processes on loopback, ended with the test.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use regent_core::id::{Epoch, Revision};
use regent_engine::postgres::{Options, Postgres, TlsFiles};
use regent_engine::{
    Child as Process, Engine, MemberName, Observation, Postmaster, Secret, Secrets, Source,
    StartAs, SyncNames, Upstream,
};
use tokio_postgres::{Client, NoTls};

/// Long enough for a machine that does other things too.
pub const LONG: Duration = Duration::from_secs(20);
/// The user that PostgreSQL accepts when the tests run as root.
const USER: &str = "postgres";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Signals for a server that the rig started.
#[derive(Clone, Copy)]
pub struct Handle(pub i32);

#[async_trait]
impl Postmaster for Handle {
    async fn reload(&self) -> io::Result<()> {
        kill(Pid::from_raw(self.0), Signal::SIGHUP).map_err(io::Error::from)
    }
    async fn children(&self) -> io::Result<Vec<Process>> {
        let title = |pid: i32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&words).replace('\0', " ").trim_end().to_owned()
        };
        Ok(children(self.0).into_iter().map(|pid| Process { pid, title: title(pid) }).collect())
    }
    async fn terminate(&self, pid: i32) -> io::Result<()> {
        match kill(Pid::from_raw(pid), Signal::SIGTERM) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

pub struct Node {
    pub name: &'static str,
    pub pg: Postgres,
    pub options: Options,
    child: Option<Child>,
}

pub struct Rig {
    pub base: PathBuf,
    pub password: Secret,
    pub secrets: Secrets,
    /// For nodes that are made from then on.
    pub tls: Option<TlsFiles>,
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Gives a path to the user that the server runs as.
pub fn give(path: &Path) {
    if is_root() {
        let user = nix::unistd::User::from_name(USER).unwrap().expect("a user postgres");
        nix::unistd::chown(path, Some(user.uid), Some(user.gid)).unwrap();
    }
}

pub fn member(name: &str) -> MemberName {
    MemberName::parse(name).unwrap()
}

pub fn any(k: u32, names: &[&str]) -> SyncNames {
    SyncNames::Any { k, members: names.iter().map(|n| member(n)).collect() }
}

pub fn epoch(revision: u64) -> Epoch {
    Epoch { incarnation: 1, revision: Revision(revision) }
}

impl Rig {
    pub fn new() -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("regent-engine-{}-{number}", std::process::id());
        let base = std::env::temp_dir().join(name);
        fs::create_dir_all(&base).unwrap();
        give(&base);
        Self { base, password: Secret::random(), secrets: Secrets::random(), tls: None }
    }

    pub fn node(&self, name: &'static str) -> Node {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut options = Options::new(self.base.join(name), port);
        options.run_as = Some(USER.to_owned());
        options.passfile = self.base.join("pass");
        options.tls.clone_from(&self.tls);
        options.peers = vec!["samenet".to_owned()];
        for (key, value) in [("shared_buffers", "16MB"), ("max_wal_size", "128MB")] {
            options.settings.insert(key.to_owned(), value.to_owned());
        }
        let pg = Postgres::new(options.clone()).unwrap();
        Node { name, pg, options, child: None }
    }

    /// A running primary with a database for an application, open for clients, unprotected.
    pub async fn primary(&self, name: &'static str) -> Node {
        let mut node = self.node(name);
        node.pg.init(&self.secrets).await.unwrap();
        node.pg.create_app("app", &self.password, "app").await.unwrap();
        node.start(&StartAs::Primary { names: SyncNames::Unprotected }).await;
        node.pg.write_epoch(epoch(1), LONG).await.unwrap();
        node.pg.open_clients(&[], &node.handle(), LONG).await.unwrap();
        node.app(self).await.batch_execute("CREATE TABLE t (n int)").await.unwrap();
        node
    }

    /// A standby made from `source`, streaming.
    pub async fn standby(&self, name: &'static str, source: &Node) -> Node {
        let mut node = self.node(name);
        node.pg.clone_from(&source.source(), &|_| ()).await.unwrap();
        node.start(&StartAs::Standby { upstream: Some(source.upstream_of(name)) }).await;
        source.streams_to(name).await;
        node
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.base);
    }
}

impl Node {
    pub fn source(&self) -> Source {
        Source { host: "127.0.0.1".to_owned(), port: self.options.port }
    }

    pub fn upstream_of(&self, me: &str) -> Upstream {
        Upstream {
            host: "127.0.0.1".to_owned(),
            port: self.options.port,
            me: member(me),
            slot: None,
        }
    }

    pub fn pid(&self) -> i32 {
        self.child.as_ref().expect("it runs").id().cast_signed()
    }

    pub fn handle(&self) -> Handle {
        Handle(self.pid())
    }

    pub async fn start(&mut self, start: &StartAs) {
        let command = self.pg.prepare_start(start).await.unwrap();
        let log = self.options.data_dir.with_extension("log");
        let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let child = Command::new(&command.program)
            .args(&command.args)
            .env_clear()
            .envs(command.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let began = Instant::now();
        while self.pg.probe(LONG).await.is_err() {
            assert!(began.elapsed() < LONG, "{} does not come up:\n{}", self.name, self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.pg.after_start().await.unwrap();
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.options.data_dir.with_extension("log")).unwrap_or_default()
    }

    /// Kills every process of the server.
    pub fn crash(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = child.id().cast_signed();
        // Stopped first, so that none is born while they are counted.
        let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
        for child in children(pid) {
            let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
        }
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        let _ = child.wait();
    }

    /// A fast shutdown.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
        child.wait().unwrap();
    }

    /// A session of the application.
    pub async fn app(&self, rig: &Rig) -> Client {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.options.port).user("app").dbname("app");
        let (client, connection) =
            config.password(rig.password.reveal()).connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// A session of one of Regent's own roles.
    pub async fn agent(&self, rig: &Rig) -> Client {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.options.port).user("regent_agent").dbname("postgres");
        let (client, connection) =
            config.password(rig.secrets.agent.reveal()).connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// Waits until the server's facts are as wanted.
    pub async fn until(&self, what: &str, wanted: impl Fn(&Observation) -> bool) -> Observation {
        let began = Instant::now();
        loop {
            let seen = self.pg.observe(LONG).await.unwrap();
            if wanted(&seen) {
                return seen;
            }
            assert!(began.elapsed() < LONG, "never {what} on {}: {seen:#?}", self.name);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn streams_to(&self, name: &str) -> Observation {
        self.until("streaming", |o| {
            o.senders
                .iter()
                .any(|s| s.name == name && s.state == "streaming" && s.flushed.is_some())
        })
        .await
    }

    /// The history of the timeline that this instance is on.
    pub async fn history(&self, timeline: u32) -> String {
        let files = self.pg.read_history().await.unwrap();
        files.into_iter().find(|f| f.timeline == timeline).map(|f| f.text).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.crash();
    }
}

fn children(of: i32) -> Vec<i32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
            after.split_whitespace().nth(1) == Some(&of.to_string())
        })
        .collect()
}
