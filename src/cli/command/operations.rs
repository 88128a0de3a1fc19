//! `regent switchover`, `failover`, `pause`, `resume` and `operations ...`: another primary, or hands
//! off.

use regent_rpc::pb::v1;
use regent_rpc::pb::v1::operation_service_client::OperationServiceClient;
use serde_json::json;

use super::Context;
use super::election::Read;
use crate::connect::Cluster;
use crate::error::{CliError, Outcome};
use crate::render::{json, role};

/// Options of `switchover`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  regent switchover orders --reason upgrade
  regent switchover orders --to orders-b --reason upgrade

The old primary checkpoints and stops first; nothing that was acknowledged is lost.
")]
pub struct Switchover {
    /// The service
    pub service: String,
    /// Who is to be primary; without it: whoever is best
    #[arg(long, value_name = "INSTANCE", default_value = "", hide_default_value = true)]
    pub to: String,
    /// Why; goes into the audit chain
    #[arg(long)]
    pub reason: String,
}

/// Options of `failover`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  regent failover orders --reason fire --yes
  regent failover orders --to orders-b --reason fire --yes

The one named by --to is waited for and taken before the others, if nothing is lost by that.
Takes over a switchover that is open. For a primary that is well, use `regent switchover`.
")]
pub struct Failover {
    /// The service
    pub service: String,
    /// Who is to be primary, if it can be; without it: whoever is best
    #[arg(long, value_name = "INSTANCE", default_value = "", hide_default_value = true)]
    pub to: String,
    /// Why; goes into the audit chain
    #[arg(long)]
    pub reason: String,
    /// Yes, fence the primary
    #[arg(long)]
    pub yes: bool,
}

/// Options of `pause` and `resume`.
#[derive(Debug, clap::Args)]
pub struct Pause {
    /// The service
    pub service: String,
    /// Why; goes into the audit chain
    #[arg(long)]
    pub reason: String,
}

/// The verbs of `operations`.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// List failovers and switchovers
    List {
        /// Of this service; without it: of all
        #[arg(default_value = "", hide_default_value = true)]
        service: String,
        #[command(flatten)]
        read: Read,
    },
    /// Show one operation, phase by phase
    Show {
        /// The service
        service: String,
        /// Its number; without it: the newest
        #[arg(default_value_t = 0, hide_default_value = true)]
        operation: u64,
        #[command(flatten)]
        read: Read,
    },
    /// See the role of a service and its operation, and every change of them
    Watch {
        /// The service
        service: String,
    },
    /// Give up a role change, as long as the old primary can go on
    Abort {
        /// The service
        service: String,
        /// Only if it is this one; without it: the one that is open
        #[arg(default_value_t = 0, hide_default_value = true)]
        operation: u64,
        /// Why; goes into the audit chain
        #[arg(long)]
        reason: String,
    },
}

/// Runs `switchover`.
pub async fn switchover(context: &Context, args: Switchover) -> Outcome {
    let cluster = Cluster::open(&context.globals)?;
    let request = v1::SwitchoverRequest {
        request: cluster.request(),
        service: args.service.clone(),
        to: args.to,
        reason: args.reason,
        seen: None,
    };
    let answer = cluster
        .ask(&format!("switch {} over", args.service), |channel| {
            let request = request.clone();
            async move { OperationServiceClient::new(channel).switchover(request).await }
        })
        .await?;
    begun(context, &args.service, answer.operation, &answer.stamp);
    Ok(())
}

/// Runs `failover`.
pub async fn failover(context: &Context, args: Failover) -> Outcome {
    if !args.yes {
        return Err(CliError::usage(format!("no failover of {:?} was begun", args.service))
            .because("the primary is fenced, whether it is well or not")
            .hint("add --yes if you mean it; for a primary that is well use `regent switchover`"));
    }
    let cluster = Cluster::open(&context.globals)?;
    let request = v1::FailoverRequest {
        request: cluster.request(),
        service: args.service.clone(),
        to: args.to,
        reason: args.reason,
        seen: None,
    };
    let answer = cluster
        .ask(&format!("fail {} over", args.service), |channel| {
            let request = request.clone();
            async move { OperationServiceClient::new(channel).failover(request).await }
        })
        .await?;
    begun(context, &args.service, answer.operation, &answer.stamp);
    Ok(())
}

fn begun(context: &Context, service: &str, operation: u64, stamp: &Option<v1::Stamp>) {
    context.out.value(
        || json!({ "service": service, "operation": operation, "stamp": json::stamp(stamp) }),
        || format!("operation {operation} has begun; see `regent operations watch {service}`"),
    );
}

/// Runs `pause` (`paused`) or `resume`.
pub async fn pause(context: &Context, args: Pause, paused: bool) -> Outcome {
    let cluster = Cluster::open(&context.globals)?;
    let (id, Pause { service, reason }) = (cluster.request(), args);
    let what = format!("{} {service:?}", if paused { "pause" } else { "resume" });
    let stamp = cluster.ask(&what, |channel| {
        let (service, reason) = (service.clone(), reason.clone());
        let mut client = OperationServiceClient::new(channel);
        async move {
            if paused {
                let request = v1::PauseRequest { request: id, service, reason };
                Ok(client.pause(request).await?.map(|answer| answer.stamp))
            } else {
                let request = v1::ResumeRequest { request: id, service, reason };
                Ok(client.resume(request).await?.map(|answer| answer.stamp))
            }
        }
    });
    let stamp = stamp.await?;
    context.out.value(
        || json!({ "service": service, "paused": paused, "stamp": json::stamp(&stamp) }),
        || match paused {
            true => format!("{service} is paused: nothing is done about it until `regent resume`"),
            false => format!("{service} is watched over again"),
        },
    );
    Ok(())
}

/// Runs a verb of `operations`.
pub async fn run(context: &Context, verb: Verb) -> Outcome {
    match verb {
        Verb::List { service, read } => list(context, service, read).await,
        Verb::Show { service, operation, read } => show(context, service, operation, read).await,
        Verb::Watch { service } => watch(context, service).await,
        Verb::Abort { service, operation, reason } => {
            abort(context, service, operation, reason).await
        }
    }
}

/// The roles of all services, or of one, for verbs whose own answer is another: `None` when they
/// cannot be had (an older node, a certificate without the right), which must not spoil that answer.
pub async fn roles(cluster: &Cluster, service: &str, read: &Read) -> Option<Vec<v1::Role>> {
    let mut request = v1::ListRolesRequest {
        service: service.to_owned(),
        read: read.to_wire(),
        after: String::new(),
    };
    let mut roles = Vec::new();
    loop {
        let page = cluster.ask("list the roles", |channel| {
            let request = request.clone();
            async move { OperationServiceClient::new(channel).list_roles(request).await }
        });
        let page = page.await.ok()?;
        let last = page.roles.last().map(|role| role.service.clone());
        roles.extend(page.roles);
        match last {
            Some(last) if page.more => request.after = last,
            _ => return Some(roles),
        }
    }
}

async fn list(context: &Context, service: String, read: Read) -> Outcome {
    let cluster = Cluster::open(&context.globals)?;
    let mut request = v1::ListOperationsRequest {
        service,
        read: read.to_wire(),
        ..v1::ListOperationsRequest::default()
    };
    let mut all = v1::ListOperationsResponse::default();
    loop {
        let page = cluster
            .ask("list the operations", |channel| {
                let request = request.clone();
                async move { OperationServiceClient::new(channel).list_operations(request).await }
            })
            .await?;
        all.stamp = all.stamp.or(page.stamp);
        let more = page.more;
        let Some(last) = page.operations.last() else { break };
        (request.after_service, request.after) = (last.service.clone(), last.id);
        all.operations.extend(page.operations);
        if !more {
            break;
        }
    }
    context.out.table(
        || {
            json!({
                "stamp": json::stamp(&all.stamp),
                "operations": all.operations.iter().map(role::operation).collect::<Vec<_>>(),
            })
        },
        || role::operations(&all.operations),
    );
    Ok(())
}

async fn show(context: &Context, service: String, operation: u64, read: Read) -> Outcome {
    let cluster = Cluster::open(&context.globals)?;
    let request =
        v1::ShowOperationRequest { service: service.clone(), operation, read: read.to_wire() };
    let answer = cluster
        .ask(&format!("show an operation of {service:?}"), |channel| {
            let request = request.clone();
            async move { OperationServiceClient::new(channel).show_operation(request).await }
        })
        .await?;
    let row = answer.operation.unwrap_or_default();
    context.out.value(
        || json!({ "stamp": json::stamp(&answer.stamp), "operation": role::operation(&row) }),
        || role::operation_text(&row),
    );
    Ok(())
}

async fn abort(context: &Context, service: String, operation: u64, reason: String) -> Outcome {
    let cluster = Cluster::open(&context.globals)?;
    let request = v1::AbortOperationRequest {
        request: cluster.request(),
        service: service.clone(),
        operation,
        reason,
    };
    let answer = cluster
        .ask(&format!("give up the role change of {service:?}"), |channel| {
            let request = request.clone();
            async move { OperationServiceClient::new(channel).abort_operation(request).await }
        })
        .await?;
    context.out.value(
        || json!({ "service": service, "stamp": json::stamp(&answer.stamp) }),
        || format!("the role change of {service} is given up"),
    );
    Ok(())
}

async fn watch(context: &Context, service: String) -> Outcome {
    let cluster = Cluster::open(&context.globals)?;
    tokio::select! {
        result = watch_forever(context, &cluster, &service) => result,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

/// Each message is the whole of it, so after a break the watch just begins anew elsewhere; what was
/// printed last is not printed again.
async fn watch_forever(context: &Context, cluster: &Cluster, service: &str) -> Outcome {
    let mut last = None;
    loop {
        let request = v1::WatchOperationsRequest { service: service.to_owned() };
        let mut stream = cluster
            .ask(&format!("watch {service:?}"), |channel| {
                let request = request.clone();
                async move { OperationServiceClient::new(channel).watch_operations(request).await }
            })
            .await?;
        while let Ok(Some(message)) = stream.message().await {
            let shown = Some((message.role.clone(), message.operation.clone()));
            if shown != last {
                print(context, service, &message);
                last = shown;
            }
        }
        cluster.prefer_next();
        // A node that ends each watch at once must not be asked in a hot loop.
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

fn print(context: &Context, service: &str, seen: &v1::WatchOperationsResponse) {
    let revision = seen.stamp.unwrap_or_default().revision;
    context.out.value(
        || {
            json!({
                "revision": revision,
                "role": seen.role.as_ref().map(role::role),
                "operation": seen.operation.as_ref().map(role::operation),
            })
        },
        || {
            let Some(found) = &seen.role else {
                return format!("r{revision} {service}: no agent has started");
            };
            let primary = if found.holder.is_empty() { "nobody" } else { &found.holder };
            let operation = seen.operation.as_ref().filter(|row| !row.over);
            let operation =
                operation.map(|row| format!(", {} {}: {}", row.kind, row.id, row.phase));
            let note = role::note(found);
            let note = if note.is_empty() { note } else { format!(" ({note})") };
            let operation = operation.unwrap_or_default();
            format!("r{revision} {service}: {primary} is primary{operation}{note}")
        },
    );
}
