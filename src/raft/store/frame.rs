//! Groups: the unit that is written with one write, made durable with one fdatasync, and read back
//! whole or not at all.
//!
//! ```text
//!  32 bytes  magic | head crc | group number | body length | record count | body crc | zero sectors | kind
//!  body      records, then 1 to 32 bytes of fill; the next group starts at a multiple of 32
//! ```
//!
//! What makes a *torn* group (power failed while it was written; nothing in it was acknowledged)
//! differ from a *damaged* one (its records were acknowledged, the node must not go on):
//!
//! - Groups are numbered without gaps and each is written only after the one before it was synced.
//!   So the intact head of a later group proves that all before it were acknowledged.
//! - The area ahead of the end is all zeros, and a disk writes whole sectors. So after a power cut
//!   each sector of an unfinished group holds its new bytes, or zeros. A group whose sectors are
//!   *all* there and whose checksum is still wrong was complete once: it is damaged. For that the
//!   head counts the sectors that are zero by themselves, the fill is never zero, and a head (32
//!   bytes at a multiple of 32) never spans two sectors.
//! - A *mark* is a head without body where the next group will be. It says "all before me was
//!   synced"; the next group overwrites it. So a mark may only be written when that is so.
//! - A *continuation* is a mark that is never overwritten: the log goes on in the next file, which
//!   was on the disk before this was written. A last file that ends in one has lost its successor.
//!   It begins with format 2 of the segments; older ones get it when they are closed.
//!
//! The assumption: a sector of 512 bytes is written whole or not at all, and writing a sector again
//! with a longer tail does not harm what it held ("powersafe overwrite").

use super::record::{u32_at, u64_at};

/// What a disk writes whole or not at all.
pub const SECTOR_BYTES: u64 = 512;

/// Size of a group's head, and what groups are aligned to.
pub(super) const HEAD_BYTES: usize = 32;

/// The largest body of a group.
pub(super) const MAX_BODY_BYTES: usize = 1024 * 1024 * 1024;

const MAGIC: u32 = u32::from_le_bytes(*b"RGrp");
const FILL: u8 = 0xA5;
// The last byte of a head is never zero, nor made zero by one bit, so that a head of which only the
// front was written is told from one that was damaged.
const KIND_GROUP: u16 = 0xA501;
const KIND_MARK: u16 = 0xA502;
const KIND_CONTINUED: u16 = 0xA503;

/// What a head stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A group: its body follows.
    Group,
    /// All groups below were synced; none follows yet.
    Mark,
    /// All groups below were synced; the next one is in the next file.
    Continued,
}

impl Kind {
    const ALL: [(Self, u16); 3] =
        [(Self::Group, KIND_GROUP), (Self::Mark, KIND_MARK), (Self::Continued, KIND_CONTINUED)];

    fn read(number: u16) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == number).map(|(kind, _)| *kind)
    }

    fn number(self) -> u16 {
        match self {
            Self::Group => KIND_GROUP,
            Self::Mark => KIND_MARK,
            Self::Continued => KIND_CONTINUED,
        }
    }
}

/// The decoded head of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Its number; rises by one from group to group, across segments.
    pub group: u64,
    /// Length of the body, fill included.
    pub body_bytes: u32,
    /// Records in the body.
    pub records: u32,
    /// Checksum of the body.
    pub body_crc: u32,
    /// Sectors (or the parts of sectors) of the body that are all zero although written; stops
    /// counting at its maximum.
    pub zero_sectors: u16,
    /// What it stands for.
    pub kind: Kind,
}

/// What 32 bytes are, where a head should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeadState {
    /// An intact head.
    Intact(Head),
    /// Never written, or its sector was lost.
    Absent,
    /// Only the front was written (a process killed in the middle of a write).
    Partial,
    /// Written once, and not what was written.
    Damaged,
}

impl Head {
    /// Its 32 bytes.
    pub(super) fn encode(&self, salt: u64) -> [u8; HEAD_BYTES] {
        let mut out = [0u8; HEAD_BYTES];
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[8..16].copy_from_slice(&self.group.to_le_bytes());
        out[16..20].copy_from_slice(&self.body_bytes.to_le_bytes());
        out[20..24].copy_from_slice(&self.records.to_le_bytes());
        out[24..28].copy_from_slice(&self.body_crc.to_le_bytes());
        out[28..30].copy_from_slice(&self.zero_sectors.to_le_bytes());
        out[30..32].copy_from_slice(&self.kind.number().to_le_bytes());
        let crc = salted_crc(salt, &out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads 32 bytes.
    pub(super) fn read(bytes: &[u8], salt: u64) -> HeadState {
        if bytes.len() < HEAD_BYTES || bytes[..HEAD_BYTES].iter().all(|b| *b == 0) {
            return HeadState::Absent;
        }
        let bytes = &bytes[..HEAD_BYTES];
        let whole = u32_at(bytes, 0) == MAGIC && u32_at(bytes, 4) == salted_crc(salt, &bytes[8..]);
        let kind = Kind::read(u16::from_le_bytes([bytes[30], bytes[31]]));
        let Some(kind) = kind.filter(|_| whole) else {
            return if bytes[HEAD_BYTES - 1] == 0 {
                HeadState::Partial
            } else {
                HeadState::Damaged
            };
        };
        HeadState::Intact(Head {
            group: u64_at(bytes, 8),
            body_bytes: u32_at(bytes, 16),
            records: u32_at(bytes, 20),
            body_crc: u32_at(bytes, 24),
            zero_sectors: u16::from_le_bytes([bytes[28], bytes[29]]),
            kind,
        })
    }

    /// Whether 32 bytes look enough like a head to be worth checking.
    pub(super) fn starts_like_one(bytes: &[u8]) -> bool {
        bytes.len() >= HEAD_BYTES && u32_at(bytes, 0) == MAGIC
    }

    /// A mark: all groups below `group` were synced.
    pub(super) fn mark(group: u64) -> Self {
        Self::bare(group, Kind::Mark)
    }

    /// A continuation: all groups below `group` were synced, and it is in the next file.
    pub(super) fn continued(group: u64) -> Self {
        Self::bare(group, Kind::Continued)
    }

    fn bare(group: u64, kind: Kind) -> Self {
        Self { group, body_bytes: 0, records: 0, body_crc: 0, zero_sectors: 0, kind }
    }
}

/// Makes a group in place: `out` holds room for a head and then the records, encoded. Adds the fill
/// and writes the head; `offset` is where in the file the group will lie.
pub(super) fn seal_group(out: &mut Vec<u8>, group: u64, records: u32, salt: u64, offset: u64) {
    let fill = HEAD_BYTES - out.len() % HEAD_BYTES;
    out.resize(out.len() + fill, FILL);
    let body = &out[HEAD_BYTES..];
    let head = Head {
        group,
        body_bytes: u32::try_from(body.len()).expect("checked against MAX_BODY_BYTES"),
        records,
        body_crc: body_crc(salt, group, body),
        zero_sectors: zero_sectors(body, offset + HEAD_BYTES as u64),
        kind: Kind::Group,
    };
    out[..HEAD_BYTES].copy_from_slice(&head.encode(salt));
}

/// Checksum of a body; knows salt and group, so that a body is good in its own place only.
pub(super) fn body_crc(salt: u64, group: u64, body: &[u8]) -> u32 {
    let seed = crc32c::crc32c_append(salted_crc(salt, &group.to_le_bytes()), b"body");
    crc32c::crc32c_append(seed, body)
}

/// Why a body with a wrong checksum can be the rest of an unfinished write.
pub(super) fn looks_torn(head: &Head, body: &[u8], offset: u64) -> bool {
    // Only the front was written, or a sector of the middle is missing.
    body.last() == Some(&0) || zero_sectors(body, offset) > head.zero_sectors
}

/// Counts the sectors, or parts of sectors, of `bytes` that are all zero; `offset` is where in the
/// file they lie.
fn zero_sectors(bytes: &[u8], offset: u64) -> u16 {
    let first = (SECTOR_BYTES - offset % SECTOR_BYTES) as usize;
    let (front, rest) = bytes.split_at(first.min(bytes.len()));
    let mut count = 0u16;
    for part in std::iter::once(front).chain(rest.chunks(SECTOR_BYTES as usize)) {
        if !part.is_empty() && is_zero(part) {
            count = count.saturating_add(1);
        }
    }
    count
}

/// Whether all bytes are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<16>();
    chunks.iter().all(|chunk| u128::from_le_bytes(*chunk) == 0) && rest.iter().all(|b| *b == 0)
}

/// CRC-32C over the salt and the bytes.
pub(super) fn salted_crc(salt: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), bytes)
}
