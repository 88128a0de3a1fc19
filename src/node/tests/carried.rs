//! Calls of clients that share one stream: the same rights, bounds and answers as by themselves.

use futures::stream;
use prost::Message as _;
use regent_core::authz::Role;
use regent_rpc::calls::method;
use regent_rpc::mux::MAX_BATCH;
use regent_rpc::pb::v1;
use regent_rpc::pb::v1::answer::Outcome;
use regent_rpc::pb::v1::call_service_client::CallServiceClient;
use tonic::{Code, Status};

use super::rig::{PATIENCE, Rig};

fn call(id: u64, method: &str, request: Vec<u8>) -> v1::Call {
    let (method, request) = (method.to_owned(), request.into());
    v1::Call { id, ttl_ms: 5_000, method, request, request_id: String::new() }
}

fn open(id: u64, lane: u64) -> v1::Call {
    let request = v1::OpenSessionRequest {
        request: Some(v1::RequestId { client: lane, serial: 1 }),
        ttl_ms: 10_000,
        nonce: 7,
        ..v1::OpenSessionRequest::default()
    };
    call(id, method::OPEN_SESSION, request.encode_to_vec())
}

/// Sends one message in `role`; returns the outcomes by the calls' ids.
async fn ask(rig: &Rig, role: Role, calls: Vec<v1::Call>) -> Result<Vec<Outcome>, Status> {
    let count = calls.len();
    let (_, channel) = rig.client(role).channels().remove(0);
    let batch = stream::iter([v1::CallBatch { calls }]);
    let mut answers = CallServiceClient::new(channel).calls(batch).await?.into_inner();
    let mut outcomes = vec![None; count];
    while let Some(batch) = tokio::time::timeout(PATIENCE, answers.message()).await.unwrap()? {
        for answer in batch.answers {
            let before = outcomes[answer.id as usize].replace(answer.outcome.unwrap());
            assert!(before.is_none(), "call {} was answered twice", answer.id);
        }
    }
    Ok(outcomes.into_iter().map(|outcome| outcome.expect("every call is answered")).collect())
}

fn failure(outcome: &Outcome) -> &v1::Failure {
    match outcome {
        Outcome::Failure(failure) => failure,
        Outcome::Response(_) => panic!("it was answered with success"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_carried_call_is_judged_answered_and_counted_as_one_by_itself() {
    let rig = Rig::start(1).await;
    let mut named = call(3, method::LEADER, v1::LeaderRequest::default().encode_to_vec());
    named.request_id = "deploy-42".into();
    let calls = vec![
        open(0, 1),
        call(1, method::PROCLAIM, b"\xff\xff\xff".to_vec()),
        call(2, "/regent.v1.ClusterService/RemoveMember", Vec::new()),
        named,
        open(4, 1),
    ];
    let outcomes = ask(&rig, Role::Client, calls).await.unwrap();
    let session = |outcome: &Outcome| match outcome {
        Outcome::Response(r) => v1::OpenSessionResponse::decode(r.clone()).unwrap().session,
        Outcome::Failure(failure) => panic!("{failure:?}"),
    };
    assert_eq!(session(&outcomes[0]), session(&outcomes[4]), "one request id, one session");
    assert_eq!(failure(&outcomes[1]).code, Code::InvalidArgument as i32);
    assert_eq!(failure(&outcomes[2]).code, Code::Unimplemented as i32);
    assert_eq!(failure(&outcomes[3]).code, Code::InvalidArgument as i32);
    assert_eq!(failure(&outcomes[3]).request_id, "deploy-42");
    assert_eq!(failure(&outcomes[1]).request_id.len(), 16, "one was drawn");
    let text = rig.node(1).shell().metrics.render();
    assert!(text.contains("regent_rpc_requests_count_total{kind=\"refused\"} 3\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_role_without_the_right_is_refused_call_by_call_and_recorded() {
    let rig = Rig::start(1).await;
    let calls = vec![open(0, 1), call(1, method::LEADER, Vec::new())];
    let outcomes = ask(&rig, Role::Observer, calls).await.unwrap();
    let refused = failure(&outcomes[0]);
    assert_eq!(refused.code, Code::PermissionDenied as i32, "{refused:?}");
    assert_eq!(failure(&outcomes[1]).code, Code::InvalidArgument as i32, "it may ask for leaders");
    let text = rig.node(1).shell().metrics.render();
    let refusals = text.lines().find(|line| line.starts_with("regent_authz_refusals"));
    assert!(
        refusals.is_some_and(|line| line.contains("observer") && line.ends_with(" 1")),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_message_of_too_many_calls_ends_the_stream_and_one_too_large_is_not_read() {
    let rig = Rig::start(1).await;
    let many = (0..=MAX_BATCH as u64).map(|id| open(id, id + 1)).collect();
    let said = ask(&rig, Role::Client, many).await.unwrap_err();
    assert_eq!(said.code(), Code::InvalidArgument, "{said}");
    assert_eq!(rig.node(1).shell().state.read().sessions().len(), 0, "nothing was begun");
    // Nobody is answered on a stream that is cut off.
    let large = vec![call(0, method::LEADER, vec![0; 256 * 1024])];
    let (_, channel) = rig.client(Role::Client).channels().remove(0);
    let batch = stream::iter([v1::CallBatch { calls: large }]);
    let mut answers = CallServiceClient::new(channel).calls(batch).await.unwrap().into_inner();
    let ended = tokio::time::timeout(PATIENCE, answers.message()).await.unwrap();
    assert!(!matches!(ended, Ok(Some(_))), "{ended:?}");
}
