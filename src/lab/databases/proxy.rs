//! HAProxy in front of a lab's databases: one port for writes, one for reads. A process of the lab
//! like the others: started by it, named in its file, ended by pid.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use regent_core::id::{InstanceName, ServiceName};
use regent_core::route::haproxy;
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
/// HAProxy ends its sessions and itself at once.
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

/// The HAProxy of a lab, as kept in its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxy {
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
    pub fn new(program: PathBuf, dir: &Path, ports: [u16; 2]) -> Self {
        let [write, read] = ports.map(|port| Port { host: HOST.to_owned(), port });
        Self {
            program,
            write,
            read,
            config: dir.join("haproxy.cfg"),
            log: dir.join("haproxy.log"),
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

/// The program; `None`: it is not installed.
pub fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    find(std::env::split_paths(&path).chain(PLACES.map(PathBuf::from)))
}

fn find(mut places: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    places.find_map(|dir| Some(dir.join("haproxy")).filter(|program| program.is_file()))
}

fn text(databases: &Databases, proxy: &Proxy) -> Result<String, DatabaseError> {
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

/// Starts the lab's HAProxy, where it has one, and waits until its write port leads to the primary.
///
/// # Errors
/// The system's; or it ended, or leads nowhere.
pub async fn start(lab: &mut Lab) -> Result<(), DatabaseError> {
    launch(lab)?;
    let Some(access) = lab.databases.as_ref().and_then(Databases::through_haproxy) else {
        return Ok(());
    };
    let deadline = Instant::now() + READY;
    loop {
        let error = match access.writable(Pace::STEADY, 0).await {
            Ok(_) => return Ok(()),
            Err(error) => error.to_string(),
        };
        let proxy = lab.databases.as_ref().and_then(|all| all.haproxy.as_ref());
        let alive = proxy.and_then(|one| one.process.as_ref()).is_some_and(Process::is_alive);
        if !alive || Instant::now() >= deadline {
            let last_words = proxy.map_or_else(String::new, |one| spawn::last_words(&one.log));
            return Err(DatabaseError::Proxy { error, last_words });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn launch(lab: &mut Lab) -> Result<(), DatabaseError> {
    let Some(databases) = &lab.databases else { return Ok(()) };
    let Some(proxy) = &databases.haproxy else { return Ok(()) };
    let write = || format!("write {}", proxy.config.display());
    fs::write(&proxy.config, text(databases, proxy)?).map_err(system(write()))?;
    // In the foreground, and one process: its pid is the one that was started.
    let words: Vec<OsString> = vec!["-db".into(), "-f".into(), proxy.config.clone().into()];
    let process = spawn::detached(&proxy.program, &words, &lab.dir, &proxy.log)
        .map_err(system("start HAProxy"))?;
    if let Some(proxy) = lab.databases.as_mut().and_then(|all| all.haproxy.as_mut()) {
        proxy.process = Some(process);
    }
    lab.save().map_err(system(format!("write into {}", lab.dir.display())))
}

/// Thaws or starts the lab's HAProxy where it needs it; whether it was started.
///
/// # Errors
/// As [`start`].
pub async fn revive(lab: &mut Lab) -> Result<bool, DatabaseError> {
    let proxy = lab.databases.as_ref().and_then(|all| all.haproxy.as_ref());
    let Some(process) = proxy.map(|one| one.process.clone()) else { return Ok(false) };
    match process.as_ref().map_or(Life::Dead, Process::life) {
        Life::Running => return Ok(false),
        Life::Frozen => {
            process
                .map(|one| one.signal(Fault::Thaw))
                .transpose()
                .map_err(system("thaw HAProxy"))?;
            return Ok(false);
        }
        Life::Dead => {}
    }
    start(lab).await.map(|()| true)
}

/// Ends it; whether it was there.
///
/// # Errors
/// The system's.
pub async fn end(databases: &Databases) -> Result<bool, DatabaseError> {
    let process = databases.haproxy.as_ref().and_then(|one| one.process.as_ref());
    let Some(process) = process.filter(|process| process.is_alive()) else { return Ok(false) };
    process.end(GRACE).await.map_err(system("end HAProxy"))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::databases::tests::lab;

    #[test]
    fn both_ports_have_every_instance_and_ask_its_agent() {
        let lab = lab();
        let databases = lab.databases.as_ref().expect("it has some");
        let proxy = Proxy::new("/usr/sbin/haproxy".into(), &lab.dir, [24_001, 24_002]);
        let text = text(databases, &proxy).expect("names are names");
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
        let view = Proxy::new("/usr/sbin/haproxy".into(), Path::new("/lab"), [1, 2]).view();
        let value = serde_json::to_value(&view).expect("plain data");
        assert_eq!((&value["life"], &value["pid"]), (&"dead".into(), &serde_json::Value::Null));
        assert_eq!(
            (&value["write"], &value["read"]),
            (&"127.0.0.1:1".into(), &"127.0.0.1:2".into())
        );
    }
}
