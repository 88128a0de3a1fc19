//! Clocks compared: what is proven, by how many, and for how long it counts.

use super::*;

/// Makes exchanges with a peer whose clock is `real · (1 + ppm) + jump`.
struct Pair {
    skew: Skew,
    peers: u64,
}

fn pair(peers: u64) -> Pair {
    let mut skew = Skew::new();
    skew.set_peers((1..=peers).map(NodeId));
    Pair { skew, peers }
}

impl Pair {
    fn exchange(&mut self, peer: u64, real_us: u64, ppm: i64, jump_us: i64, round_trip_us: u64) {
        let shown = i128::from(real_us) + i128::from(real_us) * i128::from(ppm) / 1_000_000;
        let peer_us = u64::try_from(shown + i128::from(jump_us)).expect("after zero");
        self.skew.exchanged(
            NodeId(peer),
            Exchange {
                sent: Reading::at_us(real_us),
                received: Reading::at_us(real_us + round_trip_us),
                peer: Reading::at_us(peer_us),
                nonce: Nonce(1),
            },
        );
    }

    /// Every second for `seconds`, all peers alike.
    fn run(&mut self, from_s: u64, seconds: u64, ppm: i64, jump_us: i64) {
        for second in from_s..from_s + seconds {
            for peer in 1..=self.peers {
                self.exchange(peer, second * 1_000_000, ppm, jump_us, 1_000);
            }
        }
    }
}

#[test]
fn clocks_that_agree_agree() {
    let mut pair = pair(2);
    pair.run(10, 200, 50, 0);
    assert_eq!(pair.skew.verdict(), SkewVerdict::Agrees);
    assert!(pair.skew.worst_ppm() <= 50 && !pair.skew.alarms());
}

#[test]
fn a_slow_network_never_looks_like_a_bad_clock() {
    let mut pair = pair(2);
    for second in 10..100 {
        let round_trip = if second % 3 == 0 { 900_000 } else { 100 };
        pair.exchange(1, second * 1_000_000, 0, 0, round_trip);
        pair.exchange(2, second * 1_000_000, 0, 0, round_trip);
        assert!(!pair.skew.abstains());
        assert_eq!(pair.skew.worst_ppm(), 0);
    }
}

#[test]
fn a_pause_against_all_peers_makes_this_node_abstain_until_the_second_good_exchange() {
    for jump in [300_000, -300_000] {
        let mut pair = pair(2);
        pair.run(10, 5, 0, 0);
        pair.run(15, 1, 0, jump);
        assert_eq!(pair.skew.verdict(), SkewVerdict::Differs { against: 2, peers: 2 });
        pair.run(16, 1, 0, jump);
        assert!(pair.skew.abstains(), "the other peers may not have seen it yet");
        pair.run(17, 1, 0, jump);
        assert_eq!(pair.skew.verdict(), SkewVerdict::Agrees);
        // The jump does not come back as a rate when the window is long enough.
        pair.run(18, 20, 0, jump);
        assert_eq!(pair.skew.worst_ppm(), 0);
    }
}

#[test]
fn a_pause_between_two_peers_answers_of_one_round_is_seen_by_both() {
    let mut pair = pair(2);
    pair.run(10, 5, 0, 0);
    // Peer 1 answers, this node pauses, peer 2 answers; peer 1 sees it in the next round.
    pair.exchange(1, 15_000_000, 0, 0, 1_000);
    pair.exchange(2, 15_002_000, 0, 300_000, 1_000);
    assert!(!pair.skew.abstains(), "one of two is no majority");
    pair.exchange(2, 16_000_000, 0, 300_000, 1_000);
    pair.exchange(1, 16_002_000, 0, 300_000, 1_000);
    assert!(pair.skew.abstains());
    pair.run(17, 1, 0, 300_000);
    assert!(!pair.skew.abstains());
}

#[test]
fn one_odd_peer_of_two_or_of_four_does_not_silence_this_node() {
    for peers in [2, 3, 4] {
        let mut pair = pair(peers);
        pair.run(10, 5, 0, 0);
        pair.exchange(1, 15_000_000, 0, 900_000, 1_000);
        assert!(!pair.skew.abstains(), "{peers} peers");
    }
}

#[test]
fn a_difference_within_the_margin_is_no_difference() {
    let mut pair = pair(2);
    pair.run(10, 5, 0, 0);
    pair.run(15, 1, 0, 240_000);
    assert!(!pair.skew.abstains());
}

#[test]
fn a_rate_beyond_rho_makes_it_abstain_and_one_above_the_alarm_is_shown() {
    let mut fast = pair(2);
    fast.run(10, 10, 12_000, 0);
    assert!(fast.skew.abstains());
    let mut slow = pair(2);
    slow.run(10, 10, -12_000, 0);
    assert!(slow.skew.abstains());
    let mut alarming = pair(2);
    alarming.run(10, 20, 3_000, 0);
    assert!(alarming.skew.alarms() && !alarming.skew.abstains());
    // Put right, it shows within the window.
    let shown_us = 29 * 3_000;
    alarming.run(30, 130, 0, shown_us);
    assert!(!alarming.skew.alarms(), "{}", alarming.skew.worst_ppm());
}

#[test]
fn a_restarted_peer_is_not_compared_with_its_former_self() {
    let mut pair = pair(1);
    pair.run(10, 5, 0, 0);
    pair.skew.exchanged(
        NodeId(1),
        Exchange {
            sent: Reading::at_us(15_000_000),
            received: Reading::at_us(15_001_000),
            peer: Reading::at_us(77),
            nonce: Nonce(2),
        },
    );
    assert!(!pair.skew.abstains());
}

#[test]
fn a_suspended_host_whose_boottime_went_on_agrees() {
    let mut pair = pair(1);
    pair.run(10, 5, 0, 0);
    pair.skew.exchanged(
        NodeId(1),
        Exchange {
            sent: Reading { boottime_us: 60_000_000, raw_us: 15_000_000 },
            received: Reading { boottime_us: 60_001_000, raw_us: 15_001_000 },
            peer: Reading::at_us(60_000_500),
            nonce: Nonce(1),
        },
    );
    assert!(!pair.skew.abstains());
}

#[test]
fn without_peers_nothing_contradicts() {
    let mut skew = Skew::new();
    assert!(!skew.abstains());
    skew.set_peers([NodeId(1)]);
    assert!(!skew.abstains());
}
