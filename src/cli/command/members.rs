//! `regent members ...`: which nodes make up the cluster.

use std::path::PathBuf;
use std::time::Duration;

use regent_core::timing::Timing;
use regent_rpc::convert::cluster::timing_out;
use regent_rpc::pb::v1;
use regent_rpc::pb::v1::cluster_service_client::ClusterServiceClient;
use serde_json::json;

use super::Context;
use super::restore::load;
use crate::connect::Cluster;
use crate::duration;
use crate::error::Outcome;
use crate::render::table::Table;
use crate::render::{json, text};

/// How long the leader may take to add what it alone knows to a list.
const LEADER_PATIENCE: Duration = Duration::from_secs(2);

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Show all members
    List,
    /// Give out the id of a new node, which becomes a learner once it runs: it copies the state, but
    /// does not vote
    #[command(after_help = "\
Example: a fourth node
  regent members add --address db4:7400 --http-address db4:7480 --zone d
  regent pki issue node 57 --dir pki
  regent members promote 57

The first line answers with the id, here 57. Issue a certificate for it, start the node with
`join = true` and an empty data directory within half an hour, and promote it once it has caught up.
A node whose disk was lost or went back in time comes back under a new id: remove the old one, add
the new one.
")]
    Add(Add),
    /// Make a learner that has caught up a voter
    Promote {
        /// Its id, as `members list` shows it
        node: u64,
    },
    /// Remove a member; refused when what is left could not elect a leader
    Remove {
        /// Its id
        node: u64,
    },
    /// Hand the leadership of Raft to another voter
    TransferLeader {
        /// To which node; default: the most caught-up other voter
        #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "NODE")]
        to: u64,
    },
    /// Change the timing that all nodes keep and the smallest ttl follows from
    #[command(after_help = "\
Examples:
  regent members set-timing --profile wan
  regent members set-timing --config node.toml

To a slower profile: change the timing first, then restart the nodes one by one with that profile.
Refused while a session or a declared service has a ttl that is too short for it. To a faster one: the
other way round. A node whose profile is slower than the timing of its cluster stops.
")]
    SetTiming(SetTiming),
}

/// Options of `members set-timing`.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct SetTiming {
    /// The timing of this profile
    #[arg(long, value_enum)]
    pub profile: Option<Profile>,
    /// The timing that this node's configuration asks for; for profile `custom`
    #[arg(long, value_name = "NODE.TOML")]
    pub config: Option<PathBuf>,
}

/// A profile with a name of its own.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Profile {
    /// Zones of one region
    Lan,
    /// One building
    Fast,
    /// Regions
    Wan,
}

impl SetTiming {
    fn timing(&self) -> Outcome<Timing> {
        if let Some(path) = &self.config {
            return Ok(load(path)?.timing());
        }
        Ok(match self.profile {
            Some(Profile::Fast) => Timing::FAST,
            Some(Profile::Wan) => Timing::WAN,
            // One of the two is required.
            Some(Profile::Lan) | None => Timing::LAN,
        })
    }
}

/// Options of `members add`.
#[derive(Debug, clap::Args)]
pub struct Add {
    /// host:port of its gRPC port
    #[arg(long, value_name = "HOST:PORT")]
    pub address: String,
    /// host:port of its HTTP port (metrics, health)
    #[arg(long, value_name = "HOST:PORT", default_value = "", hide_default_value = true)]
    pub http_address: String,
    /// Region it is in
    #[arg(long, default_value = "", hide_default_value = true)]
    pub region: String,
    /// Zone it is in
    #[arg(long, default_value = "", hide_default_value = true)]
    pub zone: String,
    /// Host it is on
    #[arg(long, default_value = "", hide_default_value = true)]
    pub host: String,
    /// A name for people
    #[arg(long, default_value = "", hide_default_value = true)]
    pub label: String,
}

/// Runs one of them.
pub async fn run(context: &Context, verb: Verb) -> Outcome {
    let cluster = Cluster::open(&context.globals)?;
    match verb {
        Verb::List => list(context, &cluster).await,
        Verb::Add(add) => self::add(context, &cluster, add).await,
        Verb::Promote { node } => {
            let what = format!("promote node {node}");
            let answer = cluster
                .act(&what, |channel| async move {
                    let request = v1::PromoteMemberRequest { node };
                    ClusterServiceClient::new(channel).promote_member(request).await
                })
                .await?;
            let value = || json!({ "node": node, "stamp": json::stamp(&answer.stamp) });
            context.out.value(value, || format!("node {node} votes now"));
            Ok(())
        }
        Verb::Remove { node } => {
            let what = format!("remove node {node}");
            let answer = cluster
                .act(&what, |channel| async move {
                    let request = v1::RemoveMemberRequest { node };
                    ClusterServiceClient::new(channel).remove_member(request).await
                })
                .await?;
            let value = || json!({ "node": node, "stamp": json::stamp(&answer.stamp) });
            context.out.value(value, || format!("node {node} is no member any more; stop it"));
            Ok(())
        }
        Verb::TransferLeader { to } => {
            let answer = cluster
                .act("transfer the leadership", |channel| async move {
                    let request = v1::TransferLeaderRequest { to };
                    ClusterServiceClient::new(channel).transfer_leader(request).await
                })
                .await?;
            let leader = answer.leader;
            let value = || json!({ "leader": leader, "stamp": json::stamp(&answer.stamp) });
            context.out.value(value, || format!("node {leader} leads now"));
            Ok(())
        }
        Verb::SetTiming(to) => set_timing(context, &cluster, to.timing()?).await,
    }
}

async fn list(context: &Context, cluster: &Cluster) -> Outcome {
    let mut answer = cluster
        .ask("list the members", |channel| async move {
            ClusterServiceClient::new(channel).list_members(v1::ListMembersRequest {}).await
        })
        .await?;
    if let Some(better) = from_the_leader(cluster, &answer).await {
        answer = better;
    }
    let members = &answer.members;
    context.out.table(
        || {
            json!({
                "stamp": json::stamp(&answer.stamp),
                "members": members.iter().map(json::member).collect::<Vec<_>>(),
            })
        },
        || {
            let mut table =
                Table::new(["node", "role", "behind", "address", "http", "where", "label"]);
            for member in members {
                let role = match (member.leader, member.voter) {
                    (true, _) => "leader",
                    (false, true) => "voter",
                    (false, false) => "learner",
                };
                table.row([
                    member.id.to_string(),
                    role.into(),
                    member.behind.map(|behind| behind.to_string()).unwrap_or_default(),
                    member.address.clone(),
                    member.http_address.clone(),
                    text::locality(&member.locality),
                    member.label.clone(),
                ]);
            }
            table
        },
    );
    Ok(())
}

/// The same list with how far behind each member is, which the leader alone knows. Best effort: it
/// may have an address that cannot be reached from here.
async fn from_the_leader(
    cluster: &Cluster,
    answer: &v1::ListMembersResponse,
) -> Option<v1::ListMembersResponse> {
    if answer.members.iter().any(|member| member.behind.is_some()) {
        return None;
    }
    let leader = answer.members.iter().find(|member| member.leader)?;
    let (_, channel) = cluster.node_at(&leader.address).ok()?;
    let mut client = ClusterServiceClient::new(channel);
    let asked = client.list_members(v1::ListMembersRequest {});
    let patience = cluster.settings().timeout.min(LEADER_PATIENCE);
    Some(tokio::time::timeout(patience, asked).await.ok()?.ok()?.into_inner())
}

async fn set_timing(context: &Context, cluster: &Cluster, timing: Timing) -> Outcome {
    let request =
        v1::SetTimingRequest { request: cluster.request(), timing: Some(timing_out(&timing)) };
    let answer = cluster
        .ask("change the timing", |channel| async move {
            ClusterServiceClient::new(channel).set_timing(request).await
        })
        .await?;
    let least = answer.least_ttl_ms;
    let value = || json!({ "least_ttl_ms": least, "stamp": json::stamp(&answer.stamp) });
    context.out.value(value, || format!("the smallest ttl is {} now", duration::human(least)));
    Ok(())
}

async fn add(context: &Context, cluster: &Cluster, add: Add) -> Outcome {
    let request = v1::AddMemberRequest {
        request: cluster.request(),
        address: add.address.clone(),
        http_address: add.http_address,
        locality: Some(v1::Locality { region: add.region, zone: add.zone, host: add.host }),
        label: add.label,
    };
    let what = format!("add the node at {}", add.address);
    let answer = cluster
        .ask(&what, |channel| {
            let request = request.clone();
            async move { ClusterServiceClient::new(channel).add_member(request).await }
        })
        .await?;
    let node = answer.node;
    context.out.value(
        || json!({ "node": node, "stamp": json::stamp(&answer.stamp) }),
        || {
            format!(
                "node {node} is the id of the node at {}\nissue a certificate for it and start it with \
                 `join = true`; it is a learner then\nonce it has caught up (`regent members list`): \
                 regent members promote {node}",
                add.address
            )
        },
    );
    Ok(())
}
