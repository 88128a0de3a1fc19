//! A closed directory of Regent's becomes an ordinary one: its own settings and access rules, open to
//! whoever starts it.
//!
//! It must be asked only when nothing runs there and nobody can be granted the role any more. What
//! clients and standbys need goes on: addresses, access, the upstream and its password file.

use std::path::Path;

use super::managed::{self, Managed};
use super::options::Options;
use super::programs::Programs;
use super::{control, durable, hba};
use crate::error::{DiskError, RebuildError};

const BEGIN: &str = "# --- left by Regent, which does not manage this cluster any more ---";
/// What the cluster would lack without its managed file.
const KEPT: [&str; 16] = [
    "port",
    "wal_level",
    "max_wal_senders",
    "max_replication_slots",
    "wal_log_hints",
    "wal_keep_size",
    "max_slot_wal_keep_size",
    "hot_standby",
    "password_encryption",
    "ssl",
    "ssl_cert_file",
    "ssl_key_file",
    managed::CONNINFO,
    managed::SLOT,
    managed::RESTORE,
    "recovery_target_timeline",
];
/// Of Regent's own files: last the one by which a directory is known as its.
const OURS: [&str; 3] = [managed::FILE, hba::IN_USE, "regent.generation"];

/// The whole of it. May be repeated.
pub(super) fn release(options: &Options, programs: &Programs) -> Result<(), RebuildError> {
    let dir = &options.data_dir;
    if let Some(running) = control::running(dir)? {
        return Err(RebuildError::InUse { path: dir.clone(), pid: running.pid });
    }
    let managed = Managed::load(dir, programs.owner)?;
    if managed.get("port").is_empty() {
        // Its settings were taken over by an earlier try.
        return Ok(forget(dir)?);
    }
    let path = dir.join("postgresql.conf");
    let text = durable::read(&path)?.unwrap_or_default();
    let theirs = text.split(BEGIN).next().unwrap_or_default();
    let theirs: Vec<_> = theirs.lines().filter(|line| *line != managed::INCLUDE).collect();
    let mut listen = options.listen.clone();
    if !listen.iter().any(|it| matches!(it.as_str(), "*" | "0.0.0.0" | "127.0.0.1")) {
        listen.push("127.0.0.1".to_owned());
    }
    let socket = options.socket_dir.as_deref().unwrap_or(Path::new("/var/run/postgresql"));
    let mut lines = vec![
        managed::setting("listen_addresses", &listen.join(",")),
        managed::setting("unix_socket_directories", &socket.display().to_string()),
    ];
    for key in KEPT {
        let value = managed.get(key);
        if !value.is_empty() {
            lines.push(managed::setting(key, value));
        }
    }
    let rules = hba::plain_text(options);
    durable::write(&dir.join("pg_hba.conf"), &rules, programs.owner)?;
    let whole = format!("{}\n{BEGIN}\n{}", theirs.join("\n").trim_end(), lines.concat());
    durable::write(&path, &whole, programs.owner)?;
    Ok(forget(dir)?)
}

fn forget(dir: &Path) -> Result<(), DiskError> {
    OURS.into_iter().try_for_each(|name| durable::remove(&dir.join(name)))
}
