//! The simulator replays its seeds, finds nothing in the real thing, and finds every mutant.

use super::{Mutant, Options, run};

fn options(seconds: u64, mutant: Option<Mutant>) -> Options {
    Options { seconds, trace: false, mutant }
}

#[test]
fn a_seed_gives_the_same_trace_in_two_fresh_runtimes() {
    for seed in [1, 2, 4] {
        let one = run(seed, &options(8, None));
        let two = run(seed, &options(8, None));
        assert_eq!((one.hash, one.events), (two.hash, two.events), "seed {seed}");
        assert!(one.events > 1_000, "{one:?}");
    }
    let other = run(3, &options(8, None));
    assert_ne!(other.hash, run(1, &options(8, None)).hash);
}

#[test]
fn seeds_keep_every_invariant_and_recover() {
    let mut stats = Vec::new();
    for seed in 100..112 {
        let outcome = run(seed, &options(10, None));
        assert_eq!(outcome.violation, None, "seed {seed}");
        stats.push(outcome.stats);
    }
    // A run in which nothing happened proves nothing.
    assert!(stats.iter().map(|s| s.acks).sum::<u64>() > 500, "{stats:?}");
    assert!(stats.iter().map(|s| s.reads).sum::<u64>() > 500, "{stats:?}");
    assert!(stats.iter().map(|s| s.held).sum::<u64>() > 100, "{stats:?}");
    assert!(stats.iter().map(|s| s.installs).sum::<u64>() > 0, "{stats:?}");
}

/// Runs seeds until one notices the mutant; returns what it said.
fn caught(mutant: Mutant) -> String {
    for seed in 1..60 {
        if let Some(violation) = run(seed, &options(15, Some(mutant))).violation {
            return violation;
        }
    }
    panic!("{mutant:?} was not noticed");
}

#[test]
fn a_disk_that_acknowledges_before_it_syncs_is_noticed() {
    let said = caught(Mutant::LyingDisk);
    assert!(!said.is_empty());
}

#[test]
fn a_node_that_votes_with_an_old_disk_is_noticed() {
    caught(Mutant::OldDisk);
}

#[test]
fn reads_that_ask_nobody_are_noticed() {
    assert!(caught(Mutant::LocalReads).contains("S11"));
}

#[test]
fn a_leader_that_expires_sessions_early_is_noticed() {
    assert!(caught(Mutant::EagerExpiry).contains("S5"));
}

#[test]
fn a_holder_that_counts_too_long_is_noticed() {
    let said = caught(Mutant::LooseHolder);
    assert!(said.contains("S5") || said.contains("C3"), "{said}");
}

#[test]
fn a_node_whose_state_differs_is_noticed() {
    assert!(caught(Mutant::Diverging).contains("S9"));
}
