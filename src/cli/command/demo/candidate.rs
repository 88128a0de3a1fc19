//! A client of the demo: a real process that runs `regent election campaign --hold`.

use std::process::Stdio;
use std::time::{Duration, Instant};

use regent_core::id::{Epoch, Revision};
use regent_lab::Lab;
use regent_lab::process::{Fault, Process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::command::lab::Identity;
use crate::error::{CliError, Context as _, Outcome};

/// The process, and what it says.
pub struct Candidate {
    name: &'static str,
    process: Process,
    lines: Lines<BufReader<ChildStdout>>,
    /// Killed when this is dropped: nothing of the demo may stay.
    _child: Child,
}

/// Something it said.
pub struct Said {
    /// When it was heard.
    pub at: Instant,
    /// The epoch it named, if any.
    pub epoch: Epoch,
}

impl Candidate {
    /// Starts it.
    pub fn start(lab: &Lab, name: &'static str, election: &str, ttl: Duration) -> Outcome<Self> {
        let identity = Identity::Client.pair(lab);
        let what = || format!("cannot start the {name} client");
        let mut child = Command::new(&lab.binary)
            .env_remove("REGENT_CONFIG")
            .args(["--endpoints", &lab.endpoints().join(","), "-o", "json"])
            .arg("--cert")
            .arg(identity.cert)
            .arg("--key")
            .arg(identity.key)
            .arg("--ca")
            .arg(lab.certificates().ca)
            .args(["--trust-domain", &lab.trust_domain])
            .args(["election", "campaign", election, "--hold", "--value", name, "--label", name])
            .args(["--ttl", &format!("{}ms", ttl.as_millis())])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .or_internal(what)?;
        let pid = child.id().ok_or_else(|| CliError::internal(what()))?;
        let process = Process::identify(pid).or_internal(what)?;
        let stdout = child.stdout.take().expect("it was asked for");
        Ok(Self { name, process, lines: BufReader::new(stdout).lines(), _child: child })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.process.pid
    }

    /// Waits until it says this; anything that ends it before is an error.
    pub async fn event(&mut self, event: &str, within: Duration) -> Outcome<Said> {
        let wait = async {
            loop {
                let Some(line) = self.next().await? else {
                    return Err(CliError::internal(format!(
                        "the {} client ended instead of saying {event:?}",
                        self.name
                    )));
                };
                let at = Instant::now();
                let said: Value = serde_json::from_str(&line)
                    .or_internal(|| format!("the {} client said {line:?}", self.name))?;
                if said["event"] == event {
                    return Ok(Said { at, epoch: epoch(&said) });
                }
            }
        };
        match tokio::time::timeout(within, wait).await {
            Ok(said) => said,
            Err(_) => Err(CliError::internal(format!("the client did not say {event:?} in time"))),
        }
    }

    /// Whether it says nothing for so long (a lost lease would be said) and is alive after it.
    pub async fn quiet_for(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.next()).await.is_err() && self.process.is_alive()
    }

    /// SIGKILL.
    pub fn kill(&self) -> Outcome {
        self.signal(Fault::Kill)
    }

    /// SIGTERM.
    pub fn terminate(&self) -> Outcome {
        self.signal(Fault::Terminate)
    }

    fn signal(&self, fault: Fault) -> Outcome {
        match self.process.signal(fault) {
            Ok(true) => Ok(()),
            Ok(false) => Err(CliError::internal(format!("the {} client is gone", self.name))),
            Err(error) => Err(CliError::internal("cannot signal a client").caused_by(error)),
        }
    }

    async fn next(&mut self) -> Outcome<Option<String>> {
        let name = self.name;
        self.lines.next_line().await.or_internal(|| format!("cannot hear the {name} client"))
    }
}

fn epoch(said: &Value) -> Epoch {
    let part = |name: &str| said["epoch"][name].as_u64().unwrap_or(0);
    Epoch { incarnation: part("incarnation"), revision: Revision(part("revision")) }
}
