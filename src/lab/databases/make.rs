//! Making the databases of a lab whose nodes run, and starting again what died.

use std::ffi::OsString;
use std::fs::{self, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rand::RngExt as _;
use regent_core::authz::Role;
use regent_core::command::Expect;
use regent_core::id::{InstanceName, Locality, ServiceName};
use regent_core::spec::{Engine, InstanceSpec, Policy, ServiceSpec, Survive, TopologyKind};
use regent_rpc::client::{Client, ClientOptions};
use regent_rpc::pki;
use regent_rpc::tls::{Tls, TlsFiles};
use serde::Serialize;

use super::ground::Owner;
use super::look::redundant;
use super::proxy::Kind;
use super::{
    APP, DatabaseError, Databases, DatabasesView, Ground, HOST, LabInstance, Proxy, SERVICE,
    Wanted, file, instance_dir, owned, proxy, system,
};
use crate::layout::Lab;
use crate::network::{self, Machine};
use crate::process::{Fault, Life};
use crate::{ports, spawn};

/// Until a new or mended lab has one primary and all standbys stream: copies of an empty cluster
/// take seconds, a rewind or a clone after a failover some more.
pub const REDUNDANT: Duration = Duration::from_secs(90);
/// How often a person is told what is waited for.
const TELL: Duration = Duration::from_secs(1);
/// initdb syncs some 50 MB.
const INIT: Duration = Duration::from_secs(120);
/// Zones are letters, as with nodes.
const MOST: u64 = 9;
/// Letters and digits only: nobody has to quote it.
const PASSWORD_LENGTH: usize = 24;

/// Makes the instances of a lab whose nodes are ready: files, certificates, declaration, the first
/// data directory, agents; and waits until they are one primary with streaming standbys.
///
/// # Errors
/// [`DatabaseError`]; what was started is in the lab's file.
pub async fn make(
    lab: &mut Lab,
    wanted: &Wanted,
    ground: Ground,
    say: &(dyn Fn(String) + Sync),
) -> Result<(), DatabaseError> {
    lay_out(lab, wanted, &ground, say).await?;
    let databases = lab.databases.clone().ok_or_else(|| size(wanted))?;
    let first = databases.instances.first().ok_or_else(|| size(wanted))?;
    say(format!("making the first data directory, of {}", first.id));
    init(lab, &databases, first).await?;
    begin(lab, &ground, say).await
}

/// Makes what the instances need but their data: files, certificates, declaration.
///
/// # Errors
/// [`DatabaseError`]; what was made is in the lab's file.
pub async fn lay_out(
    lab: &mut Lab,
    wanted: &Wanted,
    ground: &Ground,
    say: &(dyn Fn(String) + Sync),
) -> Result<(), DatabaseError> {
    let mut databases = plan(lab, wanted, ground)?;
    join(lab, &mut databases)?;
    let spec = spec(&databases)?;
    lab.databases = Some(databases.clone());
    save(lab)?;
    open_way(lab, ground)?;
    for instance in &databases.instances {
        lay(lab, &databases, instance, ground.owner.as_ref())?;
    }
    say(format!("declaring service {} in mode {}", databases.service, databases.policy().mode));
    declare(lab, &spec).await
}

/// Starts the agents of what was laid out, the first of which has its data and the passwords, and
/// waits until they are one primary with streaming standbys.
///
/// # Errors
/// [`DatabaseError`]; what was started is in the lab's file.
pub async fn begin(
    lab: &mut Lab,
    ground: &Ground,
    say: &(dyn Fn(String) + Sync),
) -> Result<(), DatabaseError> {
    let instances = lab.databases.iter().flat_map(|all| &all.instances).cloned();
    let instances: Vec<_> = instances.collect();
    if let Some((first, others)) = instances.split_first() {
        for other in others.iter().filter(|other| !other.passfile().exists()) {
            copy_passfile(first, other, ground.owner.as_ref())?;
        }
    }
    for at in 0..instances.len() {
        start_agent(lab, at)?;
    }
    say(format!("{} agents started; the standbys are copied", instances.len()));
    wait_redundant(lab, REDUNDANT, say).await?;
    // Last: while the copies are made it would only ask in vain.
    proxy::start(lab).await
}

fn size(wanted: &Wanted) -> DatabaseError {
    // A commit in quorum mode waits for another instance.
    let least = if wanted.mode == regent_core::spec::Mode::Quorum { 2 } else { 1 };
    DatabaseError::Size { got: wanted.instances, least }
}

fn plan(lab: &Lab, wanted: &Wanted, ground: &Ground) -> Result<Databases, DatabaseError> {
    let DatabaseError::Size { least, .. } = size(wanted) else { return Err(size(wanted)) };
    if wanted.instances < least || wanted.instances > MOST {
        return Err(size(wanted));
    }
    let count = usize::try_from(wanted.instances).map_err(|_| size(wanted))?;
    let found = ports::free(2 * count + 4).ok_or(DatabaseError::Ports)?;
    let (front, found) = found.split_at(4);
    let instances = found.chunks_exact(2).zip(b'a'..).enumerate().map(|(at, (ports, zone))| {
        let id = format!("pg{}", at + 1);
        LabInstance {
            zone: char::from(zone).to_string(),
            host: HOST.to_owned(),
            port: ports[0],
            http: format!("{HOST}:{}", ports[1]),
            dir: instance_dir(&lab.dir, &id),
            process: None,
            id,
        }
    });
    Ok(Databases {
        service: SERVICE.to_owned(),
        mode: wanted.mode,
        ttl_ms: u64::try_from(wanted.ttl.as_millis()).unwrap_or(u64::MAX),
        user: APP.to_owned(),
        password: password(),
        dbname: APP.to_owned(),
        bin_dir: ground.bin_dir.clone(),
        run_as: ground.owner.as_ref().map(|owner| owner.name.clone()),
        instances: instances.collect(),
        haproxy: ground
            .haproxy
            .clone()
            .map(|program| Proxy::new(Kind::Haproxy, program, &lab.dir, [front[0], front[1]])),
        envoy: wanted
            .envoy
            .clone()
            .map(|program| Proxy::new(Kind::Envoy, program, &lab.dir, [front[2], front[3]])),
    })
}

/// Gives every instance a machine of its own in the lab's network, if it has one.
fn join(lab: &mut Lab, databases: &mut Databases) -> Result<(), DatabaseError> {
    let Some(network) = &mut lab.network else { return Ok(()) };
    for (at, instance) in (0..).zip(&mut databases.instances) {
        let address = network.address_of_instance(at);
        instance.host = address.to_string();
        instance.port = network::port::POSTGRES;
        instance.http = format!("{address}:{}", network::port::AGENT);
        let (name, zone) = (instance.id.clone(), instance.zone.clone());
        let machine = Machine { name, zone, address };
        network.join(&machine)?;
        network.machines.push(machine);
    }
    Ok(())
}

fn password() -> String {
    const LETTERS: &[u8] = b"abcdefghijkmnopqrstuvwxyz23456789";
    let mut random = rand::rng();
    (0..PASSWORD_LENGTH)
        .map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())]))
        .collect()
}

/// The declaration: the mode's defaults, but for what a playground wants otherwise.
fn spec(databases: &Databases) -> Result<ServiceSpec, DatabaseError> {
    let bad = |error: &dyn std::fmt::Display| DatabaseError::Spec(error.to_string());
    let instances = databases.instances.iter().enumerate().map(|(at, instance)| {
        Ok(InstanceSpec {
            name: InstanceName::parse(&instance.id).map_err(|error| bad(&error))?,
            locality: Locality {
                region: "lab".to_owned(),
                zone: instance.zone.clone(),
                host: format!("db-{}", at + 1),
            },
            address: format!("{}:{}", instance.host, instance.port),
            priority: 100,
        })
    });
    Ok(ServiceSpec {
        name: ServiceName::parse(&databases.service).map_err(|error| bad(&error))?,
        description: "The lab's database".to_owned(),
        engine: Engine::Postgres,
        topology: TopologyKind::ActivePassive,
        instances: instances.collect::<Result<_, DatabaseError>>()?,
        partitions: Vec::new(),
        policy: Policy {
            ttl_ms: databases.ttl_ms,
            survive: if databases.instances.len() > 1 { Survive::Zone } else { Survive::Instance },
            // One kill after the other is what a lab is for.
            failover_cooldown_ms: 0,
            ..Policy::default_for(databases.mode)
        },
    })
}

/// PostgreSQL's user must get through to its directories.
fn open_way(lab: &Lab, ground: &Ground) -> Result<(), DatabaseError> {
    if ground.owner.is_some() {
        let what = || format!("look at {}", lab.dir.display());
        let mode = fs::metadata(&lab.dir).map_err(system(what()))?.permissions().mode();
        // The lab's own directory may be made passable; what is above it is not ours.
        fs::set_permissions(&lab.dir, Permissions::from_mode(mode | 0o011))
            .map_err(system(what()))?;
    }
    Ok(ground.can_enter(&lab.dir)?)
}

/// Directory, configuration and certificate of one instance.
fn lay(
    lab: &Lab,
    databases: &Databases,
    instance: &LabInstance,
    owner: Option<&Owner>,
) -> Result<(), DatabaseError> {
    for dir in [&instance.dir, &instance.state_dir()] {
        let what = || format!("make {}", dir.display());
        fs::create_dir(dir).map_err(system(what()))?;
        fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(system(what()))?;
        give(dir, owner)?;
    }
    let mut request =
        pki::Request::new(Role::Agent, file::identity(&databases.service, &instance.id));
    request.names = vec![instance.host.clone(), "localhost".to_owned()];
    pki::issue(&lab.pki_dir(), &request)?;
    // PostgreSQL shows the same certificate, from files that its own user may read.
    let stem = format!("agent-{}+{}", databases.service, instance.id);
    let files = [(format!("{stem}.crt"), "crt"), (format!("{stem}.key"), "key")];
    for (from, what) in files.into_iter().chain([("bundle.crt".to_owned(), "ca")]) {
        let from = lab.pki_dir().join(from);
        let text = fs::read(&from).map_err(system(format!("read {}", from.display())))?;
        write_secret(&instance.server(what), &text)?;
        give(&instance.server(what), owner)?;
    }
    let config = instance.config();
    fs::write(&config, file::text(lab, databases, instance)?)
        .map_err(system(format!("write {}", config.display())))
}

fn give(path: &Path, owner: Option<&Owner>) -> Result<(), DatabaseError> {
    let Some(owner) = owner else { return Ok(()) };
    chown(path, Some(owner.uid), Some(owner.gid)).map_err(system(format!(
        "give {} to {}",
        path.display(),
        owner.name
    )))
}

/// Writes a file that only its owner may read, whatever was there.
fn write_secret(path: &Path, text: &[u8]) -> Result<(), DatabaseError> {
    let what = || format!("write {}", path.display());
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(system(what()))?;
    file.write_all(text).map_err(system(what()))
}

async fn declare(lab: &Lab, spec: &ServiceSpec) -> Result<(), DatabaseError> {
    let certificates = lab.certificates();
    let tls = Tls::load(TlsFiles {
        cert: certificates.operator.cert,
        key: certificates.operator.key,
        ca: certificates.ca,
        revoked: None,
        trust: Some(lab.trust_domain.clone()),
    })?;
    let options = ClientOptions { timeout: Duration::from_secs(10), ..ClientOptions::default() };
    let said = |error: &dyn std::fmt::Display| DatabaseError::Declare(error.to_string());
    let client = Client::new(&lab.endpoints(), tls, options).map_err(|error| said(&error))?;
    client.apply_service(spec, Expect::Absent, false).await.map_err(|error| said(&error))?;
    Ok(())
}

/// `regent agent init`: initdb, Regent's roles, the client's role and database; closed and stopped.
async fn init(lab: &Lab, databases: &Databases, first: &LabInstance) -> Result<(), DatabaseError> {
    let failed = |said: String| DatabaseError::Init { instance: first.id.clone(), said };
    // Not an argument: those can be read by anybody on the machine.
    let secret = lab.dir.join("app-password");
    write_secret(&secret, databases.password.as_bytes())?;
    let child = tokio::process::Command::new(&lab.binary)
        .args(["agent", "init", "--config"])
        .arg(first.config())
        .args(["--app-user", &databases.user, "--app-database", &databases.dbname])
        .arg("--app-password-file")
        .arg(&secret)
        .env_remove("REGENT_CONFIG")
        .current_dir(&lab.dir)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let ended = tokio::time::timeout(INIT, child).await;
    // The password stays in the lab's own file only.
    fs::remove_file(&secret).map_err(system(format!("remove {}", secret.display())))?;
    let output = match ended {
        Ok(output) => output.map_err(system("run `regent agent init`"))?,
        Err(_) => return Err(failed(format!("it took longer than {INIT:?}"))),
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    Err(failed(lines.join(" | ")))
}

/// The standbys log in to the primary with the same passwords.
fn copy_passfile(
    from: &LabInstance,
    to: &LabInstance,
    owner: Option<&Owner>,
) -> Result<(), DatabaseError> {
    let source = from.passfile();
    let text = fs::read(&source).map_err(system(format!("read {}", source.display())))?;
    write_secret(&to.passfile(), &text)?;
    give(&to.passfile(), owner)
}

fn save(lab: &Lab) -> Result<(), DatabaseError> {
    lab.save().map_err(system(format!("write into {}", lab.dir.display())))
}

/// Starts the agent of one instance, and writes its process down at once.
///
/// # Errors
/// The system's.
pub fn start_agent(lab: &mut Lab, at: usize) -> Result<(), DatabaseError> {
    let Some(instance) = lab.databases.as_ref().and_then(|all| all.instances.get(at)) else {
        return Ok(());
    };
    let mut words: Vec<OsString> = vec!["agent".into(), "--config".into()];
    words.push(instance.config().into());
    let begin = || spawn::detached(&lab.binary, &words, &lab.dir, &instance.log());
    let process = network::within(lab.space(&instance.id).as_deref(), begin)
        .and_then(|started| started)
        .map_err(system(format!("start the agent of {}", instance.id)))?;
    if let Some(instance) = lab.databases.as_mut().and_then(|all| all.instances.get_mut(at)) {
        instance.process = Some(process);
    }
    save(lab)
}

/// What was done to instances to mend them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Revived {
    /// Instances whose agents were dead and were started.
    pub started_agents: Vec<String>,
    /// Instances with frozen processes that were thawed.
    pub thawed_instances: Vec<String>,
    /// Proxies that were dead and were started.
    pub started_proxies: Vec<String>,
}

/// Thaws what is frozen and starts dead agents; PostgreSQL is theirs to start. Does not wait.
///
/// # Errors
/// The system's.
pub fn revive(lab: &mut Lab) -> Result<Revived, DatabaseError> {
    let mut revived = Revived::default();
    let instances = lab.databases.as_ref().map(|all| all.instances.clone()).unwrap_or_default();
    for (at, instance) in instances.iter().enumerate() {
        let agent = instance.process.clone();
        let frozen: Vec<_> = owned::by(lab, instance)
            .into_iter()
            .chain(agent.clone())
            .filter(|process| process.life() == Life::Frozen)
            .collect();
        for process in &frozen {
            let what = || format!("thaw a process of {}", instance.id);
            process.signal(Fault::Thaw).map_err(system(what()))?;
        }
        if !frozen.is_empty() {
            revived.thawed_instances.push(instance.id.clone());
        }
        if !agent.is_some_and(|process| process.is_alive()) {
            start_agent(lab, at)?;
            revived.started_agents.push(instance.id.clone());
        }
    }
    Ok(revived)
}

/// What the agents say went wrong last.
async fn problems(lab: &Lab) -> Vec<String> {
    let seen = super::view(lab).await;
    let instances = seen.iter().flat_map(|seen| &seen.instances);
    let problems = instances.filter(|one| !one.problem.is_empty());
    problems.map(|one| format!("the agent of {}: {}", one.id, one.problem)).collect()
}

/// Waits until the databases are one open primary with all others streaming from it.
///
/// # Errors
/// An agent died, or they are not so in time.
pub async fn wait_redundant(
    lab: &Lab,
    within: Duration,
    say: &(dyn Fn(String) + Sync),
) -> Result<DatabasesView, DatabaseError> {
    let deadline = Instant::now() + within;
    let (mut last, mut told) = (String::new(), None);
    loop {
        let why = match redundant(lab).await {
            Ok(seen) => return Ok(seen),
            Err(why) => why,
        };
        for instance in lab.databases.iter().flat_map(|all| &all.instances) {
            if !instance.process.as_ref().is_some_and(|process| process.is_alive()) {
                return Err(DatabaseError::Died {
                    instance: instance.id.clone(),
                    last_words: spawn::last_words(&instance.log()),
                });
            }
        }
        if Instant::now() >= deadline {
            let state = [why].into_iter().chain(problems(lab).await).collect::<Vec<_>>();
            return Err(DatabaseError::NotReady { within, state: state.join("; ") });
        }
        // Not each of the states on the way, which may change with every look.
        if why != last && told.is_none_or(|told: Instant| told.elapsed() >= TELL) {
            say(why.clone());
            (last, told) = (why, Some(Instant::now()));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::databases::Front;
    use crate::databases::tests::lab;
    use regent_core::spec::Mode;
    use regent_core::timing::Timing;

    const LAN: Timing = Timing {
        heartbeat_ms: 1,
        election_min_ms: 3,
        election_max_ms: 4,
        commit_tick_ms: 1,
        round_ms: 1,
        dial_ms: 1,
    };

    fn wanted(mode: Mode, instances: u64) -> Wanted {
        Wanted {
            instances,
            mode,
            ttl: Duration::from_secs(3),
            haproxy: Front::Require,
            envoy: None,
            keep: false,
        }
    }

    fn ground() -> Ground {
        Ground { bin_dir: "/pg".into(), owner: None, haproxy: Some("/usr/sbin/haproxy".into()) }
    }

    #[test]
    fn every_lab_that_can_be_asked_for_has_a_declaration_that_the_nodes_take() {
        let ground = ground();
        for (mode, least) in [(Mode::Quorum, 2), (Mode::Lease, 1)] {
            for count in least..=MOST {
                let databases = plan(&lab(), &wanted(mode, count), &ground).unwrap();
                let problems = spec(&databases).unwrap().validate(&LAN);
                assert!(problems.is_empty(), "{mode:?} {count}: {problems:?}");
                assert_eq!(databases.instances.len() as u64, count);
            }
            for count in [least - 1, MOST + 1] {
                let refused = plan(&lab(), &wanted(mode, count), &ground);
                assert!(matches!(refused, Err(DatabaseError::Size { .. })), "{mode:?} {count}");
            }
        }
    }

    #[test]
    fn instances_are_in_zones_of_their_own_and_no_port_is_given_twice() {
        let ground = ground();
        let databases = plan(&lab(), &wanted(Mode::Quorum, 3), &ground).unwrap();
        let zones: Vec<&str> = databases.instances.iter().map(|one| one.zone.as_str()).collect();
        assert_eq!(zones, ["a", "b", "c"]);
        let mut ports: Vec<String> = databases
            .instances
            .iter()
            .flat_map(|one| [format!("{HOST}:{}", one.port), one.http.clone()])
            .collect();
        let front = databases.haproxy.unwrap();
        ports.extend([front.write.to_string(), front.read.to_string()]);
        ports.sort();
        ports.dedup();
        assert_eq!(ports.len(), 8);
        assert_eq!(databases.password.len(), PASSWORD_LENGTH);
        assert_ne!(databases.password, password());
    }
}
