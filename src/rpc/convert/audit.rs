//! Audit records: out to whoever reads them, and back for whoever verifies the chain itself.

use regent_core::id::Revision;
use regent_core::state::audit::{AuditHash, AuditRecord};
use regent_core::time::WallMs;

use super::Invalid;
use crate::pb::v1;

/// A record for the wire.
pub fn record_out(record: &AuditRecord) -> v1::AuditRecord {
    v1::AuditRecord {
        number: record.number,
        revision: record.revision.0,
        incarnation: record.incarnation,
        at_ms: record.at.0,
        who: record.who.clone(),
        what: record.what.clone(),
        resource: record.resource.clone(),
        why: record.why.clone(),
        outcome: record.outcome.clone(),
        before: record.before.to_vec().into(),
        hash: record.hash.to_vec().into(),
    }
}

/// A record of the wire.
///
/// # Errors
/// [`Invalid`] when a hash has not 32 bytes.
pub fn record_in(record: v1::AuditRecord) -> Result<AuditRecord, Invalid> {
    Ok(AuditRecord {
        number: record.number,
        revision: Revision(record.revision),
        incarnation: record.incarnation,
        at: WallMs(record.at_ms),
        before: hash("before", &record.before)?,
        hash: hash("hash", &record.hash)?,
        who: record.who,
        what: record.what,
        resource: record.resource,
        why: record.why,
        outcome: record.outcome,
    })
}

fn hash(field: &str, bytes: &[u8]) -> Result<AuditHash, Invalid> {
    bytes
        .try_into()
        .map_err(|_| Invalid::new(field, format!("it has {} bytes", bytes.len()), "a hash has 32"))
}
