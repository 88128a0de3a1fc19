//! `regent services ...`: declare, show, watch and delete services.

use std::io::Read as _;
use std::ops::ControlFlow;
use std::path::PathBuf;

use regent_rpc::convert::page::gets_on;
use regent_rpc::convert::topology;
use regent_rpc::limits::MAX_ANSWER_BYTES;
use regent_rpc::pb::v1;
use regent_rpc::pb::v1::topology_service_client::TopologyServiceClient;
use regent_rpc::pb::v1::watch_services_response::Event;
use serde_json::json;

use super::Context;
use super::election::Read;
use super::operations;
use crate::connect::Cluster;
use crate::declare;
use crate::error::{CliError, Context as _, Outcome};
use crate::follow::{Mark, Step, follow};
use crate::render::table::Table;
use crate::render::{json, role, text};

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Declare a service, or change its declaration
    #[command(after_help = "\
Examples:
  regent services template > orders.toml
  regent services apply -f orders.toml --dry-run
  regent services apply -f orders.toml
  regent services apply -f orders.toml --expect-revision 1043

The file is checked whole before anything is sent; every problem names line, field and fix.
")]
    Apply(Apply),
    /// List services
    List {
        #[command(flatten)]
        read: Read,
    },
    /// Show one service
    Show {
        /// Its name
        name: String,
        #[command(flatten)]
        read: Read,
    },
    /// Delete a service
    Delete {
        /// Its name
        name: String,
        /// Only if its last change was this revision
        #[arg(long, value_name = "N")]
        expect_revision: Option<u64>,
        /// Yes, delete it
        #[arg(long)]
        yes: bool,
    },
    /// See every change of a service, or of all
    Watch {
        /// Its name; without it: all
        #[arg(default_value = "", hide_default_value = true)]
        name: String,
    },
    /// Let a quarantined service go on, after you looked at it
    Release {
        /// Its name
        name: String,
        /// Why it is safe; goes into the audit chain
        #[arg(long)]
        reason: String,
    },
    /// Print a declaration to begin with
    Template,
}

/// Options of `services apply`.
#[derive(Debug, clap::Args)]
pub struct Apply {
    /// The declaration (TOML); `-` reads stdin
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Say what would change; change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Only if its last change was this revision; 0: only if it does not exist
    #[arg(long, value_name = "N")]
    pub expect_revision: Option<u64>,
}

/// Runs one of them.
pub async fn run(context: &Context, verb: Verb) -> Outcome {
    match verb {
        Verb::Apply(args) => apply(context, args).await,
        Verb::List { read } => list(context, read).await,
        Verb::Show { name, read } => show(context, name, read).await,
        Verb::Delete { name, yes: false, .. } => {
            Err(CliError::usage(format!("service {name:?} was not deleted"))
                .because("a deleted service is no longer watched over")
                .hint("add --yes if you mean it"))
        }
        Verb::Delete { name, expect_revision, .. } => delete(context, name, expect_revision).await,
        Verb::Watch { name } => watch(context, name).await,
        Verb::Release { name, reason } => release(context, name, reason).await,
        Verb::Template => {
            print!("{}", declare::TEMPLATE);
            Ok(())
        }
    }
}

fn expect(revision: Option<u64>) -> Option<v1::Expect> {
    use v1::expect::Condition;
    let condition = match revision? {
        0 => Condition::Absent(true),
        revision => Condition::Revision(revision),
    };
    Some(v1::Expect { condition: Some(condition) })
}

async fn apply(context: &Context, args: Apply) -> Outcome {
    let name = args.file.display().to_string();
    let text = if args.file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).or_usage(|| "cannot read stdin".to_owned())?;
        text
    } else {
        std::fs::read_to_string(&args.file).or_usage(|| format!("cannot read {name}"))?
    };
    let spec = declare::parse(&name, &text)?;
    for warning in spec.warnings() {
        context.out.note(&format!("warning: {warning}"));
    }
    let cluster = Cluster::open(&context.globals)?;
    let request = v1::ApplyServiceRequest {
        request: cluster.request(),
        spec: Some(topology::spec_out(&spec)),
        expect: expect(args.expect_revision),
        dry_run: args.dry_run,
    };
    let answer = cluster
        .ask(&format!("declare service {}", spec.name), |channel| {
            let request = request.clone();
            async move { TopologyServiceClient::new(channel).apply_service(request).await }
        })
        .await?;
    let changed = answer.changed;
    context.out.value(
        || {
            json!({
                "stamp": json::stamp(&answer.stamp),
                "dry_run": args.dry_run,
                "changed": changed,
                "service": answer.service.as_ref().map(json::service),
            })
        },
        || {
            let revision = answer.service.as_ref().map(|row| row.changed).unwrap_or_default();
            match (args.dry_run, changed) {
                (true, true) => format!("{} would change; nothing was changed", spec.name),
                (true, false) => {
                    format!("{} is declared so already; nothing would change", spec.name)
                }
                (false, true) => format!("{} is declared at revision {revision}", spec.name),
                (false, false) => {
                    format!("{} was declared so already (revision {revision})", spec.name)
                }
            }
        },
    );
    Ok(())
}

async fn list_page(
    cluster: &Cluster,
    request: &v1::ListServicesRequest,
) -> Outcome<v1::ListServicesResponse> {
    let ask = |channel| {
        let request = request.clone();
        async move {
            let after = request.after.clone();
            let page = TopologyServiceClient::new(channel)
                .max_decoding_message_size(MAX_ANSWER_BYTES)
                .list_services(request)
                .await?;
            gets_on(&after, page)
        }
    };
    cluster.ask("list the services", ask).await
}

async fn list(context: &Context, read: Read) -> Outcome {
    let cluster = Cluster::open(&context.globals)?;
    let mut request = v1::ListServicesRequest { read: read.to_wire(), after: String::new() };
    let mut answer = list_page(&cluster, &request).await?;
    while let (true, Some(last)) = (answer.more, answer.services.last()) {
        request.after = last.spec.as_ref().map_or_else(String::new, |spec| spec.name.clone());
        let page = list_page(&cluster, &request).await?;
        answer.services.extend(page.services);
        answer.more = page.more;
    }
    context.out.table(
        || {
            json!({
                "stamp": json::stamp(&answer.stamp),
                "services": answer.services.iter().map(json::service).collect::<Vec<_>>(),
            })
        },
        || {
            let mut table =
                Table::new(["service", "mode", "topology", "instances", "life", "changed", "note"]);
            for row in &answer.services {
                let spec = row.spec.clone().unwrap_or_default();
                let policy = spec.policy.unwrap_or_default();
                table.row([
                    spec.name.clone(),
                    text::word(policy.mode().as_str_name()),
                    text::word(spec.topology().as_str_name()),
                    spec.instances.len().to_string(),
                    row.life.clone(),
                    row.changed.to_string(),
                    row.quarantine
                        .as_ref()
                        .map(|q| format!("QUARANTINED: {}", q.why))
                        .unwrap_or_default(),
                ]);
            }
            table
        },
    );
    Ok(())
}

async fn show(context: &Context, name: String, read: Read) -> Outcome {
    let cluster = Cluster::open(&context.globals)?;
    let request = v1::GetServiceRequest { name: name.clone(), read: read.to_wire() };
    let what = format!("show service {name:?}");
    let answer = cluster
        .ask(&what, |channel| {
            let request = request.clone();
            async move { TopologyServiceClient::new(channel).get_service(request).await }
        })
        .await?;
    let Some(row) = answer.service else {
        return Err(CliError::refused(format!("cannot {what}"))
            .because("there is no such service")
            .hint("`regent services list` shows those there are"));
    };
    let roles = operations::roles(&cluster, &name, &read).await.unwrap_or_default();
    context.out.value(
        || {
            json!({
                "stamp": json::stamp(&answer.stamp),
                "service": json::service(&row),
                "role": roles.first().map(role::role),
            })
        },
        || match roles.as_slice() {
            [] => as_text(&row),
            roles => format!("{}\n{}", as_text(&row), role::roles(roles)),
        },
    );
    Ok(())
}

fn as_text(row: &v1::Service) -> String {
    let value = json::service(row);
    let mut head = Table::pairs();
    for key in ["name", "description", "engine", "topology", "life"] {
        head.pair(key, value[key].as_str().unwrap_or_default());
    }
    head.pair("changed", row.changed);
    if let Some(quarantine) = &row.quarantine {
        head.pair(
            "QUARANTINED",
            format!("since revision {}: {}", quarantine.since, quarantine.why),
        );
    }
    if let Some(policy) = value["policy"].as_object() {
        for (key, value) in policy {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            head.pair(&format!("policy.{key}"), text);
        }
    }
    let mut instances = Table::new(["instance", "address", "where", "priority"]);
    for instance in row.spec.iter().flat_map(|spec| &spec.instances) {
        instances.row([
            instance.name.clone(),
            instance.address.clone(),
            text::locality(&instance.locality),
            instance.priority.to_string(),
        ]);
    }
    if row.partitions.is_empty() {
        return format!("{head}\n{instances}");
    }
    let mut partitions = Table::new(["partition", "owner", "epoch", "changed"]);
    for partition in &row.partitions {
        partitions.row([
            partition.name.clone(),
            partition.owner.clone(),
            partition.epoch.as_ref().map(text::epoch).unwrap_or_default(),
            partition.changed.to_string(),
        ]);
    }
    format!("{head}\n{instances}\n{partitions}")
}

async fn delete(context: &Context, name: String, expect_revision: Option<u64>) -> Outcome {
    let cluster = Cluster::open(&context.globals)?;
    let request = v1::DeleteServiceRequest {
        request: cluster.request(),
        name: name.clone(),
        expect: expect(expect_revision),
    };
    let answer = cluster
        .ask(&format!("delete service {name:?}"), |channel| {
            let request = request.clone();
            async move { TopologyServiceClient::new(channel).delete_service(request).await }
        })
        .await?;
    let result = || json!({ "deleted": name, "stamp": json::stamp(&answer.stamp) });
    context.out.value(result, || format!("{name} is deleted"));
    Ok(())
}

async fn release(context: &Context, name: String, reason: String) -> Outcome {
    let cluster = Cluster::open(&context.globals)?;
    let request =
        v1::ReleaseQuarantineRequest { request: cluster.request(), service: name.clone(), reason };
    let answer = cluster
        .ask(&format!("release service {name:?}"), |channel| {
            let request = request.clone();
            async move { TopologyServiceClient::new(channel).release_quarantine(request).await }
        })
        .await?;
    let result = || json!({ "released": name, "stamp": json::stamp(&answer.stamp) });
    context.out.value(result, || format!("{name} goes on"));
    Ok(())
}

async fn watch(context: &Context, name: String) -> Outcome {
    let cluster = Cluster::open(&context.globals)?;
    let watch = follow(
        &cluster,
        "watch services",
        |channel, from| {
            let request = v1::WatchServicesRequest { name: name.clone(), from: Some(from) };
            async move { TopologyServiceClient::new(channel).watch_services(request).await }
        },
        |message: &v1::WatchServicesResponse| match &message.event {
            Some(Event::Change(change)) => Mark::Change(change.revision),
            Some(Event::SnapshotEnd(stamp)) => Mark::SnapshotEnd(*stamp),
            Some(Event::Bookmark(stamp)) => Mark::Bookmark(*stamp),
            None => Mark::None,
        },
        |step| {
            match step {
                Step::Begin { why } if !why.is_empty() => {
                    let text = format!("the watch begins anew with a snapshot: {why}");
                    context.out.value(|| json!({ "event": "restarted", "why": why }), || text);
                }
                Step::Message(
                    v1::WatchServicesResponse { event: Some(Event::Change(change)) },
                    snapshot,
                ) => {
                    print(context, &change, snapshot);
                }
                Step::Begin { .. } | Step::Message(..) => {}
            }
            Ok(ControlFlow::Continue(()))
        },
    );
    tokio::select! {
        result = watch => result,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

fn print(context: &Context, change: &v1::ServiceChange, snapshot: bool) {
    // A row of the snapshot is no change: what counts is when it last was one.
    let changed = change.service.as_ref().map_or(0, |row| row.changed);
    let revision = if change.revision == 0 { changed } else { change.revision };
    context.out.value(
        || {
            json!({
                "event": if snapshot { "snapshot" } else { "change" },
                "revision": revision,
                "name": change.name,
                "service": change.service.as_ref().map(json::service),
            })
        },
        || {
            let mark = if snapshot { "=" } else { ">" };
            let what = match &change.service {
                None => "deleted".to_owned(),
                Some(row) => match &row.quarantine {
                    Some(quarantine) => format!("QUARANTINED: {}", quarantine.why),
                    None => {
                        let count = row.spec.as_ref().map_or(0, |spec| spec.instances.len());
                        format!("{}, {count} instances", row.life)
                    }
                },
            };
            format!("{mark} r{revision} {}: {what}", change.name)
        },
    );
}
