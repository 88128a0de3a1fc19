//! The gate: sound links pass, half-dead ones are found out.

use super::*;

const TTL_MS: u64 = 10_000;
const INTERVAL_MS: u64 = 500;

fn at(ms: u64) -> Reading {
    Reading::at_us(ms * 1_000)
}

/// Judges a renewal that did not wait.
fn judge(gate: &mut Gate, acked: u64, now_ms: u64) -> Verdict {
    gate.judge(RenewalNumber(acked), at(now_ms), at(now_ms))
}

#[test]
fn a_renewal_that_waited_longer_than_half_the_ttl_extends_nothing() {
    let mut gate = Gate::new(TTL_MS, INTERVAL_MS);
    assert_eq!(gate.judge(RenewalNumber(0), at(0), at(5_000)), Verdict::Pass);
    assert_eq!(gate.judge(RenewalNumber(0), at(0), at(5_001)), Verdict::TooOld);
}

#[test]
fn a_sound_link_always_passes() {
    for round_trip in [1, 200, 499] {
        let mut gate = Gate::new(TTL_MS, INTERVAL_MS);
        let mut acks: Vec<(u64, u64)> = Vec::new();
        for number in 1..200_u64 {
            let now = number * INTERVAL_MS;
            let seen = acks.iter().filter(|(sent, _)| sent + round_trip <= now);
            let acked = seen.map(|(_, number)| *number).max().unwrap_or(0);
            assert_eq!(judge(&mut gate, acked, now), Verdict::Pass, "round trip {round_trip}");
            gate.ack_sent(RenewalNumber(number), at(now + 30));
            acks.push((now + 30, number));
        }
    }
}

#[test]
fn a_client_that_hears_nothing_is_found_out_after_two_intervals_and_stays_out() {
    let mut gate = Gate::new(TTL_MS, INTERVAL_MS);
    let mut passed_until = 0;
    for number in 1..60_u64 {
        let now = number * INTERVAL_MS;
        match judge(&mut gate, 0, now) {
            Verdict::Pass => {
                passed_until = now;
                gate.ack_sent(RenewalNumber(number), at(now + 30));
            }
            verdict => {
                assert_eq!(verdict, Verdict::HalfDead);
                gate.resend_sent(at(now + 1));
            }
        }
    }
    assert!(passed_until <= 4 * INTERVAL_MS, "passed until {passed_until}");
}

#[test]
fn a_client_that_hears_again_passes_with_its_next_renewal() {
    let mut gate = Gate::new(TTL_MS, INTERVAL_MS);
    gate.ack_sent(RenewalNumber(5), at(1_000));
    gate.ack_sent(RenewalNumber(6), at(1_500));
    gate.ack_sent(RenewalNumber(7), at(2_000));
    assert_eq!(judge(&mut gate, 4, 2_100), Verdict::HalfDead);
    gate.resend_sent(at(2_100));
    assert_eq!(judge(&mut gate, 7, 2_150), Verdict::Pass);
}

#[test]
fn the_first_renewal_on_a_stream_is_judged_by_age_alone() {
    assert_eq!(judge(&mut Gate::new(TTL_MS, INTERVAL_MS), 0, 1_000_000), Verdict::Pass);
}

#[test]
fn after_this_node_was_silent_renewals_are_judged_by_age_alone() {
    let mut gate = Gate::new(TTL_MS, INTERVAL_MS);
    gate.ack_sent(RenewalNumber(5), at(1_000));
    // Frozen for three seconds; what lay in the socket names what the client knew before.
    assert_eq!(judge(&mut gate, 4, 4_000), Verdict::Pass);
    assert_eq!(judge(&mut gate, 4, 4_000), Verdict::Pass);
    gate.ack_sent(RenewalNumber(9), at(4_020));
    assert_eq!(judge(&mut gate, 5, 4_100), Verdict::Pass);
}

#[test]
fn a_client_that_renews_faster_than_it_said_does_not_wear_the_gate_out() {
    let mut gate = Gate::new(TTL_MS, INTERVAL_MS);
    for number in 1..5_000_u64 {
        let now = number * 7;
        // It names what it was told up to 300 ms ago.
        assert_eq!(judge(&mut gate, number.saturating_sub(43), now), Verdict::Pass);
        gate.ack_sent(RenewalNumber(number), at(now));
    }
    assert_eq!(judge(&mut gate, 4_000, 5_000 * 7), Verdict::HalfDead);
}
