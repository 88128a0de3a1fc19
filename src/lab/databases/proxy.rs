//! HAProxy and Envoy in front of a lab's databases: each with one port for writes, one for reads.
//! Processes of the lab like the others: started by it, named in its file, ended by pid.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use regent_core::id::{InstanceName, ServiceName};
use regent_core::route::haproxy;
use regent_xds::bootstrap;
use serde::{Deserialize, Serialize};

use super::{DatabaseError, Databases, HOST, system};
use crate::layout::Lab;
use crate::process::{Fault, Life, Process};
use crate::spawn;
use crate::writer::Pace;

/// How often an instance is asked whether it is primary: on loopback it costs next to nothing.
const CHECK_MS: u64 = 50;
/// Below half of the 1,024 files that an ordinary user's process may have.
const SESSIONS: u32 = 400;
/// Until the write port leads to the primary.
const READY: Duration = Duration::from_secs(10);
/// They end their sessions and themselves at once.
const GRACE: Duration = Duration::from_secs(2);
/// Where packages put it; only root has these on PATH.
const PLACES: [&str; 2] = ["/usr/sbin", "/usr/local/sbin"];

/// Whether a lab has HAProxy in front of its databases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Front {
    /// Where it is installed.
    #[default]
    Auto,
    /// Always: without it there is no lab.
    Require,
    /// Never.
    Off,
}

/// What a proxy is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// It asks the agents.
    #[default]
    Haproxy,
    /// The nodes tell it.
    Envoy,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Haproxy, Self::Envoy];

    /// As people call it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
        }
    }

    fn of(self, databases: &Databases) -> Option<&Proxy> {
        match self {
            Self::Haproxy => databases.haproxy.as_ref(),
            Self::Envoy => databases.envoy.as_ref(),
        }
    }
}

/// A proxy of a lab, as kept in its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxy {
    /// What it is.
    #[serde(default)]
    pub kind: Kind,
    /// The program.
    pub program: PathBuf,
    /// Where clients write.
    pub write: Port,
    /// Where clients read.
    pub read: Port,
    /// Its configuration.
    pub config: PathBuf,
    /// Where its output goes.
    pub log: PathBuf,
    /// The process that was started last; `None` before the first.
    pub process: Option<Process>,
}

/// Where HAProxy listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Its address.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl std::fmt::Display for Port {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "{}:{}", self.host, self.port)
    }
}

/// HAProxy as it is now.
#[derive(Clone, Debug, Serialize)]
pub struct ProxyView {
    /// What its process does.
    pub life: Life,
    /// Its process; `None`: dead.
    pub pid: Option<u32>,
    /// `host:port` where clients write.
    pub write: String,
    /// `host:port` where clients read.
    pub read: String,
    /// Its configuration.
    pub config: PathBuf,
    /// Where its output goes.
    pub log: PathBuf,
}

impl Proxy {
    /// A proxy of the lab in `dir` that was never started.
    pub fn new(kind: Kind, program: PathBuf, dir: &Path, ports: [u16; 2]) -> Self {
        let [write, read] = ports.map(|port| Port { host: HOST.to_owned(), port });
        let config = match kind {
            Kind::Haproxy => "haproxy.cfg",
            Kind::Envoy => "envoy.json",
        };
        Self {
            kind,
            program,
            write,
            read,
            config: dir.join(config),
            log: dir.join(format!("{}.log", kind.as_str())),
            process: None,
        }
    }

    /// How it is now.
    pub fn view(&self) -> ProxyView {
        let life = self.process.as_ref().map_or(Life::Dead, |process| process.life());
        ProxyView {
            life,
            pid: self.process.as_ref().map(|one| one.pid).filter(|_| life != Life::Dead),
            write: self.write.to_string(),
            read: self.read.to_string(),
            config: self.config.clone(),
            log: self.log.clone(),
        }
    }
}

/// HAProxy's program; `None`: it is not installed.
pub fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    find(std::env::split_paths(&path).chain(PLACES.map(PathBuf::from)))
}

fn find(mut places: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    places.find_map(|dir| Some(dir.join("haproxy")).filter(|program| program.is_file()))
}

fn text(lab: &Lab, databases: &Databases, proxy: &Proxy) -> Result<String, DatabaseError> {
    match proxy.kind {
        Kind::Haproxy => haproxy_text(databases, proxy),
        Kind::Envoy => envoy_text(lab, databases, proxy),
    }
}

fn envoy_text(lab: &Lab, databases: &Databases, proxy: &Proxy) -> Result<String, DatabaseError> {
    let certificates = lab.certificates();
    let nodes = bootstrap::Nodes {
        endpoints: &lab.endpoints(),
        trust_domain: &certificates.trust_domain,
        cert: &certificates.router.cert,
        key: &certificates.router.key,
        ca: &certificates.ca,
    };
    let (write, read) = (&proxy.write.to_string(), &proxy.read.to_string());
    let listens = bootstrap::Listens { service: &databases.service, write, read };
    let who = bootstrap::Who { id: "lab", region: "", zone: "" };
    let bootstrap = bootstrap::envoy(&nodes, &who, &listens).map_err(DatabaseError::Spec)?;
    Ok(format!("{bootstrap:#}\n"))
}

fn haproxy_text(databases: &Databases, proxy: &Proxy) -> Result<String, DatabaseError> {
    let bad = |error: &dyn std::fmt::Display| DatabaseError::Spec(error.to_string());
    let servers = databases.instances.iter().map(|instance| {
        Ok(haproxy::Server {
            name: InstanceName::parse(&instance.id).map_err(|error| bad(&error))?,
            address: format!("{}:{}", instance.host, instance.port),
            health: instance.http.clone(),
        })
    });
    Ok(haproxy::render(&haproxy::Plan {
        service: ServiceName::parse(&databases.service).map_err(|error| bad(&error))?,
        write: proxy.write.to_string(),
        read: proxy.read.to_string(),
        check_interval_ms: CHECK_MS,
        ask: haproxy::Ask::Http,
        socket: None,
        max_sessions: SESSIONS,
        servers: servers.collect::<Result<_, DatabaseError>>()?,
    }))
}

/// Starts the lab's proxies, where it has some, and waits until their write ports lead to the
/// primary.
///
/// # Errors
/// The system's; or one ended, or leads nowhere.
pub async fn start(lab: &mut Lab) -> Result<(), DatabaseError> {
    for kind in Kind::ALL {
        start_one(lab, kind).await?;
    }
    Ok(())
}

async fn start_one(lab: &mut Lab, kind: Kind) -> Result<(), DatabaseError> {
    launch(lab, kind)?;
    let Some(databases) = &lab.databases else { return Ok(()) };
    let Some(proxy) = kind.of(databases) else { return Ok(()) };
    let access = databases.through(proxy);
    let deadline = Instant::now() + READY;
    loop {
        let error = match access.writable(Pace::STEADY, 0).await {
            Ok(_) => return Ok(()),
            Err(error) => error.to_string(),
        };
        let alive = proxy.process.as_ref().is_some_and(Process::is_alive);
        if !alive || Instant::now() >= deadline {
            let (what, last_words) = (kind.as_str(), spawn::last_words(&proxy.log));
            return Err(DatabaseError::Proxy { what, error, last_words });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn launch(lab: &mut Lab, kind: Kind) -> Result<(), DatabaseError> {
    let Some(databases) = &lab.databases else { return Ok(()) };
    let Some(proxy) = kind.of(databases) else { return Ok(()) };
    let write = || format!("write {}", proxy.config.display());
    fs::write(&proxy.config, text(lab, databases, proxy)?).map_err(system(write()))?;
    // In the foreground, and one process: its pid is the one that was started.
    let words: Vec<OsString> = match kind {
        Kind::Haproxy => vec!["-db".into(), "-f".into(), proxy.config.clone().into()],
        // What makes Envoy restart without a gap ends it with whoever started it, too.
        Kind::Envoy => {
            let flags = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"];
            let config = ["-c".into(), proxy.config.clone().into()];
            config.into_iter().chain(flags.map(OsString::from)).collect()
        }
    };
    let what = format!("start {}", proxy.program.display());
    let process =
        spawn::detached(&proxy.program, &words, &lab.dir, &proxy.log).map_err(system(what))?;
    let proxy = lab.databases.as_mut().and_then(|all| match kind {
        Kind::Haproxy => all.haproxy.as_mut(),
        Kind::Envoy => all.envoy.as_mut(),
    });
    if let Some(proxy) = proxy {
        proxy.process = Some(process);
    }
    lab.save().map_err(system(format!("write into {}", lab.dir.display())))
}

/// Thaws or starts the lab's proxies where they need it; which were started.
///
/// # Errors
/// As [`start`].
pub async fn revive(lab: &mut Lab) -> Result<Vec<String>, DatabaseError> {
    let mut started = Vec::new();
    for kind in Kind::ALL {
        let proxy = lab.databases.as_ref().and_then(|all| kind.of(all));
        let Some(process) = proxy.map(|one| one.process.clone()) else { continue };
        match process.as_ref().map_or(Life::Dead, Process::life) {
            Life::Running => {}
            Life::Frozen => {
                let thawed = process.map(|one| one.signal(Fault::Thaw)).transpose();
                thawed.map_err(system(format!("thaw {}", kind.as_str())))?;
            }
            Life::Dead => {
                start_one(lab, kind).await?;
                started.push(kind.as_str().to_owned());
            }
        }
    }
    Ok(started)
}

/// Ends them; how many there were.
///
/// # Errors
/// The system's.
pub async fn end(databases: &Databases) -> Result<usize, DatabaseError> {
    let mut ended = 0;
    for kind in Kind::ALL {
        let process = kind.of(databases).and_then(|one| one.process.as_ref());
        let Some(process) = process.filter(|process| process.is_alive()) else { continue };
        process.end(GRACE).await.map_err(system(format!("end {}", kind.as_str())))?;
        ended += 1;
    }
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::databases::tests::lab;

    #[test]
    fn both_ports_have_every_instance_and_ask_its_agent() {
        let lab = lab();
        let databases = lab.databases.as_ref().expect("it has some");
        let proxy =
            Proxy::new(Kind::Haproxy, "/usr/sbin/haproxy".into(), &lab.dir, [24_001, 24_002]);
        let text = text(&lab, databases, &proxy).expect("names are names");
        for line in ["bind 127.0.0.1:24001", "bind 127.0.0.1:24002"] {
            assert_eq!(text.matches(line).count(), 1, "{text}");
        }
        for at in 1..=3 {
            let line = format!("server pg{at} 127.0.0.1:2300{at} check port 2200{at}\n");
            assert_eq!(text.matches(&line).count(), 2, "{line}{text}");
        }
    }

    #[test]
    fn the_program_is_the_first_one_found_and_a_machine_may_have_none() {
        let scratch = std::env::temp_dir().join(format!("regent-haproxy-{}", std::process::id()));
        let places = ["none", "one", "two"].map(|name| scratch.join(name));
        assert_eq!(find(places.iter().cloned()), None);
        for place in &places[1..] {
            fs::create_dir_all(place).expect("a directory");
            fs::write(place.join("haproxy"), "").expect("a file");
        }
        assert_eq!(find(places.iter().cloned()), Some(places[1].join("haproxy")));
        fs::remove_dir_all(&scratch).expect("ours");
    }

    #[test]
    fn a_proxy_that_never_ran_is_shown_dead_with_where_it_will_be() {
        let view =
            Proxy::new(Kind::Haproxy, "/usr/sbin/haproxy".into(), Path::new("/lab"), [1, 2]).view();
        let value = serde_json::to_value(&view).expect("plain data");
        assert_eq!((&value["life"], &value["pid"]), (&"dead".into(), &serde_json::Value::Null));
        assert_eq!(
            (&value["write"], &value["read"]),
            (&"127.0.0.1:1".into(), &"127.0.0.1:2".into())
        );
    }
}
