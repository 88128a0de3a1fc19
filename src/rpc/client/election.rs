//! Elections and sessions, call by call. Whoever wants to hold a lease uses [`super::lease`].

use regent_core::command::{Expect, Request};
use regent_core::id::{ElectionName, Epoch, Locality, Nonce, SessionId};
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::call::request;
use super::watch::{ElectionEvents, Watch};
use super::{CallError, Client};
use crate::calls::{Calls, method};
use crate::convert::common::{self, Freshness, epoch_out, expect_out, freshness_out, locality_out};
use crate::convert::election::ObserveScope;
use crate::convert::page::gets_on;
use crate::limits::MAX_ANSWER_BYTES;
use crate::pb::v1;
use crate::pb::v1::election_service_client::ElectionServiceClient;

/// Refuses the answer of a node that does not know in which life of the cluster the session was
/// opened: grants of the session would be of another one for ever. The same request, sent again,
/// is answered with the same session by a node that does know.
fn in_a_life(
    opened: Response<v1::OpenSessionResponse>,
) -> Result<Response<v1::OpenSessionResponse>, Status> {
    if opened.get_ref().stamp.is_none_or(|stamp| stamp.incarnation == 0) {
        return Err(Status::unavailable("the node names no incarnation: it is behind"));
    }
    Ok(opened)
}

pub(super) fn api(calls: &Calls) -> ElectionServiceClient<Channel> {
    ElectionServiceClient::new(calls.channel()).max_decoding_message_size(MAX_ANSWER_BYTES)
}

impl Client {
    /// One election. No holder in the answer: nobody leads, as far as the node may say.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn leader(
        &self,
        election: &ElectionName,
        read: Freshness,
    ) -> Result<v1::LeaderResponse, CallError> {
        self.read(|calls, left| {
            let (election, read) = (election.to_string(), freshness_out(read));
            let message = v1::LeaderRequest { election, read };
            async move { calls.unary(method::LEADER, message, left).await }
        })
        .await
    }

    /// Elections whose names begin with `prefix`: all of them, page after page. The stamp is the
    /// first page's: nothing in the answer is older.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn list_elections(
        &self,
        prefix: &str,
        read: Freshness,
    ) -> Result<v1::ListElectionsResponse, CallError> {
        let mut all = self.list_elections_after(prefix, "", read).await?;
        while let (true, Some(last)) = (all.more, all.elections.last()) {
            let page = self.list_elections_after(prefix, &last.name, read).await?;
            all.elections.extend(page.elections);
            all.more = page.more;
        }
        Ok(all)
    }

    /// One page of [`Client::list_elections`]: names above `after`, in their order. There are more
    /// when the answer says so.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn list_elections_after(
        &self,
        prefix: &str,
        after: &str,
        read: Freshness,
    ) -> Result<v1::ListElectionsResponse, CallError> {
        self.read(|calls, left| {
            let (prefix, after) = (prefix.to_owned(), after.to_owned());
            let message = v1::ListElectionsRequest { prefix, read: freshness_out(read), after };
            async move {
                let after = message.after.clone();
                gets_on(&after, api(&calls).list_elections(request(message, left)).await?)
            }
        })
        .await
    }

    /// Sets where the leader of an election should rather be.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn put_election(
        &self,
        election: &ElectionName,
        preferred: &Locality,
        expect: Expect,
    ) -> Result<v1::PutElectionResponse, CallError> {
        self.write(|calls, left, id| {
            let message = v1::PutElectionRequest {
                request: Some(id),
                election: election.to_string(),
                preferred: Some(locality_out(preferred)),
                expect: expect_out(expect),
            };
            async move { api(&calls).put_election(request(message, left)).await }
        })
        .await
    }

    /// Removes an election that nobody holds and nobody waits for.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn delete_election(
        &self,
        election: &ElectionName,
        expect: Expect,
    ) -> Result<v1::DeleteElectionResponse, CallError> {
        self.write(|calls, left, id| {
            let (election, expect) = (election.to_string(), expect_out(expect));
            let message = v1::DeleteElectionRequest { request: Some(id), election, expect };
            async move { api(&calls).delete_election(request(message, left)).await }
        })
        .await
    }

    /// Sees every change of elections.
    pub fn observe(&self, scope: ObserveScope, from: common::From) -> Watch<ElectionEvents> {
        Watch::new(self.clone(), ElectionEvents { scope }, from)
    }

    pub(super) async fn open_session(
        &self,
        ask: &v1::OpenSessionRequest,
    ) -> Result<v1::OpenSessionResponse, CallError> {
        self.write(|calls, left, id| {
            let message = v1::OpenSessionRequest { request: Some(id), ..ask.clone() };
            async move { in_a_life(calls.unary(method::OPEN_SESSION, message, left).await?) }
        })
        .await
    }

    pub(super) async fn close_session(
        &self,
        session: SessionId,
        nonce: Nonce,
    ) -> Result<v1::CloseSessionResponse, CallError> {
        self.write(|calls, left, id| {
            let (session, nonce) = (session.0, nonce.0);
            let message = v1::CloseSessionRequest { request: Some(id), session, nonce };
            async move { calls.unary(method::CLOSE_SESSION, message, left).await }
        })
        .await
    }

    /// On the caller's own lane: see [`super::seat`].
    pub(super) async fn campaign(
        &self,
        id: Request,
        bid: &v1::CampaignRequest,
    ) -> Result<v1::CampaignResponse, CallError> {
        let id = Some(common::request_out(id));
        self.read(|calls, left| {
            let message = v1::CampaignRequest { request: id, ..bid.clone() };
            async move { calls.unary(method::CAMPAIGN, message, left).await }
        })
        .await
    }

    /// On the caller's own lane: see [`super::seat`].
    pub(super) async fn resign(
        &self,
        id: Request,
        election: &ElectionName,
        session: SessionId,
        nonce: Nonce,
        epoch: Option<Epoch>,
    ) -> Result<v1::ResignResponse, CallError> {
        let id = Some(common::request_out(id));
        self.read(|calls, left| {
            let (election, session, nonce) = (election.to_string(), session.0, nonce.0);
            let epoch = epoch.map(epoch_out);
            let message = v1::ResignRequest { request: id, election, session, nonce, epoch };
            async move { calls.unary(method::RESIGN, message, left).await }
        })
        .await
    }

    pub(super) async fn proclaim(
        &self,
        election: &ElectionName,
        session: SessionId,
        epoch: Epoch,
        value: &[u8],
    ) -> Result<v1::ProclaimResponse, CallError> {
        let value = bytes::Bytes::copy_from_slice(value);
        self.write(|calls, left, id| {
            let message = v1::ProclaimRequest {
                request: Some(id),
                election: election.to_string(),
                session: session.0,
                epoch: Some(epoch_out(epoch)),
                value: value.clone(),
            };
            async move { calls.unary(method::PROCLAIM, message, left).await }
        })
        .await
    }
}
