//! The settings that Regent manages: its own file, included last from `postgresql.conf`.
//!
//! `postgresql.auto.conf` is read after everything and would override ours, so what Regent manages
//! is taken out of it whenever our file is written. On disk the server is closed: it listens
//! nowhere, and fails to start by hand (PROTOCOL.md E3). Passwords never stand here: the agent's
//! monitoring role, and every holder of `pg_monitor`, can read `primary_conninfo`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::durable::{self, Owner};
use super::options::Options;
use super::secure::TlsFiles;
use crate::error::DiskError;
use crate::orders::{NOBODY, SyncNames, Upstream};

pub(super) const FILE: &str = "regent.conf";
const HEADER: &str =
    "# Written by Regent; changes are lost. Put settings of your own into postgresql.conf.\n";
pub(super) const INCLUDE: &str = "include_if_exists = 'regent.conf'";

pub(super) const CONNINFO: &str = "primary_conninfo";
pub(super) const SLOT: &str = "primary_slot_name";
pub(super) const RESTORE: &str = "restore_command";
pub(super) const NAMES: &str = "synchronous_standby_names";
const STREAMING_DELAY: &str = "max_standby_streaming_delay";
const ARCHIVE_DELAY: &str = "max_standby_archive_delay";
const APPLY_DELAY: &str = "recovery_min_apply_delay";

/// The managed file as it is, key by key.
pub(super) struct Managed {
    data_dir: PathBuf,
    owner: Owner,
    map: BTreeMap<String, String>,
}

/// A value as `postgresql.conf` wants it.
fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// A line of `postgresql.conf`.
pub(super) fn setting(key: &str, value: &str) -> String {
    format!("{key} = {}\n", quote(value))
}

fn unquote(text: &str) -> Option<String> {
    let inner = text.strip_prefix('\'')?.strip_suffix('\'')?;
    Some(inner.replace("''", "'").replace("\\\\", "\\"))
}

/// A value as a connection string wants it.
pub(super) fn conn_value(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// The text of `synchronous_standby_names`.
pub(crate) fn names_text(names: &SyncNames) -> String {
    match names {
        SyncNames::Unprotected => String::new(),
        SyncNames::Blocked => format!("ANY 1 (\"{NOBODY}\")"),
        SyncNames::Any { k, members } => {
            let quoted: Vec<_> = members.iter().map(|m| format!("\"{m}\"")).collect();
            format!("ANY {k} ({})", quoted.join(","))
        }
    }
}

/// How to connect for a stream. The password comes from the passfile.
fn conninfo(upstream: &Upstream, options: &Options) -> String {
    format!(
        "host={} port={} user={} dbname=replication application_name={} passfile={} \
         connect_timeout=2 keepalives_idle=2 keepalives_interval=1 keepalives_count=2 \
         tcp_user_timeout=2000{}",
        conn_value(&upstream.host),
        upstream.port,
        super::REPLICATION,
        conn_value(upstream.me.as_str()),
        conn_value(&options.passfile.to_string_lossy()),
        options.tls.as_ref().map(TlsFiles::words).unwrap_or_default(),
    )
}

impl Managed {
    /// Reads the file; an absent one is empty.
    pub(super) fn load(data_dir: &Path, owner: Owner) -> Result<Self, DiskError> {
        let text = durable::read(&data_dir.join(FILE))?.unwrap_or_default();
        let map = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once(" = "))
            .filter_map(|(key, value)| Some((key.to_owned(), unquote(value)?)))
            .collect();
        Ok(Self { data_dir: data_dir.to_owned(), owner, map })
    }

    /// Nothing of what is on disk: another instance's file was copied there.
    pub(super) fn afresh(data_dir: &Path, owner: Owner) -> Self {
        Self { data_dir: data_dir.to_owned(), owner, map: BTreeMap::new() }
    }

    /// A value as it is on disk.
    pub(super) fn get(&self, key: &str) -> &str {
        self.map.get(key).map_or("", String::as_str)
    }

    /// All of it.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.map.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    fn set(&mut self, key: &str, value: impl ToString) {
        self.map.insert(key.to_owned(), value.to_string());
    }

    /// What every start needs, whatever the role.
    pub(super) fn base(&mut self, options: &Options) {
        for (key, value) in &options.settings {
            self.set(key, value);
        }
        let fixed: [(&str, &str); 14] = [
            ("hot_standby", "on"),
            ("wal_log_hints", "on"),
            ("fsync", "on"),
            ("full_page_writes", "on"),
            ("wal_sender_timeout", "2s"),
            ("wal_receiver_timeout", "2s"),
            ("wal_retrieve_retry_interval", "100ms"),
            ("wal_receiver_status_interval", "1s"),
            ("restart_after_crash", "off"),
            ("synchronous_commit", "on"),
            ("password_encryption", "scram-sha-256"),
            ("recovery_target_timeline", "latest"),
            ("listen_addresses", ""),
            ("unix_socket_directories", ""),
        ];
        for (key, value) in fixed {
            self.set(key, value);
        }
        self.set("wal_level", if options.logical_wal { "logical" } else { "replica" });
        for key in ["max_wal_senders", "max_replication_slots"] {
            if !options.settings.contains_key(key) {
                self.set(key, options.max_senders);
            }
        }
        match &options.tls {
            Some(files) => {
                self.set("ssl", "on");
                self.set("ssl_cert_file", files.cert.display());
                self.set("ssl_key_file", files.key.display());
            }
            // Whatever `postgresql.conf` says.
            None => ["ssl", "ssl_cert_file", "ssl_key_file"].into_iter().for_each(|key| {
                self.map.remove(key);
            }),
        }
        self.set("port", options.port);
        self.set("wal_keep_size", format!("{}MB", options.wal_keep_mib));
        self.set("max_slot_wal_keep_size", format!("{}MB", options.slot_keep_mib));
    }

    /// Whom to stream from, and replay with the server's own regard for queries.
    pub(super) fn upstream(&mut self, upstream: &Upstream, options: &Options) {
        self.set(CONNINFO, conninfo(upstream, options));
        self.set(SLOT, upstream.slot.as_deref().map(super::slots::slot_name).unwrap_or_default());
        self.set(RESTORE, options.restore_command.as_deref().unwrap_or_default());
        for key in [STREAMING_DELAY, ARCHIVE_DELAY, APPLY_DELAY] {
            match options.settings.get(key) {
                Some(value) => self.set(key, value),
                None => {
                    self.map.remove(key);
                }
            }
        }
    }

    /// No means to receive WAL, and nothing that replay waits for.
    pub(super) fn no_upstream(&mut self) {
        for key in [CONNINFO, SLOT, RESTORE] {
            self.set(key, "");
        }
        for key in [STREAMING_DELAY, ARCHIVE_DELAY, APPLY_DELAY] {
            self.set(key, 0);
        }
    }

    /// Whose acknowledgements commits wait for.
    pub(super) fn names(&mut self, names: &SyncNames) {
        self.set(NAMES, names_text(names));
    }

    /// Writes the file, synced, and makes sure that nothing overrides it.
    pub(super) fn store(&self) -> Result<(), DiskError> {
        durable::write_if_other(&self.path(), &self.text()?, self.owner)?;
        self.overrides_all()
    }

    /// As [`Self::store`] of a standby, which the server may read before it is synced. Until
    /// [`sync`] nothing rests on it: after a power cut the file may be the old one, or empty, and
    /// the directory comes up as a standby all the same.
    pub(super) fn store_soon(&self) -> Result<(), DiskError> {
        durable::write_unsynced(&self.path(), &self.text()?, self.owner)?;
        self.overrides_all()
    }

    /// As [`Self::store`], but until [`sync`] a power cut may leave the old file.
    pub(super) fn store_whole(&self) -> Result<(), DiskError> {
        durable::write_whole(&self.path(), &self.text()?, self.owner)?;
        self.overrides_all()
    }

    fn path(&self) -> PathBuf {
        self.data_dir.join(FILE)
    }

    fn overrides_all(&self) -> Result<(), DiskError> {
        self.include()?;
        self.strip_auto_conf()
    }

    fn text(&self) -> Result<String, DiskError> {
        let mut text = HEADER.to_owned();
        for (key, value) in &self.map {
            if value.contains(['\n', '\r', '\0'])
                || !key.chars().all(|c| c.is_ascii_alphanumeric() || "._".contains(c))
            {
                return Err(DiskError::Setting(format!("the setting {key:?} cannot be written")));
            }
            text += &setting(key, value);
        }
        Ok(text)
    }

    /// Includes the file as the last line of `postgresql.conf`: the last one wins.
    fn include(&self) -> Result<(), DiskError> {
        let path = self.data_dir.join("postgresql.conf");
        let text = durable::read(&path)?.unwrap_or_default();
        let last = text.lines().rev().find(|l| !l.trim().is_empty() && !l.starts_with('#'));
        if last == Some(INCLUDE) {
            return Ok(());
        }
        let kept: Vec<_> = text.lines().filter(|line| *line != INCLUDE).collect();
        durable::write(&path, &format!("{}\n\n{INCLUDE}\n", kept.join("\n")), self.owner)
    }

    fn strip_auto_conf(&self) -> Result<(), DiskError> {
        let path = self.data_dir.join("postgresql.auto.conf");
        let Some(text) = durable::read(&path)? else { return Ok(()) };
        let ours = |line: &&str| {
            let key = line.split(['=', ' ', '\t']).next().unwrap_or_default();
            !line.trim_start().starts_with('#') && self.map.contains_key(&key.to_ascii_lowercase())
        };
        if !text.lines().any(|line| ours(&line)) {
            return Ok(());
        }
        let kept: Vec<_> = text.lines().filter(|line| !ours(line)).collect();
        durable::write(&path, &(kept.join("\n") + "\n"), self.owner)
    }
}

/// What was stored soon is on disk from here on.
pub(super) fn sync(data_dir: &Path) -> Result<(), DiskError> {
    durable::sync(&data_dir.join(FILE))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::orders::MemberName;

    #[test]
    fn names_are_written_as_the_server_reads_them() {
        let members =
            ["a", "zone-1/b.2"].iter().map(|n| MemberName::parse(n).unwrap()).collect::<Vec<_>>();
        assert_eq!(names_text(&SyncNames::Any { k: 1, members }), "ANY 1 (\"a\",\"zone-1/b.2\")");
        assert_eq!(names_text(&SyncNames::Unprotected), "");
        assert!(MemberName::parse("Regent_Nobody").is_err());
        assert!(MemberName::parse(&"x".repeat(64)).is_err());
        assert!(MemberName::parse("a\"b").is_err());
    }

    #[test]
    fn a_value_survives_writing_and_reading() {
        for value in ["", "it's", r"C:\x", "host='a\\'b'"] {
            assert_eq!(unquote(&quote(value)).unwrap(), value);
        }
    }
}
