//! mTLS, rights, rotation: with real processes and certificates.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use regent_core::command::Expect;
use regent_core::id::Locality;
use regent_rpc::convert::common::Freshness;

use crate::cluster::{Cluster, PATIENCE, REGENT, election, mark, until};

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
async fn the_authority_is_rotated_under_load_without_a_failed_call() {
    let cluster = Cluster::up("rotate", 3).await;
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let files = cluster.tls("admin");
    let mut steps = 0;
    let load = {
        let client = cluster.client_with(Arc::clone(&files), &cluster.lab.endpoints());
        let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
        tokio::spawn(async move {
            let mut failed = Vec::new();
            for number in 0_u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                match mark(&client, &format!("mark/{number}")).await {
                    Ok(()) => done.fetch_add(1, Ordering::Relaxed),
                    Err(error) => {
                        failed.push(error.to_string());
                        0
                    }
                };
            }
            failed
        })
    };
    let pki = cluster.lab.pki_dir();
    for step in ["begin", "switch", "finish"] {
        let before = done.load(Ordering::Relaxed);
        let out = std::process::Command::new(REGENT)
            .args(["pki", "rotate", step, "--dir", pki.to_str().unwrap()])
            .output()
            .unwrap();
        assert!(out.status.success(), "{step}: {}", String::from_utf8_lossy(&out.stderr));
        // Each process says that it has read its files again; a step is done when all have.
        steps += 1;
        until("every node to read its files again", async || {
            cluster.lab.nodes.iter().all(|node| {
                let log = std::fs::read_to_string(&node.log).unwrap();
                log.matches("certificates were reloaded").count() >= steps
            })
        })
        .await;
        files.reload().unwrap();
        until("progress under rotation", async || done.load(Ordering::Relaxed) > before + 20).await;
    }
    stop.store(true, Ordering::Relaxed);
    let failed = load.await.unwrap();
    assert!(failed.is_empty(), "{} calls failed: {:?}", failed.len(), &failed[..1]);
    // A fresh connection works with the new files alone.
    let fresh = cluster.client("admin").with_timeout(PATIENCE);
    fresh.list_elections("mark/", Freshness::Linearizable).await.unwrap();
}
