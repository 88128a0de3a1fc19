//! What the demo comes to, on one screen: when what happened after the kill, and what became of the
//! client's rows.

use std::fmt;

use regent_lab::writer::Summary;
use regent_rpc::pb::v1;
use serde_json::{Value, json};

use super::failover::Kill;

/// All of it; times are milliseconds after the kill.
pub struct Report {
    /// How the client came in.
    pub way: &'static str,
    /// Who was primary.
    pub old: String,
    /// Who is.
    pub new: String,
    /// The first row that the new primary acknowledged to the client.
    pub first_write_ms: u128,
    /// From the start of the old primary's agent until it streams.
    pub rejoined_ms: u128,
    /// The longest time without an acknowledgement.
    pub pause_ms: u128,
    /// What the nodes wrote down; `None`: they tell of no role change.
    pub operation: Option<Told>,
    /// The client's rows.
    pub rows: Summary,
    /// Of the rows without an answer.
    pub unknown_and_there: u64,
    /// Acknowledged, and not there.
    pub lost: usize,
}

/// A role change, as the nodes wrote it down.
pub struct Told {
    verdict: String,
    reason: String,
    out: String,
    complete: String,
    detected_ms: Option<i128>,
    fenced_ms: Option<i128>,
    promoted_ms: Option<i128>,
}

impl Told {
    /// Reads an operation.
    pub fn of(operation: &v1::Operation, kill: Kill) -> Self {
        let at = |phase: &str| {
            let began = operation.history.iter().find(|began| began.phase == phase);
            began.map(|began| kill.wall_ms(began.at_ms))
        };
        Self {
            verdict: operation.verdict.clone(),
            reason: operation.reason.clone(),
            out: operation.out.clone(),
            complete: operation.complete.clone(),
            detected_ms: at("fence"),
            fenced_ms: at("promote"),
            promoted_ms: at("repair"),
        }
    }
}

impl Report {
    /// Whether the nodes named the proof by which the old primary was out.
    pub fn is_proven(&self) -> bool {
        self.operation.as_ref().is_some_and(|told| !told.out.is_empty())
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let told = self.operation.as_ref();
        json!({
            "through": self.way,
            "from": self.old,
            "to": self.new,
            "verdict": told.map(|told| &told.verdict),
            "detected_ms": told.and_then(|told| told.detected_ms),
            "fenced_ms": told.and_then(|told| told.fenced_ms),
            "out": told.map(|told| &told.out),
            "promoted_ms": told.and_then(|told| told.promoted_ms),
            "complete": told.map(|told| &told.complete),
            "first_write_ms": self.first_write_ms,
            "longest_pause_ms": self.pause_ms,
            "rejoined_ms": self.rejoined_ms,
            "acked": self.rows.acked,
            "lost": self.lost,
            "refused": self.rows.failed,
            "unknown": self.rows.unknown,
            "unknown_and_there": self.unknown_and_there,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (old, new) = (&self.old, &self.new);
        writeln!(to, "\nAfter the kill of {old}")?;
        if let Some(told) = &self.operation {
            let mut step = |what: &str, ms: Option<i128>, how: String| {
                let ms = ms.map_or_else(|| "never".to_owned(), |ms| format!("{ms} ms"));
                writeln!(to, "  {what:<20}{ms:>9}   {how}")
            };
            step("detected", told.detected_ms, format!("{}: {}", told.verdict, told.reason))?;
            step("old primary is out", told.fenced_ms, told.out.clone())?;
            step("promoted", told.promoted_ms, format!("{new}: {}", told.complete))?;
        } else {
            writeln!(to, "  the nodes tell of no role change")?;
        }
        let first = format!("{} ms", self.first_write_ms);
        writeln!(to, "  {:<20}{first:>9}   {new}, {}", "first write", self.way)?;
        let back = format!("{} ms", self.rejoined_ms);
        writeln!(to, "  {:<20}{back:>9}   {old} as a standby, since it was started", "rejoined")?;
        writeln!(to, "Rows of the client")?;
        writeln!(to, "  {:<20}{:>6}", "acknowledged", self.rows.acked)?;
        writeln!(to, "  {:<20}{:>6}", "of those, lost", self.lost)?;
        writeln!(to, "  {:<20}{:>6}", "refused", self.rows.failed)?;
        let there = format!("no answer came; {} are there", self.unknown_and_there);
        writeln!(to, "  {:<20}{:>6}      {there}", "unknown", self.rows.unknown)?;
        write!(to, "  {:<20}{:>6} ms", "longest pause", self.pause_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let told = Told {
            verdict: "PrimaryHostSilent".into(),
            reason: "its agent is silent".into(),
            out: "its replication quorum was revoked".into(),
            complete: "it holds the maximum of enough recruits".into(),
            detected_ms: Some(114),
            fenced_ms: Some(295),
            promoted_ms: None,
        };
        Report {
            way: "through HAProxy",
            old: "pg1".into(),
            new: "pg2".into(),
            first_write_ms: 783,
            rejoined_ms: 2_984,
            pause_ms: 733,
            operation: Some(told),
            rows: Summary { acked: 1_145, failed: 0, unknown: 1 },
            unknown_and_there: 0,
            lost: 0,
        }
    }

    #[test]
    fn a_report_fits_a_terminal_of_eighty_columns_and_says_what_never_came() {
        let text = report().to_string();
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        for line in
            ["old primary is out     295 ms   its replication", "promoted                never"]
        {
            assert!(text.contains(line), "{line}: {text}");
        }
    }

    #[test]
    fn a_failover_that_names_no_proof_is_not_proven() {
        let mut unproven = report();
        assert!(unproven.is_proven());
        unproven.operation = None;
        assert!(!unproven.is_proven());
        assert_eq!(unproven.to_json()["out"], Value::Null);
    }
}
