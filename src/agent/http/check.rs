//! HAProxy's agent-check: it connects, says which side it asks for (`agent-send`), is told one line
//! and cut off.
//!
//! The grammar's traps: `#` begins a description only as a word of its own; a line without an end is
//! not read; `ready` would undo what a person set by hand, so it is never said; who answers nothing
//! changes nothing, so `check` must stand beside `agent-check`.

use regent_core::route::fitness::Fitness;

use crate::status::Published;

/// Which side of the routes is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who takes writes.
    Write,
    /// Who takes reads.
    Read,
}

impl Side {
    /// From the line that HAProxy was told to send.
    pub fn parse(line: &str) -> Option<Self> {
        match line.trim() {
            "write" => Some(Self::Write),
            "read" => Some(Self::Read),
            _ => None,
        }
    }
}

/// The line that is answered.
pub fn answer(side: Side, now: &Published) -> String {
    let (role, epoch) = (now.run, &now.epoch);
    match side {
        Side::Write if now.open && role == "primary" => "up 100%\n".to_owned(),
        Side::Write => format!("down #{role}, takes no writes, epoch={epoch}\n"),
        Side::Read if now.takes_reads => {
            let fit = Fitness { lag_bytes: now.lag_bytes, ..Fitness::default() };
            format!("up {}%\n", fit.weight())
        }
        Side::Read => format!("down #{role}, takes no reads\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_primary_is_up_for_writes_and_a_standby_for_reads_by_its_lag() {
        let primary = Published { run: "primary", open: true, ..Published::default() };
        assert_eq!(answer(Side::Write, &primary), "up 100%\n");
        assert_eq!(answer(Side::Read, &primary), "down #primary, takes no reads\n");
        let fenced = Published { open: false, epoch: "1.35".into(), ..primary };
        assert_eq!(answer(Side::Write, &fenced), "down #primary, takes no writes, epoch=1.35\n");
        let standby = Published { run: "standby", takes_reads: true, ..Published::default() };
        assert_eq!(answer(Side::Read, &standby), "up 100%\n");
        let lags = Published { lag_bytes: 4 << 20, ..standby.clone() };
        assert_eq!(answer(Side::Read, &lags), "up 50%\n");
        let alone = Published { takes_reads: false, ..standby };
        assert!(answer(Side::Read, &alone).starts_with("down #"));
    }

    #[test]
    fn what_is_asked_is_one_of_two_words() {
        assert_eq!(Side::parse("write\n"), Some(Side::Write));
        assert_eq!(Side::parse("read\r\n"), Some(Side::Read));
        assert_eq!(Side::parse("writes"), None);
    }
}
