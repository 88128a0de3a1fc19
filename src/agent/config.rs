//! `agent.toml`: which instance this is, whom it asks, where its database lies.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use regent_core::id::{InstanceName, ServiceName};
use serde::Deserialize;

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// The service.
    pub service: ServiceName,
    /// The instance of it; both as in the certificate `agent/<service>/<instance>`.
    pub instance: InstanceName,
    /// `host:port` of the coordinators.
    pub nodes: Vec<String>,
    /// What the agent and its fencer must remember; on a disk that keeps what it is told.
    pub state_dir: PathBuf,
    /// How often it reports without news, in milliseconds.
    #[serde(default = "report_interval_ms")]
    pub report_interval_ms: u64,
    /// How long ending PostgreSQL takes at most, in milliseconds (C6).
    #[serde(default = "fence_budget_ms")]
    pub fence_budget_ms: u64,
    /// What resets the machine when the fencer gets no time any more (A3).
    #[serde(default)]
    pub watchdog: Option<Watchdog>,
    /// Who it is before the coordinators.
    pub tls: TlsFiles,
    /// Where load balancers ask.
    pub http: Http,
    /// Its database.
    pub postgres: PostgresConfig,
}

/// Certificate, key and authorities.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// Certificate chain.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// Authorities of the nodes.
    pub ca: PathBuf,
    /// Trust domain of the cluster.
    pub trust_domain: String,
}

/// A watchdog device that is this agent's alone.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watchdog {
    /// Its file.
    pub device: PathBuf,
    /// The timeout that the device has, in milliseconds: whole seconds.
    pub timeout_ms: u64,
}

/// The port for health checks.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// `host:port`.
    pub address: String,
    /// `host:port` as routers reach it, if that is not `address`.
    #[serde(default)]
    pub advertise: Option<String>,
}

impl Http {
    /// What routers are told: without a host where it listens on every address of the host.
    pub fn told(&self) -> String {
        let told = self.advertise.as_ref().unwrap_or(&self.address);
        match told.parse::<std::net::SocketAddr>() {
            Ok(address) if address.ip().is_unspecified() => format!(":{}", address.port()),
            _ => told.clone(),
        }
    }
}

/// A PostgreSQL data directory.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    /// Where it lies.
    pub data_dir: PathBuf,
    /// Address it listens on for clients and the other instances.
    pub listen_host: String,
    /// Its port.
    pub port: u16,
    /// Passwords of Regent's own roles.
    pub passfile: PathBuf,
    /// Where PostgreSQL's programs are; searched for when not said.
    #[serde(default)]
    pub bin_dir: Option<PathBuf>,
    /// From where other instances stream and rewind, as in `pg_hba.conf`: addresses with a mask,
    /// names, `samehost`, `samenet`.
    #[serde(default = "peers")]
    pub peers: Vec<String>,
    /// Certificates for sessions between instances; without them these are in plain text.
    #[serde(default)]
    pub tls: Option<PostgresTls>,
    /// Lines of `pg_hba.conf` for clients.
    #[serde(default = "client_hba")]
    pub client_hba: Vec<String>,
    /// Where its Unix socket is made; without it there is none.
    #[serde(default)]
    pub socket_dir: Option<PathBuf>,
    /// Restores WAL from an archive, as PostgreSQL's `restore_command`; not while detached.
    #[serde(default)]
    pub restore_command: Option<String>,
    /// WAL kept for standbys without a slot, in MiB.
    #[serde(default = "wal_keep_mib")]
    pub wal_keep_mib: u64,
    /// Most WAL that a slot keeps, in MiB.
    #[serde(default = "slot_keep_mib")]
    pub slot_keep_mib: u64,
    /// `replica`, or `logical` for subscribers of the application's.
    #[serde(default)]
    pub wal_level: WalLevel,
    /// Most processes that send WAL, and most slots.
    #[serde(default = "max_senders")]
    pub max_senders: u32,
    /// As whom PostgreSQL runs when the agent is root.
    #[serde(default)]
    pub run_as: Option<String>,
}

/// PostgreSQL's own certificate, and whose it believes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresTls {
    /// Certificate chain; it names the host of the instance's declared address.
    pub cert: PathBuf,
    /// Private key, for PostgreSQL's user alone.
    pub key: PathBuf,
    /// Authorities of the other instances.
    pub ca: PathBuf,
}

/// What the WAL has to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WalLevel {
    /// Enough for standbys.
    #[default]
    Replica,
    /// Enough for logical decoding.
    Logical,
}

fn wal_keep_mib() -> u64 {
    256
}

fn slot_keep_mib() -> u64 {
    16 * 1024
}

fn max_senders() -> u32 {
    20
}

fn peers() -> Vec<String> {
    vec!["samehost".to_owned(), "samenet".to_owned()]
}

fn client_hba() -> Vec<String> {
    vec!["host all all all scram-sha-256".to_owned()]
}

fn report_interval_ms() -> u64 {
    200
}

fn fence_budget_ms() -> u64 {
    250
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not what an agent's configuration looks like.
    #[error("{} is no configuration of an agent", path.display())]
    Form {
        /// Which.
        path: PathBuf,
        /// The line and what is wrong with it.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value cannot be.
    #[error("{field}: {problem}; {fix}")]
    Value {
        /// Path of the field.
        field: &'static str,
        /// What is wrong.
        problem: String,
        /// What would be right.
        fix: &'static str,
    },
}

impl AgentConfig {
    /// Reads and checks the file. Relative paths are relative to it.
    ///
    /// # Errors
    /// [`ConfigError`] names the field and the fix.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut config: Self = toml::from_str(&text).map_err(|source| ConfigError::Form {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        let base = path.parent().unwrap_or(Path::new("."));
        for entry in [
            &mut config.state_dir,
            &mut config.tls.cert,
            &mut config.tls.key,
            &mut config.tls.ca,
            &mut config.postgres.data_dir,
            &mut config.postgres.passfile,
        ]
        .into_iter()
        .chain(&mut config.postgres.socket_dir)
        .chain(
            config.postgres.tls.iter_mut().flat_map(|it| [&mut it.cert, &mut it.key, &mut it.ca]),
        ) {
            // `join` keeps an absolute path as it is.
            *entry = base.join(&*entry);
        }
        if let Some(watchdog) = &mut config.watchdog {
            watchdog.device = base.join(&watchdog.device);
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let value = |field, problem: String, fix| Err(ConfigError::Value { field, problem, fix });
        if self.nodes.is_empty() {
            return value("nodes", "there is none".into(), "name host:port of the coordinators");
        }
        if !(20..=60_000).contains(&self.report_interval_ms) {
            let problem = format!("{} ms is out of range", self.report_interval_ms);
            return value("report_interval_ms", problem, "200 is usual, 20 to 60000 possible");
        }
        if self.fence_budget_ms < 250 {
            let problem = format!("{} ms is too short to be sure", self.fence_budget_ms);
            return value("fence_budget_ms", problem, "use at least 250 (C6)");
        }
        if self.postgres.max_senders < 10 {
            let problem = format!("{} is too few", self.postgres.max_senders);
            return value("postgres.max_senders", problem, "20 is usual, use at least 10");
        }
        if self.postgres.slot_keep_mib < 64 {
            let problem = format!("{} MiB is less than a lag", self.postgres.slot_keep_mib);
            return value("postgres.slot_keep_mib", problem, "16384 is usual, use at least 64");
        }
        if self.state_dir.starts_with(&self.postgres.data_dir) {
            let problem = "it lies inside postgres.data_dir".to_owned();
            return value("state_dir", problem, "a rewind would remove it: put it beside");
        }
        self.watchdog.as_ref().map_or(Ok(()), Watchdog::check)
    }
}

impl Watchdog {
    /// Whether it can be fed, and resets when it is meant to. It is not opened: that would start it.
    fn check(&self) -> Result<(), ConfigError> {
        let value = |field, problem: String, fix| Err(ConfigError::Value { field, problem, fix });
        let (device, timeout_ms) = (&self.device, self.timeout_ms);
        if !(1_000..=60_000).contains(&timeout_ms) || timeout_ms % 1_000 != 0 {
            let problem = format!("{timeout_ms} ms is no timeout of a watchdog");
            return value("watchdog.timeout_ms", problem, "use whole seconds, 1000 to 60000");
        }
        let kind = match std::fs::metadata(device) {
            Ok(found) => found,
            Err(error) => {
                let problem = format!("{}: {error}", device.display());
                return value("watchdog.device", problem, "name the device, as /dev/watchdog");
            }
        };
        // A pipe is what tests have.
        if !kind.file_type().is_char_device() && !kind.file_type().is_fifo() {
            let problem = format!("{} is no device", device.display());
            return value("watchdog.device", problem, "name the device, as /dev/watchdog");
        }
        if let Err(error) = rustix::fs::access(device, rustix::fs::Access::WRITE_OK) {
            let problem = format!("{} cannot be written: {error}", device.display());
            return value("watchdog.device", problem, "give it to the agent's user (udev)");
        }
        match Self::set_ms(&kind) {
            Some(set_ms) if set_ms != timeout_ms => {
                let problem = format!("{timeout_ms} ms, and the device has {set_ms}");
                return value("watchdog.timeout_ms", problem, "set both to the same (wdctl -s)");
            }
            None if kind.file_type().is_char_device() => tracing::warn!(
                device = %device.display(),
                "the kernel does not say which timeout the watchdog has: it must be {timeout_ms} ms"
            ),
            _ => {}
        }
        Ok(())
    }

    /// The timeout that the device has, where the kernel says it.
    fn set_ms(device: &std::fs::Metadata) -> Option<u64> {
        let (major, minor) = (rustix::fs::major(device.rdev()), rustix::fs::minor(device.rdev()));
        let own = format!("/sys/dev/char/{major}:{minor}/timeout");
        // The old name, of which there is one, is that of the first device.
        let first = (major, minor) == (10, 130);
        let first = first.then_some("/sys/class/watchdog/watchdog0/timeout");
        let text =
            std::fs::read_to_string(own).ok().or_else(|| std::fs::read_to_string(first?).ok())?;
        text.trim().parse::<u64>().ok().map(|seconds| seconds.saturating_mul(1_000))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(change: impl Fn(&str) -> String) -> Result<AgentConfig, ConfigError> {
        let text = r#"
service = "orders"
instance = "pg1"
nodes = ["127.0.0.1:7400"]
state_dir = "agent"
[tls]
cert = "a.crt"
key = "a.key"
ca = "ca.crt"
trust_domain = "lab"
[http]
address = "127.0.0.1:8008"
[postgres]
data_dir = "data"
listen_host = "127.0.0.1"
port = 5432
passfile = "regent.pgpass"
"#;
        let name = format!("regent-agent-config-{}-{}", std::process::id(), rand::random::<u64>());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("agent.toml");
        std::fs::write(&path, change(text)).unwrap();
        let config = AgentConfig::read(&path);
        std::fs::remove_dir_all(&dir).unwrap();
        config
    }

    #[test]
    fn paths_are_relative_to_the_file_and_defaults_are_the_protocols() {
        let config = parse(str::to_owned).unwrap();
        assert!(config.postgres.data_dir.is_absolute() && config.tls.key.ends_with("a.key"));
        assert_eq!((config.report_interval_ms, config.fence_budget_ms), (200, 250));
    }

    #[test]
    fn routers_are_told_an_address_that_is_one_elsewhere_too() {
        let told = |address: &str, advertise: Option<&str>| {
            Http { address: address.into(), advertise: advertise.map(Into::into) }.told()
        };
        assert_eq!(told("10.0.0.1:8008", None), "10.0.0.1:8008");
        assert_eq!(
            (told("0.0.0.0:8008", None), told("[::]:81", None)),
            (":8008".into(), ":81".into())
        );
        assert_eq!(told("0.0.0.0:8008", Some("db1.lan:80")), "db1.lan:80");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let of = |change: &dyn Fn(&str) -> String| parse(change).unwrap_err();
        let typo = of(&|text| text.replace("port = 5432", "prot = 5432"));
        assert!(std::error::Error::source(&typo).unwrap().to_string().contains("prot"), "{typo}");
        let none = of(&|text| text.replace("[\"127.0.0.1:7400\"]", "[]"));
        assert!(none.to_string().starts_with("nodes:"), "{none}");
        let inside =
            of(&|text| text.replace("state_dir = \"agent\"", "state_dir = \"data/agent\""));
        assert!(inside.to_string().starts_with("state_dir:"), "{inside}");
        for (device, timeout_ms, field) in [
            ("/dev/no-such-watchdog", 1_000, "watchdog.device:"),
            ("/etc/hosts", 1_000, "watchdog.device:"),
            ("/dev/null", 1_500, "watchdog.timeout_ms:"),
            ("/dev/null", 90_000, "watchdog.timeout_ms:"),
        ] {
            let with = of(&|text| {
                format!("{text}[watchdog]\ndevice = {device:?}\ntimeout_ms = {timeout_ms}\n")
            });
            assert!(with.to_string().starts_with(field), "{with}");
        }
        let fed =
            |text: &str| format!("{text}[watchdog]\ndevice = \"/dev/null\"\ntimeout_ms = 1000\n");
        assert!(parse(fed).unwrap().watchdog.is_some());
    }
}
