//! What a measurement needs before it begins, and leaves away afterwards: sessions, elections.

use std::time::Duration;

use futures::stream::{StreamExt as _, TryStreamExt as _};
use regent_rpc::calls::{Calls, method};
use regent_rpc::pb::v1;
use regent_rpc::pb::v1::election_service_client::ElectionServiceClient;
use tonic::{Response, Status};

use super::load::{PATIENCE, answered};
use super::renewer::{Kept, Renewer};
use super::target::Target;
use crate::command::Context;
use crate::connect::from_status;
use crate::error::{CliError, Outcome};
use crate::render::progress;

/// Sessions opened at the same time: enough to fill the group commits, few enough to be answered.
const AT_ONCE: usize = 256;
/// Tries for one session: a cluster that was just made may still be electing.
const TRIES: u64 = 20;

/// A holder: one client with its own session and election.
pub struct Holder {
    /// Its connection.
    pub calls: Calls,
    /// Its lane.
    pub lane: u64,
    /// Number of its last write.
    pub serial: u64,
    /// Its election.
    pub election: String,
    /// Its session.
    pub session: u64,
    /// The session's nonce.
    pub nonce: u64,
    /// Its epoch.
    pub epoch: v1::Epoch,
}

impl Holder {
    /// The id of its next write.
    pub fn request(&mut self) -> Option<v1::RequestId> {
        self.serial += 1;
        Some(v1::RequestId { client: self.lane, serial: self.serial })
    }

    /// Sends a proclamation, waits so long for the answer.
    pub async fn proclaim(
        &self,
        message: v1::ProclaimRequest,
        patience: Duration,
    ) -> Result<(), Status> {
        let call = self.calls.unary(method::PROCLAIM, message, patience);
        answered::<v1::ProclaimResponse>(call, patience).await
    }

    /// The next proclamation.
    pub fn proclamation(&mut self, value: bytes::Bytes) -> v1::ProclaimRequest {
        v1::ProclaimRequest {
            request: self.request(),
            election: self.election.clone(),
            session: self.session,
            epoch: Some(self.epoch),
            value,
        }
    }
}

/// Opens one session, trying again while nobody leads.
async fn open(
    calls: &Calls,
    ttl: Duration,
    interval: Duration,
    label: &str,
) -> Result<Kept, Status> {
    let nonce = rand::random_range(1..=u64::MAX);
    let lane = rand::random();
    let mut last = Status::unavailable("not tried");
    for _ in 0..TRIES {
        let request = v1::OpenSessionRequest {
            request: Some(v1::RequestId { client: lane, serial: 1 }),
            ttl_ms: ttl.as_millis() as u64,
            renew_interval_ms: interval.as_millis() as u64,
            fence_budget_ms: 0,
            nonce,
            label: label.to_owned(),
        };
        let answer = calls.unary(method::OPEN_SESSION, request, PATIENCE).await;
        match answer.map(Response::<v1::OpenSessionResponse>::into_inner) {
            Ok(opened) => {
                let (session, ttl_ms) = (opened.session, opened.ttl_ms);
                return Ok(Kept { session, nonce, grant: 0, ttl_ms });
            }
            Err(status) if status.code() == tonic::Code::InvalidArgument => return Err(status),
            Err(status) => last = status,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(last)
}

/// Opens many sessions at once, with a progress bar, and has each kept alive from then on.
pub async fn sessions(
    context: &Context,
    target: &Target,
    count: usize,
    ttl: Duration,
    interval: Duration,
    renewer: &Renewer,
) -> Outcome<Vec<Kept>> {
    let bar = progress::count(context.out, "sessions", count as u64);
    let opened = futures::stream::iter(0..count)
        .map(|at| {
            let calls = target.calls(at);
            let bar = bar.clone();
            async move {
                let kept = open(&calls, ttl, interval, "bench").await?;
                renewer.keep(kept);
                bar.inc(1);
                Ok::<_, Status>(kept)
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<_>>()
        .await;
    bar.finish_and_clear();
    opened.map_err(|status| from_status("open the sessions", "the cluster", &status))
}

/// Opens sessions, and has each win an election of its own.
pub async fn holders(
    context: &Context,
    target: &Target,
    count: usize,
    renewer: &Renewer,
) -> Outcome<Vec<Holder>> {
    let ttl = Duration::from_secs(60);
    let interval = Duration::from_secs(5);
    let kept = sessions(context, target, count, ttl, interval, renewer).await?;
    let run: u32 = rand::random();
    let won = futures::stream::iter(kept.into_iter().enumerate())
        .map(|(at, kept)| {
            let calls = target.calls(at);
            let election = format!("bench/{run:08x}/{at}");
            async move {
                let lane = rand::random();
                let request = v1::CampaignRequest {
                    request: Some(v1::RequestId { client: lane, serial: 1 }),
                    election: election.clone(),
                    session: kept.session,
                    nonce: kept.nonce,
                    priority: 0,
                    locality: None,
                    value: bytes::Bytes::new(),
                };
                let answer = calls.unary(method::CAMPAIGN, request, PATIENCE).await;
                let epoch = answer
                    .map(Response::<v1::CampaignResponse>::into_inner)?
                    .epoch
                    .ok_or_else(|| Status::internal("a new election was not granted"))?;
                // The next renewal names the grant (C8): the acknowledgement of the one before
                // told the renewer of it.
                let Kept { session, nonce, .. } = kept;
                Ok::<_, Status>(Holder { calls, lane, serial: 1, election, session, nonce, epoch })
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<_>>()
        .await;
    won.map_err(|status| from_status("win the elections", "the cluster", &status))
}

/// Ends sessions and removes the elections; best effort, for the measurement is over.
pub async fn clean_up(target: &Target, sessions: Vec<(u64, u64)>, elections: Vec<String>) {
    futures::stream::iter(sessions.into_iter().enumerate())
        .for_each_concurrent(AT_ONCE, |(at, (session, nonce))| {
            let calls = target.calls(at);
            async move {
                let request = v1::CloseSessionRequest { request: None, session, nonce };
                let closed = calls.unary(method::CLOSE_SESSION, request, PATIENCE).await;
                let _: Result<Response<v1::CloseSessionResponse>, Status> = closed;
            }
        })
        .await;
    futures::stream::iter(elections.into_iter().enumerate())
        .for_each_concurrent(AT_ONCE, |(at, election)| {
            let mut client = ElectionServiceClient::new(target.calls(at).channel());
            async move {
                let request = v1::DeleteElectionRequest { request: None, election, expect: None };
                let _ = client.delete_election(request).await;
            }
        })
        .await;
}

/// A value of so many bytes.
pub fn value(bytes: usize) -> Outcome<bytes::Bytes> {
    if bytes > regent_core::limits::MAX_VALUE_BYTES {
        return Err(CliError::usage("cannot proclaim so large a value").because(format!(
            "{bytes} bytes are above the limit of {}",
            regent_core::limits::MAX_VALUE_BYTES
        )));
    }
    Ok(bytes::Bytes::from(vec![b'x'; bytes]))
}
