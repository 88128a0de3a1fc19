//! `regent election`: a lease won, held, watched, proclaimed and given up by verbs alone.

use crate::cluster::Cluster;
use crate::follow::Follow;

fn text(out: &std::process::Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_moves_from_a_holder_to_the_next_by_verbs_alone() {
    let cluster = Cluster::up("elections", 3).await;
    let mut watch = Follow::start(&cluster, &["election", "observe", "billing", "--changes", "99"]);
    let campaign = ["election", "campaign", "billing", "--hold", "--value"];
    let mut one = Follow::start(&cluster, &[&campaign[..], &["one"]].concat());
    let held = one.line(|line| line["event"] == "held");
    let epoch = held["epoch"]["text"].as_str().unwrap().to_owned();
    let session = held["session"].as_u64().unwrap().to_string();
    watch.line(|line| line["election"]["holder"]["value"] == "one");

    let publish = |epoch: &str, value: &str| {
        let whose = ["election", "proclaim", "billing", "--session", &session];
        cluster.verb(&[&whose[..], &["--epoch", epoch, "--value", value]].concat())
    };
    let done = publish(&epoch, "one again");
    assert!(done.status.success(), "{}", text(&done));
    watch.line(|line| line["election"]["holder"]["value"] == "one again");
    let other = publish("1.1", "forged");
    assert_eq!(other.status.code(), Some(1), "a wrong epoch proclaimed");
    assert!(text(&other).contains("stale"), "{}", text(&other));
    // What the node's log calls it.
    assert!(text(&other).contains("\n  request "), "{}", text(&other));

    // A second one waits; when the first is told to stop, it resigns and the lease moves.
    let once = cluster.verb(&["election", "campaign", "billing"]);
    assert_eq!(once.status.code(), Some(1));
    assert!(text(&once).contains("somebody else leads"), "{}", text(&once));
    let mut two = Follow::start(&cluster, &[&campaign[..], &["two"]].concat());
    two.line(|line| line["event"] == "waiting");
    let queued = |line: &serde_json::Value| {
        line["election"]["queue"].as_array().is_some_and(|queue| !queue.is_empty())
    };
    watch.line(queued);
    one.terminate();
    one.line(|line| line["event"] == "resigned");
    assert!(one.exit().await.success(), "a holder told to stop failed");
    let won = two.line(|line| line["event"] == "held");
    assert!(won["epoch"]["revision"].as_u64() > held["epoch"]["revision"].as_u64(), "S3: {won}");
    watch.line(|line| line["election"]["holder"]["value"] == "two");
    let late = publish(&epoch, "late");
    assert_eq!(late.status.code(), Some(1), "a stale epoch proclaimed");
    let shown = cluster.json(&["election", "show", "billing"]);
    assert_eq!(shown["election"]["holder"]["value"], "two", "{shown}");
    two.terminate();
    assert!(two.exit().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_asked_for_once_is_resigned_by_its_session_and_nonce() {
    let cluster = Cluster::up("resign", 1).await;
    let held = cluster.json(&["election", "campaign", "nightly", "--value", "me"]);
    let session = held["session"].as_u64().unwrap().to_string();
    let nonce = held["nonce"].as_str().unwrap();
    let wrong = format!("{:x}", u64::from_str_radix(nonce, 16).unwrap() ^ 1);
    let resign = ["election", "resign", "nightly", "--session", &session, "--nonce"];
    let stranger = cluster.verb(&[&resign[..], &[&wrong]].concat());
    assert_eq!(stranger.status.code(), Some(1), "another start of the client resigned for it");
    let done = cluster.verb(&[&resign[..], &[nonce]].concat());
    assert!(done.status.success(), "{}", text(&done));
    let shown = cluster.json(&["election", "show", "nightly"]);
    assert!(shown["election"]["holder"].is_null(), "{shown}");
    assert!(cluster.json(&["election", "list"]).to_string().contains("nightly"));

    // The command runs while the lease is held, knows its epoch, and its failure is the verb's.
    let told = cluster.scratch.path().join("told");
    let script = format!("echo $REGENT_ELECTION $REGENT_EPOCH >{}; exit 7", told.display());
    let run = ["election", "campaign", "nightly", "--exec", "sh", "-c", &script];
    let out = cluster.verb(&run);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out));
    assert!(text(&out).contains("exit status: 7"), "{}", text(&out));
    let told = std::fs::read_to_string(told).unwrap();
    let (election, epoch) = told.trim().split_once(' ').unwrap();
    assert_eq!(election, "nightly");
    let before = held["epoch"]["revision"].as_u64().unwrap();
    assert!(epoch.split_once('.').unwrap().1.parse::<u64>().unwrap() > before, "S3: {epoch}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preference_decides_who_is_next_and_an_idle_election_can_be_deleted() {
    let cluster = Cluster::up("prefer", 1).await;
    let set = cluster.json(&["election", "prefer", "batch", "--region", "eu", "--zone", "eu-2"]);
    assert_eq!(set["preferred"], "eu/eu-2", "{set}");
    let place = |zone| ["--region", "eu", "--zone", zone, "--value", zone, "--hold"];
    let campaign = |zone| [&["election", "campaign", "batch"][..], &place(zone)].concat();
    let mut holder = Follow::start(&cluster, &campaign("eu-1"));
    holder.line(|line| line["event"] == "held");
    let in_use = cluster.verb(&["election", "delete", "batch"]);
    assert_eq!(in_use.status.code(), Some(1), "deleted under its holder");
    // The one that waits for longer is elsewhere.
    let mut elsewhere = Follow::start(&cluster, &campaign("eu-1"));
    let mut watch = Follow::start(&cluster, &["election", "observe", "batch", "--changes", "99"]);
    let queue = |line: &serde_json::Value| line["election"]["queue"].as_array().map(Vec::len);
    watch.line(|line| queue(line) == Some(1));
    let mut preferred = Follow::start(&cluster, &campaign("eu-2"));
    watch.line(|line| queue(line) == Some(2));
    holder.terminate();
    preferred.line(|line| line["event"] == "held");
    elsewhere.terminate();
    preferred.terminate();
    assert!(elsewhere.exit().await.success() && preferred.exit().await.success());
    let stale = cluster.verb(&["election", "delete", "batch", "--expect-revision", "1"]);
    assert_eq!(stale.status.code(), Some(1), "deleted what had changed");
    assert!(cluster.verb(&["election", "delete", "batch"]).status.success());
    assert_eq!(cluster.verb(&["election", "show", "batch"]).status.code(), Some(1));
}
