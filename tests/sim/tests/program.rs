//! The program as people run it. (Being there, this test also has the program built together with all
//! others: scripts/test runs it afterwards.)

use std::process::{Command, Output};

fn sim(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_regent-sim")).args(args).output().expect("it starts")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What a run hashed to.
fn hash(output: &Output) -> String {
    let text = text(output);
    let hash = text.split("hash ").nth(1).and_then(|rest| rest.split_whitespace().next());
    hash.unwrap_or_else(|| panic!("no hash in {text}")).to_owned()
}

#[test]
fn the_same_seeds_hash_alike_and_others_do_not() {
    for (depth, seconds) in [("agents", "60"), ("nodes", "3")] {
        let run =
            |from| sim(&["--depth", depth, "--seeds", "2", "--from", from, "--seconds", seconds]);
        let (one, two, other) = (run("7"), run("7"), run("9"));
        assert!(one.status.success(), "{}", text(&one));
        assert_eq!(hash(&one), hash(&two), "{depth}");
        assert_ne!(hash(&one), hash(&other), "{depth}");
    }
}

#[test]
fn a_failing_seed_says_how_to_replay_it_and_the_replay_fails_alike() {
    let failing = ["--depth", "agents", "--mutant", "answer-before-commit", "--seeds", "5"];
    let failed = sim(&failing);
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed));
    let said = text(&failed);
    let (_, replay) = said.split_once("regent-sim -- ").expect("how to replay it");
    let replay: Vec<&str> = replay.lines().next().expect("a line").split_whitespace().collect();
    let again = sim(&replay);
    assert_eq!(again.status.code(), Some(1), "{replay:?}");
    let what = said.lines().nth(1).expect("what failed").trim();
    assert!(text(&again).contains(what), "{replay:?} did not show {what:?}");
}

#[test]
fn a_mutant_that_does_not_exist_is_answered_with_those_that_do() {
    for (depth, one) in [("agents", "no-fence-budget"), ("nodes", "")] {
        let refused = sim(&["--depth", depth, "--mutant", "none-such"]);
        assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
        assert!(text(&refused).contains("none-such") && text(&refused).contains(one));
    }
}
