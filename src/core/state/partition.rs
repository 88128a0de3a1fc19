//! The partitions table of active-active services: who owns which share, under which epoch.
//! Their orchestration (claims, drains, failback) is not here yet.

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, InstanceName, Revision};

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Epoch of the present or the last owner (S3: only rises).
    pub epoch: Epoch,
    /// The present owner.
    pub owner: Option<InstanceName>,
    /// Revision of the last change.
    pub changed: Revision,
}
