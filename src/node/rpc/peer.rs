//! `regent.raft.v1.PeerService`: what nodes ask each other beside Raft.

use std::sync::Arc;

use futures::stream::BoxStream;
use regent_core::command::{FullRenewal, PlacedReports, Renewal};
use regent_core::id::{NodeId, Nonce, Revision};
use regent_core::limits::MAX_RENEWALS_PER_ENTRY;
use regent_core::state::version::FEATURE_LEVEL;
use regent_core::time::Micros;
use regent_raft::held::Held;
use regent_rpc::convert::Invalid;
use regent_rpc::convert::common::{instance_name, service_name};
use regent_rpc::convert::observe::observation_in;
use regent_rpc::convert::status::{self, rule};
use regent_rpc::pb::raft::peer_service_server::PeerService;
use regent_rpc::pb::raft::{
    AgentFact, CompareRequest, CompareResponse, FitnessRequest, FitnessResponse, HelloRequest,
    HelloResponse, ObserveFactsRequest, ObserveFactsResponse, ReadIndexRequest, ReadIndexResponse,
    RenewRequest, RenewResponse, RoutersRequest, RoutersResponse,
};
use regent_rpc::pb::v1::{AnswerBatch, CallBatch};
use tonic::{Request, Response, Status, Streaming};

use super::forwarded;
use super::guard::deadline;
use crate::admission::OtherLife;
use crate::agents::desk::Told;
use crate::agents::relay::MAX_FACTS;
use crate::announced;
use crate::refuse;
use crate::routes::spread;
use crate::sessions::RenewError;
use crate::shell::Shell;
use crate::start::{Start, held_from_metadata};

/// Serves the other nodes.
pub struct PeerHandler(pub Arc<Shell>);

/// A fact of the wire.
fn fact_in(fact: AgentFact) -> Result<Told, Invalid> {
    Ok(Told {
        service: service_name("service", &fact.service)?,
        instance: instance_name("instance", &fact.instance)?,
        stream: fact.stream,
        age: Micros(fact.age_us),
        observation: fact.observation.map(observation_in).transpose()?,
        lost: fact.lost,
    })
}

#[tonic::async_trait]
impl PeerService for PeerHandler {
    async fn hello(
        &self,
        request: Request<HelloRequest>,
    ) -> Result<Response<HelloResponse>, Status> {
        // Not `authorize_node`: the judgement is the answer, not an error.
        let principal = self.0.authorize(&request, regent_core::authz::Verb::Internal, "hello")?;
        let from = NodeId(request.get_ref().node);
        let other_life = self.0.admission.judge_life(from, request.metadata());
        let held = held_from_metadata(request.metadata());
        let hello = request.into_inner();
        let (mut not_yet, mut disk_went_back) = (String::new(), false);
        let refused = if principal.name != hello.node.to_string() {
            format!("the certificate is of {principal}, not of node {}", hello.node)
        } else if hello.cluster != self.0.config.cluster {
            format!("this is cluster {:?}, not {:?}", self.0.config.cluster, hello.cluster)
        } else if let Err(other) = other_life {
            match other {
                OtherLife::Other { .. } => other.to_string(),
                OtherLife::Unknown { .. } => {
                    not_yet = other.to_string();
                    String::new()
                }
            }
        } else {
            let start = Start { disk: hello.disk, boot: hello.boot, nonce: Nonce(hello.nonce) };
            let objection = self.0.admission.judge(NodeId(hello.node), start, held).err();
            disk_went_back = objection.is_some();
            objection.unwrap_or_default()
        };
        if !refused.is_empty() {
            tracing::warn!(node = hello.node, refused, "a starting node was refused");
        }
        let recorded = self.0.admission.recorded(NodeId(hello.node));
        let life = self.0.admission.life();
        Ok(Response::new(HelloResponse {
            node: self.0.node.0,
            refused,
            feature_level: FEATURE_LEVEL,
            boot_recorded: recorded.map_or(0, |start| start.boot),
            not_yet,
            life_counter: life.counter,
            life_id: life.id,
            announced: Some(announced::out(&announced::of(&self.0.config))),
            disk_went_back,
        }))
    }

    type ForwardStream = BoxStream<'static, Result<AnswerBatch, Status>>;

    async fn forward(
        &self,
        request: Request<Streaming<CallBatch>>,
    ) -> Result<Response<Self::ForwardStream>, Status> {
        let from = self.0.authorize_node(&request)?;
        Ok(Response::new(forwarded::serve(&self.0, from, request.into_inner())))
    }

    async fn read_index(
        &self,
        request: Request<ReadIndexRequest>,
    ) -> Result<Response<ReadIndexResponse>, Status> {
        self.0.authorize_node(&request)?;
        let left = deadline(request.metadata());
        let index = self.0.consensus.read_index(left).await.map_err(refuse::consensus)?;
        Ok(Response::new(ReadIndexResponse { index: index.0 }))
    }

    async fn renew(
        &self,
        request: Request<RenewRequest>,
    ) -> Result<Response<RenewResponse>, Status> {
        self.0.authorize_node(&request)?;
        if !self.0.leadership.is_here() {
            return Err(status::not_leader(self.0.leadership.now(), refuse::RETRY_AFTER));
        }
        let left = deadline(request.metadata());
        let unreadable = |_| Status::invalid_argument("the renewals cannot be read");
        let sent = request.get_ref();
        let renewals: Vec<Renewal> = postcard::from_bytes(&sent.renewals).map_err(unreadable)?;
        let reports: PlacedReports = match sent.reports.is_empty() {
            true => PlacedReports::new(),
            false => postcard::from_bytes(&sent.reports).map_err(unreadable)?,
        };
        if renewals.len() > MAX_RENEWALS_PER_ENTRY {
            return Err(Status::invalid_argument("too many renewals in one call"));
        }
        match self.0.merger.submit(FullRenewal::join(renewals, reports), left).await {
            Ok(outcomes) => {
                let outcomes = postcard::to_stdvec(&outcomes).expect("outcomes are plain numbers");
                let revision = self.0.state.read().revision().0;
                Ok(Response::new(RenewResponse { outcomes: outcomes.into(), revision }))
            }
            Err(RenewError::NotProposed(why)) => {
                Err(status::unavailable(rule::NOT_LEADER, why, refuse::RETRY_AFTER))
            }
            Err(RenewError::Unknown(why)) => Err(status::outcome_unknown(why)),
        }
    }

    async fn observe(
        &self,
        request: Request<ObserveFactsRequest>,
    ) -> Result<Response<ObserveFactsResponse>, Status> {
        let from = self.0.authorize_node(&request)?.node();
        let facts = request.into_inner().facts;
        if facts.len() > MAX_FACTS {
            return Err(Status::invalid_argument("too many facts in one call"));
        }
        let told = facts.into_iter().filter_map(|fact| match fact_in(fact) {
            Ok(told) => Some(told),
            // Of a newer agent, perhaps; the others must not suffer for it.
            Err(invalid) => {
                tracing::debug!(%from, %invalid, "a fact cannot be read");
                None
            }
        });
        if self.0.take_facts(from, told.collect()) {
            Ok(Response::new(ObserveFactsResponse {}))
        } else {
            Err(status::not_leader(self.0.leadership.now(), refuse::RETRY_AFTER))
        }
    }

    type FitnessStream = BoxStream<'static, Result<FitnessResponse, Status>>;

    async fn fitness(
        &self,
        request: Request<FitnessRequest>,
    ) -> Result<Response<Self::FitnessStream>, Status> {
        self.0.authorize_node(&request)?;
        spread::serve(&self.0).map(Response::new)
    }

    async fn routers(
        &self,
        request: Request<RoutersRequest>,
    ) -> Result<Response<RoutersResponse>, Status> {
        self.0.authorize_node(&request)?;
        let service = service_name("service", &request.get_ref().service)?;
        let routers = self.0.routers.of(&service, self.0.node.0);
        Ok(Response::new(RoutersResponse { routers }))
    }

    async fn compare(
        &self,
        request: Request<CompareRequest>,
    ) -> Result<Response<CompareResponse>, Status> {
        let from = self.0.authorize_node(&request)?;
        let ask = request.get_ref();
        let leader = NodeId(ask.held_leader);
        let held = Held { term: ask.held_term, leader, last: Revision(ask.held_last) };
        self.0.admission.heard_promise(from.node(), held);
        self.0.compare_answer(request.get_ref()).map(Response::new)
    }
}
