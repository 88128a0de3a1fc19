//! `up`, `heal`, `down`: making, mending and removing a lab.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use regent_core::authz::Role;
use regent_rpc::pki;

use crate::databases::{DatabaseError, Revived, Wanted};
use crate::layout::{IDENTITIES, LAB_VERSION, Lab, LabNode, OpenError, Profile};
use crate::network::{self, Machine, Network, NetworkError};
use crate::observe::{Connections, View, view, view_nodes};
use crate::process::{Fault, Life, Process};
use crate::{config, databases, ports, spawn};

/// How long a node may drain before it is killed: longer than it takes to hand the lead over.
const GRACE: Duration = Duration::from_secs(10);
/// How long a new lab may take until all nodes follow one leader.
const READY: Duration = Duration::from_secs(30);
/// How many entries a node may be behind and still count as well: under load the looks at the nodes
/// are not at the same instant.
const LAG: u64 = 1_000;
/// Somebody may take a port between our look and the server's start; then other ports are tried.
const ATTEMPTS: usize = 3;
/// Zones are letters.
const MOST_NODES: u64 = 9;

/// What `up` makes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where.
    pub dir: PathBuf,
    /// Which binary to run.
    pub binary: PathBuf,
    /// How many nodes.
    pub nodes: u64,
    /// Which Raft profile.
    pub profile: Profile,
    /// Every node and instance in a network namespace of its own, with links that can be cut.
    pub network: bool,
}

/// Why a lab could not be made, mended or removed.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// There is a lab already.
    #[error("{} holds a lab already", dir.display())]
    Exists {
        /// Where.
        dir: PathBuf,
    },
    /// The directory holds other things.
    #[error("{} is not empty, and holds no lab", dir.display())]
    NotEmpty {
        /// Where.
        dir: PathBuf,
    },
    /// The lab cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A number of nodes that cannot be.
    #[error("{nodes} nodes cannot be; use 1 to {MOST_NODES}")]
    Size {
        /// How many were asked for.
        nodes: u64,
    },
    /// The system refused.
    #[error("cannot {what}")]
    System {
        /// What was being done.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Certificates could not be made.
    #[error("cannot make certificates")]
    Pki(#[from] pki::PkiError),
    /// Certificates cannot be used.
    #[error("cannot use the lab's certificates")]
    Tls(#[from] regent_rpc::tls::TlsError),
    /// A configuration could not be written.
    #[error("cannot write a node's configuration")]
    Config(#[from] toml::ser::Error),
    /// No free ports.
    #[error("no free ports were found on 127.0.0.1")]
    Ports,
    /// A node ended instead of serving.
    #[error("node {id} ended right after its start: {last_words}")]
    Died {
        /// Which.
        id: u64,
        /// The end of its log.
        last_words: String,
    },
    /// The lab's own network could not be made, cut or removed.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The databases could not be made, mended or ended.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// No leader was found in time.
    #[error("the nodes did not agree on a leader within {within:?}: {state}")]
    NotReady {
        /// How long was waited.
        within: Duration,
        /// Each node's role.
        state: String,
    },
}

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> LabError {
    let what = what.into();
    move |source| LabError::System { what, source }
}

/// Makes a lab and waits until its nodes follow one leader. What fails half-way is taken back.
///
/// # Errors
/// [`LabError`]; nothing runs and nothing is left then.
pub async fn up(plan: &Plan) -> Result<(Lab, View), LabError> {
    if plan.nodes == 0 || plan.nodes > MOST_NODES {
        return Err(LabError::Size { nodes: plan.nodes });
    }
    if Lab::exists(&plan.dir) {
        return Err(LabError::Exists { dir: plan.dir.clone() });
    }
    let existed = plan.dir.exists();
    if existed {
        let mut entries =
            fs::read_dir(&plan.dir).map_err(system(format!("look into {}", plan.dir.display())))?;
        if entries.next().is_some() {
            return Err(LabError::NotEmpty { dir: plan.dir.clone() });
        }
    }
    fs::create_dir_all(&plan.dir).map_err(system(format!("make {}", plan.dir.display())))?;
    // Absolute, so that `lab.json` means the same from everywhere.
    let dir =
        fs::canonicalize(&plan.dir).map_err(system(format!("find {}", plan.dir.display())))?;
    let mut attempt = 1;
    loop {
        match make(plan, &dir).await {
            Ok(done) => return Ok(done),
            Err(error) => {
                remove_content(&dir).await?;
                if attempt < ATTEMPTS && is_port_taken(&error) {
                    attempt += 1;
                    continue;
                }
                if !existed {
                    // Best effort: the error that matters is the one being returned.
                    let _ = fs::remove_dir(&dir);
                }
                return Err(error);
            }
        }
    }
}

/// Makes a lab with databases: the nodes as [`up`], then the instances with their agents. `say` is
/// told each step. What fails half-way is taken back, unless `wanted` says to keep it.
///
/// # Errors
/// [`LabError`]; nothing runs and nothing is left then.
pub async fn up_with(
    plan: &Plan,
    wanted: &Wanted,
    say: &(dyn Fn(String) + Sync),
) -> Result<(Lab, View), LabError> {
    // What this machine lacks is found out before anything is started.
    let ground = databases::Ground::survey(wanted).map_err(DatabaseError::from)?;
    say(format!("starting {} nodes", plan.nodes));
    let (mut lab, _) = up(plan).await?;
    match databases::make(&mut lab, wanted, ground, say).await {
        Ok(()) => {
            let connections = Connections::new(&lab, &lab.certificates().admin)?;
            let seen = view(&lab, &connections).await;
            Ok((lab, seen))
        }
        Err(error) if wanted.keep => Err(error.into()),
        Err(error) => {
            // The error that matters is the first one; a second one would hide it.
            let _ = down(&lab.dir).await;
            Err(error.into())
        }
    }
}

async fn make(plan: &Plan, dir: &Path) -> Result<(Lab, View), LabError> {
    let count = usize::try_from(plan.nodes).map_err(|_| LabError::Size { nodes: plan.nodes })?;
    let network = if plan.network { Some(Network::plan()?) } else { None };
    let found = ports::free(2 * count).ok_or(LabError::Ports)?;
    let nodes = (1..=plan.nodes).zip(found.chunks_exact(2)).map(|(id, ports)| LabNode {
        id,
        zone: zone(id),
        grpc: format!("127.0.0.1:{}", ports[0]),
        http: format!("127.0.0.1:{}", ports[1]),
        data_dir: dir.join(format!("node-{id}")).join("data"),
        config: dir.join(format!("node-{id}")).join("node.toml"),
        log: dir.join(format!("node-{id}")).join("node.log"),
        process: None,
    });
    let mut lab = Lab {
        version: LAB_VERSION,
        dir: dir.to_owned(),
        binary: plan.binary.clone(),
        cluster: "lab".to_owned(),
        trust_domain: "lab.regent".to_owned(),
        profile: plan.profile,
        nodes: nodes.collect(),
        databases: None,
        network,
    };
    join(&mut lab)?;
    certificates(&lab)?;
    for node in &lab.nodes {
        fs::create_dir_all(&node.data_dir)
            .map_err(system(format!("make {}", node.data_dir.display())))?;
        fs::write(&node.config, config::text(&lab, node)?)
            .map_err(system(format!("write {}", node.config.display())))?;
    }
    for at in 0..lab.nodes.len() {
        start(&mut lab, at)?;
    }
    let connections = Connections::new(&lab, &lab.certificates().admin)?;
    let view = wait_ready(&lab, &connections, READY).await?;
    Ok((lab, view))
}

/// a, b, c, ...
fn zone(id: u64) -> String {
    char::from(b'a' + (id - 1) as u8).to_string()
}

/// Makes the lab's own network, if it has one, and gives every node its address there.
fn join(lab: &mut Lab) -> Result<(), LabError> {
    let Some(mut network) = lab.network.clone() else { return Ok(()) };
    let save = |lab: &Lab| lab.save().map_err(system(format!("write into {}", lab.dir.display())));
    // Its name is written down before anything has it, so that `down` finds what a crash leaves.
    save(lab)?;
    network.claim()?;
    for node in &mut lab.nodes {
        // As many as zones: letters.
        let address = network.address_of_node(node.id as u8);
        node.grpc = format!("{address}:{}", network::port::GRPC);
        node.http = format!("{address}:{}", network::port::HTTP);
        let machine = Machine { name: node.machine(), zone: node.zone.clone(), address };
        network.join(&machine)?;
        network.machines.push(machine);
    }
    lab.network = Some(network);
    save(lab)
}

fn certificates(lab: &Lab) -> Result<(), LabError> {
    let pki = lab.pki_dir();
    pki::init(&pki, &lab.trust_domain, pki::CA_DAYS, false)?;
    let issue = |role, name: String, address: &str| {
        let mut request = pki::Request::new(role, name);
        // Clients in other languages check the name they dialled.
        request.names = names(address);
        pki::issue(&pki, &request).map(|_| ())
    };
    for node in &lab.nodes {
        issue(Role::Node, node.id.to_string(), &node.grpc)?;
    }
    for identity in IDENTITIES {
        let role = identity.parse().expect("the list holds names of roles only");
        issue(role, "lab".to_owned(), "")?;
    }
    Ok(())
}

/// Under which names a machine's certificate is shown: loopback's, and where else it is reached
/// (`host:port` or empty).
fn names(address: &str) -> Vec<String> {
    let host = address.rsplit_once(':').map_or("", |(host, _)| host);
    let loopback = ["127.0.0.1", "localhost"];
    let own = Some(host).filter(|host| !host.is_empty() && !loopback.contains(host));
    loopback.into_iter().chain(own).map(str::to_owned).collect()
}

fn is_port_taken(error: &LabError) -> bool {
    matches!(error, LabError::Died { last_words, .. } if last_words.contains("cannot listen on"))
}

/// Starts a node's process and writes its name down at once, so that a crash of this program leaves
/// no process that `down` does not know.
fn start(lab: &mut Lab, at: usize) -> Result<(), LabError> {
    let node = &lab.nodes[at];
    let what = || format!("start node {}", node.id);
    let mut words: Vec<OsString> = vec!["server".into(), "--config".into()];
    words.push(node.config.clone().into());
    let begin = || spawn::detached(&lab.binary, &words, &lab.dir, &node.log);
    let process = network::within(lab.space(&node.machine()).as_deref(), begin)
        .and_then(|started| started)
        .map_err(system(what()))?;
    lab.nodes[at].process = Some(process);
    lab.save().map_err(system(format!("write into {}", lab.dir.display())))
}

/// Waits until every node that runs follows the same leader.
///
/// # Errors
/// A node died, or they did not agree in time.
pub async fn wait_ready(
    lab: &Lab,
    connections: &Connections,
    within: Duration,
) -> Result<View, LabError> {
    let deadline = Instant::now() + within;
    loop {
        let seen = view_nodes(lab, connections).await;
        for node in &seen.nodes {
            if node.life == Life::Dead {
                return Err(LabError::Died {
                    id: node.id,
                    last_words: spawn::last_words(&node.log),
                });
            }
        }
        let newest = seen.nodes.iter().map(|node| node.applied).max().unwrap_or(0);
        let agreed = seen.leader != 0
            && seen.nodes.iter().all(|node| {
                node.ready && node.leader == seen.leader && node.applied + LAG >= newest
            });
        if agreed {
            return Ok(seen);
        }
        if Instant::now() >= deadline {
            let state: Vec<String> = seen
                .nodes
                .iter()
                .map(|node| {
                    let role = if node.role.is_empty() { "silent" } else { &node.role };
                    let ready = if node.ready { "ready" } else { "not ready" };
                    format!("node {} {role}, {ready}", node.id)
                })
                .collect();
            return Err(LabError::NotReady { within, state: state.join(", ") });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What `heal` did.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Healed {
    /// Nodes that were dead and were started.
    pub started: Vec<u64>,
    /// Nodes that were frozen and were thawed.
    pub thawed: Vec<u64>,
    /// Instances whose agents were started, and those that were thawed.
    #[serde(flatten)]
    pub instances: Revived,
}

/// Mends cut links, starts dead nodes, agents and HAProxy, thaws what is frozen, and waits until all
/// nodes follow one leader and every standby streams from the primary.
///
/// # Errors
/// [`LabError`].
pub async fn heal(dir: &Path) -> Result<(Lab, View, Healed), LabError> {
    let mut lab = Lab::open(dir)?;
    let mut healed = Healed::default();
    lab.network.as_ref().map_or(Ok(()), Network::mend)?;
    for at in 0..lab.nodes.len() {
        let id = lab.nodes[at].id;
        match lab.nodes[at].process.as_ref().map_or(Life::Dead, |process| process.life()) {
            Life::Running => {}
            Life::Frozen => {
                signal(&lab.nodes[at], Fault::Thaw)?;
                healed.thawed.push(id);
            }
            Life::Dead => {
                start(&mut lab, at)?;
                healed.started.push(id);
            }
        }
    }
    let connections = Connections::new(&lab, &lab.certificates().admin)?;
    wait_ready(&lab, &connections, READY).await?;
    if lab.databases.is_some() {
        healed.instances = databases::revive(&mut lab)?;
        databases::wait_redundant(&lab, databases::REDUNDANT, &|_| {}).await?;
        healed.instances.started_proxies = databases::proxy::revive(&mut lab).await?;
    }
    let view = view(&lab, &connections).await;
    Ok((lab, view, healed))
}

/// Starts one dead node again; does not wait for it.
///
/// # Errors
/// [`LabError`].
pub fn restart(lab: &mut Lab, id: u64) -> Result<(), LabError> {
    match lab.nodes.iter().position(|node| node.id == id) {
        Some(at) => start(lab, at),
        None => Ok(()),
    }
}

/// Does something to a node's process. `Ok(false)`: it was dead already.
///
/// # Errors
/// The system refused.
pub fn signal(node: &LabNode, fault: Fault) -> Result<bool, LabError> {
    match &node.process {
        Some(process) => process.signal(fault).map_err(system(format!("signal node {}", node.id))),
        None => Ok(false),
    }
}

/// Ends exactly the processes that the lab started, removes its network and its directory.
///
/// # Errors
/// A process could not be ended: then nothing is removed, so that it stays known.
pub async fn down(dir: &Path) -> Result<usize, LabError> {
    let lab = Lab::open(dir)?;
    // The databases first: an agent without coordinators would begin to act on that.
    let databases = databases::end(&lab).await;
    // Whatever failed with them: nodes that are left have nobody who knows of them.
    let nodes = end_all(&lab).await;
    let ended = databases? + nodes?;
    lab.network.as_ref().map_or(Ok(()), Network::remove)?;
    fs::remove_dir_all(&lab.dir).map_err(system(format!("remove {}", lab.dir.display())))?;
    Ok(ended)
}

async fn end_all(lab: &Lab) -> Result<usize, LabError> {
    let mut ends = tokio::task::JoinSet::new();
    let alive =
        lab.nodes.iter().filter(|node| node.process.as_ref().is_some_and(Process::is_alive));
    for node in alive {
        let node = node.clone();
        ends.spawn(async move {
            match &node.process {
                Some(process) => {
                    process.end(GRACE).await.map_err(system(format!("end node {}", node.id)))
                }
                None => Ok(()),
            }
        });
    }
    let mut count = 0;
    // All are given the chance to end before the first failure is told.
    for result in ends.join_all().await {
        result?;
        count += 1;
    }
    Ok(count)
}

/// Takes back a lab that could not be made: its processes and everything inside the directory.
async fn remove_content(dir: &Path) -> Result<(), LabError> {
    if let Ok(lab) = Lab::open(dir) {
        for process in lab.nodes.iter().filter_map(|node| node.process.as_ref()) {
            process.end(Duration::ZERO).await.map_err(system("end a node"))?;
        }
        lab.network.as_ref().map_or(Ok(()), Network::remove)?;
    }
    let what = || format!("empty {}", dir.display());
    for entry in fs::read_dir(dir).map_err(system(what()))? {
        let path = entry.map_err(system(what()))?.path();
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(system(what()))?;
    }
    Ok(())
}
