//! The whole state as bytes: magic, version, length, body, checksum.
//!
//! Decoding takes bytes from a disk or a peer: it must never panic and never believe a length.
//! What is derived (indexes, places in queues) is not in the body and is rebuilt.
//!
//! ```text
//! "RGNTSNAP" | version u16 | feature level u32 | body length u64 | body (postcard) | xxh3-128
//! ```
//! All numbers little endian; the checksum is over everything before it. The feature level stands
//! in the header, so that a binary that is too old says so instead of misreading the body.

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_128;

use super::State;
use super::audit::AuditLog;
use super::hash::Mixer;
use super::lanes::Lanes;
use super::refusals::Refusals;
use super::tables::{Holders, Roles, Tables};
use super::version::{FEATURE_LEVEL, REPORTS_LEVEL, ROLES_LEVEL};
use crate::id::Revision;
use crate::time::WallMs;

const MAGIC: &[u8; 8] = b"RGNTSNAP";
/// Layout of the body that this release writes.
pub const SNAPSHOT_VERSION: u16 = 3;
/// The layout without roles. It is written as long as the cluster is below [`ROLES_LEVEL`], because
/// a member of the release before must be able to install it, and read always.
const FIRST_VERSION: u16 = 1;
/// The layout without what renewals of roles say, as long as the cluster is below [`REPORTS_LEVEL`].
const ROLES_VERSION: u16 = 2;
const HEADER: usize = 8 + 2 + 4 + 8;
const CHECKSUM: usize = 16;

/// Why bytes are no snapshot this binary can take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Fewer bytes than the header and the checksum need, or than the header says.
    #[error("the snapshot is cut short: {have} bytes of {need}")]
    Truncated {
        /// Bytes given.
        have: u64,
        /// Bytes that would be needed.
        need: u64,
    },
    /// More bytes than the header says.
    #[error("the snapshot is followed by {0} bytes that do not belong to it")]
    Trailing(u64),
    /// The first bytes are not Regent's.
    #[error("this is no Regent snapshot: it does not begin with RGNTSNAP")]
    NotASnapshot,
    /// Written by a newer release.
    #[error(
        "the snapshot has layout {version} at feature level {level}; this binary reads layout \
         {SNAPSHOT_VERSION} up to feature level {FEATURE_LEVEL}: install the newer release"
    )]
    TooNew {
        /// Its layout.
        version: u16,
        /// Its feature level.
        level: u32,
    },
    /// The bytes are not those that were written.
    #[error("the snapshot is corrupt: its checksum does not match")]
    Checksum,
    /// The checksum matches, but the body cannot be read.
    #[error("the snapshot's body cannot be read: {0}")]
    Body(String),
}

/// The state's own part of a snapshot, borrowed: rows are not copied only to be written.
#[derive(Serialize)]
struct ImageRef<'a> {
    revision: Revision,
    hash: [u8; 16],
    at: WallMs,
    tables: &'a Tables,
    lanes: &'a Lanes,
    audit: &'a AuditLog,
    refusals: &'a Refusals,
}

/// The same, owned. The fields and their order are those of [`ImageRef`].
#[derive(Deserialize)]
struct Image {
    revision: Revision,
    hash: [u8; 16],
    at: WallMs,
    tables: Tables,
    lanes: Lanes,
    audit: AuditLog,
    refusals: Refusals,
}

impl State {
    /// The whole state, versioned and checksummed.
    pub fn encode_snapshot(&self) -> Vec<u8> {
        let Self { revision, hash, at, tables, lanes, audit, refusals, mixer: _ } = self;
        let (revision, hash, at) = (*revision, *hash, *at);
        let image = ImageRef { revision, hash, at, tables, lanes, audit, refusals };
        let level = self.cluster().feature_level;
        let body = match layout_of(level) {
            FIRST_VERSION => postcard::to_stdvec(&image),
            ROLES_VERSION => postcard::to_stdvec(&(image, tables.roles_ref())),
            _ => postcard::to_stdvec(&(image, tables.roles_ref(), tables.holders_ref())),
        };
        seal(level, &body.expect("a row has no type postcard refuses"))
    }

    /// Reads a state back.
    ///
    /// # Errors
    /// [`SnapshotError`] says why the bytes are no snapshot for this binary.
    pub fn decode_snapshot(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let (version, body) = open(bytes)?;
        let unreadable = |error: postcard::Error| SnapshotError::Body(error.to_string());
        let (image, rest) = postcard::take_from_bytes::<Image>(body).map_err(unreadable)?;
        let (roles, rest) = if version == FIRST_VERSION {
            (None, rest)
        } else {
            let (roles, rest) = postcard::take_from_bytes::<Roles>(rest).map_err(unreadable)?;
            (Some(roles), rest)
        };
        let (holders, rest) = if version <= ROLES_VERSION {
            (None, rest)
        } else {
            let (holders, rest) = postcard::take_from_bytes::<Holders>(rest).map_err(unreadable)?;
            (Some(holders), rest)
        };
        if !rest.is_empty() {
            return Err(SnapshotError::Body(format!("{} bytes are left over", rest.len())));
        }
        let Image { revision, hash, at, mut tables, mut lanes, audit, refusals } = image;
        if let Some(roles) = roles {
            tables.set_roles(roles);
        }
        if let Some(holders) = holders {
            tables.set_holders(holders);
        }
        tables.rebuild();
        lanes.rebuild();
        let mixer = Mixer::default();
        Ok(Self { revision, hash, at, tables, lanes, audit, refusals, mixer })
    }
}

/// The layout in which a cluster at this level keeps its snapshots.
const fn layout_of(level: u32) -> u16 {
    if level < ROLES_LEVEL {
        FIRST_VERSION
    } else if level < REPORTS_LEVEL {
        ROLES_VERSION
    } else {
        SNAPSHOT_VERSION
    }
}

/// Puts `body` between header and checksum.
pub(super) fn seal(level: u32, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + body.len() + CHECKSUM);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&layout_of(level).to_le_bytes());
    out.extend_from_slice(&level.to_le_bytes());
    out.extend_from_slice(&(body.len() as u64).to_le_bytes());
    out.extend_from_slice(body);
    let sum = xxh3_128(&out);
    out.extend_from_slice(&sum.to_le_bytes());
    out
}

/// Checks header and checksum and gives back the layout and the body.
pub(super) fn open(bytes: &[u8]) -> Result<(u16, &[u8]), SnapshotError> {
    let have = bytes.len() as u64;
    let least = HEADER + CHECKSUM;
    if !bytes.starts_with(MAGIC) {
        let cut = bytes.len() < MAGIC.len() && MAGIC.starts_with(bytes);
        return Err(if cut {
            SnapshotError::Truncated { have, need: least as u64 }
        } else {
            SnapshotError::NotASnapshot
        });
    }
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
        return Err(SnapshotError::Truncated { have, need: least as u64 });
    };
    let version = u16::from_le_bytes([header[8], header[9]]);
    let level = u32::from_le_bytes([header[10], header[11], header[12], header[13]]);
    let mut length = [0; 8];
    length.copy_from_slice(&header[14..HEADER]);
    let length = u64::from_le_bytes(length);
    if !(FIRST_VERSION..=SNAPSHOT_VERSION).contains(&version) || level > FEATURE_LEVEL {
        return Err(SnapshotError::TooNew { version, level });
    }
    let need = length.saturating_add(least as u64);
    if have < need {
        return Err(SnapshotError::Truncated { have, need });
    }
    if have > need {
        return Err(SnapshotError::Trailing(have - need));
    }
    let Some((body, sum)) = rest.split_last_chunk::<CHECKSUM>() else {
        return Err(SnapshotError::Truncated { have, need });
    };
    let summed = &bytes[..bytes.len() - CHECKSUM];
    if xxh3_128(summed).to_le_bytes() != *sum {
        return Err(SnapshotError::Checksum);
    }
    Ok((version, body))
}

/// `BTreeMap<K, Arc<V>>` as a plain map: serde shares no `Arc` without its `rc` feature, and a
/// row must not be copied only to be written.
pub(super) mod shared_map {
    use super::*;

    pub fn serialize<K, V, S>(map: &BTreeMap<K, Arc<V>>, to: S) -> Result<S::Ok, S::Error>
    where
        K: Serialize,
        V: Serialize,
        S: Serializer,
    {
        let mut out = to.serialize_map(Some(map.len()))?;
        for (key, row) in map {
            out.serialize_entry(key, &**row)?;
        }
        out.end()
    }

    pub fn deserialize<'de, K, V, D>(from: D) -> Result<BTreeMap<K, Arc<V>>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        struct Rows<K, V>(PhantomData<(K, V)>);
        impl<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de>> Visitor<'de> for Rows<K, V> {
            type Value = BTreeMap<K, Arc<V>>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a table")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut rows: A) -> Result<Self::Value, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((key, row)) = rows.next_entry()? {
                    map.insert(key, Arc::new(row));
                }
                Ok(map)
            }
        }
        from.deserialize_map(Rows(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_single_damaged_byte_is_noticed() {
        let good = seal(1, b"a body of some bytes");
        assert_eq!(open(&good), Ok((FIRST_VERSION, &b"a body of some bytes"[..])));
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(open(&bad).is_err(), "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn every_prefix_is_called_cut_short() {
        let good = seal(1, b"body");
        for len in 0..good.len() {
            let got = open(&good[..len]);
            assert!(matches!(got, Err(SnapshotError::Truncated { .. })), "{len}: {got:?}");
        }
        let mut long = good;
        long.push(0);
        assert_eq!(open(&long), Err(SnapshotError::Trailing(1)));
    }

    #[test]
    fn a_newer_release_is_named_and_not_misread() {
        let newer = seal(FEATURE_LEVEL + 1, b"whatever it means there");
        let want = SnapshotError::TooNew { version: SNAPSHOT_VERSION, level: FEATURE_LEVEL + 1 };
        assert_eq!(open(&newer), Err(want));
        assert_eq!(open(b"sqlite format 3 and so on......."), Err(SnapshotError::NotASnapshot));
    }
}
