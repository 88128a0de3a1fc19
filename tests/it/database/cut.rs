//! Links are cut: packets are dropped on a switch, so that nobody is told, as a real host's end or a
//! real cable's is told to nobody. Needs root, `ip` and `nft`.

use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use regent_core::spec::Mode;
use regent_lab::databases::SERVICE;
use regent_lab::network::{CLIENT_NAME, Cut, Network, NetworkError};
use regent_lab::process::{Fault, Process};
use regent_lab::writer::{Access, Fate, Ledger, Locals, Table, Verdict, verify};
use regent_rpc::pb::v1;

use super::load::Load;
use super::rig::{Rig, TTL, bound};
use crate::cluster::{PATIENCE, until};

/// From a cut to the first row of another primary, on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// Whether this test can be run; says so where it cannot.
pub fn can_cut() -> bool {
    let refused =
        Network::plan().err().filter(|why| matches!(why, NetworkError::NotAllowed { .. }));
    if let Some(why) = &refused {
        eprintln!("NOT RUN: {why}");
    }
    refused.is_none()
}

pub fn network(rig: &Rig) -> &Network {
    rig.cluster.lab.network.as_ref().expect("made so")
}

/// Cuts one machine from all others but `kept`; when.
fn cut(rig: &Rig, who: &str, kept: &[&str]) -> Instant {
    let network = network(rig);
    let all = network.machines.iter().map(|one| one.name.as_str()).chain([CLIENT_NAME]);
    let from = all.filter(|name| *name != who && !kept.contains(name));
    let cut = Cut { who: who.to_owned(), from: from.map(str::to_owned).collect(), one_way: false };
    network.cut(&[cut]).unwrap();
    Instant::now()
}

/// Clients on the primary's own machine, which no cut reaches.
struct Side {
    locals: Locals,
    table: Table,
}

impl Side {
    async fn start(rig: &Rig, primary: usize) -> Self {
        let table = Table::fresh("side");
        table.create(&rig.access, PATIENCE).await.unwrap();
        let space = network(rig).space(&rig.instances()[primary].id);
        let own = Access { from: Some(space), ..rig.access.clone() };
        let locals = Locals::start(own, primary, table.clone()).await.unwrap();
        until("rows of the clients on the machine", async || locals.acked() > 10).await;
        Self { locals, table }
    }

    async fn end(self, rig: &Rig) -> (Ledger, Verdict) {
        let ledger = self.locals.stop().await;
        let verdict = verify(&rig.access, &self.table, &ledger, PATIENCE).await.unwrap();
        assert!(verdict.twice.is_empty() && verdict.refused_but_there.is_empty(), "{verdict:?}");
        (ledger, verdict)
    }
}

/// When the operation's grant was proposed, on this machine's one clock.
fn granted(operation: &v1::Operation) -> Instant {
    let grant = operation.history.iter().find(|one| one.phase == "promote").expect("granted");
    let at = UNIX_EPOCH + Duration::from_millis(grant.at_ms);
    Instant::now() - SystemTime::now().duration_since(at).unwrap()
}

fn last_ack(ledger: &Ledger) -> Instant {
    ledger.last_ack().expect("rows before the cut").done
}

/// How many writes the agent of a rewound instance says that only it had.
fn counted(rig: &Rig, at: usize) -> Option<u64> {
    let log = rig.log(at);
    let line = log.lines().rev().find(|line| line.contains("rewound"))?;
    let (_, rest) = line.split_once("lost")?;
    let digits = rest.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_packets_stop_is_replaced_and_loses_no_row() {
    if !can_cut() {
        return;
    }
    let mut rig = Rig::up_on_network("drop", Mode::Quorum).await;
    let old = rig.redundant().await;
    let load = Load::start(&rig).await;

    let fault = cut(&rig, rig.name(old).as_str(), &[]);
    rig.kill_host(old);
    let first = load.resumed(fault, Some(old)).await;
    assert!(first.done - fault < SOON, "{:?}", first.done - fault);
    load.progress(100).await;
    assert_eq!(rig.heal().await, first.host, "the primary that took over stays");
    let operation = rig.finished().await;
    assert_eq!(operation.verdict, "PrimaryHostSilent", "{operation:?}");
    assert_eq!(operation.out, "its replication quorum was revoked", "{operation:?}");
    load.all_kept(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_lease_mode_a_host_whose_packets_stop_is_replaced_after_the_lapse() {
    if !can_cut() {
        return;
    }
    let mut rig = Rig::up_on_network("drop-lease", Mode::Lease).await;
    let old = rig.redundant().await;
    let load = Load::start(&rig).await;

    let fault = cut(&rig, rig.name(old).as_str(), &[]);
    rig.kill_host(old);
    let first = load.resumed(fault, Some(old)).await;
    assert!(first.done - fault < TTL + SOON, "{:?}", first.done - fault);
    load.progress(100).await;
    assert_eq!(rig.heal().await, first.host);
    let operation = rig.finished().await;
    assert_eq!(operation.out, "its armed lease lapsed", "{operation:?}");
    load.kept_within(&rig, bound(&operation), fault + TTL).await;
}

/// The old primary lives, its clients are with it, and it may reach `kept`.
async fn cut_off(what: &str, keeps_one: bool) {
    if !can_cut() {
        return;
    }
    let mut rig = Rig::up_on_network(what, Mode::Quorum).await;
    let old = rig.redundant().await;
    let load = Load::start(&rig).await;
    let side = Side::start(&rig, old).await;

    let kept = rig.instances()[(old + 1) % 3].id.clone();
    let kept: &[&str] = if keeps_one { &[kept.as_str()] } else { &[] };
    let fault = cut(&rig, rig.name(old).as_str(), kept);
    let first = load.resumed(fault, Some(old)).await;
    assert!(first.done - fault < SOON, "{:?}", first.done - fault);
    load.progress(100).await;
    assert_eq!(rig.heal().await, first.host, "the primary that took over stays");
    assert!(rig.seen(old).await.is_standby());
    load.progress(100).await;

    let operation = rig.finished().await;
    assert_eq!(operation.verdict, "PrimaryHostSilent", "{operation:?}");
    assert_eq!(operation.out, "its replication quorum was revoked", "{operation:?}");
    let (ledger, verdict) = side.end(&rig).await;
    assert!(verdict.lost.is_empty(), "{verdict:?}");
    let (last, new) = (last_ack(&ledger), granted(&operation));
    assert!(last < new, "the old primary acknowledged {:?} after the grant", last - new);
    // What its clients wrote and were never told of is gone with the rewind, and counted.
    let lost = counted(&rig, old);
    assert!(lost.is_some_and(|lost| lost > 0), "{lost:?}");
    load.all_kept(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_is_cut_off_acknowledges_nothing_once_another_is_granted() {
    cut_off("cut", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_reaches_one_standby_alone_acknowledges_nothing_once_another_is_granted() {
    cut_off("cut-one", true).await;
}

/// As the distribution's unit starts it when the host comes up: the data directory, address and port,
/// and nothing of Regent.
fn as_a_unit_does(rig: &Rig, at: usize) {
    let (databases, instance) = (rig.cluster.lab.databases.as_ref().unwrap(), &rig.instances()[at]);
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &network(rig).space(&instance.id)]);
    if let Some(owner) = &databases.run_as {
        command.args(["runuser", "-u", owner, "--"]);
    }
    command.arg(databases.bin_dir.join("pg_ctl")).args(["start", "-W", "-D"]);
    command.arg(instance.data_dir()).arg("-l").arg(instance.dir.join("unit.log"));
    command.args(["-o", &format!("-h {} -p {}", instance.host, instance.port)]);
    let out = command.current_dir(&instance.dir).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// The promise of a standby is what the old primary's end rests on: it is on its disk, whatever starts
/// what lies there.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_loses_power_after_its_detach_and_is_started_by_a_unit_confirms_nothing() {
    if !can_cut() {
        return;
    }
    let mut rig = Rig::up_on_network("reboot", Mode::Quorum).await;
    let old = rig.redundant().await;
    let load = Load::start(&rig).await;
    let side = Side::start(&rig, old).await;
    let (reboots, waits) = ((old + 1) % 3, (old + 2) % 3);

    // The old primary reaches one standby, and nothing is granted before the other has said a word.
    let agent = rig.instances()[waits].process.clone().unwrap();
    assert!(agent.signal(Fault::Freeze).unwrap());
    let kept = rig.instances()[reboots].id.clone();
    let fault = cut(&rig, rig.name(old).as_str(), &[&kept]);
    let out = rig.cluster.verb(&["failover", SERVICE, "--yes", "--reason", "a test"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    until("the standby to detach", async || rig.log(reboots).contains("step=Detach")).await;
    rig.kill_host(reboots);
    rig.host_gone(reboots).await;
    let cut_short = Instant::now();

    as_a_unit_does(&rig, reboots);
    let receives = |process: &Process| {
        let title = std::fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        String::from_utf8_lossy(&title).contains("walreceiver")
    };
    // For as long as a receiver would need many times over.
    while cut_short.elapsed() < Duration::from_secs(3) {
        assert!(!rig.postgres(reboots).iter().any(receives), "it streams from the old primary");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!rig.postgres(reboots).is_empty(), "the unit's server runs, and takes no part");
    rig.kill_host(reboots);
    rig.host_gone(reboots).await;
    regent_lab::databases::start_agent(&mut rig.cluster.lab, reboots).unwrap();
    assert!(agent.signal(Fault::Thaw).unwrap());
    let first = load.resumed(fault, Some(old)).await;
    load.progress(100).await;

    let operation = rig.operations().await.pop().unwrap();
    assert_eq!(operation.out, "its replication quorum was revoked", "{operation:?}");
    assert_eq!(rig.heal().await, first.host);
    load.progress(100).await;
    let (ledger, verdict) = side.end(&rig).await;
    assert!(verdict.lost.is_empty(), "{verdict:?}");
    let last = last_ack(&ledger);
    assert!(last < cut_short, "a commit was confirmed by who had promised not to");
    load.all_kept(&rig).await;
}

/// One direction is enough to be no primary: who is not heard, and who hears nobody. And a link that
/// comes and goes ends with one primary, whoever that is.
#[tokio::test(flavor = "multi_thread")]
async fn one_way_cuts_and_a_flapping_link_leave_one_primary_and_lose_no_row() {
    if !can_cut() {
        return;
    }
    let mut rig = Rig::up_on_network("one-way", Mode::Quorum).await;
    let load = Load::start(&rig).await;
    let mut old = rig.redundant().await;
    for hears in [true, false] {
        let name = rig.name(old).to_string();
        let all = network(&rig).machines.iter().map(|one| one.name.as_str()).chain([CLIENT_NAME]);
        let others: Vec<String> = all.filter(|one| *one != name).map(str::to_owned).collect();
        let cuts: Vec<Cut> = match hears {
            true => vec![Cut { who: name, from: others, one_way: true }],
            false => {
                let deaf = |who: &String| Cut {
                    who: who.clone(),
                    from: vec![name.clone()],
                    one_way: true,
                };
                others.iter().map(deaf).collect()
            }
        };
        network(&rig).cut(&cuts).unwrap();
        let fault = Instant::now();
        let first = load.resumed(fault, Some(old)).await;
        assert!(first.done - fault < SOON, "{hears}: {:?}", first.done - fault);
        load.progress(100).await;
        assert_eq!(rig.heal().await, first.host);
        old = first.host;
    }

    let name = rig.name(old).to_string();
    for _ in 0..8 {
        cut(&rig, &name, &[]);
        tokio::time::sleep(Duration::from_millis(500)).await;
        network(&rig).mend().unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let back = Instant::now();
    load.resumed(back, None).await;
    rig.heal().await;
    load.progress(100).await;
    load.all_kept(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_lease_mode_a_primary_that_is_cut_off_stops_within_its_lease_and_loses_what_was_told() {
    if !can_cut() {
        return;
    }
    let mut rig = Rig::up_on_network("cut-lease", Mode::Lease).await;
    let old = rig.redundant().await;
    let load = Load::start(&rig).await;
    let side = Side::start(&rig, old).await;

    let fault = cut(&rig, rig.name(old).as_str(), &[]);
    let first = load.resumed(fault, Some(old)).await;
    assert!(first.done - fault < TTL + SOON, "{:?}", first.done - fault);
    load.progress(100).await;
    assert_eq!(rig.heal().await, first.host);
    load.progress(100).await;

    let operation = rig.finished().await;
    assert_eq!(operation.out, "its armed lease lapsed", "{operation:?}");
    let (ledger, verdict) = side.end(&rig).await;
    let (last, new) = (last_ack(&ledger), granted(&operation));
    assert!(last < fault + TTL, "a row {:?} after the cut", last - fault);
    assert!(last < new, "the old primary acknowledged {:?} after the grant", last - new);
    let acked = ledger.attempts().iter().filter(|one| one.fate == Fate::Acked);
    let lost: Vec<_> = acked.filter(|one| verdict.lost.contains(&one.id)).collect();
    let (begin, end) = lost.first().zip(lost.last()).expect("nobody else had those rows");
    let (span, bound) = (end.done - begin.done, bound(&operation));
    assert!(span <= bound, "{} rows of {span:?} are lost, not {bound:?}", lost.len());
    let counted = counted(&rig, old);
    assert!(counted.is_some_and(|counted| counted >= lost.len() as u64), "{counted:?}");
    load.kept_within(&rig, bound, fault + TTL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_nodes_cannot_reach_each_other_writes_go_on() {
    if !can_cut() {
        return;
    }
    let rig = Rig::up_on_network("split", Mode::Quorum).await;
    let primary = rig.redundant().await;
    let epoch = rig.role().await.epoch;
    let load = Load::start(&rig).await;

    let leader = rig.cluster.leader().await;
    let others: Vec<String> =
        (1..=3).filter(|id| *id != leader).map(|id| format!("node-{id}")).collect();
    let cut = Cut { who: format!("node-{leader}"), from: others, one_way: false };
    network(&rig).cut(&[cut]).unwrap();
    let fault = Instant::now();
    // The agents reach all three: the one that led tells them nothing any more, another one does.
    let mut next = leader;
    until("another leader", async || {
        let view = regent_lab::view_nodes(&rig.cluster.lab, &rig.cluster.connections).await;
        let follow = |id| view.nodes.iter().filter(|one| one.leader == id).count();
        next = (1..=3).find(|id| *id != leader && follow(*id) >= 2).unwrap_or(leader);
        next != leader
    })
    .await;
    // Longer than a lease: somebody has to renew it.
    let over = fault + 3 * TTL;
    tokio::time::sleep(over.saturating_duration_since(Instant::now())).await;
    network(&rig).mend().unwrap();
    rig.cluster.ready().await;
    load.progress(100).await;
    let back = Instant::now();

    assert_eq!(rig.redundant().await, primary);
    assert_eq!(rig.role().await.epoch, epoch, "nobody was promoted");
    let ledger = load.all_kept(&rig).await;
    let gap = ledger.longest_gap(fault, back).length();
    assert!(gap <= Duration::from_secs(1), "{gap:?}: {:?}", ledger.errors());
}

/// The primary's agent reports and its clients reach it, but no commit is confirmed any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_is_cut_off_from_its_standbys_alone_is_replaced() {
    if !can_cut() {
        return;
    }
    let mut rig = Rig::up_on_network("isolated", Mode::Quorum).await;
    let old = rig.redundant().await;
    let load = Load::start(&rig).await;
    let others = (0..3).filter(|at| *at != old).map(|at| rig.instances()[at].id.clone()).collect();
    let link = Cut { who: rig.instances()[old].id.clone(), from: others, one_way: false };
    network(&rig).cut(&[link]).unwrap();
    let fault = Instant::now();
    let first = load.resumed(fault, Some(old)).await;
    let gap = first.done.duration_since(fault);
    assert!(gap < SOON, "{gap:?}");
    let operation = rig.operations().await.pop().unwrap();
    assert_eq!(operation.verdict, "PrimaryIsolated", "{operation:?}");
    network(&rig).mend().unwrap();
    assert_eq!(rig.heal().await, first.host);
    load.progress(100).await;
    load.all_kept(&rig).await;
}

/// Which node an agent spoke to last, as the nodes' logs have it.
fn attached(rig: &Rig, at: usize) -> u64 {
    let field = format!("instance={}", rig.name(at));
    let mut newest = (String::new(), 0);
    for node in &rig.cluster.lab.nodes {
        let log = std::fs::read_to_string(&node.log).unwrap_or_default();
        let mine = |line: &&str| line.contains("an agent is attached") && line.contains(&field);
        // Lines begin with their time, which is in order as text.
        let last = log.lines().rfind(mine).unwrap_or_default();
        newest = newest.max((last.to_owned(), node.id));
    }
    newest.1
}

/// Cuts the node of a standby's agent from `who`, which leaves `stays` in reach; how long the agent
/// needs until it speaks to another node.
async fn leaves(rig: &Rig, stays: impl Fn(&str) -> bool) -> Duration {
    let primary = rig.redundant().await;
    let load = Load::start(rig).await;
    let standby = (primary + 1) % 3;
    let node = attached(rig, standby);
    let name = format!("node-{node}");
    let machines = network(rig).machines.iter().map(|one| one.name.as_str());
    let kept: Vec<&str> = machines.filter(|machine| stays(machine)).collect();
    let fault = cut(rig, &name, &kept);
    until("the agent at another node", async || attached(rig, standby) != node).await;
    let took = fault.elapsed();
    network(rig).mend().unwrap();
    rig.cluster.ready().await;
    assert_eq!(rig.redundant().await, primary, "nobody was replaced");
    load.all_kept(rig).await;
    took
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_leaves_a_node_whose_packets_stop_within_two_seconds() {
    if !can_cut() {
        return;
    }
    let rig = Rig::up_on_network("silent-node", Mode::Quorum).await;
    let took = leaves(&rig, |_| false).await;
    assert!(took < Duration::from_millis(2_500), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_leaves_a_node_that_the_other_nodes_cannot_be_reached_from() {
    if !can_cut() {
        return;
    }
    let rig = Rig::up_on_network("lone-node", Mode::Quorum).await;
    let took = leaves(&rig, |machine| machine.starts_with("pg")).await;
    assert!(took < SOON, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lab_that_was_killed_leaves_a_network_that_down_finds_and_removes() {
    if !can_cut() {
        return;
    }
    let rig = Rig::up_on_network("leftover", Mode::Lease).await;
    let network = network(&rig).clone();
    let spaces = || {
        let all = std::fs::read_dir("/run/netns").unwrap();
        let names = all.map(|one| one.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(&network.id)).count()
    };
    assert_eq!(spaces(), 7, "three nodes, three instances, one switch");
    for node in &rig.cluster.lab.nodes {
        rig.cluster.signal(node.id, Fault::Kill);
    }
    for at in 0..3 {
        rig.kill_host(at);
    }
    regent_lab::down(rig.dir()).await.unwrap();
    assert_eq!(spaces(), 0);
    let own = std::path::Path::new("/sys/class/net").join(&network.id);
    assert!(!own.exists(), "{} is still there", network.id);
    assert!(!rig.dir().exists());
}
