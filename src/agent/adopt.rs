//! `regent agent adopt`: a PostgreSQL that somebody else set up becomes an instance of a service.
//!
//! It must never run while an agent, or another program that starts servers, works on the directory,
//! and never stop a server before everything else was found in order: the clients' interruption is
//! the time from that stop to the first grant.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use regent_engine::postgres::{Ask, Postgres, Running, Survey};
use regent_engine::{DiskError, RebuildError};
use regent_rpc::tls::Tls;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::config::AgentConfig;
use crate::declared::{self, Declared};
use crate::start::engine_options;

/// Programs that would start what Regent stopped, by the names of their processes.
const RIVALS: [&str; 4] = ["patroni", "repmgrd", "pg_autoctl", "stolon-keeper"];
/// Where units are, and where they are masked.
const UNITS: [&str; 3] = ["/etc/systemd/system", "/lib/systemd/system", "/usr/lib/systemd/system"];
/// Between two looks whether a server has stopped.
const LOOK: Duration = Duration::from_millis(5);

/// What the operator wants.
#[derive(Clone, Debug)]
pub struct AdoptOptions {
    /// What the engine is told.
    pub ask: Ask,
    /// Do it; else only say what would be done.
    pub apply: bool,
    /// Only what a primary that runs can be given without an interruption: roles, and the passfile that
    /// its standbys' adoption needs.
    pub prepare: bool,
    /// A running server may be stopped, and its clients with it.
    pub interrupt: bool,
    /// How long an orderly stop may take.
    pub stop_within: Duration,
}

/// What was found, and what was done.
#[derive(Clone, Debug)]
pub struct Adoption {
    /// The cluster before.
    pub survey: Survey,
    /// It is Regent's now.
    pub done: bool,
    /// It has what its standbys need to be adopted before it.
    pub prepared: bool,
    /// Since when no client could write; of a server that ran.
    pub stopped_for: Option<Duration>,
}

/// Why nothing was adopted.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// Files or programs.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Roles, settings.
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
    /// The server could not be told to stop.
    #[error("cannot stop the server, process {pid}")]
    Signal {
        /// Its first process.
        pid: i32,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It did not stop.
    #[error("the server, process {pid}, was told to stop and still runs after {within:?}")]
    Runs {
        /// Its first process.
        pid: i32,
        /// The limit.
        within: Duration,
    },
}

/// Looks, and where that is wanted and nothing speaks against it, adopts.
///
/// # Errors
/// [`AdoptError`]; a server that was stopped lies there stopped, and the adoption can be repeated.
pub async fn adopt(
    config: &AgentConfig,
    tls: Arc<Tls>,
    options: &AdoptOptions,
) -> Result<Adoption, AdoptError> {
    let postgres = Postgres::new(engine_options(config))?;
    let mut survey = postgres.survey(&options.ask).await?;
    let is_standby = survey.is_standby;
    survey.obstacles.extend(undeclared(config, declared::ask(config, tls).await, is_standby));
    survey.obstacles.extend(on_host(config, survey.running.as_ref(), survey.version));
    if options.prepare && (survey.is_standby || survey.running.is_none()) {
        survey
            .obstacles
            .push("only a primary that runs is prepared: leave --prepare out".to_owned());
    }
    let cuts = options.apply && !options.prepare;
    if let (Some(running), true, false) = (&survey.running, cuts, options.interrupt) {
        let pid = running.pid;
        let how = "say that its clients may be interrupted (--interrupt), or stop it first";
        survey.obstacles.push(format!("it runs, as process {pid}: {how}"));
    }
    if !options.apply || !survey.obstacles.is_empty() {
        return Ok(Adoption { survey, done: false, prepared: false, stopped_for: None });
    }
    if options.prepare {
        postgres.adopt_running(&survey, &options.ask).await?;
        return Ok(Adoption { survey, done: false, prepared: true, stopped_for: None });
    }
    let mut stopped = None;
    if let Some(running) = &survey.running {
        postgres.adopt_running(&survey, &options.ask).await?;
        stopped = Some(Instant::now());
        stop(running, options.stop_within).await?;
    }
    postgres.adopt(&Ask { config_file: Some(survey.config_file()), ..options.ask.clone() }).await?;
    let stopped_for = stopped.map(|at| at.elapsed());
    Ok(Adoption { survey, done: true, prepared: true, stopped_for })
}

/// A fast stop: clients are sent away, what they were doing is rolled back, standbys get everything.
async fn stop(running: &Running, within: Duration) -> Result<(), AdoptError> {
    let pid = running.pid;
    let failed = |source: rustix::io::Errno| AdoptError::Signal { pid, source: source.into() };
    let Some(of) = Pid::from_raw(pid) else { return Ok(()) };
    // By a descriptor: its number may be another's before it is looked at again.
    let process = match pidfd_open(of, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        opened => opened.map_err(failed)?,
    };
    match pidfd_send_signal(&process, Signal::INT) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        sent => sent.map_err(failed)?,
    }
    let deadline = Instant::now() + within;
    loop {
        let mut ends = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        if rustix::event::poll(&mut ends, Some(&now)).map_err(failed)? > 0 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(AdoptError::Runs { pid, within });
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What the coordinators' declaration has against it.
fn undeclared(
    config: &AgentConfig,
    asked: Result<Declared, String>,
    is_standby: bool,
) -> Option<String> {
    let (service, instance) = (&config.service, &config.instance);
    let declared = match asked {
        Ok(declared) => declared,
        Err(why) => return Some(why),
    };
    if !declared.service {
        return Some(format!("{service} is not declared: regent services apply"));
    }
    if !declared.instance {
        return Some(format!("{service} has no instance {instance}: correct one of both"));
    }
    let holder = declared.holder().filter(|_| !is_standby)?;
    Some(format!("{service} has a primary already, {holder}: only its standbys can be adopted"))
}

/// Who else may start a server here.
fn on_host(config: &AgentConfig, running: Option<&Running>, version: u32) -> Vec<String> {
    let mut found: Vec<_> = rivals()
        .into_iter()
        .map(|(pid, name)| {
            format!("{name} runs here (process {pid}): end it and keep it from starting")
        })
        .collect();
    if Path::new("/run/systemd/system").is_dir() {
        let units = units(&config.postgres.data_dir, running, version);
        found.extend(units.into_iter().filter(|unit| is_enabled(unit)).map(|unit| {
            format!("the unit {unit} could start it beside Regent: systemctl mask {unit}")
        }));
    }
    let socket = config.state_dir.join("fencer/socket");
    if std::os::unix::net::UnixStream::connect(socket).is_ok() {
        found.push("a fencer of Regent's runs for this agent: stop the agent and it".to_owned());
    }
    found
}

/// Processes whose program, or script, has one of the names.
fn rivals() -> Vec<(i32, &'static str)> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let of = |pid: i32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let mut names = words
            .split(|byte| *byte == 0)
            .take(3)
            .filter_map(|word| Path::new(std::str::from_utf8(word).ok()?).file_name()?.to_str());
        names.find_map(|name| RIVALS.into_iter().find(|rival| *rival == name))
    };
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, of(pid)?))).collect()
}

/// Units of the distribution that start this directory: the one it runs in, and by its place.
fn units(data_dir: &Path, running: Option<&Running>, version: u32) -> Vec<String> {
    let cgroup = running
        .and_then(|it| std::fs::read_to_string(format!("/proc/{}/cgroup", it.pid)).ok())
        .unwrap_or_default();
    let slices = cgroup.lines().filter_map(|line| line.rsplit('/').next());
    let mut units: Vec<_> =
        slices.filter(|unit| unit.ends_with(".service")).map(str::to_owned).collect();
    let parts: Vec<_> = data_dir.iter().filter_map(|part| part.to_str()).collect();
    match parts.as_slice() {
        [.., "postgresql", of, name] => units.push(format!("postgresql@{of}-{name}.service")),
        [.., "pgsql", of, "data"] => units.push(format!("postgresql-{of}.service")),
        _ => units.push(format!("postgresql-{version}.service")),
    }
    units.sort();
    units.dedup();
    units
}

/// Whether the unit is there and not masked. A unit of a template is there with the template.
fn is_enabled(unit: &str) -> bool {
    let template = unit.split_once('@').map(|(name, _)| format!("{name}@.service"));
    let names = [Some(unit.to_owned()), template];
    let at =
        |name: &String| UNITS.iter().map(|dir| Path::new(dir).join(name)).find(|it| exists(it));
    let masked = |path: &PathBuf| {
        std::fs::read_link(path).is_ok_and(|target| target == Path::new("/dev/null"))
    };
    names.iter().flatten().find_map(at).is_some_and(|path| !masked(&path))
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_found_by_the_place_of_the_data() {
        let units = |dir: &str| units(Path::new(dir), None, 15);
        assert_eq!(units("/var/lib/postgresql/15/main"), ["postgresql@15-main.service"]);
        assert_eq!(units("/var/lib/pgsql/15/data"), ["postgresql-15.service"]);
        assert!(!is_enabled("regent-no-such-unit@1.service"));
    }
}
