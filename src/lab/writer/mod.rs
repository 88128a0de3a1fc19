//! A client of the lab's database that knows exactly what it was promised: which rows were
//! acknowledged, which were refused, and of which nobody can say.
//!
//! - [`access`]: log in, to whichever host takes writes.
//! - [`steady`]: one connection, a row every few milliseconds, as an application would; measures how
//!   long nobody could write. [`prober`]: fresh connections to every host at once; catches a second
//!   primary. [`locals`]: many sessions on a host's own side of a cut.
//! - `ledger`: what became of each row. `verify`: what is in the table in the end.
//!
//! A commit that came back with a warning was not confirmed by a standby ("canceling wait for
//! synchronous replication"): it counts as unknown, never as acknowledged.

pub mod access;
pub mod ledger;
pub mod locals;
pub mod prober;
pub mod steady;
pub mod verify;

use std::time::Duration;

pub use access::{Access, AccessError, Session};
pub use ledger::{Fate, Ledger, Summary};
pub use locals::Locals;
pub use prober::Prober;
pub use steady::Writer;
pub use verify::{Verdict, verify};

/// How a client behaves.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Time from one row to the next.
    pub every: Duration,
    /// How long a connection may take to be made and asked whether it takes writes.
    pub connect: Duration,
    /// How long one row may take.
    pub statement: Duration,
    /// Between two rounds over hosts of which none takes writes.
    pub pause: Duration,
}

impl Pace {
    /// As the peers were measured: a row each 5 ms, deadlines of one second.
    pub const STEADY: Self = Self {
        every: Duration::from_millis(5),
        connect: Duration::from_secs(1),
        statement: Duration::from_secs(1),
        pause: Duration::from_millis(5),
    };
    /// A look at every host 50 times a second.
    pub const PROBE: Self = Self { every: Duration::from_millis(20), ..Self::STEADY };
}

/// A table's name, as it is put into statements: letters, digits and underscores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table(String);

impl Table {
    /// A table of this run alone.
    pub fn fresh(what: &str) -> Self {
        let letters: String = what.chars().filter(char::is_ascii_alphanumeric).collect();
        Self(format!("rows_{letters}_{:08x}", rand::random::<u32>()).to_lowercase())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Makes it, on whichever host takes writes, and waits at most `within` for one.
    ///
    /// # Errors
    /// Nobody takes writes, or the database said no.
    pub async fn create(&self, access: &Access, within: Duration) -> Result<(), AccessError> {
        let sql = format!(
            "CREATE TABLE IF NOT EXISTS {} (id bigint PRIMARY KEY, at timestamptz NOT NULL \
             DEFAULT clock_timestamp())",
            self.0
        );
        let (session, _) = access.writable_within(Pace::STEADY, 0, within).await?;
        session.batch(&sql, within).await
    }

    /// Removes it.
    ///
    /// # Errors
    /// As [`Table::create`].
    pub async fn drop(&self, access: &Access, within: Duration) -> Result<(), AccessError> {
        let (session, _) = access.writable_within(Pace::STEADY, 0, within).await?;
        session.batch(&format!("DROP TABLE IF EXISTS {}", self.0), within).await
    }
}

#[cfg(test)]
mod tests;
