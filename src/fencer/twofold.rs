//! A small record that is kept twice in one file and overwritten in place.
//!
//! A promise waits for its disk in the middle of a role change. Replacing a file costs three commits of
//! a file system's journal (the new file, its name, its directory); overwriting blocks that are there
//! already costs one flush of data. So the file is made once, at its full size, and holds two slots:
//!
//! ```text
//!   slot 0                                slot 1
//!   magic  serial  length  crc  record    the same
//! ```
//!
//! Each change is written and flushed to the lesser of the two, and then to the other. At any instant
//! one of them is whole: after a power cut the record is the old one or the new one. A slot that rots
//! later has its twin.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: [u8; 8] = *b"regent02";
/// Magic, serial, length, checksum of these two and the record.
const HEADER: usize = 24;
/// Slots begin where a disk's sectors and a memory's pages do: a torn one leaves the other alone.
const PAGE: usize = 4096;
/// Nothing that is kept so is larger.
const MAX_SLOT: usize = 16 << 20;

struct Slot<'a> {
    serial: u64,
    record: &'a [u8],
}

fn array<const N: usize>(bytes: &[u8], from: usize) -> Option<[u8; N]> {
    bytes.get(from..from + N)?.try_into().ok()
}

fn checksum(serial: u64, record: &[u8]) -> u32 {
    let head = crc32c::crc32c(&serial.to_le_bytes());
    let head = crc32c::crc32c_append(head, &(record.len() as u64).to_le_bytes());
    crc32c::crc32c_append(head, record)
}

fn decode(slot: &[u8]) -> Option<Slot<'_>> {
    if array(slot, 0)? != MAGIC {
        return None;
    }
    let serial = u64::from_le_bytes(array(slot, 8)?);
    let length = usize::try_from(u32::from_le_bytes(array(slot, 16)?)).ok()?;
    let record = slot.get(HEADER..HEADER.checked_add(length)?)?;
    let sound = u32::from_le_bytes(array(slot, 20)?) == checksum(serial, record);
    sound.then_some(Slot { serial, record })
}

/// A slot of `bytes`, filled up with nothing; none when the record does not fit.
fn encode(serial: u64, record: &[u8], bytes: usize) -> Option<Vec<u8>> {
    let length = u32::try_from(record.len()).ok()?;
    let mut slot = Vec::with_capacity(bytes);
    slot.extend_from_slice(&MAGIC);
    slot.extend_from_slice(&serial.to_le_bytes());
    slot.extend_from_slice(&length.to_le_bytes());
    slot.extend_from_slice(&checksum(serial, record).to_le_bytes());
    slot.extend_from_slice(record);
    if slot.len() > bytes {
        return None;
    }
    slot.resize(bytes, 0);
    Some(slot)
}

/// Both slots of a file's content.
fn slots(content: &[u8]) -> [Option<Slot<'_>>; 2] {
    let (first, second) = content.split_at(content.len() / 2);
    [decode(first), decode(second)]
}

fn newest(content: &[u8]) -> Option<Slot<'_>> {
    slots(content).into_iter().flatten().max_by_key(|slot| slot.serial)
}

fn content(dir: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    let path = dir.join(name);
    match std::fs::metadata(&path) {
        Ok(meta) if meta.len() > 2 * MAX_SLOT as u64 => Err(ErrorKind::FileTooLarge.into()),
        Ok(_) => std::fs::read(&path).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The record that `name` in `dir` holds; `None` if there is no such file.
///
/// # Errors
/// It cannot be read, or neither slot is whole: then nothing is known of what was written there.
pub fn read(dir: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    let Some(content) = content(dir, name)? else { return Ok(None) };
    let damaged = || io::Error::new(ErrorKind::InvalidData, "neither of its two slots is whole");
    newest(&content).map(|slot| Some(slot.record.to_vec())).ok_or_else(damaged)
}

/// Makes `record` what `name` in `dir` holds, and returns when the disk has it. One writer at a time.
///
/// # Errors
/// The disk's: the record is then the old one or the new one.
pub fn write(dir: &Path, name: &str, record: &[u8]) -> io::Result<()> {
    let content = content(dir, name)?.unwrap_or_default();
    let (bytes, old) = (content.len() / 2, slots(&content));
    let serials = old.map(|slot| slot.map(|slot| slot.serial));
    let serial = serials.iter().flatten().max().map_or(1, |last| last.saturating_add(1));
    // What is not one of these files, or too small, is replaced whole.
    match (serials, encode(serial, record, bytes)) {
        ([None, None], _) | (_, None) => make(dir, name, serial, record),
        (_, Some(slot)) => {
            let file = OpenOptions::new().write(true).open(dir.join(name))?;
            // The one that is whole and newer stays so until the other is.
            let lesser = usize::from(serials[0] > serials[1]);
            for at in [lesser, 1 - lesser] {
                file.write_all_at(&slot, (at * bytes) as u64)?;
                file.sync_data()?;
            }
            Ok(())
        }
    }
}

fn make(dir: &Path, name: &str, serial: u64, record: &[u8]) -> io::Result<()> {
    // Room for twice as much, so that what grows is not made anew each time.
    let bytes = (2 * (HEADER + record.len())).next_multiple_of(PAGE);
    let slot = encode(serial, record, bytes).filter(|slot| slot.len() <= MAX_SLOT);
    let slot = slot.ok_or(ErrorKind::FileTooLarge)?;
    crate::disk::replace(dir, name, &[slot.as_slice(), &slot].concat())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    struct Dir(std::path::PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("regent-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&dir);
            std::fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        fn image(&self) -> Vec<u8> {
            std::fs::read(self.0.join("it")).unwrap()
        }

        fn lay(&self, image: &[u8]) {
            std::fs::write(self.0.join("it"), image).unwrap();
        }

        fn read(&self) -> Option<Vec<u8>> {
            read(&self.0, "it").unwrap()
        }

        fn write(&self, record: &[u8]) {
            write(&self.0, "it", record).unwrap();
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written_whatever_its_length() {
        let dir = Dir::new("twofold-lengths");
        assert_eq!(dir.read(), None);
        for length in [0, 1, 3000, 10, 100_000, 4096] {
            let record = vec![b'x'; length];
            dir.write(&record);
            assert_eq!(dir.read(), Some(record));
        }
        assert!(write(&dir.0, "it", &vec![0; MAX_SLOT]).is_err());
        assert_eq!(dir.read(), Some(vec![b'x'; 4096]), "what does not fit leaves what was there");
    }

    /// Each state that a power cut in the middle of a write can leave: sectors of the slot that is
    /// written are new, old or garbage, those of the other are as they were.
    #[test]
    fn a_torn_write_leaves_the_old_record_or_the_new_one() {
        let dir = Dir::new("twofold-torn");
        let (old, new) = (vec![b'o'; 1500], vec![b'n'; 1800]);
        dir.write(&old);
        let mut before = dir.image();
        dir.write(&new);
        let after = dir.image();
        let half = before.len() / 2;
        assert_eq!(after.len(), before.len(), "in place");
        // The first slot goes first here, the second when that is on disk.
        for slot in [0, half] {
            for mask in 0..3_u32.pow(5) {
                let mut image = before.clone();
                for (sector, kind) in (0..5).map(|n| (n, mask / 3_u32.pow(n) % 3)) {
                    let at = slot + 512 * sector as usize..slot + 512 * (sector as usize + 1);
                    match kind {
                        0 => {}
                        1 => image[at.clone()].copy_from_slice(&after[at]),
                        _ => image[at].fill(0xa5),
                    }
                }
                dir.lay(&image);
                let found = dir.read().unwrap();
                assert!(found == new || (slot == 0 && found == old), "{slot} {mask}");
                // And whatever was left, the next write is read.
                if mask % 7 == 0 {
                    dir.write(&old);
                    assert_eq!(dir.read().as_deref(), Some(&old[..]));
                }
            }
            before[..half].copy_from_slice(&after[..half]);
        }
    }

    #[test]
    fn one_slot_that_rots_has_its_twin_and_two_are_an_error() {
        let dir = Dir::new("twofold-rot");
        dir.write(b"first");
        dir.write(b"second");
        let image = dir.image();
        for slot in [0, image.len() / 2] {
            for at in [0, 9, 17, 21, HEADER + 2] {
                let mut rotten = image.clone();
                rotten[slot + at] ^= 0x40;
                dir.lay(&rotten);
                assert_eq!(dir.read().unwrap(), b"second");
                dir.write(b"third");
                assert_eq!(dir.read().unwrap(), b"third");
            }
        }
        let mut rotten = image.clone();
        (rotten[HEADER], rotten[image.len() / 2 + HEADER]) = (0, 0);
        dir.lay(&rotten);
        assert!(read(&dir.0, "it").is_err());
        dir.lay(b"");
        assert!(read(&dir.0, "it").is_err());
    }
}
