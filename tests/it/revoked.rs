//! A revoked identity loses what it has open and gets nothing new; the others notice nothing.

use std::fmt::Debug;

use regent_rpc::channel::{ChannelOptions, connect_lazy};
use regent_rpc::pb::v1::election_service_client::ElectionServiceClient;
use regent_rpc::pb::v1::observe_response::Event;
use regent_rpc::pb::v1::{LeaderRequest, ObserveRequest, ObserveResponse};
use regent_rpc::tls::ExpectPeer;

use crate::cluster::{Cluster, PATIENCE, mark};
use crate::own::said;

/// Waits for a change of `name` on a stream; how the stream ended otherwise. The deadline is for all
/// of it: a stream that goes on says now and then that nothing happened.
async fn change<E: Debug>(
    mut next: impl AsyncFnMut() -> Result<Option<ObserveResponse>, E>,
    name: &str,
) -> Result<(), String> {
    let seen = async {
        loop {
            match next().await {
                Ok(Some(ObserveResponse { event: Some(Event::Change(change)) }))
                    if change.name == name =>
                {
                    return Ok(());
                }
                Ok(Some(_)) => {}
                end => return Err(format!("{end:?}")),
            }
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.expect("neither the change nor an end came")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_identity_loses_its_open_watch_and_gets_no_new_connection() {
    let cluster = Cluster::up("revoked", 1).await;
    let admin = cluster.client("admin");
    // Not the client library: it would dial again behind the test's back.
    let channel = |identity| {
        let address = &cluster.lab.nodes[0].grpc;
        let options = ChannelOptions::default();
        connect_lazy(address, cluster.tls(identity), ExpectPeer::AnyNode, options).unwrap()
    };
    let (bad, good) = (channel("client"), channel("auditor"));
    let all = || ObserveRequest { all: true, ..ObserveRequest::default() };
    let watching = ElectionServiceClient::new(bad.clone()).observe(all()).await;
    let mut bad_watch = watching.unwrap().into_inner();
    let watching = ElectionServiceClient::new(good).observe(all()).await;
    let mut good_watch = watching.unwrap().into_inner();
    mark(&admin, "mark/before").await.unwrap();
    change(async || bad_watch.message().await, "mark/before").await.unwrap();
    change(async || good_watch.message().await, "mark/before").await.unwrap();

    let list = cluster.lab.revoked();
    let line =
        format!("spiffe://{}/client/lab   # the laptop was stolen\n", cluster.lab.trust_domain);
    std::fs::write(list, line).unwrap();
    // The promise is a minute; a look at the files every few seconds keeps it well within this wait.
    let ended = change(async || bad_watch.message().await, "never").await;
    assert!(ended.is_err(), "there is no such election");

    // The old channel dials again, a fresh one for the first time: neither gets in.
    for channel in [bad, channel("client")] {
        let request = LeaderRequest { election: "mark/before".into(), read: None };
        let answer = ElectionServiceClient::new(channel).leader(request).await;
        assert!(answer.is_err(), "a revoked identity was answered: {answer:?}");
    }
    // The other identity's stream is the very same one, and goes on.
    mark(&admin, "mark/after").await.unwrap();
    change(async || good_watch.message().await, "mark/after").await.unwrap();
    let text = said(&cluster.lab.nodes[0]);
    assert!(text.contains("certificates were reloaded"), "{text}");
}
