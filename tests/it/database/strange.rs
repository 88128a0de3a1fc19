//! Agents that must be refused: a mistyped file, an instance nobody declared, another's
//! certificate, data of another cluster. The primary and its rows take no notice.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use regent_core::agent::Notebook;
use regent_core::authz::Role;
use regent_core::spec::Mode;
use regent_lab::databases::SERVICE;

use super::load::Load;
use super::rig::Rig;
use crate::cluster::{REGENT, until};

/// An agent started beside the lab's; killed when dropped, and what it started with it.
struct Stranger {
    process: Child,
    log: PathBuf,
}

impl Stranger {
    fn start(config: &Path) -> Self {
        let log = config.with_extension("log");
        let out = std::fs::File::create(&log).unwrap();
        let process = Command::new(REGENT)
            .args(["agent", "--config", config.to_str().unwrap()])
            .env_remove("REGENT_CONFIG")
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        Self { process, log }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    async fn says(&self, what: &str) {
        until(&format!("{what:?} in the agent's log"), async || self.said().contains(what)).await;
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("--- the stranger ---\n{}", self.said());
        }
    }
}

/// The configuration of a standby whose own agent is dead, changed.
fn changed(rig: &Rig, at: usize, name: &str, change: impl Fn(&str) -> String) -> PathBuf {
    let instance = &rig.instances()[at];
    let text = std::fs::read_to_string(instance.config()).unwrap();
    let changed = change(&text);
    assert_ne!(changed, text, "nothing was changed");
    let path = instance.dir.join(format!("{name}.toml"));
    std::fs::write(&path, changed).unwrap();
    path
}

fn run(config: &Path) -> Output {
    Command::new(REGENT).args(["agent", "--config", config.to_str().unwrap()]).output().unwrap()
}

/// Nothing of the standby runs; the others go on.
async fn without_a_standby(what: &str) -> (Rig, Load, usize, usize) {
    let rig = Rig::up(what, Mode::Quorum).await;
    let primary = rig.redundant().await;
    let load = Load::start(&rig).await;
    let standby = (primary + 1) % 3;
    rig.kill_host(standby);
    rig.host_gone(standby).await;
    load.progress(100).await;
    (rig, load, primary, standby)
}

/// As before: the same primary, and with the right agent all is well.
async fn untouched(mut rig: Rig, load: Load, primary: usize) {
    load.progress(100).await;
    assert_eq!(rig.heal().await, primary);
    load.progress(100).await;
    load.all_kept(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_names_what_is_wrong_and_who_is_nobody_is_told_so() {
    let (mut rig, load, primary, standby) = without_a_standby("strange-agent").await;
    let me = rig.instances()[standby].id.clone();
    let other = rig.instances()[(standby + 1) % 3].id.clone();

    let typo = changed(&rig, standby, "typo", |text| text.replace("state_dir", "state_dri"));
    let out = run(&typo);
    let why = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(2), "{why}");
    assert!(why.contains("typo.toml") && why.contains("state_dri"), "{why}");

    let watchdog =
        |device: &Path| format!("\n[watchdog]\ndevice = {device:?}\ntimeout_ms = 1000\n");
    let fifo = rig.instances()[standby].dir.join("watchdog");
    let early = changed(&rig, standby, "early", |text| text.to_owned() + &watchdog(&fifo));
    let out = run(&early);
    let why = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(2), "{why}");
    assert!(why.contains("watchdog.device"), "{why}");

    // The files of another instance: what it is, its certificate says.
    let of = |id: &str| format!("agent-{SERVICE}+{id}.");
    let stolen = changed(&rig, standby, "stolen", |text| text.replace(&of(&me), &of(&other)));
    let stranger = Stranger::start(&stolen);
    stranger.says(&format!("{SERVICE}/{other}")).await;
    drop(stranger);
    assert!(rig.postgres(standby).is_empty(), "PostgreSQL of a stranger runs");

    // A good certificate for an instance that nobody declared.
    let pki = rig.cluster.lab.pki_dir();
    let request = regent_rpc::pki::Request::new(Role::Agent, format!("{SERVICE}/pg9"));
    regent_rpc::pki::issue(&pki, &request).unwrap();
    let undeclared = changed(&rig, standby, "undeclared", |text| {
        let mine = format!("instance = \"{me}\"");
        text.replace(&of(&me), &of("pg9")).replace(&mine, "instance = \"pg9\"")
    });
    let stranger = Stranger::start(&undeclared);
    stranger.says(&format!("instance \\\"{SERVICE}/pg9\\\" does not exist")).await;
    drop(stranger);
    assert!(rig.postgres(standby).is_empty(), "PostgreSQL of a stranger runs");

    // What was named too early is there now: it is fed, and said to be.
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    std::fs::copy(&early, rig.instances()[standby].config()).unwrap();
    regent_lab::databases::start_agent(&mut rig.cluster.lab, standby).unwrap();
    let fed = std::thread::spawn(move || {
        std::io::Read::read(&mut std::fs::File::open(fifo)?, &mut [0; 8])
    });
    until("the watchdog to be fed", async || fed.is_finished()).await;
    assert!(fed.join().unwrap().unwrap() > 0);
    until("the word of it", async || {
        let out = rig.cluster.verb(&["explain", SERVICE]);
        String::from_utf8_lossy(&out.stdout).contains("yes, watchdog")
    })
    .await;
    untouched(rig, load, primary).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_of_another_cluster_neither_leads_nor_is_followed() {
    let (mut rig, load, primary, standby) = without_a_standby("strange-data").await;
    let data = rig.instances()[standby].data_dir();
    let kept = data.with_file_name("kept");
    std::fs::rename(&data, &kept).unwrap();
    let databases = rig.cluster.lab.databases.clone().unwrap();
    let initdb = databases.bin_dir.join("initdb");
    let mut command = match &databases.run_as {
        Some(owner) => {
            let mut command = Command::new("runuser");
            command.args(["-u", owner, "--"]).arg(initdb);
            command
        }
        None => Command::new(initdb),
    };
    let out = command.arg("-D").arg(&data).current_dir("/").output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));

    let foreign = system(&rig, &data);
    assert_ne!(foreign, system(&rig, &kept));

    regent_lab::databases::start_agent(&mut rig.cluster.lab, standby).unwrap();
    let number = |text: &str| text.rsplit(' ').next().unwrap().to_owned();
    let told = format!("is of database system {}", number(&foreign));
    until("the agent to be told", async || rig.log(standby).contains(&told)).await;
    let ours = number(&system(&rig, &kept));
    assert!(rig.log(standby).contains(&format!("the service's is {ours}")));
    // Not once while the application writes on.
    for _ in 0..20 {
        let seen = rig.seen(standby).await;
        assert!(!seen.healthy && !seen.open, "{seen:?}");
        assert!(rig.postgres(standby).is_empty(), "it was started");
        load.progress(20).await;
    }
    assert_eq!(rig.log(standby).matches(&told).count(), 1, "it is said once, not at each try");
    assert_eq!(system(&rig, &data), foreign, "what a person put there is not wiped");

    rig.kill_host(standby);
    rig.host_gone(standby).await;
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&kept, &data).unwrap();
    untouched(rig, load, primary).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_that_claims_the_primary_is_told_so_and_the_first_one_goes_on() {
    let rig = Rig::up("strange-twin", Mode::Quorum).await;
    let primary = rig.redundant().await;
    let load = Load::start(&rig).await;
    let epoch = rig.role().await.epoch;
    let twin = changed(&rig, primary, "twin", |text| {
        let instance = &rig.instances()[primary];
        let dir = |path: &Path| format!("{:?}", path.to_str().unwrap());
        text.replace(&dir(&instance.state_dir()), &dir(&instance.dir.join("twin-agent")))
            .replace(&dir(&instance.data_dir()), &dir(&instance.dir.join("twin-data")))
            .replace(&format!("{:?}", instance.http), "\"127.0.0.1:0\"")
    });
    let stranger = Stranger::start(&twin);
    stranger.says("another agent speaks for it").await;
    load.progress(400).await;
    assert_eq!(stranger.said().matches("another agent speaks for it").count(), 1);
    drop(stranger);
    assert_eq!(rig.role().await.epoch, epoch, "somebody was promoted");
    untouched(rig, load, primary).await;
}

/// S4: what the agent has seen is on its disk, and what lies below is not obeyed, whoever says it.
#[tokio::test(flavor = "multi_thread")]
async fn a_directive_below_the_highest_seen_is_refused_and_a_higher_one_obeyed() {
    let (mut rig, load, primary, standby) = without_a_standby("strange-old").await;
    // As if the next directive had come, and the coordinators had forgotten it.
    let mut notes = regent_agent::Notes::open(&rig.instances()[standby].state_dir()).unwrap();
    let told = |book: &mut Notebook| book.directive.as_mut().expect("it was told").revision.0 += 5;
    notes.change(told).unwrap();

    regent_lab::databases::start_agent(&mut rig.cluster.lab, standby).unwrap();
    let said = "refused a directive below the highest seen";
    until("the agent to refuse it", async || rig.log(standby).contains(said)).await;
    // Nothing of it starts for that; and the entries that are written meanwhile are above it.
    load.progress(400).await;
    assert!(rig.postgres(standby).is_empty(), "it obeyed");
    let fault = std::time::Instant::now();
    rig.kill_host(primary);
    let first = load.resumed(fault, Some(primary)).await;
    assert_eq!(rig.heal().await, first.host);
    load.all_kept(&rig).await;
}

/// The cluster that a data directory belongs to.
fn system(rig: &Rig, data: &Path) -> String {
    let bin = &rig.cluster.lab.databases.as_ref().unwrap().bin_dir;
    let out = Command::new(bin.join("pg_controldata")).env("LC_ALL", "C").arg(data).output();
    let said = String::from_utf8(out.unwrap().stdout).unwrap();
    let line = said.lines().find(|line| line.starts_with("Database system identifier"));
    line.expect("it names its cluster").to_owned()
}
