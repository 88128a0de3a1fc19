//! The verbs as a user meets them: output, refusals, exit codes, documents in step.

use std::process::Command;

use crate::cluster::{Cluster, REGENT, Scratch};

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_applied_listed_changed_by_compare_and_set_and_deleted() {
    let cluster = Cluster::up("verbs", 3).await;
    let root = env!("CARGO_MANIFEST_DIR");
    let file = format!("{root}/docs/examples/orders.toml");
    let first = cluster.json(&["services", "apply", "-f", &file]);
    assert!(first.to_string().contains("orders"), "{first}");
    let list = cluster.json(&["services", "list"]);
    assert!(list.to_string().contains("orders"), "{list}");
    let lost = cluster.verb(&["services", "apply", "-f", &file, "--expect-revision", "1"]);
    assert_eq!(lost.status.code(), Some(1), "{}", String::from_utf8_lossy(&lost.stderr));
    let bad = cluster.scratch.path().join("bad.toml");
    let text = std::fs::read_to_string(&file).unwrap().replace("quorum", "quorun");
    std::fs::write(&bad, text).unwrap();
    let refused = cluster.verb(&["services", "apply", "-f", bad.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("mode") && said.contains("quorum"), "{said}");
    let gone = cluster.verb(&["services", "delete", "orders", "--yes"]);
    assert!(gone.status.success(), "{}", String::from_utf8_lossy(&gone.stderr));
    let missing = cluster.verb(&["services", "show", "orders"]);
    assert_eq!(missing.status.code(), Some(1));
    let status = cluster.json(&["status"]);
    assert!(status.to_string().contains("leader"), "{status}");
}

#[test]
fn a_cluster_that_is_not_there_is_unreachable_and_says_what_to_do() {
    let out = Command::new(REGENT)
        .args(["--endpoints", "127.0.0.1:1", "--timeout", "1s", "status"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(matches!(out.status.code(), Some(2 | 3)), "{said}");
    assert!(said.contains("hint"), "{said}");
}

#[test]
fn the_completion_script_is_one_that_bash_accepts_and_that_knows_the_verbs() {
    let out = Command::new(REGENT).args(["completions", "bash"]).output().unwrap();
    assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
    let mut script = String::from_utf8(out.stdout).unwrap();
    // Bash itself completes the words it is given.
    script.push_str("\nCOMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); COMP_LINE=\"$*\"\n");
    script.push_str("_regent regent \"${!#}\"; echo ${COMPREPLY[*]}\n");
    let scratch = Scratch::new("completions");
    let file = scratch.path().join("regent.bash");
    std::fs::write(&file, script).unwrap();
    for (words, wanted) in
        [(&["regent", "memb"][..], "members"), (&["regent", "members", "pro"], "promote")]
    {
        let out = Command::new("bash").arg("--norc").arg(&file).args(words).output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert_eq!(said.trim(), wanted, "{}", String::from_utf8_lossy(&out.stderr));
    }
}

#[test]
fn the_reference_of_verbs_is_in_step_with_the_program() {
    let out = Command::new(REGENT).args(["internal", "cli-docs"]).output().unwrap();
    assert!(out.status.success());
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cli.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &out.stdout).unwrap();
    }
    let have = std::fs::read(path).unwrap_or_default();
    assert!(have == out.stdout, "docs/cli.md is out of step; run `make fix`");
}
