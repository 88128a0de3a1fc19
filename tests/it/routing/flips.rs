//! From the entry that opens the routes, as the first node's log has it, to the first call that a gRPC
//! client makes at the new primary. `REGENT_FLIPS=30` for the row of docs/performance.md.

use regent_lab::ports;

use super::grpc::Program;
use super::stage::Stage;

/// Seconds of the day, of an instant as logs write it.
fn seconds(stamp: &str) -> f64 {
    let time = stamp.split_once('T').unwrap().1.trim_end_matches('Z');
    time.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().unwrap())
}

/// When the first node opened the routes to `name`, after `since`.
fn opened(stage: &Stage, name: &str, since: f64) -> f64 {
    let to = format!("to={name}");
    let stamps = stage.cluster.lab.nodes.iter().flat_map(|node| {
        let log = std::fs::read_to_string(&node.log).unwrap();
        let lines = log.lines().filter(|line| line.contains("writes are routed "));
        let stamps = lines.filter(|line| line.split_whitespace().any(|word| word == to));
        let stamps = stamps.filter_map(|line| line.split_whitespace().next().map(seconds));
        stamps.filter(|at| *at > since).collect::<Vec<_>>()
    });
    stamps.fold(f64::MAX, f64::min)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_client_is_at_the_new_primary_within_milliseconds() {
    let ports = ports::free(2).unwrap();
    let addresses: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let stage = Stage::up("flips", 3, &addresses).await;
    let mut program = Program::start(&stage.cluster, &[], &ports);
    program.reaches("orders.write", "a");
    let flips: usize = std::env::var("REGENT_FLIPS").map_or(5, |text| text.parse().unwrap());
    let (mut took, mut last) = (Vec::new(), 0.0);
    for flip in 0..flips {
        let other = if flip % 2 == 0 { "b" } else { "a" };
        let said = program.follows(&stage, other).await;
        let at = seconds(said["at"].as_str().unwrap());
        took.push(1_000.0 * (at - opened(&stage, other, last)));
        last = at;
    }
    took.sort_by(f64::total_cmp);
    let (p50, max) = (took[took.len() / 2], took[took.len() - 1]);
    println!("gRPC: p50 {p50:.1} ms, max {max:.1} ms of {took:.1?}");
    // A bound for a busy machine: whoever waits for a poll of a second is far above it.
    assert!(took[0] > -1.0 && p50 < 100.0, "{took:?}");
}
