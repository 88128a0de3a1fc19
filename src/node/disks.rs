//! Which voters cannot write, as they said when they were last compared with (once a second).
//!
//! While a majority cannot, nothing can be committed: a proposal would wait out its caller's
//! deadline and end as "outcome unknown". A leader that knows refuses instead, before it proposes:
//! then surely nothing was done, and the caller is told whose disk to look at. Renewals are not
//! refused: they lose nothing by waiting, and must go on the moment there is space.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use regent_core::id::NodeId;
use tonic::Status;

use crate::refuse;

/// What is known of the disks of all voters.
#[derive(Debug, Default)]
pub struct Disks {
    /// Asked for each proposal.
    refuses: AtomicBool,
    why: Mutex<String>,
}

impl Disks {
    /// A round is over: these of so many voters cannot write. Whoever was not heard of may be able
    /// to.
    pub fn heard(&self, voters: usize, problems: &BTreeMap<NodeId, String>) {
        let able = voters.saturating_sub(problems.len());
        let refuses = !problems.is_empty() && able <= voters / 2;
        let each: Vec<_> = problems.iter().map(|(id, what)| format!("node {id}: {what}")).collect();
        *self.why.lock() = each.join("; ");
        if self.refuses.swap(refuses, Ordering::Relaxed) != refuses {
            match refuses {
                true => tracing::error!(why = each.join("; "), "a majority cannot write"),
                false => tracing::info!("a majority can write again, or is not heard of"),
            }
        }
    }

    /// Whether anything can be committed, as far as this node knows.
    ///
    /// # Errors
    /// UNAVAILABLE (`storage`): nothing was done, and nothing can be before there is space.
    pub fn allow(&self) -> Result<(), Status> {
        if !self.refuses.load(Ordering::Relaxed) {
            return Ok(());
        }
        let why = self.why.lock().clone();
        Err(refuse::storage(format!("a majority of the nodes cannot write: {why}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use regent_rpc::convert::status::{Refused, rule};

    fn full(ids: &[u64]) -> BTreeMap<NodeId, String> {
        ids.iter().map(|id| (NodeId(*id), "no space left".to_owned())).collect()
    }

    #[test]
    fn what_no_majority_can_write_is_refused_until_one_can() {
        let disks = Disks::default();
        for (voters, problems, allowed) in [
            (3, full(&[]), true),
            (3, full(&[2]), true),
            (3, full(&[2, 3]), false),
            (4, full(&[1, 2]), false),
            (5, full(&[1, 2]), true),
            (5, full(&[1, 2, 5]), false),
            (1, full(&[1]), false),
            (1, full(&[]), true),
            (0, full(&[]), true),
        ] {
            disks.heard(voters, &problems);
            assert_eq!(disks.allow().is_ok(), allowed, "{problems:?} of {voters}");
        }
        disks.heard(3, &full(&[2, 3]));
        let status = disks.allow().expect_err("two of three");
        assert!(status.message().contains("node 2: no space left; node 3"), "{status}");
        let refused = Refused::from_status(&status).expect("a reason");
        assert!(refused.rule == rule::STORAGE && refused.retry_after.is_some());
    }
}
