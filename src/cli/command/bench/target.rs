//! What is measured: connections to a cluster or a lab, and what its processes use.

use regent_lab::process::{Process, Usage};
use regent_lab::{Connections, Lab};
use regent_rpc::calls::Calls;
use regent_rpc::pb::v1;
use regent_rpc::pb::v1::cluster_service_client::ClusterServiceClient;
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::Common;
use crate::command::Context;
use crate::command::lab;
use crate::connect::{Cluster, Settings};
use crate::error::{CliError, Outcome};

/// A cluster to be measured.
pub struct Target {
    /// For what is asked once.
    pub cluster: Cluster,
    /// For the load; clients are spread over them.
    pub channels: Vec<Channel>,
    /// The same connections, for small calls.
    calls: Vec<Calls>,
    /// The lab, if it is one.
    pub lab: Option<Lab>,
}

impl Target {
    /// Finds the cluster and prepares the connections.
    pub async fn open(context: &Context, common: &Common) -> Outcome<Self> {
        let lab = common.dir.as_deref().map(lab::open).transpose()?;
        let settings = match &lab {
            Some(lab) => settings_of(lab, context),
            None => Settings::resolve(&context.globals)?,
        };
        let cluster = Cluster::with(settings.clone())?;
        let endpoints = match common.leader_only {
            true => vec![leader(&cluster).await?],
            false => settings.endpoints.clone(),
        };
        let channels = (0..common.connections.max(1))
            .map(|at| cluster.connect(&endpoints[at % endpoints.len()]))
            .collect::<Outcome<Vec<_>>>()?;
        let calls = channels.iter().cloned().map(Calls::new).collect();
        Ok(Self { cluster, channels, calls, lab })
    }

    /// The connection of a client.
    pub fn channel(&self, client: usize) -> Channel {
        self.channels[client % self.channels.len()].clone()
    }

    /// The same, for small calls.
    pub fn calls(&self, client: usize) -> Calls {
        self.calls[client % self.calls.len()].clone()
    }

    /// What the lab's processes have used so far.
    pub fn usage(&self) -> Vec<(u64, Usage)> {
        let nodes = self.lab.iter().flat_map(|lab| &lab.nodes);
        nodes
            .filter_map(|node| Some((node.id, node.process.as_ref().and_then(Process::usage)?)))
            .collect()
    }
}

/// Memory now and processor time per second between two looks.
pub fn usage_json(before: &[(u64, Usage)], after: &[(u64, Usage)], seconds: f64) -> Value {
    let nodes = after.iter().map(|(id, now)| {
        let then =
            before.iter().find(|(other, _)| other == id).map_or(now.cpu_ms, |(_, u)| u.cpu_ms);
        let cores = now.cpu_ms.saturating_sub(then) as f64 / 1_000.0 / seconds.max(0.001);
        json!({
            "id": id,
            "rss_mib": (now.rss_kib as f64 / 1024.0 * 10.0).round() / 10.0,
            "cores": (cores * 1_000.0).round() / 1_000.0,
        })
    });
    nodes.collect()
}

/// A lab's settings with its admin identity.
pub fn settings_of(lab: &Lab, context: &Context) -> Settings {
    let certificates = lab.certificates();
    Settings {
        endpoints: lab.endpoints(),
        cert: certificates.admin.cert,
        key: certificates.admin.key,
        ca: certificates.ca,
        trust_domain: Some(lab.trust_domain.clone()),
        timeout: context.globals.timeout,
    }
}

/// The leader's endpoint.
async fn leader(cluster: &Cluster) -> Outcome<String> {
    let status = cluster
        .ask("find the leader", |channel| async move {
            ClusterServiceClient::new(channel).status(v1::StatusRequest {}).await
        })
        .await?;
    match status.leader {
        0 => Err(CliError::unreachable("cannot find the leader").because("there is none")),
        _ => Ok(status.leader_address),
    }
}

/// Connections of a lab with its admin identity.
pub fn connections(lab: &Lab) -> Outcome<Connections> {
    lab::connect(lab)
}
