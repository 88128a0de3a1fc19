//! Sync sets: who may acknowledge a commit, and how many must.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, InstanceName, Revision};

/// `k` of the members hold a commit before it is acknowledged (PROTOCOL.md D). Without members it
/// is the degraded set: commits wait for nobody, shown as `unprotected`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SyncSet {
    /// The epoch of the holder that acknowledges under it.
    pub epoch: Epoch,
    /// Revision of the entry that committed it: its name.
    pub revision: Revision,
    /// Who counts.
    pub members: BTreeSet<InstanceName>,
    /// How many of them are enough; 0 only for the degraded set.
    pub k: u32,
}

impl SyncSet {
    /// Whether commits wait for nobody.
    pub fn is_degraded(&self) -> bool {
        self.k == 0
    }

    /// As few members as have one in common with whatever `k` of them acknowledged: `|S| - k + 1`
    /// (PROTOCOL.md D, OUT (c) and COMPLETE). `None` for the degraded set, which no number meets.
    pub fn quorum(&self) -> Option<usize> {
        let k = usize::try_from(self.k).ok().filter(|k| *k > 0)?;
        Some((self.members.len() + 1).saturating_sub(k))
    }

    /// Whether `have` are enough of them.
    pub fn is_met_by<'a>(&self, have: impl IntoIterator<Item = &'a InstanceName>) -> bool {
        let present = have.into_iter().filter(|name| self.members.contains(*name)).count();
        self.quorum().is_some_and(|quorum| present >= quorum)
    }
}

impl fmt::Display for SyncSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_degraded() {
            return f.write_str("none (unprotected)");
        }
        write!(f, "{} of ", self.k)?;
        let mut names = self.members.iter();
        if let Some(first) = names.next() {
            write!(f, "{first}")?;
        }
        names.try_for_each(|name| write!(f, ", {name}"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn set(members: &[&str], k: u32) -> SyncSet {
        let members = members.iter().map(|name| name.parse().unwrap()).collect();
        SyncSet { epoch: Epoch::NONE, revision: Revision(1), members, k }
    }

    #[test]
    fn a_quorum_has_a_member_in_common_with_whatever_k_acknowledged() {
        for (members, k, quorum) in
            [(&["b", "c"][..], 1, 2), (&["b", "c"], 2, 1), (&["b"], 1, 1), (&["b", "c", "d"], 2, 2)]
        {
            assert_eq!(set(members, k).quorum(), Some(quorum), "{members:?} {k}");
        }
    }

    #[test]
    fn who_is_not_a_member_does_not_count_and_nothing_meets_the_degraded_set() {
        let names: Vec<InstanceName> = ["a", "b", "c"].map(|name| name.parse().unwrap()).to_vec();
        assert!(!set(&["b", "c"], 1).is_met_by([&names[0], &names[1]]));
        assert!(set(&["b", "c"], 1).is_met_by([&names[2], &names[1]]));
        assert!(!set(&[], 0).is_met_by(&names));
    }
}
