//! `regent status`: every node's own view, side by side. A node that does not answer is a line
//! too: that is what one looks for at 3 a.m.

use std::time::Duration;

use regent_rpc::pb::v1;
use regent_rpc::pb::v1::cluster_service_client::ClusterServiceClient;
use serde_json::{Value, json};

use super::Context;
use super::election::Read;
use super::operations;
use crate::connect::{Cluster, from_status};
use crate::duration;
use crate::error::{CliError, Outcome};
use crate::render::json;
use crate::render::role;
use crate::render::table::Table;
use crate::render::text;

/// A certificate that runs out sooner than this is worth a warning.
const CERTIFICATE_WARNING_MS: u64 = 14 * 86_400_000;

/// Options of `status`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  regent status
  regent status -o json | jq .leader

Exit code 0 means that at least one of the nodes asked knows a leader.
")]
pub struct Args {}

/// Asks every endpoint and every member they name.
pub async fn run(context: &Context, _args: Args) -> Outcome {
    let cluster = Cluster::open(&context.globals)?;
    let views = ask_all(&cluster).await;
    let best = views.iter().filter_map(|view| view.answer.as_ref().ok()).max_by_key(|status| {
        let node = status.node.clone().unwrap_or_default();
        // The view of the highest term wins: an isolated old leader still believes in itself.
        (status.term, u8::from(status.leader != 0), node.applied)
    });
    let Some(best) = best else {
        let error = CliError::unreachable("cannot reach any node");
        let error = views
            .iter()
            .filter_map(|view| view.answer.as_ref().err())
            .fold(error, |error, failed| {
                failed.causes.iter().fold(error, |error, cause| error.because(cause))
            });
        return Err(error.hint("check that the nodes run, --endpoints, and your certificate"));
    };
    // As old as a node has them: nobody waits here for a cluster that is not well.
    let read = Read { max_age: Some(Duration::from_secs(86_400)) };
    let roles = match (best.leader, best.services) {
        (0, _) | (_, 0) => Vec::new(),
        _ => operations::roles(&cluster, "", &read).await.unwrap_or_default(),
    };
    context.out.value(
        || {
            let mut whole = as_json(best, &views);
            whole["roles"] = json!(roles.iter().map(role::role).collect::<Vec<_>>());
            whole
        },
        || match roles.as_slice() {
            [] => as_text(best, &views),
            roles => format!("{}\n{}", as_text(best, &views), role::roles(roles)),
        },
    );
    if best.leader == 0 {
        return Err(CliError::unreachable("the cluster has no leader")
            .because("no node that answered knows one")
            .hint("start the missing nodes; if a majority is gone for good see `regent recover`"));
    }
    Ok(())
}

/// One node's answer, or why there is none.
struct View {
    endpoint: String,
    answer: Outcome<v1::StatusResponse>,
}

async fn ask_all(cluster: &Cluster) -> Vec<View> {
    let asked = cluster.nodes().iter().map(|(endpoint, channel)| {
        let mut client = ClusterServiceClient::new(channel.clone());
        async move {
            let timeout = cluster.settings().timeout;
            let answer =
                match tokio::time::timeout(timeout, client.status(v1::StatusRequest {})).await {
                    Ok(Ok(response)) => Ok(response.into_inner()),
                    Ok(Err(status)) => Err(from_status("ask for the status", endpoint, &status)),
                    Err(_) => Err(CliError::unreachable("cannot ask for the status")
                        .because(format!("{endpoint}: no answer in {timeout:?}"))),
                };
            View { endpoint: endpoint.clone(), answer }
        }
    });
    futures::future::join_all(asked).await
}

fn as_json(best: &v1::StatusResponse, views: &[View]) -> Value {
    let nodes: Vec<Value> = views
        .iter()
        .map(|view| match &view.answer {
            Ok(status) => {
                let mut value = json::status(status)["node"].clone();
                value["endpoint"] = json!(view.endpoint);
                value["leader"] = json!(status.leader);
                value["term"] = json!(status.term);
                value["state_hash"] = json!(status.state_hash);
                value
            }
            Err(error) => json!({ "endpoint": view.endpoint, "unreachable": error.causes }),
        })
        .collect();
    let mut whole = json::status(best);
    whole["nodes"] = json!(nodes);
    whole["warnings"] = json!(warnings(best, views));
    whole
}

fn as_text(best: &v1::StatusResponse, views: &[View]) -> String {
    let stamp = best.stamp.unwrap_or_default();
    let mut head = Table::pairs();
    head.pair("cluster", &best.cluster);
    head.pair("incarnation", format!("{}-{:016x}", stamp.incarnation, stamp.incarnation_id));
    head.pair(
        "leader",
        match best.leader {
            0 => "none".to_owned(),
            leader => format!("node {leader} at {} (term {})", best.leader_address, best.term),
        },
    );
    head.pair("feature level", best.feature_level);
    head.pair("revision", format!("{} (hash {})", stamp.revision, best.state_hash));
    head.pair(
        "holds",
        format!(
            "{} services, {} sessions, {} elections, {} audit records",
            best.services, best.sessions, best.elections, best.audit_records
        ),
    );
    head.pair("smallest ttl", duration::human(best.least_ttl_ms));
    let mut table = Table::new([
        "node",
        "endpoint",
        "role",
        "zone",
        "applied",
        "log",
        "up",
        "certificate",
        "version",
    ]);
    for view in views {
        match &view.answer {
            Ok(status) => {
                let node = status.node.clone().unwrap_or_default();
                let member = best.members.iter().find(|member| member.id == node.id);
                table.row([
                    node.id.to_string(),
                    view.endpoint.clone(),
                    node.role,
                    member.map(|member| text::locality(&member.locality)).unwrap_or_default(),
                    node.applied.to_string(),
                    node.last_log.to_string(),
                    duration::human(node.uptime_ms),
                    duration::human(node.certificate_expires_in_ms),
                    node.version,
                ]);
            }
            Err(_) => table.row([
                "?".into(),
                view.endpoint.clone(),
                "unreachable".into(),
                String::new(),
                String::new(),
                String::new(),
                String::new(),
                String::new(),
                String::new(),
            ]),
        }
    }
    let warnings = warnings(best, views);
    let warned: String = warnings.iter().map(|text| format!("warning: {text}\n")).collect();
    format!("{head}\n{table}{}{warned}", if warnings.is_empty() { "" } else { "\n" })
}

/// What a person should look at, most urgent first.
fn warnings(best: &v1::StatusResponse, views: &[View]) -> Vec<String> {
    let mut warnings = Vec::new();
    for view in views {
        match &view.answer {
            Ok(status) => {
                let node = status.node.clone().unwrap_or_default();
                let id = node.id;
                if !node.storage_problem.is_empty() {
                    warnings.push(format!("node {id}: storage: {}", node.storage_problem));
                }
                for warning in &node.warnings {
                    warnings.push(format!("node {id}: {warning}"));
                }
                if node.role == "removed" {
                    warnings.push(format!("node {id} is no member any more: stop it"));
                }
                if node.role == "quarantined" {
                    warnings.push(format!(
                        "node {id} is quarantined (its disk went back in time): remove it and add \
                         it again under a new id"
                    ));
                }
                for (what, left) in [
                    ("certificate", node.certificate_expires_in_ms),
                    ("certificate authority", node.ca_expires_in_ms),
                ] {
                    if left < CERTIFICATE_WARNING_MS {
                        let left = duration::human(left);
                        warnings.push(format!("node {id}: its {what} expires in {left}"));
                    }
                }
                if node.clock_skew_ppm > regent_core::limits::RHO_ALARM_PPM {
                    warnings.push(format!(
                        "node {id}: its clock's rate differs by {} ppm from a peer's",
                        node.clock_skew_ppm
                    ));
                }
            }
            Err(error) => {
                let why = error.causes.first().cloned().unwrap_or_default();
                warnings.push(format!("no answer from {why}"));
            }
        }
    }
    if best.grants_held_ms > 0 {
        let ttl = duration::human(best.grants_held_ms);
        warnings.push(format!(
            "a new life of the cluster has begun: no lease is granted until those of before, with \
             ttls up to {ttl}, have run out"
        ));
    }
    if best.quarantined > 0 {
        warnings
            .push(format!("{} services are quarantined: `regent services list`", best.quarantined));
    }
    for member in &best.members {
        if !member.voter {
            let id = member.id;
            warnings.push(format!("node {id} does not vote yet: `regent members promote {id}`"));
        }
    }
    warnings
}
