//! What lies on disk: closed, without secrets, and never half of something.

use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use regent_engine::{Discovery, Engine, StartAs, SyncNames};

use crate::rig::{LONG, Rig, epoch, give};

/// Runs a program of the server as its owner, as a person would.
pub fn by_hand(node: &crate::rig::Node, program: &str, args: &[&str]) -> std::process::Output {
    let programs = node.pg.programs();
    let full = programs.bin.join(program);
    let mut command = match programs.owner {
        None => Command::new(full),
        Some((uid, gid)) => {
            let mut command = Command::new("setpriv");
            command.args([format!("--reuid={uid}"), format!("--regid={gid}")]);
            command.arg("--init-groups").arg(full);
            command
        }
    };
    command.args(args).current_dir("/").output().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_by_hand_of_what_lies_on_disk_serves_nobody() {
    let rig = Rig::new();
    let mut primary = rig.primary("a").await;
    let dir = primary.options.data_dir.clone();
    let dir = dir.to_str().unwrap();
    for crashed in [false, true] {
        if crashed {
            primary.crash();
        } else {
            primary.stop();
        }
        assert!(!primary.options.data_dir.join("postmaster.opts").exists());
        let out = by_hand(&primary, "postgres", &["-D", dir]);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && said.contains("no socket"), "{said}");
        for verb in ["start", "restart"] {
            let out = by_hand(&primary, "pg_ctl", &["-D", dir, "-w", "-t", "5", verb]);
            assert!(!out.status.success(), "pg_ctl {verb}");
            assert!(TcpStream::connect(("127.0.0.1", primary.options.port)).is_err());
        }
        primary.start(&StartAs::Primary { names: SyncNames::Unprotected }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_password_is_in_a_process_list_a_setting_or_an_error() {
    let rig = Rig::new();
    let primary = rig.primary("a").await;
    let standby = rig.standby("b", &primary).await;
    let secrets =
        [&rig.secrets.agent, &rig.secrets.replication, &rig.secrets.rewind, &rig.password];
    let hidden = |text: &str, place: &str| {
        assert!(secrets.iter().all(|s| !text.contains(s.reveal())), "a password in {place}");
    };
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let path = entry.path().join("cmdline");
        hidden(&String::from_utf8_lossy(&fs::read(path).unwrap_or_default()), "a command line");
    }
    for file in ["regent.conf", "postgresql.auto.conf", "postgresql.conf"] {
        let text = fs::read_to_string(standby.options.data_dir.join(file)).unwrap();
        hidden(&text, file);
    }
    let rows = standby.agent(&rig).await.query("SELECT setting FROM pg_settings", &[]).await;
    for row in rows.unwrap() {
        hidden(row.get::<_, Option<&str>>(0).unwrap_or_default(), "a setting");
    }
    hidden(&standby.log(), "the log of the standby");
    hidden(&primary.log(), "the log of the primary");
    let refused = rig.node("c").pg.clone_from(&standby.source(), &|_| ()).await;
    assert!(refused.is_ok());
    hidden(&format!("{:?}", rig.secrets), "what is printed");

    // Closed, nobody but Regent gets in, and sessions that were there are ended.
    let app = primary.app(&rig).await;
    primary.pg.close_clients(&primary.handle(), LONG).await.unwrap();
    assert!(app.batch_execute("SELECT 1").await.is_err());
    assert_eq!(primary.pg.observe(LONG).await.unwrap().client_count, 0);
    primary.pg.open_clients(&[], &primary.handle(), LONG).await.unwrap();
    primary.app(&rig).await.batch_execute("SELECT 1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_rewind_is_quarantined_until_it_is_cloned_anew() {
    let rig = Rig::new();
    let mut old = rig.primary("a").await;
    let new = rig.standby("b", &old).await;
    new.pg.detach(&new.handle(), LONG).await.unwrap();
    new.pg.recruit(&new.handle(), LONG).await.unwrap();
    new.pg.set_sync_names(&SyncNames::Unprotected, &new.handle(), LONG).await.unwrap();
    new.pg.promote(2, LONG).await.unwrap();
    new.pg.write_epoch(epoch(2), LONG).await.unwrap();
    old.pg.canary(LONG).await.unwrap();
    old.crash();
    let history = new.history(2).await;
    let mark = old.options.state_dir.join("regent.incomplete");
    {
        let source = new.source();
        let rewind = old.pg.rewind(&source, 2, &history);
        let marked = async {
            let began = Instant::now();
            while !mark.exists() {
                assert!(began.elapsed() < LONG);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        // Dropping it kills the program.
        tokio::select! {
            ended = rewind => panic!("it was not interrupted: {ended:?}"),
            () = marked => {}
        }
    }
    let found = old.pg.check().await.unwrap();
    assert!(matches!(&found, Discovery::Quarantined { interrupted } if interrupted == "rewind"));
    assert!(old.pg.prepare_start(&StartAs::Standby { upstream: None }).await.is_err());
    assert!(old.pg.rewind(&new.source(), 2, &history).await.is_err());
    old.pg.clone_from(&new.source(), &|_| ()).await.unwrap();
    assert!(matches!(old.pg.check().await.unwrap(), Discovery::Cluster(_)));
    assert!(rig.base.join("a.old-1").is_dir());
    old.start(&StartAs::Standby { upstream: Some(new.upstream_of("a")) }).await;
    new.streams_to("a").await;
}

#[tokio::test]
async fn a_directory_that_is_not_ours_is_named_as_what_it_is() {
    let rig = Rig::new();
    let node = rig.node("a");
    assert_eq!(node.pg.check().await.unwrap(), Discovery::Empty);
    fs::create_dir(&node.options.data_dir).unwrap();
    give(&node.options.data_dir);
    fs::write(node.options.data_dir.join("letter.txt"), "dear").unwrap();
    assert!(matches!(node.pg.check().await.unwrap(), Discovery::Unsafe { .. }));
    assert!(node.pg.init(&rig.secrets).await.is_err());
    fs::remove_file(node.options.data_dir.join("letter.txt")).unwrap();
    node.pg.init(&rig.secrets).await.unwrap();
    let Discovery::Cluster(found) = node.pg.check().await.unwrap() else { panic!("no cluster") };
    assert!(found.can_rewind && found.generation.is_some() && !found.standby_signal);
    let mut other = node.options.clone();
    other.system_identifier = Some(found.system_identifier + 1);
    let other = regent_engine::postgres::Postgres::new(other).unwrap();
    assert!(matches!(other.check().await.unwrap(), Discovery::Foreign { .. }));
}

/// The processes whose command line has this text.
fn processes_with(text: &str) -> Vec<String> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(text))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_given_up_operation_still_writes_lies_below_what_comes_next() {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    let rig = Rig::new();
    let (node, source) = (rig.node("a"), rig.node("b"));
    node.pg.init(&rig.secrets).await.unwrap();
    let managed = node.options.data_dir.join("regent.conf");
    let text = fs::read_to_string(&managed).unwrap();
    let (slow, aside) = (rig.base.join("slow"), rig.base.join("aside"));
    // The file is a pipe for a moment: who reads it hangs, as on a disk that does.
    nix::unistd::mkfifo(&slow, nix::sys::stat::Mode::S_IRWXU).unwrap();
    give(&slow);
    fs::rename(&managed, &aside).unwrap();
    fs::rename(&slow, &managed).unwrap();
    let (given_up, reader) = (node.pg.erase_upstream(), managed.clone());
    let opened = tokio::task::spawn_blocking(move || {
        let mut options = fs::OpenOptions::new();
        options.write(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits());
        let began = Instant::now();
        loop {
            match options.open(&reader) {
                Ok(pipe) => return pipe,
                Err(error) => assert!(began.elapsed() < LONG, "nobody reads: {error}"),
            }
        }
    });
    let mut pipe = tokio::select! {
        done = given_up => panic!("it did not hang: {done:?}"),
        pipe = opened => pipe.unwrap(),
    };
    // Dropped above: nobody waits for it any more. What comes next does.
    fs::rename(&aside, &managed).unwrap();
    let start = StartAs::Standby { upstream: Some(source.upstream_of("a")) };
    let next = node.pg.prepare_start(&start);
    tokio::pin!(next);
    let early = tokio::time::timeout(Duration::from_millis(300), &mut next).await;
    assert!(early.is_err(), "two of them write at once");
    pipe.write_all(text.as_bytes()).unwrap();
    drop(pipe);
    next.await.unwrap();
    let left = fs::read_to_string(&managed).unwrap();
    assert!(left.contains(&source.options.port.to_string()), "the newer one's work: {left}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_given_up_has_ended_before_anything_else_begins() {
    let rig = Rig::new();
    let primary = rig.primary("a").await;
    let node = rig.node("b");
    let stop = |signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(primary.pid()), signal);
    // It connects, and nobody answers.
    stop(nix::sys::signal::Signal::SIGSTOP).unwrap();
    let new = node.options.data_dir.with_extension("regent-copy");
    let source = primary.source();
    let began = Instant::now();
    let copies = async {
        while processes_with(new.to_str().unwrap()).is_empty() {
            assert!(began.elapsed() < LONG, "the copy does not begin");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::select! {
        done = node.pg.clone_from(&source, &|_| ()) => panic!("it did not hang: {done:?}"),
        () = copies => {}
    }
    node.pg.settled().await;
    assert_eq!(processes_with(new.to_str().unwrap()), Vec::<String>::new());
    stop(nix::sys::signal::Signal::SIGCONT).unwrap();
}
