//! The writer, the prober and the check against a plain PostgreSQL of this test's own.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use regent_core::spec::Mode;

use super::ledger::Fate;
use super::{Access, Pace, Prober, Table, Writer, verify};
use crate::databases::{Front, Ground, Wanted};

const PATIENCE: Duration = Duration::from_secs(30);

/// A server on loopback that is killed and removed in the end.
struct Server {
    dir: PathBuf,
    ground: Ground,
    port: u16,
    postmaster: Option<Child>,
}

impl Server {
    fn new(what: &str) -> Self {
        let wanted = Wanted {
            instances: 1,
            mode: Mode::Lease,
            ttl: Duration::from_secs(3),
            haproxy: Front::Off,
            envoy: None,
            keep: false,
        };
        let ground = Ground::survey(&wanted).expect("PostgreSQL: scripts/setup installs it");
        let dir = std::env::temp_dir().join(format!("regent-writer-{}-{what}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).unwrap();
        if let Some(owner) = &ground.owner {
            chown(&dir, Some(owner.uid), Some(owner.gid)).unwrap();
        }
        let port = crate::ports::free(1).unwrap()[0];
        let mut server = Self { dir, ground, port, postmaster: None };
        let data = server.data();
        let made = server
            .program("initdb")
            .args(["-N", "-A", "trust", "-U", "app", "-D"])
            .arg(&data)
            .stdout(Stdio::null())
            .status();
        assert!(made.unwrap().success(), "initdb failed");
        server.start();
        server
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// A program of PostgreSQL, as its owner.
    fn program(&self, name: &str) -> Command {
        use std::os::unix::process::CommandExt as _;
        let mut command = Command::new(self.ground.bin_dir.join(name));
        if let Some(owner) = &self.ground.owner {
            command.uid(owner.uid).gid(owner.gid);
        }
        command.current_dir(&self.dir).stdin(Stdio::null());
        command
    }

    fn start(&mut self) {
        let socket = format!("unix_socket_directories={}", Path::new(&self.dir).display());
        let log = std::fs::File::create(self.dir.join("log")).unwrap();
        let child = self
            .program("postgres")
            .args(["-c", "listen_addresses=127.0.0.1", "-c", &socket, "-c", "fsync=off"])
            .args(["-p", &self.port.to_string(), "-D"])
            .arg(self.data())
            .stderr(log)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.postmaster = Some(child);
    }

    /// SIGKILL to the first process, and collects it: a zombie would still own its lock file. The
    /// backends end when they notice.
    fn kill(&mut self) {
        let postmaster = self.postmaster.as_mut().unwrap();
        postmaster.kill().unwrap();
        postmaster.wait().unwrap();
    }

    /// Whether it ended by itself.
    fn is_over(&mut self) -> bool {
        self.postmaster.as_mut().unwrap().try_wait().unwrap().is_some()
    }

    fn access(&self) -> Access {
        // Nobody listens on port 1: a host that is gone.
        let hosts = vec![("127.0.0.1".to_owned(), 1), ("127.0.0.1".to_owned(), self.port)];
        let (user, dbname) = ("app".to_owned(), "postgres".to_owned());
        let password = String::new();
        Access { hosts, user, password, dbname, from: None, via: None }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(postmaster) = &mut self.postmaster {
            let _ = postmaster.kill();
            let _ = postmaster.wait();
        }
        // Backends end within moments of their postmaster, and may write until then.
        let deadline = Instant::now() + PATIENCE;
        while std::fs::remove_dir_all(&self.dir).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_writer_goes_on_after_a_crash_and_every_row_it_was_promised_is_there() {
    let mut server = Server::new("crash");
    let access = server.access();
    let table = Table::fresh("crash");
    table.create(&access, PATIENCE).await.unwrap();
    let writer = Writer::start(access.clone(), table.clone(), Pace::STEADY);
    until("twenty rows", || writer.ledger().summary().acked >= 20).await;
    server.kill();
    let killed = Instant::now();
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.start();
    // A backend that has not ended yet holds the shared memory: then it is started again.
    until("a start", || {
        if server.is_over() {
            server.start();
        }
        writer.ledger().first_ack(killed).is_some()
    })
    .await;
    let first = writer.acked_since(killed, PATIENCE).await.expect("writes go on");
    assert_eq!(first.host, 1, "the host that is there");
    until("twenty more", || writer.ledger().summary().acked >= 40).await;
    let ledger = writer.stop().await;
    let gap = ledger.longest_gap(killed, Instant::now());
    assert!(gap.length() >= Duration::from_millis(300), "{gap:?}");
    let mut verdict = verify(&access, &table, &ledger, PATIENCE).await.unwrap();
    assert!(verdict.is_good(), "{verdict:?}");
    assert_eq!(verdict.acked, ledger.summary().acked);
    assert!(!ledger.errors().is_empty(), "the crash was noticed");

    // A row that goes missing is named.
    let lost = *ledger.ids(Fate::Acked).first().unwrap();
    let (session, _) = access.writable(Pace::STEADY, 0).await.unwrap();
    let sql = format!("DELETE FROM {} WHERE id = {lost}", table.name());
    session.batch(&sql, PATIENCE).await.unwrap();
    verdict = verify(&access, &table, &ledger, PATIENCE).await.unwrap();
    assert_eq!(verdict.lost, [lost]);
    table.drop(&access, PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_commit_with_a_warning_is_unknown_and_a_refused_row_is_failed() {
    let server = Server::new("warning");
    let access = server.access();
    let table = Table::fresh("warning");
    table.create(&access, PATIENCE).await.unwrap();
    let (session, _) = access.writable_within(Pace::STEADY, 0, PATIENCE).await.unwrap();
    let name = table.name();
    let trigger = format!(
        "CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF new.id % 3 = 0 THEN RAISE WARNING 'not replicated'; END IF; \
         IF new.id % 3 = 1 THEN RAISE EXCEPTION 'no'; END IF; \
         RAISE NOTICE 'harmless'; RETURN NULL; END $$; \
         CREATE CONSTRAINT TRIGGER warn AFTER INSERT ON {name} DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW EXECUTE FUNCTION warn()"
    );
    session.batch(&trigger, PATIENCE).await.unwrap();
    let writer = Writer::start(access.clone(), table.clone(), Pace::STEADY);
    until("nine rows", || writer.ledger().attempts().len() >= 9).await;
    let ledger = writer.stop().await;
    for attempt in ledger.attempts() {
        // At the commit itself, after the statement was done: as a wait for standbys would.
        let expected = [Fate::Unknown, Fate::Failed, Fate::Acked][(attempt.id % 3) as usize];
        assert_eq!(attempt.fate, expected, "{attempt:?}");
    }
    let verdict = verify(&access, &table, &ledger, PATIENCE).await.unwrap();
    assert!(verdict.is_good() && verdict.unknown_and_there > 0, "{verdict:?}");
}

#[tokio::test]
async fn a_prober_finds_the_one_host_that_takes_writes_and_no_overlap() {
    let server = Server::new("probe");
    let access = server.access();
    let table = Table::fresh("probe");
    table.create(&access, PATIENCE).await.unwrap();
    let prober = Prober::start(access.clone(), table.clone(), Pace::PROBE);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let ledger = prober.stop().await;
    assert!(ledger.summary().acked > 0, "{:?}", ledger.errors());
    assert!(ledger.attempts().iter().all(|one| one.host == 1));
    assert!(ledger.errors().keys().any(|why| why.starts_with("host 0: connecting failed")));
    assert_eq!(ledger.overlaps(Duration::from_secs(1)), []);
    assert!(verify(&access, &table, &ledger, PATIENCE).await.unwrap().is_good());
}
