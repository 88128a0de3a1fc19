//! `regent agent release`: a directory of Regent's becomes an ordinary PostgreSQL again (PROTOCOL.md G).
//!
//! In two steps, between which the service is deleted: first the server is stopped and lies there
//! closed, while the coordinators still say whose copy is the primary's; then, when they know nothing of
//! the service and can grant nothing any more, it is opened. It must never open a copy that was not the
//! last holder's as a primary: whoever starts that one has two.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use regent_core::id::Nonce;
use regent_engine::postgres::Postgres;
use regent_engine::{Discovery, DiskError, Engine as _, RebuildError, StartAs};
use regent_fencer::AgentId;
use regent_fencer::wire::StopMode;
use regent_rpc::tls::Tls;
use tokio::sync::mpsc;

use crate::config::AgentConfig;
use crate::declared;
use crate::guard::{Guard, GuardError};
use crate::notes::Notes;
use crate::start::{engine_options, guard_options};

/// In `state_dir`: the first step is done.
const MARK: &str = "released";

/// What is left to do, or that nothing is.
#[derive(Clone, Debug)]
pub struct Release {
    /// What speaks against it; nothing was done then.
    pub obstacles: Vec<String>,
    /// Nothing runs, and the directory is closed: the service can be deleted.
    pub stopped: bool,
    /// The directory is an ordinary one.
    pub done: bool,
    /// As what it would start.
    pub is_standby: bool,
}

/// Why it ended half-way; the same again goes on.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// Files or programs.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Plain settings.
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
    /// The fencer.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// The state directory.
    #[error("the state directory cannot be used")]
    State(#[source] std::io::Error),
}

/// Does what can be done now, if `apply`.
///
/// # Errors
/// [`ReleaseError`].
pub async fn release(
    config: &AgentConfig,
    tls: Arc<Tls>,
    program: PathBuf,
    apply: bool,
    stop_within: Duration,
) -> Result<Release, ReleaseError> {
    let postgres = Postgres::new(engine_options(config))?;
    let is_standby = config.postgres.data_dir.join("standby.signal").exists();
    let mark = config.state_dir.join(MARK);
    let mut release =
        Release { obstacles: Vec::new(), stopped: mark.exists(), done: false, is_standby };
    let found = postgres.check().await?;
    release.obstacles.extend(wrong(&found));
    if std::net::TcpStream::connect(&config.http.address).is_ok() {
        release.obstacles.push("its agent runs: stop it, and keep it from starting".to_owned());
    }
    let declared = match declared::ask(config, tls).await {
        Ok(declared) => declared,
        Err(why) => {
            release.obstacles.push(why);
            declared::Declared::default()
        }
    };
    let paused = declared.role.as_ref().is_none_or(|role| role.paused.is_some());
    let service = &config.service;
    if declared.service && !paused {
        release.obstacles.push(format!("{service} is not paused: `regent pause {service}` first"));
    }
    if declared.role.as_ref().is_some_and(|role| role.fence.is_some()) {
        release.obstacles.push(format!("a role change of {service} is under way"));
    }
    if !declared.service && !release.stopped {
        release.obstacles.push(format!(
            "{service} is not declared, so nobody can say whether this copy is the primary's: \
             release first, then delete"
        ));
    }
    if !release.obstacles.is_empty() || !apply {
        return Ok(release);
    }
    if declared.service {
        let holds = declared.holder() == Some(config.instance.as_str());
        stop(config, program, stop_within).await?;
        if !holds && !is_standby {
            // An old primary's copy: it may only ever follow.
            postgres.prepare_start(&StartAs::Standby { upstream: None }).await?;
            release.is_standby = true;
        }
        note(&mark).map_err(ReleaseError::State)?;
        release.stopped = true;
        return Ok(release);
    }
    postgres.release().await?;
    std::fs::remove_file(&mark).map_err(ReleaseError::State)?;
    release.done = true;
    Ok(release)
}

/// What lies there, if it is nothing that could be released.
fn wrong(found: &Discovery) -> Option<String> {
    match found {
        Discovery::Cluster(cluster) if cluster.generation.is_some() => None,
        Discovery::Cluster(_) => Some("it is not Regent's".to_owned()),
        Discovery::Empty => Some("there is no cluster".to_owned()),
        Discovery::Quarantined { interrupted } => Some(format!("{interrupted} was interrupted")),
        Discovery::Foreign { .. } => Some("it is of another cluster".to_owned()),
        Discovery::Unsafe { why } => Some(why.clone()),
    }
}

/// An orderly end of what runs under the fencer, and of the fencer.
async fn stop(
    config: &AgentConfig,
    program: PathBuf,
    within: Duration,
) -> Result<(), ReleaseError> {
    let socket = config.state_dir.join("fencer/socket");
    if std::os::unix::net::UnixStream::connect(socket).is_err() {
        // Nothing outlives its fencer.
        return Ok(());
    }
    let mut notes = Notes::open(&config.state_dir).map_err(ReleaseError::State)?;
    let fresh = Nonce(rand::random_range(1..=u64::MAX));
    let nonce = notes.change(|book| book.begin(fresh)).map_err(ReleaseError::State)?;
    let options = guard_options(config, program, AgentId { boot_count: notes.book.starts, nonce });
    let (news, _heard) = mpsc::unbounded_channel();
    let opened = tokio::task::spawn_blocking(move || Guard::open(&options, news)).await;
    let guard = opened.map_err(|error| ReleaseError::State(std::io::Error::other(error)))??;
    guard.stop(StopMode::Fast, within).await?;
    guard.quit().await?;
    Ok(())
}

/// Makes a file that survives.
fn note(path: &Path) -> std::io::Result<()> {
    std::fs::File::create(path)?.sync_all()?;
    let dir = path.parent().unwrap_or_else(|| Path::new("/"));
    std::fs::File::open(dir)?.sync_all()
}
