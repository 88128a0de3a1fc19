//! Proposing for clients and for this node's own duties, counted and timed.
//!
//! The way of every entry but merged renewals, which are counted where they are merged. Nothing is
//! decided here: how an entry gets to the leader is [`crate::propose`]'s business.

use regent_core::authz::Principal;
use regent_core::command::{Command, Request};
use regent_core::reply::Reply;
use regent_rpc::convert::common::request as request_id;
use regent_rpc::convert::status;
use regent_rpc::pb::v1::RequestId;
use tokio::time::Instant;
use tonic::Status;

use crate::http::metrics::Proposed;
use crate::rpc::guard::Caller;
use crate::shell::Shell;

impl Shell {
    /// Proposes `command` in the name of `by`; answers when it was applied.
    ///
    /// # Errors
    /// Consensus errors as statuses. A rejection by the core is not an error here but a [`Reply`].
    pub async fn propose(
        &self,
        by: Principal,
        request: Option<Request>,
        command: &Command,
        until: Instant,
    ) -> Result<Reply, Status> {
        let begun = Instant::now();
        let outcome = self.proposer.command(by, request, command, until).await;
        let became = Proposed::of(&outcome);
        self.metrics.proposals.inc(became);
        if became.is_applied() {
            self.metrics.proposal_seconds.observe(begun.elapsed().as_secs_f64());
        }
        outcome
    }

    /// Proposes and turns a rejection into its status.
    ///
    /// # Errors
    /// As [`Shell::propose`], and the status of the rejection.
    pub async fn propose_accepted(
        &self,
        by: Principal,
        request: Option<Request>,
        command: &Command,
        until: Instant,
    ) -> Result<Reply, Status> {
        match self.propose(by, request, command, until).await? {
            Reply::Rejected(rejection) => Err(status::rejected(&rejection)),
            reply => Ok(reply),
        }
    }

    /// What a handler does with a caller's command; `id` as the caller sent it.
    ///
    /// # Errors
    /// As [`Shell::propose_accepted`], and INVALID_ARGUMENT for an id that is none.
    pub async fn write(
        &self,
        caller: Caller,
        id: Option<RequestId>,
        command: &Command,
    ) -> Result<Reply, Status> {
        let id = request_id("request", id)?;
        // What stays of `caller` is its place among the requests under way, until the answer is here.
        self.propose_accepted(caller.principal, id, command, caller.until).await
    }
}
