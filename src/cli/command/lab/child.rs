//! Verbs that the lab's own tools ask for: each as a process of its own, as an operator would, so
//! that what is shown and measured is what an operator gets.

use std::process::Stdio;
use std::time::Duration;

use regent_lab::Lab;
use serde::Deserialize;
use serde_json::Value;

use super::Identity;
use crate::error::{CliError, Context as _, Outcome};

/// Longer than any verb's own deadline.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a verb with one of the lab's identities; what it printed with `-o json`.
///
/// # Errors
/// It did not end with success; its own words are the cause.
pub async fn verb(lab: &Lab, identity: Identity, words: &[&str]) -> Outcome<Value> {
    let what = || format!("cannot run `regent {}`", words.join(" "));
    let pair = identity.pair(lab);
    let child = tokio::process::Command::new(&lab.binary)
        .env_remove("REGENT_CONFIG")
        .args(["--endpoints", &lab.endpoints().join(","), "-o", "json"])
        .arg("--cert")
        .arg(pair.cert)
        .arg("--key")
        .arg(pair.key)
        .arg("--ca")
        .arg(lab.certificates().ca)
        .args(["--trust-domain", &lab.trust_domain])
        .args(words)
        .stdin(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, child)
        .await
        .map_err(|_| CliError::unreachable(what()).because("it did not end within a minute"))?
        .or_internal(what)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(CliError::internal(what()).because(said));
    }
    serde_json::from_slice(&output.stdout).or_internal(what)
}

/// A role change, as `regent operations list -o json` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Operation {
    /// Revision that began it.
    pub id: u64,
    /// `failover` or `switchover`.
    pub kind: String,
    /// What was seen, of a failover.
    pub verdict: String,
    /// The primary before.
    pub from: String,
    /// The primary after.
    pub to: String,
    /// Why the old primary is out.
    pub out: String,
    /// Why the new one holds everything.
    pub complete: String,
    /// Where it stands.
    pub phase: String,
    /// It ended.
    pub over: bool,
    /// When each phase began.
    pub history: Vec<Began>,
}

/// A phase of an operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Began {
    /// Its name.
    pub phase: String,
    /// Wall clock of the leader, in milliseconds since 1970.
    pub at_ms: u64,
}

/// The newest role change of a service; `None`: there was none, or this cluster tells nothing of
/// them.
pub async fn newest_operation(lab: &Lab, service: &str) -> Option<Operation> {
    let words = ["operations", "list", "--service", service];
    newest(&verb(lab, Identity::Operator, &words).await.ok()?)
}

fn newest(answer: &Value) -> Option<Operation> {
    let rows = answer.get("operations")?.as_array()?;
    let read = |row: &Value| Operation::deserialize(row).ok();
    rows.iter().filter_map(read).max_by_key(|operation| operation.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_newest_operation_is_the_one_that_began_last() {
        let answer = json!({ "operations": [
            { "id": 41, "kind": "switchover", "over": true },
            { "id": 77, "kind": "failover", "out": "lapse", "loss": { "bytes": 0 },
              "history": [{ "phase": "fence", "revision": 77, "at_ms": 1_000 }] },
        ]});
        let operation = newest(&answer).expect("there are two");
        assert_eq!((operation.id, operation.out.as_str()), (77, "lapse"));
        assert_eq!(operation.history[0].at_ms, 1_000);
        assert_eq!(newest(&json!({ "operations": [] })), None);
    }
}
