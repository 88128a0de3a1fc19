//! `regent services`: from a file to the cluster and back, and what is refused on the way.

use crate::cluster::Cluster;
use crate::follow::Follow;

const ORDERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/examples/orders.toml");

fn text(out: &std::process::Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declaration_is_applied_once_shown_watched_changed_by_compare_and_set_and_deleted() {
    let cluster = Cluster::up("services", 3).await;
    let mut watch = Follow::start(&cluster, &["services", "watch", "orders"]);
    let dry = cluster.json(&["services", "apply", "-f", ORDERS, "--dry-run"]);
    assert_eq!((&dry["dry_run"], &dry["changed"]), (&true.into(), &true.into()), "{dry}");
    assert_eq!(cluster.json(&["services", "list"])["services"], serde_json::json!([]));

    let first = cluster.json(&["services", "apply", "-f", ORDERS]);
    assert_eq!(first["changed"], true, "{first}");
    let revision = first["service"]["changed"].as_u64().unwrap();
    let seen = watch.line(|line| line["event"] == "change");
    assert_eq!((&seen["name"], &seen["revision"]), (&"orders".into(), &revision.into()), "{seen}");
    assert_eq!(seen["service"]["policy"]["ttl_ms"], 3000, "{seen}");

    // From a timer the same file changes nothing, and says so.
    let again = cluster.json(&["services", "apply", "-f", ORDERS]);
    assert_eq!(again["changed"], false, "{again}");
    assert_eq!(again["service"]["changed"], revision, "{again}");
    let plain = cluster.verb(&["services", "apply", "-f", ORDERS]);
    let said = String::from_utf8_lossy(&plain.stdout).into_owned();
    assert!(said.contains("was declared so already"), "{said}");
    let dry = cluster.json(&["services", "apply", "-f", ORDERS, "--dry-run"]);
    assert_eq!(dry["changed"], false, "{dry}");

    let shown = cluster.json(&["services", "show", "orders"]);
    assert_eq!(shown["service"]["instances"][1]["name"], "pg2", "{shown}");
    assert_eq!(shown["service"]["changed"], revision, "{shown}");
    let table = cluster.verb(&["services", "list"]);
    assert!(String::from_utf8_lossy(&table.stdout).contains("orders"), "{table:?}");

    // Compare-and-set: the revision that is in force wins, any other loses and is told why.
    let changed = cluster.scratch.path().join("changed.toml");
    let whole = std::fs::read_to_string(ORDERS).unwrap().replace("ttl_ms = 3000", "ttl_ms = 4000");
    std::fs::write(&changed, whole).unwrap();
    let changed = changed.to_str().unwrap();
    let stale = (revision - 1).to_string();
    let lost = cluster.verb(&["services", "apply", "-f", changed, "--expect-revision", &stale]);
    assert_eq!(lost.status.code(), Some(1), "{}", text(&lost));
    let why = text(&lost);
    assert!(why.contains(&format!("was changed at revision {revision}")), "{why}");
    assert!(why.contains("hint: "), "{why}");
    let force = revision.to_string();
    let won = cluster.json(&["services", "apply", "-f", changed, "--expect-revision", &force]);
    assert_eq!(won["changed"], true, "{won}");
    let seen = watch.line(|line| line["event"] == "change");
    assert_eq!(seen["service"]["policy"]["ttl_ms"], 4000, "S12, or a no-op was shown: {seen}");

    // There is nothing to release, and nothing is deleted by accident.
    let idle = cluster.verb(&["services", "release", "orders", "--reason", "looked at it"]);
    assert!(!idle.status.success() && text(&idle).contains("not quarantined"), "{}", text(&idle));
    let careful = cluster.verb(&["services", "delete", "orders"]);
    assert_eq!(careful.status.code(), Some(2));
    assert!(text(&careful).contains("--yes"), "{}", text(&careful));
    let gone = cluster.verb(&["services", "delete", "orders", "--yes"]);
    assert!(gone.status.success(), "{}", text(&gone));
    let seen = watch.line(|line| line["event"] == "change");
    assert!(seen["service"].is_null(), "{seen}");
    let missing = cluster.verb(&["services", "show", "orders"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing).contains("orders"), "{}", text(&missing));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_declaration_names_every_field_with_its_line_and_a_fix_and_sends_nothing() {
    let cluster = Cluster::up("bad-file", 1).await;
    let bad = cluster.scratch.path().join("bad.toml");
    let whole = std::fs::read_to_string(ORDERS)
        .unwrap()
        .replace("mode = \"quorum\"", "mode = \"quorun\"")
        .replace("survive = \"zone\"", "survives = \"zone\"")
        .replace("priority = 90", "priority = \"high\"")
        .replace("name = \"pg3\"", "name = \"pg 3\"");
    std::fs::write(&bad, whole).unwrap();
    let refused = cluster.verb(&["services", "apply", "-f", bad.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
    let why = text(&refused);
    for (field, fix) in [
        ("policy.mode", "\"quorum\""),
        ("policy.survives", "\"survive\""),
        ("instances[1].priority", "number"),
        ("instances[2].name", "\"pg1\""),
    ] {
        let line = why.lines().find(|line| line.contains(field));
        let line = line.unwrap_or_else(|| panic!("{field} is not named: {why}"));
        assert!(line.contains("bad.toml:"), "no line is named: {line}");
        assert!(line.contains(fix), "no fix is named: {line}");
    }
    // What only the cluster can judge comes back the same way: field, problem, fix.
    let short = cluster.scratch.path().join("short.toml");
    let whole = std::fs::read_to_string(ORDERS).unwrap().replace("ttl_ms = 3000", "ttl_ms = 1500");
    std::fs::write(&short, whole).unwrap();
    let refused = cluster.verb(&["services", "apply", "-f", short.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
    let why = text(&refused);
    assert!(why.contains("policy.ttl_ms") && why.contains("use at least"), "{why}");
    assert!(why.contains("election + ") && why.contains("clock drift = "), "no sum: {why}");
    assert_eq!(cluster.json(&["services", "list"])["services"], serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_cannot_be_kept_is_refused_with_the_example_that_shows_it() {
    let cluster = Cluster::up("bad-policy", 1).await;
    let orders = std::fs::read_to_string(ORDERS).unwrap();
    let file = cluster.scratch.path().join("orders.toml");
    let with = |from: &str, to: &str| {
        assert!(orders.contains(from), "{from}");
        orders.replace(from, to)
    };
    let policy = |line: &str| with("survive = \"zone\"", &format!("survive = \"zone\"\n{line}"));
    let cases = [
        // Two of three in one zone: with it go the primary and a member of its set.
        (
            with("zone = \"b\"", "zone = \"a\""),
            "without zone eu/a, the primary pg1",
            "2 must be reached",
        ),
        (with("zone = \"c\", ", ""), "instances[2].locality.zone", "survive = \"zone\" needs it"),
        (policy("sync_standbys = 3"), "3 acknowledgements from 2 standbys cannot be", "declare 4"),
        (policy("min_sync_standbys = 2"), "2 is above sync_standbys 1", "lower it"),
        (
            policy("max_failover_scope = \"zone\""),
            "does not survive the loss of a zone",
            "widen it",
        ),
        (
            with("mode = \"quorum\"", "mode = \"lease\"\non_coordinator_loss = \"hold\""),
            "policy.on_coordinator_loss",
            "mode = \"quorum\"",
        ),
        // A duration where milliseconds are wanted; a negative one.
        (with("ttl_ms = 3000", "ttl_ms = \"3s\""), "policy.ttl_ms", "number"),
        (with("ttl_ms = 3000", "ttl_ms = -3000"), "policy.ttl_ms", "number"),
        (with("name = \"pg2\"", "name = \"pg1\""), "instances[1].name", "pg1"),
    ];
    for (text_of_it, example, fix) in cases {
        std::fs::write(&file, text_of_it).unwrap();
        let refused = cluster.verb(&["services", "apply", "-f", file.to_str().unwrap()]);
        let why = text(&refused);
        assert_eq!(refused.status.code(), Some(2), "{example}: {why}");
        assert!(why.contains(example) && why.contains(fix), "{example}, {fix}: {why}");
    }
    assert_eq!(cluster.json(&["services", "list"])["services"], serde_json::json!([]));
}
