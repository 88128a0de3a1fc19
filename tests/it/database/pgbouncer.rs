//! PgBouncer as `routes export` prints it, and `pgbouncer-sync` beside it: a planned change is a delay
//! to its clients, an unplanned one an error to those who were in a transaction.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use regent_core::spec::{AwaitRouters, Mode};
use regent_lab::databases::SERVICE;
use regent_lab::ports;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::rig::Rig;
use crate::cluster::{REGENT, until};

const CLIENTS: usize = 8;
/// What no client may wait for longer: a switchover here takes half a second.
const NO_LONGER: Duration = Duration::from_secs(4);

/// Ends the process when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Pool {
    dir: PathBuf,
    port: u16,
    _sync: Running,
    _pgbouncer: Running,
}

fn program() -> PathBuf {
    let debian = Path::new("/usr/sbin/pgbouncer");
    if debian.exists() { debian.into() } else { "pgbouncer".into() }
}

/// PgBouncer does not run as root.
fn as_postgres(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program);
    command
}

/// Whom PgBouncer runs as gets these.
fn give(path: &Path) {
    if rustix::process::geteuid().is_root() {
        assert!(Command::new("chown").arg("postgres:").arg(path).status().unwrap().success());
    }
}

impl Pool {
    async fn start(rig: &Rig) -> Self {
        let dir = rig.cluster.scratch.path().join("pool");
        std::fs::create_dir(&dir).unwrap();
        let port = ports::free(1).unwrap()[0];
        let (databases, users) = (dir.join("databases.ini"), dir.join("users.txt"));
        let access = &rig.access;
        let text = format!("\"{}\" \"{}\"\n\"regent\" \"console\"\n", access.user, access.password);
        std::fs::write(&users, text).unwrap();
        let admin = format!("host={} port={port} user=regent", dir.display());
        let sync = Command::new(REGENT)
            .args(["lab", "exec", "--as", "router", "--dir"])
            .arg(rig.dir())
            .args(["--", "pgbouncer-sync", SERVICE, "--database", &access.dbname])
            .args(["--admin", &admin, "--pause-limit", "10s", "--databases-file"])
            .arg(&databases)
            .env("PGPASSWORD", "console")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let sync = Running(sync);
        until("the file of databases", async || databases.exists()).await;
        let listen = format!("127.0.0.1:{port}");
        let printed = rig.cluster.verb(&[
            "routes",
            "export",
            SERVICE,
            "--format",
            "pgbouncer",
            "--write",
            &listen,
            "--databases-file",
            databases.to_str().unwrap(),
            "--users-file",
            users.to_str().unwrap(),
            "--socket",
            dir.to_str().unwrap(),
        ]);
        assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
        let config = dir.join("pgbouncer.ini");
        std::fs::write(&config, printed.stdout).unwrap();
        [&dir, &users, &config].into_iter().for_each(|path| give(path));
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let pgbouncer = as_postgres(&program())
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let pool = Self { dir, port, _sync: sync, _pgbouncer: Running(pgbouncer) };
        until("PgBouncer lets clients in", async || pool.client(rig).await.is_ok()).await;
        pool
    }

    async fn client(&self, rig: &Rig) -> Result<Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        let access = &rig.access;
        config.host("127.0.0.1").port(self.port).user(&access.user).password(&access.password);
        config.dbname(&access.dbname).connect_timeout(Duration::from_secs(5));
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap()
    }
}

/// Clients that write a row after the other, and what became of them.
#[derive(Default)]
struct Seen {
    rows: AtomicU64,
    acked: Mutex<Vec<u64>>,
    errors: AtomicU64,
    longest_ms: AtomicU64,
    stop: AtomicBool,
}

impl Seen {
    async fn write(self: Arc<Self>, client: Client) -> Option<String> {
        while !self.stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            match client.simple_query("INSERT INTO pooled DEFAULT VALUES RETURNING id").await {
                Ok(rows) => self.acked.lock().unwrap().extend(ids(&rows)),
                Err(error) => {
                    self.errors.fetch_add(1, Ordering::Relaxed);
                    return Some(format!("after {:?}: {error}: {error:?}", began.elapsed()));
                }
            }
            self.rows.fetch_add(1, Ordering::Relaxed);
            let took = began.elapsed().as_millis() as u64;
            self.longest_ms.fetch_max(took, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        None
    }

    async fn progress(&self, rows: u64) {
        let wanted = self.rows.load(Ordering::Relaxed) + rows;
        until("rows are written", async || self.rows.load(Ordering::Relaxed) >= wanted).await;
    }
}

async fn write(rig: &Rig, pool: &Pool) -> (Arc<Seen>, Vec<JoinHandle<Option<String>>>) {
    let seen = Arc::new(Seen::default());
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let client = pool.client(rig).await.unwrap();
        clients.push(tokio::spawn(seen.clone().write(client)));
    }
    (seen, clients)
}

fn ids(rows: &[SimpleQueryMessage]) -> Vec<u64> {
    let id = |row: &SimpleQueryMessage| match row {
        SimpleQueryMessage::Row(row) => Some(row.get(0)?.parse().unwrap()),
        _ => None,
    };
    rows.iter().filter_map(id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_change_is_a_delay_to_clients_of_pgbouncer_and_no_error() {
    let rig = Rig::up("pgbouncer", Mode::Quorum).await;
    let mut primary = rig.redundant().await;
    let awaits = AwaitRouters { percent: 100, within_ms: 5_000 };
    rig.declare(|policy| policy.await_routers = awaits).await;
    let pool = Pool::start(&rig).await;
    let client = pool.client(&rig).await.unwrap();
    client
        .simple_query("CREATE TABLE pooled (id bigserial, at timestamptz default now())")
        .await
        .unwrap();
    drop(client);
    let (seen, clients) = write(&rig, &pool).await;
    seen.progress(100).await;
    for _ in 0..3 {
        let next = (primary + 1) % 3;
        let name = rig.name(next).to_string();
        let args = ["switchover", SERVICE, "--to", &name, "--reason", "a test"];
        let said = rig.cluster.verb(&args);
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        until("it has changed", async || rig.role().await.holder == name).await;
        seen.progress(100).await;
        primary = rig.redundant().await;
        assert_eq!(primary, next);
    }
    let longest = Duration::from_millis(seen.longest_ms.load(Ordering::Relaxed));
    assert_eq!(seen.errors.load(Ordering::Relaxed), 0, "a client was told of a planned change");
    println!("the longest that a client waited for was {longest:?}");
    assert!(longest < NO_LONGER, "{longest:?}\n{}", pool.log());

    // The phases are those of the policy: routes closed, routers gone, then the fence.
    let shown = rig.cluster.verb(&["operations", "list", SERVICE, "-o", "json"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("\"drain\""), "{shown}");

    // Nobody asked for this one: who idles is let go on, who was in a transaction is told.
    rig.kill_host(primary);
    until("another one is primary", async || {
        let role = rig.role().await;
        role.routes_open && role.holder != rig.name(primary).to_string()
    })
    .await;
    let fresh = async || {
        let client = pool.client(&rig).await.ok()?;
        client.simple_query("INSERT INTO pooled DEFAULT VALUES").await.ok()
    };
    until("clients go on", async || fresh().await.is_some()).await;
    seen.stop.store(true, Ordering::Relaxed);
    for client in clients {
        // What failed did so after the switchovers: before, all went on writing.
        let _ = client.await.unwrap();
    }
    let client = pool.client(&rig).await.unwrap();
    let there = ids(&client.simple_query("SELECT id FROM pooled").await.unwrap());
    let there: std::collections::BTreeSet<u64> = there.into_iter().collect();
    let lost: Vec<_> =
        seen.acked.lock().unwrap().iter().filter(|id| !there.contains(id)).copied().collect();
    assert!(lost.is_empty(), "acknowledged rows are gone: {lost:?}");
}
