//! Which start of which disk speaks: carried in the metadata of every call among nodes.

use std::fmt;

use regent_core::id::{Incarnation, NodeId, Nonce, Revision};
use regent_core::state::cluster::NodeBoot;
use regent_raft::held::Held;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

/// Metadata key, in requests and in answers.
pub const HEADER: &str = "regent-start";

/// Metadata key of the life of the cluster that a node belongs to.
pub const LIFE_HEADER: &str = "regent-life";

/// Metadata key of what the node's disk held when its process started.
pub const HELD_HEADER: &str = "regent-held";

/// What a disk held as it goes into metadata.
pub fn held_header(held: Held) -> MetadataValue<Ascii> {
    let text = format!("{}.{}.{}", held.term, held.leader, held.last);
    text.parse().expect("digits and dots are ASCII")
}

/// Reads it; `None` when it is missing or malformed.
pub fn held_from_metadata(metadata: &MetadataMap) -> Option<Held> {
    let mut parts = metadata.get(HELD_HEADER)?.to_str().ok()?.split('.').map(str::parse);
    let mut next = || parts.next()?.ok();
    let held = Held { term: next()?, leader: NodeId(next()?), last: Revision(next()?) };
    parts.next().is_none().then_some(held)
}

/// An incarnation as it goes into metadata.
pub fn life_header(life: Incarnation) -> MetadataValue<Ascii> {
    format!("{}.{:016x}", life.counter, life.id).parse().expect("digits and dots are ASCII")
}

/// Reads it; `None` when it is missing or malformed.
pub fn life_from_metadata(metadata: &MetadataMap) -> Option<Incarnation> {
    let (counter, id) = metadata.get(LIFE_HEADER)?.to_str().ok()?.split_once('.')?;
    Some(Incarnation { counter: counter.parse().ok()?, id: u64::from_str_radix(id, 16).ok()? })
}

/// Disk, boot counter and nonce of a node's process (PROTOCOL.md B).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Random id of the data directory.
    pub disk: u64,
    /// Starts so far.
    pub boot: u64,
    /// Random id of the process.
    pub nonce: Nonce,
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}.{}.{:016x}", self.disk, self.boot, self.nonce.0)
    }
}

impl From<&NodeBoot> for Start {
    fn from(boot: &NodeBoot) -> Self {
        Self { disk: boot.disk, boot: boot.boot, nonce: boot.nonce }
    }
}

impl Start {
    /// As it goes into metadata.
    pub fn header(&self) -> MetadataValue<Ascii> {
        self.to_string().parse().expect("hex digits and dots are ASCII")
    }

    /// Reads it from metadata; `None` when it is missing or malformed.
    pub fn from_metadata(metadata: &MetadataMap) -> Option<Self> {
        let text = metadata.get(HEADER)?.to_str().ok()?;
        let mut parts = text.split('.');
        let start = Self {
            disk: u64::from_str_radix(parts.next()?, 16).ok()?,
            boot: parts.next()?.parse().ok()?,
            nonce: Nonce(u64::from_str_radix(parts.next()?, 16).ok()?),
        };
        parts.next().is_none().then_some(start)
    }

    /// Why a process with this start must not speak for its node, given the newest start of that
    /// node that is known. `None`: nothing speaks against it.
    pub fn objection(&self, newest: &Self) -> Option<String> {
        if self.disk != newest.disk {
            return Some(format!(
                "its disk is {:016x}, but this node id belongs to disk {:016x}; a new disk needs a \
                 new node id",
                self.disk, newest.disk
            ));
        }
        if self.boot < newest.boot {
            return Some(format!(
                "its boot counter is {}, but {} was seen: its disk went back in time",
                self.boot, newest.boot
            ));
        }
        if self.boot == newest.boot && self.nonce != newest.nonce {
            return Some(format!(
                "boot {} was already seen from another process: its disk was copied, or went back \
                 in time",
                self.boot
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(disk: u64, boot: u64, nonce: u64) -> Start {
        Start { disk, boot, nonce: Nonce(nonce) }
    }

    #[test]
    fn only_the_same_process_or_a_later_boot_of_the_same_disk_is_welcome() {
        let newest = start(7, 5, 1);
        assert_eq!(start(7, 5, 1).objection(&newest), None);
        assert_eq!(start(7, 6, 2).objection(&newest), None);
        for bad in [start(7, 5, 2), start(7, 4, 1), start(7, 4, 9), start(8, 9, 9)] {
            assert!(bad.objection(&newest).is_some(), "{bad}");
        }
    }

    #[test]
    fn what_a_disk_held_survives_a_round_trip_and_nonsense_is_none() {
        let mut metadata = MetadataMap::new();
        let it = Held { term: 7, leader: NodeId(u64::MAX), last: Revision(3) };
        metadata.insert(HELD_HEADER, held_header(it));
        assert_eq!(held_from_metadata(&metadata), Some(it));
        for bad in ["", "1.2", "x.1.1", "1.2.3.4", "1.-2.3"] {
            metadata.insert(HELD_HEADER, bad.parse().expect("ascii"));
            assert_eq!(held_from_metadata(&metadata), None, "{bad}");
        }
    }

    #[test]
    fn the_header_survives_a_round_trip_and_nonsense_is_none() {
        let mut metadata = MetadataMap::new();
        let it = start(u64::MAX, 3, 1);
        metadata.insert(HEADER, it.header());
        assert_eq!(Start::from_metadata(&metadata), Some(it));
        for bad in ["", "1.2", "x.1.1", "1.2.3.4", "1.-2.3"] {
            metadata.insert(HEADER, bad.parse().expect("ascii"));
            assert_eq!(Start::from_metadata(&metadata), None, "{bad}");
        }
    }
}
