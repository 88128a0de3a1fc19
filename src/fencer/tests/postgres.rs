//! A real PostgreSQL under the fencer: the thing this crate exists for.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::unistd::{User, geteuid};
use regent_fencer::Fencer;
use regent_fencer::receipt::{ExitStatus, Proof, Reason};
use regent_fencer::wire::{Bound, Notice, Phase, StartCommand, StopMode, Target};

use crate::rig::{LONG, Rig, arm, in_ms, late_ms, proof_of, signal, wait};

const BIN: &str = "/usr/lib/postgresql/15/bin";

struct Cluster {
    rig: Rig,
    data: PathBuf,
}

/// `program` as the user that may run PostgreSQL.
fn as_owner(program: &str) -> Command {
    let mut command;
    if geteuid().is_root() {
        command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", program]);
    } else {
        command = Command::new(program);
    }
    command.stdin(Stdio::null()).current_dir("/");
    command
}

impl Cluster {
    fn new(name: &str) -> Option<Self> {
        if !Path::new(BIN).exists() {
            eprintln!("SKIPPED: no PostgreSQL 15 in {BIN}");
            return None;
        }
        let mut rig = Rig::new(name);
        let data = rig.dir.join("work/data");
        if geteuid().is_root() {
            let user = User::from_name("postgres").unwrap().unwrap();
            let (uid, gid) = (Some(user.uid.as_raw()), Some(user.gid.as_raw()));
            chown(rig.dir.join("work"), uid, gid).unwrap();
            rig.options.user = Some("postgres".into());
        }
        let made = as_owner(&format!("{BIN}/initdb"))
            .args(["--auth=trust", "--no-sync", "--username=postgres", "-D"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        Some(Self { rig, data })
    }

    fn args(&self) -> Vec<String> {
        let data = self.data.display();
        let socket = self.rig.dir.join("work").display().to_string();
        let set = |text: &str| ["-c".to_owned(), text.to_owned()];
        let mut args = vec!["-D".to_owned(), data.to_string(), "-k".to_owned(), socket];
        args.extend(set("listen_addresses="));
        args.extend(set("restart_after_crash=off"));
        args.extend(set("shared_buffers=16MB"));
        args
    }

    fn command(&self, bound: Bound, acknowledges: u64) -> StartCommand {
        StartCommand {
            program: PathBuf::from(format!("{BIN}/postgres")).into(),
            args: self.args().iter().map(|arg| arg.as_str().into()).collect(),
            env: vec![("PATH".into(), "/usr/bin:/bin".into()), ("LC_ALL".into(), "C".into())],
            dir: self.data.clone().into(),
            log: self.rig.dir.join("work/log").into(),
            bound,
            acknowledges,
        }
    }

    fn psql(&self, sql: &str) -> Command {
        let mut psql = Command::new(format!("{BIN}/psql"));
        psql.args(["-XAtq", "-U", "postgres", "-h"]).arg(self.rig.dir.join("work"));
        psql.args(["-c", sql, "postgres"]).current_dir("/").stdin(Stdio::null());
        psql
    }

    fn ask(&self, sql: &str) -> Output {
        self.psql(sql).output().unwrap()
    }

    fn wait_ready(&self) {
        wait(|| self.ask("select 1").status.success());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.rig.dir.join("work/log")).unwrap_or_default()
    }

    /// Sessions that are in the middle of work when the end comes.
    fn busy(&self) -> Vec<std::process::Child> {
        let sql = "create temp table t as select g from generate_series(1, 100000000) g";
        let mut sessions = Vec::new();
        for sql in [sql, "select pg_sleep(1000)", sql] {
            let session = self.psql(sql).stderr(Stdio::null()).spawn().unwrap();
            sessions.push(session);
        }
        let count = "select count(*) from pg_stat_activity where state = 'active'";
        wait(|| self.ask(count).stdout.starts_with(b"4"));
        sessions
    }
}

fn end(sessions: Vec<std::process::Child>) {
    for mut session in sessions {
        let _ = session.kill();
        let _ = session.wait();
    }
}

fn check_ended(cluster: &Cluster, fencer: &mut Fencer, sequence: u64) {
    assert_eq!(cluster.rig.left(), Vec::<i32>::new());
    wait(|| fencer.status().unwrap().phase == Phase::Idle);
    assert_eq!(fencer.status().unwrap().receipt.unwrap().sequence, sequence);
}

#[test]
fn postgres_ends_at_the_deadline_busy_idle_and_frozen_alike() {
    let Some(cluster) = Cluster::new("pg-deadline") else { return };
    let mut fencer = cluster.rig.launch();
    let far = in_ms(600_000);
    fencer.start(&cluster.command(Bound::Until(arm(5, 1, far)), 0)).unwrap();
    cluster.wait_ready();
    let sessions = cluster.busy();
    let processes = cluster.rig.left().len();
    // Inside an epoch a deadline only rises, so a nearer one comes with a new epoch.
    let until = in_ms(300);
    fencer.arm(&arm(6, 1, until)).unwrap();
    let receipt = cluster.rig.wait_receipt(1);
    let late = late_ms(&receipt, until);
    eprintln!("{processes} busy processes of PostgreSQL gone {late:.1} ms after the deadline");
    assert!(late < 2_000.0, "{late} ms");
    assert_eq!(receipt.reason, Reason::Deadline);
    check_ended(&cluster, &mut fencer, 1);
    end(sessions);

    fencer.start(&cluster.command(Bound::Until(arm(7, 1, far)), 1)).unwrap();
    cluster.wait_ready();
    let sessions = cluster.busy();
    let frozen = cluster.rig.left();
    let until = in_ms(300);
    for pid in &frozen {
        signal("STOP", *pid);
    }
    fencer.arm(&arm(8, 1, until)).unwrap();
    let receipt = cluster.rig.wait_receipt(2);
    let late = late_ms(&receipt, until);
    eprintln!(
        "{} frozen processes of PostgreSQL gone {late:.1} ms after the deadline",
        frozen.len()
    );
    check_ended(&cluster, &mut fencer, 2);
    end(sessions);
}

#[test]
fn a_second_start_on_the_host_is_refused_while_one_runs_inside() {
    let Some(cluster) = Cluster::new("pg-second") else { return };
    let mut fencer = cluster.rig.launch();
    fencer.start(&cluster.command(Bound::Unbound, 0)).unwrap();
    cluster.wait_ready();
    let mut second = as_owner("timeout");
    second.args(["10", &format!("{BIN}/postgres")]).args(cluster.args()).arg("-k/nowhere");
    let second = second.env("LC_ALL", "C").output().unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && second.status.code() != Some(124), "{said}");
    eprintln!("the second start said: {}", said.lines().next().unwrap_or_default());
    assert!(said.contains("lock file") || said.contains("pre-existing shared memory"), "{said}");
    assert!(cluster.ask("select 1").status.success());
}

#[test]
fn postgres_stops_and_reloads_and_its_end_is_told() {
    let Some(cluster) = Cluster::new("pg-stop") else { return };
    let mut fencer = cluster.rig.launch();
    let status = fencer.start(&cluster.command(Bound::Unbound, 0)).unwrap();
    cluster.wait_ready();
    // What PostgreSQL writes is its pid inside.
    let pid_file = std::fs::read_to_string(cluster.data.join("postmaster.pid")).unwrap();
    assert_eq!(pid_file.lines().next(), Some(&*status.running.unwrap().pid.to_string()));
    fencer.signal(Target::Postmaster, Notice::Reload).unwrap();
    wait(|| cluster.log().contains("received SIGHUP"));
    let mut session = cluster.psql("select pg_sleep(1000)").spawn().unwrap();
    let sleeper = "select pid from pg_stat_activity where query like '%pg_sleep(1000)' \
                   and pid <> pg_backend_pid()";
    wait(|| !cluster.ask(sleeper).stdout.is_empty());
    let pid = String::from_utf8(cluster.ask(sleeper).stdout).unwrap().trim().parse().unwrap();
    fencer.signal(Target::Inside(pid), Notice::Terminate).unwrap();
    assert!(!session.wait().unwrap().success());

    let receipt = fencer.stop(StopMode::Fast, LONG).unwrap();
    assert_eq!(receipt.exit, Some(ExitStatus::Code(0)), "{}", cluster.log());
    check_ended(&cluster, &mut fencer, 1);

    // The postmaster alone is killed: busy backends would go on and acknowledge.
    let status = fencer.start(&cluster.command(Bound::Unbound, 1)).unwrap();
    cluster.wait_ready();
    let sessions = cluster.busy();
    let host = fencer.host_pid(status.running.unwrap().pid).unwrap().unwrap();
    signal("KILL", host);
    let receipt = cluster.rig.wait_receipt(2);
    assert_eq!(
        (receipt.reason, receipt.exit),
        (Reason::PostmasterExit, Some(ExitStatus::Signal(9)))
    );
    check_ended(&cluster, &mut fencer, 2);
    end(sessions);
}

#[test]
fn postgres_ends_with_a_frozen_or_killed_fencer() {
    let Some(cluster) = Cluster::new("pg-frozen") else { return };
    let mut fencer = cluster.rig.launch();
    let status = fencer.start(&cluster.command(Bound::Unbound, 0)).unwrap();
    cluster.wait_ready();
    let sessions = cluster.busy();
    signal("STOP", fencer.pid());
    let began = std::time::Instant::now();
    let receipt = fencer.kill_namespace(LONG).unwrap();
    eprintln!("busy PostgreSQL with a frozen fencer gone in {:?}", began.elapsed());
    assert_eq!(cluster.rig.left(), Vec::<i32>::new());
    assert_eq!(receipt.proof, proof_of(&status));
    end(sessions);

    let mut fencer = cluster.rig.launch();
    fencer.start(&cluster.command(Bound::Unbound, 1)).unwrap();
    cluster.wait_ready();
    if receipt.proof == Proof::Weak {
        eprintln!("SKIPPED: without a namespace a killed fencer leaves busy backends");
        return;
    }
    let sessions = cluster.busy();
    signal("KILL", fencer.pid());
    regent_fencer::client::await_end(&cluster.rig.options.state_dir, LONG).unwrap();
    assert_eq!(cluster.rig.left(), Vec::<i32>::new());
    end(sessions);
}
