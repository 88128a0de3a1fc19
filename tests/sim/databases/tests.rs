//! The simulator on trial: it repeats itself, it is not empty, and it finds what it should.

use super::*;

fn sum(options: &Options, seeds: u64) -> Stats {
    let mut stats = Stats::default();
    for seed in 1..=seeds {
        let outcome = run(seed, options);
        assert_eq!(outcome.violations, [""; 0], "seed {seed}, {}", options.profile);
        stats.add(&outcome.stats);
    }
    stats
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    for class in [Class::Within, Class::Beyond] {
        let options = Options { class, ..Options::default() };
        let (once, twice) = (run(7, &options), run(7, &options));
        assert_eq!((once.hash, once.stats), (twice.hash, twice.stats));
        assert_ne!(once.hash, run(8, &options).hash);
    }
}

#[test]
fn where_only_primaries_die_each_is_replaced_and_nothing_is_lost() {
    let quorum =
        Options { profile: Profile::Quiet, mode: Some(Mode::Quorum), ..Options::default() };
    let stats = sum(&quorum, 5);
    assert!(stats.acked > 1_000 && stats.grants > 20 && stats.certificates > 200, "{stats:?}");
    assert_eq!((stats.lost, stats.excused, stats.fired), (0, 0, 0), "{stats:?}");
    let stats = sum(&Options { mode: Some(Mode::Lease), ..quorum }, 5);
    assert!(stats.acked > 1_000 && stats.grants > 20, "{stats:?}");
}
