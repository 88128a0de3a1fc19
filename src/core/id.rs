//! The names of things: newtypes, so that a session is never passed where a revision is meant.
//!
//! Names are checked once, where text enters (`Name::parse`); after that a name is valid.

use serde::{Deserialize, Serialize};
use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use crate::limits::MAX_NAME_BYTES;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub struct $name(pub u64);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A coordinator process. Allocated from a committed index, never reused (I9).
    NodeId
);
number!(
    /// Index of the applied log entry; the clock of everything replicated.
    Revision
);
number!(
    /// A client's session. It is the revision of the entry that opened it, so it is never reused.
    SessionId
);
number!(
    /// A client lane for idempotent commands: at most one command of a lane is under way at a time.
    ClientId
);
number!(
    /// Number of a command in its lane; rises by at least one per command.
    Serial
);
number!(
    /// Number of a renewal within its session (C1, C4); 0 means "never renewed".
    RenewalNumber
);
number!(
    /// Random number naming one start of one process; tells a restarted one from the one before.
    Nonce
);

impl Revision {
    /// The revision after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Which life of the cluster an epoch belongs to (PROTOCOL.md B). Rises on every restore and on
/// every quorum-loss recovery; the random `id` tells two restores of one backup apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Incarnation {
    /// Ordered part; goes into every [`Epoch`].
    pub counter: u64,
    /// Random part; an equal counter with another id is another cluster.
    pub id: u64,
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.counter, self.id)
    }
}

/// The fencing token of a lease: ordered, never reused, never going back, not even after a restore
/// (S3). The field order is the order of comparison.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch {
    /// [`Incarnation::counter`] under which it was granted.
    pub incarnation: u64,
    /// Revision of the entry that granted it.
    pub revision: Revision,
}

impl Epoch {
    /// "No epoch yet": below every granted one.
    pub const NONE: Self = Self { incarnation: 0, revision: Revision(0) };
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.incarnation, self.revision)
    }
}

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("it is empty")]
    Empty,
    /// Longer than [`MAX_NAME_BYTES`].
    #[error("it has {0} bytes, the most is {MAX_NAME_BYTES}")]
    TooLong(usize),
    /// A character outside the allowed set.
    #[error(
        "it has {0:?}; allowed are a-z, A-Z, 0-9, '.', '_', '-' and '/', starting with a letter or digit"
    )]
    BadCharacter(char),
}

fn check_name(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > MAX_NAME_BYTES {
        return Err(NameError::TooLong(text.len()));
    }
    for (at, c) in text.chars().enumerate() {
        let ok = c.is_ascii_alphanumeric() || (at > 0 && matches!(c, '.' | '_' | '-' | '/'));
        if !ok {
            return Err(NameError::BadCharacter(c));
        }
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);
        impl $name {
            /// Checks `text` and makes it a name.
            ///
            /// # Errors
            /// [`NameError`] says which rule it breaks.
            pub fn parse(text: &str) -> Result<Self, NameError> {
                check_name(text).map(|()| Self(text.to_owned()))
            }
            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::parse(text)
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                check_name(&text).map(|()| Self(text))
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}

name!(
    /// One replicated database, or another resource with a single writer.
    ServiceName
);
name!(
    /// One database server of a service.
    InstanceName
);
name!(
    /// A plain election: one leader among clients.
    ElectionName
);
name!(
    /// A share of an active-active service that one instance owns at a time.
    PartitionName
);

/// Where something runs. Empty parts mean "not said".
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Locality {
    /// A region: what a disaster takes whole.
    pub region: String,
    /// A zone of the region: what one power feed or switch takes.
    pub zone: String,
    /// A host of the zone.
    pub host: String,
}

impl Locality {
    /// Whether this place lies in `wanted`; its empty parts want nothing.
    pub fn within(&self, wanted: &Self) -> bool {
        let fits = |wanted: &str, here: &str| wanted.is_empty() || wanted == here;
        fits(&wanted.region, &self.region)
            && fits(&wanted.zone, &self.zone)
            && fits(&wanted.host, &self.host)
    }
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.region, self.zone, self.host)
    }
}
