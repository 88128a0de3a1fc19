//! What an entry costs. Not a benchmark to compare releases by: a net under mistakes of another
//! order, with bounds that a busy machine in the dev profile keeps. `--nocapture` prints figures.

use std::time::Instant;

use super::*;
use crate::command::Renewal;
use crate::id::RenewalNumber;

const SESSIONS: u64 = 20_000;

fn loaded() -> Bench {
    let mut bench = Bench { state: State::default(), by: Principal::new(Role::Client, "ann") };
    let incarnation = Incarnation { counter: 1, id: 7 };
    let timing = Timing::LAN;
    let boot = Command::Bootstrap { incarnation, cluster: "lab".into(), timing };
    apply(&mut bench, &[boot]);
    let open: Vec<_> = (0..SESSIONS).map(|n| open_session(5_000, n)).collect();
    apply(&mut bench, &open);
    bench
}

/// Applies without the full check; microseconds per entry.
fn apply(bench: &mut Bench, commands: &[Command]) -> f64 {
    let by = &bench.by;
    let entries: Vec<_> = commands
        .iter()
        .enumerate()
        .map(|(n, command)| {
            let request = Request { client: ClientId(n as u64 % 256), serial: Serial(u64::MAX) };
            // One lane in use, so that the cost of lanes is in; never the same serial twice.
            let serial = Serial(bench.state.revision().0 + n as u64 + 1);
            let request = Some(Request { serial, ..request });
            Entry::new(WallMs(0), by.clone(), request, command).encode()
        })
        .collect();
    let start = Instant::now();
    for entry in &entries {
        let revision = bench.state.revision().next();
        let applied = bench.state.apply(revision, entry);
        assert!(!matches!(applied.reply, Reply::Rejected(_)), "{:?}", applied.reply);
    }
    start.elapsed().as_secs_f64() * 1e6 / entries.len() as f64
}

#[test]
fn proclaiming_and_renewing_cost_microseconds() {
    let mut bench = loaded();
    let sessions: Vec<_> = bench.state.sessions().keys().copied().collect();
    let first = sessions[0];
    let granted = apply(&mut bench, &[campaign("e", first, 0, 0)]);
    let epoch = bench.state.elections().values().next().unwrap().epoch;
    let proclaim = Command::Proclaim {
        election: "e".parse().unwrap(),
        session: first,
        epoch,
        value: vec![7; 256],
    };
    let proclaims = apply(&mut bench, &vec![proclaim; 20_000]);
    let tick = |number| Command::RenewSessions {
        renewals: sessions
            .iter()
            .enumerate()
            .take(660)
            .map(|(n, session)| Renewal {
                session: *session,
                nonce: Nonce(n as u64),
                number: RenewalNumber(number),
                acked: RenewalNumber(number - 1),
                known_grant: Revision(0),
            })
            .collect(),
    };
    let ticks: Vec<_> = (1..=100).map(tick).collect();
    let renewal = apply(&mut bench, &ticks) / 660.0;
    let start = Instant::now();
    let bytes = bench.state.encode_snapshot();
    let encode = start.elapsed();
    let start = Instant::now();
    let back = State::decode_snapshot(&bytes).unwrap();
    let decode = start.elapsed();
    assert_eq!(back.encode_snapshot(), bytes);
    println!(
        "campaign {granted:.1} us; proclaim of 256 bytes {proclaims:.2} us; renewal {renewal:.3} us; \
         snapshot of {SESSIONS} sessions: {} KiB, encoded in {encode:?}, decoded in {decode:?}",
        bytes.len() / 1024
    );
    assert!(proclaims < 500.0, "{proclaims} us per proclaim");
    assert!(renewal < 50.0, "{renewal} us per renewal");
}
