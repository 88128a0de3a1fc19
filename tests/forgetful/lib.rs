//! A file system that forgets what was not synced, for tests of power cuts.
//!
//! kill -9 proves nothing about durability, because the page cache survives it. This one keeps,
//! beside what everybody sees, what a power cut would leave: the content of each file as of its last
//! fsync, the names in each directory as of that directory's last fsync. A cut puts that back, and
//! from then on every call fails, as it does without power. That is as little as POSIX promises;
//! real file systems usually lose less.
//!
//! It needs `/dev/fuse` and the right to mount (root). Where that cannot be had, tests go without
//! when they are told so with `REGENT_NO_FUSE=1`.

mod disk;
mod mount;

pub use disk::Disk;
pub use mount::{Mount, go_without};
