//! What an engine is told: the role to start in, whom to follow, who counts for a commit.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

/// Longest name that the server keeps whole; it cuts longer application names silently, and a cut
/// name would match nothing, or another instance.
const MAX_MEMBER_BYTES: usize = 63;

/// The name that no instance has: a set of it lets no commit through (PROTOCOL.md D).
pub(crate) const NOBODY: &str = "regent_nobody";

/// The name under which an instance replicates. The caller makes it of the instance and its
/// membership nonce, so that one that left and returned is another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberName(String);

/// Why a text cannot name a member of a synchronous set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot name a member: 1 to {MAX_MEMBER_BYTES} of a-z, A-Z, 0-9, '.', '_', '-', '/', ':', \
     not {NOBODY:?}"
)]
pub struct NotAMemberName(pub String);

impl MemberName {
    /// Checks `text` and makes it a name.
    ///
    /// # Errors
    /// When it is too long for the server, or has a character that would need quoting.
    pub fn parse(text: &str) -> Result<Self, NotAMemberName> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:".contains(c);
        let fits = !text.is_empty() && text.len() <= MAX_MEMBER_BYTES;
        if fits && text.chars().all(plain) && !text.eq_ignore_ascii_case(NOBODY) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotAMemberName(text.chars().take(80).collect()))
        }
    }

    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whose acknowledgements a commit waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncNames {
    /// Nobody's: every commit returns at once, unprotected. The committed set (∅, 0).
    Unprotected,
    /// Nobody can give it: every commit waits. What standbys run with, and a primary between sets.
    Blocked,
    /// Any `k` of `members`.
    Any {
        /// How many must acknowledge; at least 1.
        k: u32,
        /// Who may.
        members: Vec<MemberName>,
    },
}

impl SyncNames {
    /// As the server shows them.
    pub fn setting(&self) -> String {
        crate::postgres::names_text(self)
    }
}

/// A server to stream from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The name under which this instance replicates.
    pub me: MemberName,
    /// The slot at the upstream that keeps WAL for this instance, by the instance's name.
    pub slot: Option<String>,
}

/// A server to copy from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// The role in which the server is to come up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartAs {
    /// In recovery; without an upstream it replays what it has and waits.
    Standby {
        /// Whom it follows.
        upstream: Option<Upstream>,
    },
    /// Out of recovery, closed for clients.
    Primary {
        /// Whose acknowledgements its commits wait for from the first one on.
        names: SyncNames,
    },
}

/// How the fencer starts the server. Carries no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartCommand {
    /// What to execute.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
}

/// A password. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub(crate) String);

impl Secret {
    /// 256 random bits, as hexadecimal digits: needs no quoting anywhere.
    pub fn random() -> Self {
        let bits: [u64; 4] = rand::random();
        Self(bits.iter().map(|word| format!("{word:016x}")).collect())
    }

    /// A password that somebody else chose.
    pub fn of(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The password itself, for a client's connection.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The passwords of the three roles that Regent logs in with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secrets {
    /// Of the agent's own role.
    pub agent: Secret,
    /// Of the role that streams WAL.
    pub replication: Secret,
    /// Of the role that reads files for a rewind.
    pub rewind: Secret,
}

impl Secrets {
    /// New random ones.
    pub fn random() -> Self {
        Self { agent: Secret::random(), replication: Secret::random(), rewind: Secret::random() }
    }
}
