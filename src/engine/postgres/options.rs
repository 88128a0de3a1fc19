//! Where a PostgreSQL instance lives and how it is reached.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::secure::TlsFiles;

/// Settings of one instance. None of them is secret: passwords are in the passfile.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data directory. Its parent must be writable for a clone.
    pub data_dir: PathBuf,
    /// Regent's own files about this directory; outside of it, because a rewind removes there
    /// whatever the source does not have.
    pub state_dir: PathBuf,
    /// Passwords of Regent's roles, in libpq's format, readable by the server's user alone.
    pub passfile: PathBuf,
    /// Where the server's programs are; found on PATH or in Debian's places when not said.
    pub bin_dir: Option<PathBuf>,
    /// The user to run everything as; used only when this process is root.
    pub run_as: Option<String>,
    /// Whether who starts the server becomes that user by itself, as the fencer does; otherwise the
    /// start command does it.
    pub starter_changes_user: bool,
    /// Addresses to listen on; 127.0.0.1 is added, because the agent connects there.
    pub listen: Vec<String>,
    /// TCP port.
    pub port: u16,
    /// Directory of the Unix socket for clients; none: no socket.
    pub socket_dir: Option<PathBuf>,
    /// Addresses, as `pg_hba.conf` writes them, from which other instances stream and rewind.
    pub peers: Vec<String>,
    /// Certificates for sessions between instances, which need no others then; clients may use TLS.
    pub tls: Option<TlsFiles>,
    /// Lines of `pg_hba.conf` for clients.
    pub client_hba: Vec<String>,
    /// Further settings for the server. They do not override those that Regent needs.
    pub settings: BTreeMap<String, String>,
    /// Restores WAL from an archive, as `restore_command`; not while detached.
    pub restore_command: Option<String>,
    /// The cluster this must be; any when not said.
    pub system_identifier: Option<u64>,
    /// `wal_level` is `logical`, for subscribers of the application's; else `replica`.
    pub logical_wal: bool,
    /// Most processes that send WAL, and most slots.
    pub max_senders: u32,
    /// WAL kept for standbys without a slot, and before one connects; mebibytes.
    pub wal_keep_mib: u64,
    /// Most WAL that a slot may keep, so that a dead standby cannot fill the disk; mebibytes.
    pub slot_keep_mib: u64,
    /// Most bytes of a diverged instance's own WAL that are kept aside before a rewind.
    pub orphaned_max_bytes: u64,
}

impl Options {
    /// The usual ones for a data directory and a port, on loopback only.
    pub fn new(data_dir: impl Into<PathBuf>, port: u16) -> Self {
        let data_dir = data_dir.into();
        let beside = |ending: &str| {
            let mut name = data_dir.file_name().unwrap_or_default().to_os_string();
            name.push(ending);
            data_dir.with_file_name(name)
        };
        Self {
            state_dir: beside(".regent"),
            passfile: beside(".pass"),
            data_dir,
            bin_dir: None,
            run_as: None,
            starter_changes_user: false,
            listen: Vec::new(),
            port,
            socket_dir: None,
            peers: Vec::new(),
            tls: None,
            client_hba: vec!["host all all all scram-sha-256".to_owned()],
            settings: BTreeMap::new(),
            restore_command: None,
            system_identifier: None,
            logical_wal: false,
            max_senders: 20,
            wal_keep_mib: 256,
            slot_keep_mib: 16 * 1024,
            orphaned_max_bytes: 1 << 30,
        }
    }
}
