//! The services table: what was declared, and whether it is quarantined.

use serde::{Deserialize, Serialize};

use crate::id::Revision;
use crate::spec::ServiceSpec;

/// One declared service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// As declared.
    pub spec: ServiceSpec,
    /// Where it is in its life (PROTOCOL.md G).
    pub life: Life,
    /// Revision of its first declaration.
    pub created: Revision,
    /// Revision of its last change; for compare-and-set.
    pub changed: Revision,
    /// Set when an entry broke an invariant of it or could not be read; nothing but
    /// `ReleaseQuarantine` changes it then.
    pub quarantine: Option<Quarantine>,
}

/// A service's life (PROTOCOL.md G).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Life {
    /// Nobody has reported for it yet.
    Declared,
    /// Its leases and sets are unknown (after a restore).
    Unadopted,
}

/// Why a service stands still.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// Since which entry.
    pub since: Revision,
    /// What happened.
    pub why: String,
}
