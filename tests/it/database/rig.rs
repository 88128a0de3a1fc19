//! A lab with databases for one test; ended with everything of it when dropped, also on a panic.

use std::path::Path;
use std::time::{Duration, Instant};

use regent_core::command::Expect;
use regent_core::id::{InstanceName, ServiceName};
use regent_core::spec::{Mode, Policy, ServiceSpec};
use regent_lab::databases::{
    DatabasesView, Front, Ground, InstanceView, LabInstance, REDUNDANT, SERVICE, Wanted, lay_out,
    owned, view, wait_redundant,
};
use regent_lab::process::{Fault, Process};
use regent_lab::writer::Access;
use regent_lab::{Connections, Lab, Plan, Profile};
use regent_rpc::client::Client;
use regent_rpc::convert::common::Freshness;
use regent_rpc::convert::topology::spec_in;
use regent_rpc::pb::v1;
use tokio::sync::{Mutex, MutexGuard};

use super::pulse::Pulse;
use crate::cluster::{Cluster, PATIENCE, REGENT, Scratch, until};

/// The primary's lease in all these labs: what bounds every wait for a lapse.
pub const TTL: Duration = Duration::from_secs(3);

/// Three PostgreSQL servers, three agents, three nodes: more than one such lab at a time, and two
/// cores are busy enough that a deadline of the protocol passes by itself.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// The turn of a test that makes its lab by itself.
pub async fn turn() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().await
}

/// The lab. Its parts are dropped in this order: nodes and files, then the turn of the next test.
pub struct Rig {
    pub cluster: Cluster,
    pub access: Access,
    operator: Client,
    pulse: Pulse,
    _turn: MutexGuard<'static, ()>,
}

fn plan(scratch: &Scratch, network: bool) -> Plan {
    Plan {
        dir: scratch.path().join("lab"),
        binary: REGENT.into(),
        nodes: 3,
        profile: Profile::Lan,
        network,
    }
}

/// What an operation in lease mode says that it loses at most.
pub fn bound(operation: &v1::Operation) -> Duration {
    Duration::from_millis(operation.loss.unwrap().ms.expect("it names a bound"))
}

impl Rig {
    /// Three nodes, three instances: one open primary from which both others stream.
    pub async fn up(what: &str, mode: Mode) -> Self {
        Self::make(what, mode, false, Front::Off).await
    }

    /// The same, each on a machine of its own whose links can be cut.
    pub async fn up_on_network(what: &str, mode: Mode) -> Self {
        Self::make(what, mode, true, Front::Off).await
    }

    /// The same on one machine, with HAProxy in front.
    pub async fn up_behind_haproxy(what: &str, mode: Mode) -> Self {
        Self::make(what, mode, false, Front::Require).await
    }

    async fn make(what: &str, mode: Mode, network: bool, haproxy: Front) -> Self {
        let turn = ONE_AT_A_TIME.lock().await;
        let scratch = Scratch::new(what);
        let plan = plan(&scratch, network);
        let wanted = Wanted { instances: 3, mode, ttl: TTL, haproxy, envoy: None, keep: false };
        let (lab, _) = regent_lab::up_with(&plan, &wanted, &|_| {})
            .await
            .unwrap_or_else(|error| panic!("lab up: {error}"));
        Self::of(lab, scratch, turn)
    }

    /// Three nodes and a declared service of three instances, of which none has data, nor an agent
    /// that runs: [`Rig::begin`] starts those.
    pub async fn laid_out(what: &str, mode: Mode) -> (Self, Ground) {
        let turn = ONE_AT_A_TIME.lock().await;
        let scratch = Scratch::new(what);
        let wanted =
            Wanted { instances: 3, mode, ttl: TTL, haproxy: Front::Off, envoy: None, keep: false };
        let ground = Ground::survey(&wanted).unwrap();
        let (mut lab, _) = regent_lab::up(&plan(&scratch, false)).await.unwrap();
        let laid = lay_out(&mut lab, &wanted, &ground, &|_| {}).await;
        laid.unwrap_or_else(|error| panic!("lay out: {error}"));
        (Self::of(lab, scratch, turn), ground)
    }

    fn of(lab: Lab, scratch: Scratch, turn: MutexGuard<'static, ()>) -> Self {
        let connections = Connections::new(&lab, &lab.certificates().admin).unwrap();
        let access = lab.databases.as_ref().unwrap().access();
        let cluster = Cluster { lab, connections, scratch };
        let operator = cluster.client("operator");
        let pulse = Pulse::of(cluster.scratch.path());
        Self { cluster, access, operator, pulse, _turn: turn }
    }

    pub fn service() -> ServiceName {
        ServiceName::parse(SERVICE).unwrap()
    }

    pub fn dir(&self) -> &Path {
        &self.cluster.lab.dir
    }

    pub fn instances(&self) -> &[LabInstance] {
        &self.cluster.lab.databases.as_ref().unwrap().instances
    }

    pub async fn view(&self) -> DatabasesView {
        view(&self.cluster.lab).await.unwrap()
    }

    pub async fn seen(&self, at: usize) -> InstanceView {
        self.view().await.instances.swap_remove(at)
    }

    /// Waits until one is primary and the others stream from it; which one that is.
    pub async fn redundant(&self) -> usize {
        let seen = wait_redundant(&self.cluster.lab, REDUNDANT, &|_| {})
            .await
            .unwrap_or_else(|error| panic!("not redundant: {error}"));
        self.at(&seen.primary().unwrap().id)
    }

    /// Starts what is dead, thaws what is frozen, and waits as [`Rig::redundant`] does.
    pub async fn heal(&mut self) -> usize {
        let healed = regent_lab::heal(self.dir()).await;
        let (lab, seen, _) = healed.unwrap_or_else(|error| panic!("heal: {error}"));
        self.cluster.lab = lab;
        self.at(&seen.databases.unwrap().primary().unwrap().id)
    }

    /// The place of an instance in every list.
    pub fn at(&self, id: &str) -> usize {
        self.instances().iter().position(|one| one.id == id).unwrap()
    }

    pub fn name(&self, at: usize) -> InstanceName {
        InstanceName::parse(&self.instances()[at].id).unwrap()
    }

    /// Every process of an instance that lives: agent, fencer, PostgreSQL.
    pub fn processes(&self, at: usize) -> Vec<Process> {
        owned::by(&self.cluster.lab, &self.instances()[at])
    }

    /// PostgreSQL's processes of an instance.
    pub fn postgres(&self, at: usize) -> Vec<Process> {
        let is_postgres = |process: &Process| {
            let program = std::fs::read_link(format!("/proc/{}/exe", process.pid));
            program.is_ok_and(|program| program.ends_with("postgres"))
        };
        self.processes(at).into_iter().filter(is_postgres).collect()
    }

    /// The first process of PostgreSQL, which its agent knows.
    pub async fn postmaster(&self, at: usize) -> Process {
        let pid = self.seen(at).await.postmaster_pid.expect("the agent has told its pid");
        owned::if_of(&self.cluster.lab, &self.instances()[at], pid).expect("it lives")
    }

    /// SIGKILL to the first process of PostgreSQL.
    pub async fn kill_postmaster(&self, at: usize) {
        assert!(self.postmaster(at).await.signal(Fault::Kill).unwrap());
    }

    /// SIGKILL to all that is of an instance, as when its host loses power.
    pub fn kill_host(&self, at: usize) {
        let signalled = regent_lab::databases::signal_host(
            &self.cluster.lab,
            &self.instances()[at],
            Fault::Kill,
        );
        assert!(signalled.unwrap() > 0, "no process was there");
    }

    /// Waits until no process of an instance is left.
    pub async fn host_gone(&self, at: usize) {
        until("the end of all its processes", async || self.processes(at).is_empty()).await;
    }

    /// Everything that was decided about the service, oldest first.
    pub async fn operations(&self) -> Vec<v1::Operation> {
        let service = Self::service();
        let all = self.operator.list_operations(Some(&service), Freshness::Linearizable).await;
        let mut all = all.unwrap().operations;
        all.sort_by_key(|one| one.id);
        all
    }

    /// The newest decision, once it is over.
    pub async fn finished(&self) -> v1::Operation {
        let mut newest = None;
        until("the end of the role change", async || {
            newest = self.operations().await.pop().filter(|one| one.over);
            newest.is_some()
        })
        .await;
        newest.unwrap()
    }

    /// What the coordinators hold about the service.
    pub async fn role(&self) -> v1::Role {
        let service = Self::service();
        let roles = self.operator.list_roles(Some(&service), Freshness::Linearizable).await;
        roles.unwrap().roles.swap_remove(0)
    }

    /// Declares the service with another policy, and waits for nothing.
    pub async fn declare(&self, change: impl FnOnce(&mut Policy)) {
        self.declare_all(|spec| change(&mut spec.policy)).await;
    }

    /// Declares the service otherwise, and waits for nothing.
    pub async fn declare_all(&self, change: impl FnOnce(&mut ServiceSpec)) {
        let read = Freshness::Linearizable;
        let shown = self.operator.get_service(&Self::service(), read).await.unwrap();
        let mut spec = spec_in(shown.service.unwrap().spec.unwrap()).unwrap();
        change(&mut spec);
        self.operator.apply_service(&spec, Expect::Any, false).await.unwrap();
    }

    /// Questions that nobody has answered.
    pub async fn questions(&self) -> Vec<v1::Operation> {
        let service = Self::service();
        let read = Freshness::Linearizable;
        self.operator.list_approvals(Some(&service), false, read).await.unwrap().operations
    }

    /// What an agent has written into its log.
    pub fn log(&self, at: usize) -> String {
        std::fs::read_to_string(self.instances()[at].log()).unwrap_or_default()
    }

    /// What made the test fail, as far as the lab knows.
    fn tell(&self) {
        eprintln!("--- the machine ---\n{}", self.pulse.told());
        for instance in self.instances() {
            let text = std::fs::read_to_string(instance.log()).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            let from = lines.len().saturating_sub(25);
            eprintln!("--- agent of {} ---\n{}", instance.id, lines[from..].join("\n"));
        }
        for args in [&["operations", "show", SERVICE][..], &["explain", SERVICE]] {
            let out = self.cluster.verb(args);
            let (said, why) = (&out.stdout, &out.stderr);
            eprintln!("--- {args:?} ---\n{}", String::from_utf8_lossy(said));
            eprintln!("{}", String::from_utf8_lossy(why));
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell();
        }
        // What was started since by name of the lab's directory is in its file alone.
        if let Ok(newest) = Lab::open(self.dir()) {
            self.cluster.lab = newest;
        }
        let haproxy = self.cluster.lab.databases.as_ref().and_then(|all| all.haproxy.as_ref());
        if let Some(process) = haproxy.and_then(|one| one.process.as_ref()) {
            let _ = process.signal(Fault::Kill);
        }
        let deadline = Instant::now() + PATIENCE;
        // Agents first: they must not see the others go, and act on it. Then again and again: what
        // a fencer leaves is not gone with it.
        for instance in self.instances() {
            let _ = regent_lab::databases::signal_agent(instance, Fault::Kill);
        }
        // What a killed server leaves in the machine's memory would stay there for good.
        let quit = |instance| owned::quit(&self.cluster.lab, instance);
        let servers: Vec<_> = self.instances().iter().flat_map(quit).collect();
        let soon = Instant::now() + Duration::from_millis(1_500);
        while servers.iter().any(Process::is_alive) && Instant::now() < soon {
            std::thread::sleep(Duration::from_millis(5));
        }
        for at in 0..self.instances().len() {
            loop {
                let left = self.processes(at);
                if left.is_empty() || Instant::now() >= deadline {
                    break;
                }
                for process in left {
                    let _ = process.signal(Fault::Kill);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        if let Some(network) = &self.cluster.lab.network
            && let Err(error) = network.remove()
        {
            eprintln!("the network stays: {error}");
        }
    }
}
