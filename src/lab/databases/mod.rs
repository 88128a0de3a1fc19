//! The databases of a lab: one service, an instance per zone, each with its agent.
//!
//! Every instance has one directory (`<lab>/pg1`, ...) with everything of it: the agent's file,
//! state and log, the data directory and Regent's passwords. The lab starts agents and nothing
//! else: what runs PostgreSQL is the agent, and its fencer.
//!
//! - `ground`: what this machine must have. `file`: the agent's configuration.
//! - `make`: up and heal. `end`: nothing is left. `owned`: which processes are an instance's.
//! - [`proxy`]: HAProxy and Envoy in front of them.
//! - `look`: how they are now, asked of the agents (`http`) and of the primary itself.

pub mod end;
pub mod file;
pub mod ground;
pub mod http;
pub mod look;
pub mod make;
pub mod owned;
pub mod proxy;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regent_core::spec::Mode;
use serde::{Deserialize, Serialize};

pub use end::end;
pub use ground::Ground;
pub use look::{DatabasesView, InstanceView, view};
pub use make::{REDUNDANT, Revived, begin, lay_out, make, revive, start_agent, wait_redundant};
pub use proxy::{Front, Proxy, ProxyView};

use crate::process::{Fault, Process};

/// Name of the lab's service.
pub const SERVICE: &str = "orders";
/// The client's role and its database.
pub const APP: &str = "app";
/// Only ever on this machine.
pub const HOST: &str = "127.0.0.1";

/// What `up` makes besides the nodes.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// How many instances, each in its own zone.
    pub instances: u64,
    /// Lease mode or quorum mode.
    pub mode: Mode,
    /// The primary's lease.
    pub ttl: Duration,
    /// HAProxy in front of them.
    pub haproxy: Front,
    /// The program of an Envoy in front of them.
    pub envoy: Option<PathBuf>,
    /// Leave everything as it is when something fails, to look at it.
    pub keep: bool,
}

/// The databases of a lab, as kept in its directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Databases {
    /// The service's name.
    pub service: String,
    /// Its mode.
    pub mode: Mode,
    /// The primary's lease, in milliseconds.
    pub ttl_ms: u64,
    /// The client's role.
    pub user: String,
    /// Its password.
    pub password: String,
    /// Its database.
    pub dbname: String,
    /// Where PostgreSQL's programs are.
    pub bin_dir: PathBuf,
    /// Who runs them; `None`: whoever runs the lab.
    pub run_as: Option<String>,
    /// The instances.
    pub instances: Vec<LabInstance>,
    /// HAProxy in front of them; `None`: clients name every instance.
    #[serde(default)]
    pub haproxy: Option<Proxy>,
    /// Envoy in front of them.
    #[serde(default)]
    pub envoy: Option<Proxy>,
}

/// One instance and its agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabInstance {
    /// Its name: pg1, pg2, ...
    pub id: String,
    /// Its zone.
    pub zone: String,
    /// Where clients reach it.
    pub host: String,
    /// Port for clients.
    pub port: u16,
    /// `host:port` where its agent answers HTTP.
    pub http: String,
    /// Everything of it is below.
    pub dir: PathBuf,
    /// The agent that was started last; `None` before the first.
    pub process: Option<Process>,
}

impl LabInstance {
    /// PostgreSQL's data.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// What the agent keeps.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("agent")
    }

    /// What the agent tells about its processes.
    pub fn status_file(&self) -> PathBuf {
        self.state_dir().join("status.json")
    }

    /// The agent's configuration.
    pub fn config(&self) -> PathBuf {
        self.dir.join("agent.toml")
    }

    /// Passwords of Regent's own roles; the same in all instances.
    pub fn passfile(&self) -> PathBuf {
        self.dir.join("regent.pgpass")
    }

    /// PostgreSQL's own certificate (`crt`), key (`key`) and authorities (`ca`).
    pub fn server(&self, what: &str) -> PathBuf {
        self.dir.join(format!("server.{what}"))
    }

    /// Where the agent's stdout and stderr go.
    pub fn log(&self) -> PathBuf {
        self.dir.join("agent.log")
    }
}

/// Does something to one instance's agent. `Ok(false)`: it was dead already.
///
/// # Errors
/// The system refused.
pub fn signal_agent(instance: &LabInstance, fault: Fault) -> Result<bool, DatabaseError> {
    let what = || format!("signal the agent of {}", instance.id);
    match &instance.process {
        Some(process) => process.signal(fault).map_err(system(what())),
        None => Ok(false),
    }
}

/// Does the same to every process of an instance at once: agent, fencer, PostgreSQL. Says how many
/// were there.
///
/// # Errors
/// The system refused.
pub fn signal_host(
    lab: &crate::Lab,
    instance: &LabInstance,
    fault: Fault,
) -> Result<usize, DatabaseError> {
    let what = || format!("signal the processes of {}", instance.id);
    // The agent first: it must not see the others go, and act on it.
    let mut all: Vec<Process> = instance.process.iter().cloned().collect();
    let agent = instance.process.as_ref().map(|process| process.pid);
    all.extend(owned::by(lab, instance).into_iter().filter(|p| Some(p.pid) != agent));
    let mut count = 0;
    for process in all {
        count += usize::from(process.signal(fault).map_err(system(what()))?);
    }
    Ok(count)
}

/// Why databases could not be made, mended or ended.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The machine lacks something.
    #[error(transparent)]
    Ground(#[from] ground::GroundError),
    /// A number of instances that cannot be.
    #[error("{got} instances cannot be; use {least} to 9")]
    Size {
        /// How many were asked for.
        got: u64,
        /// Fewest.
        least: u64,
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
    /// No free ports.
    #[error("no free ports were found on 127.0.0.1")]
    Ports,
    /// An instance's place in the lab's own network could not be made.
    #[error(transparent)]
    Network(#[from] crate::network::NetworkError),
    /// Certificates could not be made.
    #[error("cannot make the agents' certificates")]
    Pki(#[from] regent_rpc::pki::PkiError),
    /// Certificates cannot be used.
    #[error("cannot use the lab's certificates")]
    Tls(#[from] regent_rpc::tls::TlsError),
    /// A configuration could not be written.
    #[error("cannot write an agent's configuration")]
    Config(#[from] toml::ser::Error),
    /// The service is not one that can be run.
    #[error("the lab's service cannot be declared: {0}")]
    Spec(String),
    /// The nodes did not take the declaration.
    #[error("the nodes did not take the declaration of the service: {0}")]
    Declare(String),
    /// The first data directory was not made.
    #[error("`regent agent init` of {instance} failed: {said}")]
    Init {
        /// Which.
        instance: String,
        /// What it said.
        said: String,
    },
    /// An agent ended instead of serving.
    #[error("the agent of {instance} ended: {last_words}")]
    Died {
        /// Which.
        instance: String,
        /// The end of its log.
        last_words: String,
    },
    /// A proxy does not lead to the primary.
    #[error("the write port of {what} does not lead to the primary ({error}): {last_words}")]
    Proxy {
        /// Which one.
        what: &'static str,
        /// What a client was told.
        error: String,
        /// The end of its log.
        last_words: String,
    },
    /// They are not well in time.
    #[error("the databases were not a primary with streaming standbys within {within:?}: {state}")]
    NotReady {
        /// How long was waited.
        within: Duration,
        /// What was missing.
        state: String,
    },
    /// Processes are left that could not be ended.
    #[error("{count} processes of {instance} survived SIGKILL")]
    Survived {
        /// Which.
        instance: String,
        /// How many.
        count: usize,
    },
}

pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> DatabaseError {
    let what = what.into();
    move |source| DatabaseError::System { what, source }
}

/// The instances' directories are below the lab's.
fn instance_dir(lab: &Path, id: &str) -> PathBuf {
    lab.join(id)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::layout::{LAB_VERSION, Lab, LabNode, Profile};

    /// A lab of one node and three instances, of which nothing exists.
    pub(crate) fn lab() -> Lab {
        let node = LabNode {
            id: 1,
            zone: "a".into(),
            grpc: "127.0.0.1:20001".into(),
            http: "127.0.0.1:21001".into(),
            data_dir: "/lab/node-1/data".into(),
            config: "/lab/node-1/node.toml".into(),
            log: "/lab/node-1/node.log".into(),
            process: None,
        };
        let instance = |at: u16| LabInstance {
            id: format!("pg{at}"),
            zone: "a".into(),
            host: HOST.into(),
            port: 23_000 + at,
            http: format!("{HOST}:{}", 22_000 + at),
            dir: instance_dir(Path::new("/lab"), &format!("pg{at}")),
            process: None,
        };
        Lab {
            version: LAB_VERSION,
            dir: "/lab".into(),
            binary: "/bin/regent".into(),
            cluster: "lab".into(),
            trust_domain: "lab.regent".into(),
            profile: Profile::Lan,
            nodes: vec![node],
            network: None,
            databases: Some(Databases {
                service: SERVICE.into(),
                mode: Mode::Quorum,
                ttl_ms: 3_000,
                user: APP.into(),
                password: "secret".into(),
                dbname: APP.into(),
                bin_dir: "/usr/lib/postgresql/15/bin".into(),
                run_as: Some("postgres".into()),
                instances: (1..=3).map(instance).collect(),
                haproxy: None,
                envoy: None,
            }),
        }
    }

    #[test]
    fn a_lab_of_before_the_databases_is_read_as_one_without() {
        let mut value = serde_json::to_value(lab()).expect("plain data");
        value.as_object_mut().expect("an object").remove("databases");
        let read: Lab = serde_json::from_value(value).expect("it is read");
        assert_eq!(read.databases, None);
    }
}
