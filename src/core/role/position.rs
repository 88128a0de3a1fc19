//! How far an instance's WAL reaches, and when one position covers another.
//!
//! Positions are compared only within one data generation, only flushed ends, and by the epoch that
//! the WAL itself carries first: timeline numbers can repeat (PROTOCOL.md B, D).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::Epoch;

/// A byte position in PostgreSQL's WAL; printed as PostgreSQL prints it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

/// Not two hexadecimal numbers with a slash between them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no WAL position; one looks like 16/B374D848")]
pub struct NotAnLsn(pub String);

impl FromStr for Lsn {
    type Err = NotAnLsn;
    fn from_str(text: &str) -> Result<Self, NotAnLsn> {
        let parse = || {
            let (high, low) = text.split_once('/')?;
            let plain =
                |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_hexdigit());
            if !plain(high) || !plain(low) {
                return None;
            }
            let high = u32::from_str_radix(high, 16).ok()?;
            let low = u32::from_str_radix(low, 16).ok()?;
            Some(Self(u64::from(high) << 32 | u64::from(low)))
        };
        parse().ok_or_else(|| NotAnLsn(text.chars().take(40).collect()))
    }
}

/// How far an instance's flushed WAL reaches. The order of the fields is the order of comparison;
/// within one WAL-borne epoch there is one timeline, so that its number decides nothing that the
/// epoch and the end do not.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Position {
    /// The highest epoch written into the WAL, by the first transaction after a promotion.
    pub epoch: Epoch,
    /// End of the WAL that is flushed.
    pub end: Lsn,
    /// The timeline it ends on, for people and for the check of ancestry.
    pub timeline: u32,
}

impl Position {
    /// Whether everything up to `other` is held here too.
    pub fn covers(&self, other: &Self) -> bool {
        (self.epoch, self.end) >= (other.epoch, other.end)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (timeline {}, epoch {})", self.end, self.timeline, self.epoch)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::id::Revision;

    #[test]
    fn a_position_is_read_and_printed_as_postgresql_does() {
        assert_eq!("16/B374D848".parse::<Lsn>().unwrap().to_string(), "16/B374D848");
        assert_eq!("0/0".parse::<Lsn>().unwrap(), Lsn(0));
        for bad in ["", "/", "1", "1/", "/1", "g/1", "1/1/1", "100000000/0", "+1/1", "1/-1"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_epoch_in_the_wal_is_compared_before_its_end() {
        let at = |epoch, end| Position {
            epoch: Epoch { incarnation: 1, revision: Revision(epoch) },
            end: Lsn(end),
            timeline: 1,
        };
        assert!(at(2, 10).covers(&at(1, 99)));
        assert!(!at(1, 99).covers(&at(2, 10)));
        assert!(at(1, 9).covers(&at(1, 9)) && !at(1, 8).covers(&at(1, 9)));
    }
}
