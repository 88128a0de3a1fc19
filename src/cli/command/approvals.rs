//! `regent approvals list`, `approve` and `deny`: questions to people, and their answers.

use regent_rpc::pb::v1;
use regent_rpc::pb::v1::operation_service_client::OperationServiceClient;
use serde_json::json;

use super::Context;
use super::election::Read;
use crate::connect::Cluster;
use crate::error::Outcome;
use crate::render::table::Table;
use crate::render::{json, role};

/// The verbs of `approvals`.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// List what people are asked
    List {
        /// Of this service; without it: of all
        #[arg(default_value = "", hide_default_value = true)]
        service: String,
        /// Those that were answered, too
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        read: Read,
    },
}

/// Options of `approve` and `deny`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  regent approvals list
  regent approve orders 1043 --reason acceptable
  regent deny orders 1043 --reason wait
")]
pub struct Answer {
    /// The service
    pub service: String,
    /// The approval's number, as `regent approvals list` shows it
    pub approval: u64,
    /// Why; goes into the audit chain
    #[arg(long)]
    pub reason: String,
}

/// Runs a verb of `approvals`.
pub async fn run(context: &Context, verb: Verb) -> Outcome {
    let Verb::List { service, all, read } = verb;
    let cluster = Cluster::open(&context.globals)?;
    let request = v1::ListApprovalsRequest { service, read: read.to_wire(), all };
    let answer = cluster
        .ask("list the approvals", |channel| {
            let request = request.clone();
            async move { OperationServiceClient::new(channel).list_approvals(request).await }
        })
        .await?;
    context.out.table(
        || {
            json!({
                "stamp": json::stamp(&answer.stamp),
                "operations": answer.operations.iter().map(role::operation).collect::<Vec<_>>(),
                "more": answer.more,
            })
        },
        || table(&answer.operations),
    );
    if answer.more {
        context.out.note("there are more; name a service");
    }
    Ok(())
}

fn table(rows: &[v1::Operation]) -> Table {
    let mut table =
        Table::new(["service", "approval", "operation", "candidate", "loss", "question", "answer"]);
    for row in rows {
        let Some(approval) = &row.approval else { continue };
        let answer = approval.answer.as_ref().map(|answer| {
            let said = if answer.granted { "granted" } else { "denied" };
            format!("{said} by {}", answer.by)
        });
        table.row([
            row.service.clone(),
            approval.id.to_string(),
            row.id.to_string(),
            approval.candidate.clone(),
            role::loss_text(approval.loss.as_ref()),
            approval.question.clone(),
            answer.unwrap_or_default(),
        ]);
    }
    table
}

/// Runs `approve` (`granted`) or `deny`.
pub async fn answer(context: &Context, args: Answer, granted: bool) -> Outcome {
    let cluster = Cluster::open(&context.globals)?;
    let request = v1::AnswerApprovalRequest {
        request: cluster.request(),
        service: args.service,
        approval: args.approval,
        granted,
        reason: args.reason,
    };
    let approval = args.approval;
    let answered = cluster
        .ask(&format!("answer approval {approval}"), |channel| {
            let request = request.clone();
            async move { OperationServiceClient::new(channel).answer_approval(request).await }
        })
        .await?;
    let said = if granted { "granted" } else { "denied" };
    context.out.value(
        || json!({ "approval": approval, "granted": granted, "stamp": json::stamp(&answered.stamp) }),
        || format!("approval {approval} is {said}"),
    );
    Ok(())
}
