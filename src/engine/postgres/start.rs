//! What must lie on disk before a start, and the command that opens what disk keeps closed.

use std::ffi::OsString;

use super::managed::Managed;
use super::options::Options;
use super::programs::Programs;
use super::{durable, hba, history, marker};
use crate::error::DiskError;
use crate::orders::{StartAs, StartCommand, SyncNames};

/// Writes role, settings and access rules, synced, and yields the command.
pub(super) fn prepare(
    options: &Options,
    programs: &Programs,
    start: &StartAs,
) -> Result<StartCommand, DiskError> {
    if let Some(what) = marker::interrupted(options)? {
        return Err(DiskError::Quarantined(what));
    }
    let dir = &options.data_dir;
    if marker::generation(dir)?.is_none() {
        return Err(DiskError::NotAdopted(dir.clone()));
    }
    history::unreserve(dir)?;
    let mut managed = Managed::load(dir, programs.owner)?;
    managed.base(options);
    let signal = dir.join("standby.signal");
    match start {
        StartAs::Standby { upstream } => {
            // The signal first: at no moment may this directory come up as a primary.
            durable::write_if_other(&signal, "", programs.owner)?;
            match upstream {
                Some(upstream) => managed.upstream(upstream, options),
                None => managed.no_upstream(),
            }
            managed.names(&SyncNames::Blocked);
            managed.store()?;
        }
        StartAs::Primary { names } => {
            managed.no_upstream();
            managed.names(names);
            managed.store()?;
        }
    }
    hba::put(options, None, programs.owner)?;
    durable::remove(&dir.join("recovery.signal"))?;
    if matches!(start, StartAs::Primary { .. }) {
        durable::remove(&signal)?;
    }
    // Options of an earlier start would let `pg_ctl restart` come up open.
    after(options)?;
    Ok(command(options, programs))
}

/// Closed settings in a directory whose files came from somewhere else: without an upstream, and
/// nobody can acknowledge a commit.
pub(super) fn lay_closed(options: &Options, programs: &Programs) -> Result<(), DiskError> {
    let mut managed = Managed::afresh(&options.data_dir, programs.owner);
    managed.base(options);
    managed.no_upstream();
    managed.names(&SyncNames::Blocked);
    managed.store()?;
    hba::put(options, None, programs.owner)
}

/// Forgets how the server was started.
pub(super) fn after(options: &Options) -> Result<(), DiskError> {
    durable::remove(&options.data_dir.join("postmaster.opts"))
}

fn command(options: &Options, programs: &Programs) -> StartCommand {
    let (program, mut args) = match options.starter_changes_user {
        true => (programs.path("postgres"), Vec::new()),
        false => programs.line("postgres"),
    };
    args.extend([OsString::from("-D"), options.data_dir.clone().into()]);
    let mut listen = options.listen.clone();
    if !listen.iter().any(|a| matches!(a.as_str(), "*" | "0.0.0.0" | "127.0.0.1" | "localhost")) {
        listen.push("127.0.0.1".to_owned());
    }
    let sockets = options.socket_dir.as_deref().map(|d| d.display().to_string());
    let settings = [
        ("listen_addresses", listen.join(",")),
        ("unix_socket_directories", sockets.unwrap_or_default()),
        ("port", options.port.to_string()),
        ("restart_after_crash", "off".to_owned()),
        ("hba_file", options.data_dir.join(hba::IN_USE).display().to_string()),
    ];
    for (key, value) in settings {
        args.extend([OsString::from("-c"), format!("{key}={value}").into()]);
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    let env = vec![("PATH".into(), path), ("LC_ALL".into(), "C".into())];
    StartCommand { program, args, env }
}
