//! The rolling hash: xxh3-128 over the hash before, the entry, its reply and the rows it wrote.
//!
//! Nodes compare it at equal revisions (S9). It says that what they *made* of the entries is equal,
//! not only that they got the same ones: the new bytes of each touched row go in. It is no defence
//! against forgery (the audit chain has SHA-256), so it can be cheap enough to be made per entry.

use postcard::ser_flavors::Flavor;
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_128;

use super::audit::AuditHash;
use super::journal::Journal;
use super::tables::Tables;
use crate::id::Revision;
use crate::reply::Reply;

/// Collects what goes into the hash of one entry. The buffer is kept between entries.
#[derive(Debug, Default)]
pub(super) struct Mixer {
    buffer: Vec<u8>,
}

/// A clone starts with an empty buffer: it holds nothing between entries.
impl Clone for Mixer {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// What kind of entry was applied; keeps the kinds apart in the hash.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Blank = 0,
    Members = 1,
    Command = 2,
}

/// A buffer above this is given back after a large entry.
const KEEP_BYTES: usize = 1 << 20;

impl Mixer {
    pub fn start(&mut self, before: [u8; 16], kind: Kind, revision: Revision, entry: &[u8]) {
        self.buffer.clear();
        self.buffer.extend_from_slice(&before);
        self.buffer.push(kind as u8);
        self.buffer.extend_from_slice(&revision.0.to_le_bytes());
        self.buffer.extend_from_slice(&(entry.len() as u64).to_le_bytes());
        self.buffer.extend_from_slice(entry);
    }

    pub fn reply(&mut self, reply: &Reply) {
        self.put(reply);
    }

    /// Takes in every row that was written, as it is now.
    pub fn rows(&mut self, journal: &Journal, tables: &Tables) {
        if journal.cluster.is_some() {
            self.put(tables.cluster());
        }
        for name in journal.services.keys() {
            self.put(&(1u8, name, tables.services().get(name).map(|row| &**row)));
        }
        for key in journal.partitions.keys() {
            self.put(&(2u8, key, tables.partitions().get(key).map(|row| &**row)));
        }
        for name in journal.roles.keys() {
            self.put(&(7u8, name, tables.roles().get(name).map(|row| &**row)));
        }
        for key in journal.operations.keys() {
            self.put(&(8u8, key, tables.operations().get(key).map(|row| &**row)));
        }
        for name in journal.holders.keys() {
            self.put(&(9u8, name, tables.holders().get(name).map(|row| &**row)));
        }
        for name in journal.elections.keys() {
            self.put(&(3u8, name, tables.elections().get(name).map(|row| &**row)));
        }
        for was in &journal.sessions {
            // A renewal's entry holds everything but what it made of the marks, and these are
            // small.
            let id = was.id();
            let row = tables.sessions().get(&id);
            match was {
                super::journal::SessionWas::Row(..) => self.put(&(4u8, id, row)),
                super::journal::SessionWas::Marks(..) => {
                    self.put(&(5u8, id, row.map(|row| row.marks())));
                }
            }
        }
        if journal.voided.is_some() {
            self.put(&(6u8, tables.sessions().len() as u64));
        }
    }

    pub fn audit(&mut self, head: &AuditHash) {
        self.buffer.extend_from_slice(head);
    }

    pub fn finish(&mut self) -> [u8; 16] {
        let hash = xxh3_128(&self.buffer).to_le_bytes();
        self.buffer.clear();
        self.buffer.shrink_to(KEEP_BYTES);
        hash
    }

    fn put<T: Serialize + ?Sized>(&mut self, value: &T) {
        postcard::serialize_with_flavor(value, Append(&mut self.buffer))
            .expect("a row has no type postcard refuses, and a vector grows");
    }
}

/// Appends to a vector that is used again, in slices rather than byte by byte.
struct Append<'a>(&'a mut Vec<u8>);

impl Flavor for Append<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}
