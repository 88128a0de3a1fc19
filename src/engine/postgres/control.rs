//! The control file, through `pg_controldata`, and what else lies in a data directory.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use regent_core::role::Lsn;

use super::options::Options;
use super::programs::{Programs, SHORT};
use super::{durable, marker};
use crate::error::DiskError;
use crate::facts::{Cluster, ClusterState, Discovery};

/// Permissions that the server accepts: nobody else, or the group may read.
const MODES: [u32; 2] = [0o700, 0o750];

/// The version that the data is of; none when there is no cluster.
pub(super) fn data_version(data_dir: &Path) -> Result<Option<u32>, DiskError> {
    let path = data_dir.join("PG_VERSION");
    let Some(text) = durable::read(&path)? else { return Ok(None) };
    let version = text.trim().parse();
    version.map(Some).map_err(|_| DiskError::Unreadable { what: "the version".to_owned(), path })
}

/// What lies in the directory.
pub(super) async fn discover(
    options: &Options,
    programs: &Programs,
) -> Result<Discovery, DiskError> {
    let dir = &options.data_dir;
    if let Some(interrupted) = marker::interrupted(options)? {
        return Ok(Discovery::Quarantined { interrupted });
    }
    if durable::names(dir)?.is_empty() {
        return Ok(Discovery::Empty);
    }
    let meta = std::fs::metadata(dir).map_err(|source| DiskError::Io {
        what: "look at",
        path: dir.clone(),
        source,
    })?;
    let uid = programs.owner.map_or_else(|| rustix::process::geteuid().as_raw(), |(uid, _)| uid);
    if meta.uid() != uid {
        let why = format!("{} belongs to user {}, not {uid}", dir.display(), meta.uid());
        return Ok(Discovery::Unsafe { why });
    }
    let mode = meta.mode() & 0o777;
    if !MODES.contains(&mode) {
        let why = format!("{} has mode {mode:o}; it must be 700 or 750", dir.display());
        return Ok(Discovery::Unsafe { why });
    }
    if data_version(dir)?.is_none() {
        let why = format!("{} holds files, but no cluster", dir.display());
        return Ok(Discovery::Unsafe { why });
    }
    let cluster = read(dir, programs).await?;
    if let Some(wanted) = options.system_identifier
        && wanted != cluster.system_identifier
    {
        return Ok(Discovery::Foreign { found: cluster.system_identifier, wanted });
    }
    Ok(Discovery::Cluster(Box::new(cluster)))
}

/// The lines of the control file.
pub(super) async fn fields(
    dir: &Path,
    programs: &Programs,
) -> Result<HashMap<String, String>, DiskError> {
    let args = ["-D".as_ref(), dir.as_os_str()];
    let ended = programs.run("pg_controldata", &args, &[], "", SHORT).await?;
    if !ended.ok {
        return Err(ended.failure("pg_controldata"));
    }
    let lines = ended.out.lines().filter_map(|line| line.split_once(':'));
    Ok(lines.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())).collect())
}

/// The control file of a cluster.
pub(super) async fn read(dir: &Path, programs: &Programs) -> Result<Cluster, DiskError> {
    let fields = fields(dir, programs).await?;
    let version = data_version(dir)?.unwrap_or(programs.version);
    parse(&fields, dir, version)
}

fn parse(fields: &HashMap<String, String>, dir: &Path, version: u32) -> Result<Cluster, DiskError> {
    let bad = |what: &str| DiskError::Unreadable {
        what: format!("{what:?}"),
        path: dir.join("global/pg_control"),
    };
    let text = |key: &str| fields.get(key).map(String::as_str).ok_or_else(|| bad(key));
    let lsn = |key: &str| text(key)?.parse::<Lsn>().map_err(|_| bad(key));
    let number = |key: &str| text(key)?.parse::<u64>().map_err(|_| bad(key));
    let timeline = |key: &str| number(key).and_then(|n| u32::try_from(n).map_err(|_| bad(key)));
    let hints = text("wal_log_hints setting")? == "on";
    Ok(Cluster {
        system_identifier: number("Database system identifier")?,
        version,
        state: match text("Database cluster state")? {
            "shut down" => ClusterState::ShutDown,
            "shut down in recovery" => ClusterState::ShutDownInRecovery,
            "in production" => ClusterState::InProduction,
            "in archive recovery" => ClusterState::InArchiveRecovery,
            _ => ClusterState::Other,
        },
        timeline: timeline("Latest checkpoint's TimeLineID")?,
        checkpoint: lsn("Latest checkpoint location")?,
        redo: lsn("Latest checkpoint's REDO location")?,
        min_recovery_end: lsn("Minimum recovery ending location")?,
        min_recovery_timeline: timeline("Min recovery ending loc's timeline")?,
        can_rewind: hints || number("Data page checksum version")? > 0,
        segment_bytes: number("Bytes per WAL segment")?,
        generation: marker::generation(dir)?,
        pid_file: pid_file(dir)?,
        standby_signal: dir.join("standby.signal").exists(),
    })
}

/// A server that runs on a directory, as its pid file tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its first process.
    pub pid: i32,
    /// Where it listens on TCP.
    pub port: u16,
    /// Directory of its socket, or an address that it listens on; empty: neither.
    pub host: String,
}

/// The server that runs on the directory: not only a pid file, but the process that works in there.
pub(super) fn running(dir: &Path) -> Result<Option<Running>, DiskError> {
    let text = durable::read(&dir.join("postmaster.pid"))?.unwrap_or_default();
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let line = |at: usize| lines.get(at).copied().unwrap_or_default();
    let Ok(pid) = line(0).parse() else { return Ok(None) };
    if !works_in(pid, dir) {
        return Ok(None);
    }
    let host = [line(4), line(5)].into_iter().find(|host| !host.is_empty()).unwrap_or_default();
    let host = if host == "*" { "127.0.0.1" } else { host };
    Ok(Some(Running { pid, port: line(3).parse().unwrap_or(0), host: host.to_owned() }))
}

/// Whether that process is a server whose working directory this is. One that may not be looked
/// at counts as one.
fn works_in(pid: i32, dir: &Path) -> bool {
    let process = Path::new("/proc").join(pid.to_string());
    let name = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
    if !matches!(name.trim(), "postgres" | "postmaster") {
        return false;
    }
    match (std::fs::read_link(process.join("cwd")), dir.canonicalize()) {
        (Ok(cwd), Ok(dir)) => cwd == dir,
        (Err(error), _) => error.kind() == std::io::ErrorKind::PermissionDenied,
        (Ok(_), Err(_)) => false,
    }
}

/// The process that `postmaster.pid` names.
pub(super) fn pid_file(dir: &Path) -> Result<Option<i32>, DiskError> {
    let text = durable::read(&dir.join("postmaster.pid"))?;
    Ok(text.and_then(|text| text.lines().next()?.trim().parse().ok()))
}
