//! `regent routes`: where clients of a service are sent, who has applied that, and configurations
//! for those who route.

mod bootstrap;
mod export;
pub mod follow;
mod grpc;

use regent_rpc::pb::v1;
use regent_rpc::pb::v1::routing_service_client::RoutingServiceClient;
use serde_json::{Value, json};

use self::follow::{Follower, Wanted};
use super::Context;
use crate::connect::Cluster;
use crate::error::Outcome;
use crate::render::table::Table;
use crate::render::{json, text};

/// Options of `routes`.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Examples:
  regent routes orders
  regent routes orders --region eu --zone eu-1a
  regent routes orders --watch -o json | jq -r '.routes.write.address'
  regent routes export orders --format haproxy > haproxy.cfg
"
)]
pub struct Args {
    /// The service
    #[arg(required = true)]
    pub service: Option<String>,
    /// Rank read routes for a client in this region
    #[arg(long, default_value = "")]
    pub region: String,
    /// Rank read routes for a client in this zone
    #[arg(long, default_value = "")]
    pub zone: String,
    /// Show them now, and again each time they change
    #[arg(long)]
    pub watch: bool,
    /// What to do instead of showing them
    #[command(subcommand)]
    pub verb: Option<Verb>,
}

/// Verbs of `routes`.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Print a configuration for a load balancer or a client
    Export(export::Args),
}

/// Runs it.
pub async fn run(context: &Context, args: Args) -> Outcome {
    if let Some(Verb::Export(export)) = args.verb {
        return export::run(context, export).await;
    }
    let cluster = Cluster::open(&context.globals)?;
    let service = args.service.unwrap_or_default();
    let host = String::new();
    let client = v1::Locality { region: args.region, zone: args.zone, host };
    if args.watch {
        return tokio::select! {
            result = watch(context, &cluster, service, client) => result,
            _ = tokio::signal::ctrl_c() => Ok(()),
        };
    }
    let answer = resolve(&cluster, &service, Some(client)).await?;
    let routers = cluster
        .ask(&format!("list the routers of {service:?}"), |channel| {
            let request = v1::ListRoutersRequest { service: service.clone() };
            async move { RoutingServiceClient::new(channel).list_routers(request).await }
        })
        .await?;
    let routes = answer.routes.unwrap_or_default();
    context.out.value(
        || {
            json!({
                "stamp": json::stamp(&answer.stamp),
                "routes": as_json(&routes),
                "routers": routers.routers.iter().map(router).collect::<Vec<_>>(),
                "silent_nodes": routers.silent_nodes,
            })
        },
        || as_text(&routes, answer.stamp, &routers),
    );
    Ok(())
}

/// The routes of a service, now.
async fn resolve(
    cluster: &Cluster,
    service: &str,
    client: Option<v1::Locality>,
) -> Outcome<v1::ResolveResponse> {
    cluster
        .ask(&format!("resolve {service:?}"), |channel| {
            let request =
                v1::ResolveRequest { service: service.to_owned(), client: client.clone() };
            async move { RoutingServiceClient::new(channel).resolve(request).await }
        })
        .await
}

async fn watch(
    context: &Context,
    cluster: &Cluster,
    service: String,
    client: v1::Locality,
) -> Outcome {
    let wanted = Wanted { service, client: Some(client), router: None };
    let mut follower = Follower::new(cluster, wanted);
    loop {
        let (stamp, routes) = follower.next().await?;
        let stamp = Some(stamp);
        context.out.value(
            || json!({ "stamp": json::stamp(&stamp), "routes": as_json(&routes) }),
            || one_line(&routes),
        );
    }
}

fn as_json(routes: &v1::Routes) -> Value {
    let tier = |tier: &v1::RouteTier| {
        json!({
            "distance": text::word(tier.distance().as_str_name()),
            "endpoints": tier.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        })
    };
    json!({
        "service": routes.service,
        "epoch": json::epoch(&routes.epoch),
        "revision": routes.revision,
        "write": routes.write.as_ref().map(endpoint),
        "closed": (!routes.closed.is_empty()).then_some(&routes.closed),
        "holds": routes.holds,
        "reads_unknown": routes.reads_unknown,
        "reads": routes.reads.iter().map(tier).collect::<Vec<_>>(),
    })
}

fn endpoint(one: &v1::RouteEndpoint) -> Value {
    json!({
        "instance": one.instance,
        "address": one.address,
        "check": (!one.check.is_empty()).then_some(&one.check),
        "locality": json::locality(&one.locality),
        "lag_bytes": one.lag_bytes,
        "weight": one.weight,
    })
}

fn router(one: &v1::Router) -> Value {
    json!({
        "principal": one.principal,
        "name": one.name,
        "node": one.node,
        "protocol": one.protocol,
        "epoch": json::epoch(&one.epoch),
        "revision": one.revision,
        "applied_ms": one.epoch.map(|_| one.applied_ms),
        "refused": (!one.refused.is_empty()).then_some(&one.refused),
    })
}

fn epoch_text(epoch: &Option<v1::Epoch>) -> String {
    epoch.as_ref().map(text::epoch).unwrap_or_default()
}

fn one_line(routes: &v1::Routes) -> String {
    let write = match &routes.write {
        Some(one) => format!("{} {}", one.instance, one.address),
        None => format!("nobody: {}", routes.closed),
    };
    let reads = routes.reads.iter().flat_map(|tier| &tier.endpoints);
    let reads: Vec<&str> = reads.map(|one| one.instance.as_str()).collect();
    let epoch = epoch_text(&routes.epoch);
    format!("r{} epoch {epoch}  write {write}  read {}", routes.revision, reads.join(" "))
}

fn as_text(
    routes: &v1::Routes,
    stamp: Option<v1::Stamp>,
    routers: &v1::ListRoutersResponse,
) -> String {
    let mut table =
        Table::new(["route", "to", "address", "distance", "lag", "weight", "checked at"]);
    let mut row = |route: &str, distance: String, one: &v1::RouteEndpoint| {
        table.row([
            route.to_owned(),
            one.instance.clone(),
            one.address.clone(),
            distance,
            one.lag_bytes.to_string(),
            one.weight.to_string(),
            one.check.clone(),
        ]);
    };
    if let Some(one) = &routes.write {
        row("write", String::new(), one);
    }
    for tier in &routes.reads {
        for one in &tier.endpoints {
            row("read", text::word(tier.distance().as_str_name()), one);
        }
    }
    let mut parts = Vec::new();
    let seen = stamp.unwrap_or_default();
    parts.push(format!(
        "{} epoch {} as of revision {} at node {}\n",
        routes.service,
        epoch_text(&routes.epoch),
        seen.revision,
        seen.node
    ));
    if routes.write.is_none() {
        parts.push(format!("nobody takes writes: {}\n", routes.closed));
    }
    if routes.reads_unknown {
        let why = "this node has just been started: it does not know yet which standbys take reads";
        parts.push(format!("{why}\n"));
    }
    parts.push(table.to_string());
    parts.push(match routers.routers.is_empty() {
        true => "no router follows these routes\n".to_owned(),
        false => routers_table(routers).to_string(),
    });
    if !routers.silent_nodes.is_empty() {
        let silent: Vec<String> = routers.silent_nodes.iter().map(ToString::to_string).collect();
        let silent = silent.join(", ");
        parts.push(format!("who follows at node {silent} is not known: no answer from there\n"));
    }
    parts.join("\n")
}

fn routers_table(routers: &v1::ListRoutersResponse) -> Table {
    let mut table = Table::new(["router", "name", "node", "by", "epoch", "state"]);
    for one in &routers.routers {
        let state = match (&one.epoch, &routers.epoch) {
            _ if !one.refused.is_empty() => format!("refused: {}", one.refused),
            (None, _) => "has acknowledged nothing".to_owned(),
            (has, wanted) if has == wanted => format!("applied {} ms ago", one.applied_ms),
            _ => "lags".to_owned(),
        };
        table.row([
            one.principal.clone(),
            one.name.clone(),
            one.node.to_string(),
            one.protocol.clone(),
            epoch_text(&one.epoch),
            state,
        ]);
    }
    table
}
