//! The partitions table of active-active services: who owns which share, under which epoch.
//! Their orchestration (claims, drains, failback) is not here yet.

use serde::{Deserialize, Serialize};

use super::journal::Draft;
use super::service;
use crate::id::{Epoch, InstanceName, PartitionName, Revision, ServiceName};
use crate::reply::{Rejection, Reply};
use crate::spec::TopologyKind;

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Epoch of the last assignment, to an owner or to nobody (S3: only rises).
    pub epoch: Epoch,
    /// The present owner.
    pub owner: Option<InstanceName>,
    /// Revision of the last change.
    pub changed: Revision,
}

/// Gives a partition to `to` under a new epoch, if `seen` is still its epoch. Taking it from its
/// owner without giving it to another is an assignment too, and has an epoch of its own: whoever
/// saw the owner's epoch must not assign over it.
pub(super) fn assign(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    partition: &PartitionName,
    to: Option<InstanceName>,
    seen: Epoch,
) -> Result<Reply, Rejection> {
    let service = service::open(draft, name)?;
    if service.spec.topology != TopologyKind::ActiveActive {
        return Err(Rejection::Invalid {
            field: "service".to_owned(),
            problem: format!("{name} is not active-active"),
            fix: "only active-active services have partitions".to_owned(),
        });
    }
    let key = (name.clone(), partition.clone());
    let Some(row) = draft.rows().partitions().get(&key) else {
        return Err(not_found("partition", format!("{name}/{partition}")));
    };
    if row.epoch != seen {
        return Err(Rejection::EpochStale { have: row.epoch, got: seen });
    }
    if let Some(to) = &to
        && !service.spec.instances.iter().any(|instance| instance.name == *to)
    {
        return Err(not_found("instance", format!("{name}/{to}")));
    }
    let epoch = draft.epoch();
    let owner = to.as_ref().map_or("nobody".to_owned(), |to| format!("instance {to}"));
    let from = row.owner.as_ref().map_or("nobody".to_owned(), |from| format!("instance {from}"));
    let outcome = format!("from {from} to {owner} under epoch {epoch}");
    draft.set_partition(&key, Some(Partition { epoch, owner: to, changed: draft.revision }));
    draft.note("partition.assigned", &format!("{name}/{partition}"), "", &outcome);
    // The owner acts under the epoch, so the answer names it.
    Ok(Reply::Granted { epoch, revision: draft.revision })
}

fn not_found(what: &str, name: String) -> Rejection {
    Rejection::NotFound { what: what.to_owned(), name }
}
