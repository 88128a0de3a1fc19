//! Clients of two languages: campaign, proclaim, observe.

use std::process::Command;

use regent_core::id::Revision;
use regent_rpc::client::{CampaignOptions, Seen, Session, SessionOptions};
use regent_rpc::convert::common::{Freshness, From};
use regent_rpc::convert::election::ObserveScope;

use crate::cluster::{Cluster, election};

#[tokio::test(flavor = "multi_thread")]
async fn a_rust_client_campaigns_proclaims_and_observes() {
    let cluster = Cluster::up("rust-client", 3).await;
    let job = election("job");
    let one = Session::open(&cluster.client("client"), SessionOptions::default()).await.unwrap();
    let lease = one.campaign(&job, b"one", CampaignOptions::default()).await.unwrap();
    assert!(lease.is_held());

    let watching = cluster.client("client");
    let mut watch = watching.observe(ObserveScope::One(job.clone()), From::Snapshot);
    let two = Session::open(&cluster.client("client"), SessionOptions::default()).await.unwrap();
    let waiting = {
        let (two, job) = (two.clone(), job.clone());
        tokio::spawn(async move { two.campaign(&job, b"two", CampaignOptions::default()).await })
    };
    lease.proclaim(b"one again").await.unwrap();
    let first = lease.epoch();
    let mut values: Vec<Vec<u8>> = Vec::new();
    let mut last = Revision(0);
    let mut resigning = Some(lease);
    while values.last().is_none_or(|v| v != b"two") {
        let seen = tokio::time::timeout(crate::cluster::PATIENCE, watch.next()).await;
        if let Seen::Change(change) = seen.expect("no change came").unwrap() {
            assert!(change.revision >= last.0, "S12: {} after {last}", change.revision);
            last = Revision(change.revision);
            let row = change.election.unwrap();
            let queued = !row.queue.is_empty();
            if let Some(holder) = row.holder {
                values.push(holder.value.to_vec());
            }
            if queued
                && values.last().is_some_and(|v| v == b"one again")
                && let Some(lease) = resigning.take()
            {
                lease.resign().await.unwrap();
            }
        }
    }
    let won = waiting.await.unwrap().unwrap();
    assert!(won.epoch() > first, "S3");
    assert!(won.is_held());
    let seen = watching.leader(&job, Freshness::Linearizable).await.unwrap();
    assert_eq!(&seen.election.unwrap().holder.unwrap().value[..], b"two");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_client_campaigns_proclaims_and_observes_over_mtls() {
    let cluster = Cluster::up("python-client", 3).await;
    let root = env!("CARGO_MANIFEST_DIR");
    let python = format!("{root}/target/tools/venv/bin/python");
    let certificates = cluster.lab.certificates();
    let endpoint = cluster.lab.nodes[1].grpc.clone();
    let out = tokio::task::spawn_blocking(move || {
        Command::new(&python)
            .arg(format!("{root}/tests/it/python/election.py"))
            .arg(format!("{root}/proto"))
            .arg(endpoint)
            .arg(certificates.ca)
            .arg(certificates.client.cert)
            .arg(certificates.client.key)
            .arg("localhost")
            .arg("python/job")
            .output()
            .unwrap_or_else(|e| panic!("{python}: {e}; run `make setup` first"))
    })
    .await
    .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let services = last["services"].as_array().unwrap();
    for public in ["Election", "Topology", "Cluster", "Audit"] {
        assert!(services.contains(&format!("regent.v1.{public}Service").into()), "{last}");
    }
    let serving = last["serving"].as_object().unwrap();
    assert_eq!(serving.len(), 3, "{last}");
    assert!(serving.values().all(|status| status == "SERVING"), "{last}");
    assert_eq!(last["leader_value"], "second");
    assert!(last["seen"].to_string().contains("second"));
    assert_eq!(last["after_resign"], "FAILED_PRECONDITION", "a stale epoch was not refused");
}
