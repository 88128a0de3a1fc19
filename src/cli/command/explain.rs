//! `regent explain`: what the leader knows of a service, what it would do, and why not.

use regent_rpc::pb::v1;
use regent_rpc::pb::v1::operation_service_client::OperationServiceClient;
use serde_json::{Value, json};

use super::Context;
use crate::connect::Cluster;
use crate::error::Outcome;
use crate::render::table::Table;
use crate::render::{json, role, text};

/// Options of `explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  regent explain orders
  regent explain orders -o json | jq .report
")]
pub struct Args {
    /// The service
    pub service: String,
}

/// Runs it.
pub async fn run(context: &Context, args: Args) -> Outcome {
    let cluster = Cluster::open(&context.globals)?;
    let request = v1::ExplainRequest { service: args.service.clone() };
    let answer = cluster
        .ask(&format!("explain {:?}", args.service), |channel| {
            let request = request.clone();
            async move { OperationServiceClient::new(channel).explain(request).await }
        })
        .await?;
    context.out.value(|| as_json(&answer), || as_text(&args.service, &answer));
    Ok(())
}

fn as_json(answer: &v1::ExplainResponse) -> Value {
    let report = answer
        .report
        .iter()
        .map(|line| json!({ "at_ms": line.at_ms, "acted": line.acted, "text": line.text }));
    json!({
        "stamp": json::stamp(&answer.stamp),
        "life": answer.life,
        "role": answer.role.as_ref().map(role::role),
        "operation": answer.operation.as_ref().map(role::operation),
        "said": answer.said.as_ref().map(role::said),
        "instances": answer.instances.iter().map(role::instance).collect::<Vec<_>>(),
        "report": report.collect::<Vec<_>>(),
    })
}

fn as_text(service: &str, answer: &v1::ExplainResponse) -> String {
    let mut parts = Vec::new();
    match &answer.role {
        None => parts.push(format!("{service}: no agent of it was ever started\n")),
        Some(found) => {
            parts.push(role::roles(std::slice::from_ref(found)).to_string());
            if let Some(fence) = &found.fence {
                parts.push(role::receipts(fence).to_string());
            }
        }
    }
    parts.push(role::instances(&answer.instances).to_string());
    if let Some(said) = &answer.said {
        parts.push(role::said_text(said));
    }
    if let Some(row) = answer.operation.as_ref().filter(|row| !row.over) {
        parts.push(role::operation_text(row));
    }
    if answer.report.is_empty() {
        parts.push("the leader has nothing to say about it\n".to_owned());
    } else {
        let mut report = Table::new(["since", "did", "the leader says"]);
        for line in &answer.report {
            let did = if line.acted { "acted" } else { "" };
            report.row([text::instant(line.at_ms), did.to_owned(), line.text.clone()]);
        }
        parts.push(report.to_string());
    }
    parts.join("\n")
}
