//! mTLS, rights, rotation: with real processes and certificates.

use std::path::Path;
use std::sync::Arc;

use regent_core::command::Expect;
use regent_core::id::Locality;
use regent_rpc::client::{CampaignOptions, Seen, Session, SessionOptions};
use regent_rpc::convert::common::{Freshness, From};
use regent_rpc::convert::election::ObserveScope;
use regent_rpc::tls::Tls;

use crate::cluster::{Cluster, PATIENCE, REGENT, election, until};
use crate::follow::Follow;
use crate::writers::Writers;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_role_may_not_do_is_refused_and_kept_in_the_audit_chain() {
    let cluster = Cluster::up("rights", 3).await;
    let client = cluster.client("client");
    let refused = client
        .put_election(&election("x"), &Locality::default(), Expect::Any)
        .await
        .expect_err("a client must not set preferences");
    assert!(refused.to_string().contains("elections.write"), "{refused}");
    until("the refusal in the audit chain", async || {
        let list = cluster.json(&["audit", "list"]);
        list.to_string().contains("elections.write") && list.to_string().contains("refused")
    })
    .await;
    let out = cluster.verb(&["audit", "verify"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authority_is_rotated_under_load_without_a_failed_call_or_a_lost_lease() {
    let cluster = Cluster::up("rotate", 3).await;
    let endpoints = cluster.lab.endpoints();
    // Four writers with files of their own, as four processes have them.
    let files: Vec<_> = (0..4).map(|_| cluster.tls("admin")).collect();
    let open = |tls: &Arc<Tls>| cluster.client_with(Arc::clone(tls), &endpoints);
    let writers = Writers::of(files.iter().map(open));
    // A lease of a library's client, one of a verb, and a watch that sees both.
    let holder = cluster.tls("client");
    let session = Session::open(&open(&holder), SessionOptions::default()).await.unwrap();
    let lease = session.campaign(&election("held"), b"", CampaignOptions::default()).await.unwrap();
    let watcher = cluster.tls("auditor");
    let mut watch = open(&watcher).observe(ObserveScope::All, From::Snapshot);
    let log = cluster.scratch.path().join("campaign.log");
    let campaign = ["election", "campaign", "verb", "--hold"];
    let mut verb = Follow::logged(&cluster, &campaign, &log);
    let held = verb.line(|line| line["event"] == "held");

    let read_again = |log: &Path| {
        let text = std::fs::read_to_string(log).unwrap();
        u64::try_from(text.matches("certificates were reloaded").count()).unwrap()
    };
    let pki = cluster.lab.pki_dir();
    for (steps, step) in (1..).zip(["begin", "switch", "finish"]) {
        let out = std::process::Command::new(REGENT)
            .args(["pki", "rotate", step, "--dir", pki.to_str().unwrap()])
            .output()
            .unwrap();
        assert!(out.status.success(), "{step}: {}", String::from_utf8_lossy(&out.stderr));
        // A step is done when every process has read its files again, which each does by itself.
        until("every process to read its files again", async || {
            let here = files.iter().chain([&holder, &watcher]);
            here.map(|tls| tls.stats().reloads()).all(|count| count >= steps)
                && cluster.lab.nodes.iter().all(|node| read_again(&node.log) >= steps)
                && read_again(&log) >= steps
        })
        .await;
        writers.progress(80).await;
        assert!(lease.is_held(), "{step}: {:?}", session.over());
    }
    let failed = writers.failures().await;
    assert!(failed.is_empty(), "{} calls failed: {:?}", failed.len(), &failed[..1]);
    // Both leases are the ones of the beginning, renewed over connections of the new authority.
    lease.proclaim(b"after").await.unwrap();
    assert!(lease.is_held());
    let shown = cluster.json(&["election", "show", "verb"]);
    assert_eq!(shown["election"]["holder"]["epoch"]["text"], held["epoch"]["text"], "{shown}");
    verb.terminate();
    verb.line(|line| line["event"] == "resigned");
    // The watch went on from one connection to the next, and never began anew.
    let mut restarts = 0;
    loop {
        let next = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
        restarts += usize::from(next == Seen::Restart);
        if let Seen::Change(change) = next
            && let Some(holder) = change.election.and_then(|row| row.holder)
            && holder.value.as_ref() == b"after"
        {
            break;
        }
    }
    assert_eq!(restarts, 1, "the watch lost its place");
    // A fresh connection works with the new files alone.
    let fresh = cluster.client("admin").with_timeout(PATIENCE);
    fresh.list_elections("mark/", Freshness::Linearizable).await.unwrap();
}
