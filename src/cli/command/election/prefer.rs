//! `regent election prefer|delete`: the row of an election, apart from who leads.

use regent_rpc::pb::v1;
use regent_rpc::pb::v1::election_service_client::ElectionServiceClient;
use serde_json::json;

use crate::command::Context;
use crate::connect::Cluster;
use crate::error::Outcome;
use crate::render::{json, text};

/// Options of `election prefer`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Among candidates of the highest priority, one at the preferred place goes first. A holder is never
displaced: this decides who is next. Without --zone and --region no place is preferred.

Example:
  regent election prefer billing --region eu --zone eu-1
")]
pub struct Prefer {
    /// Name of the election; it need not exist yet
    pub election: String,
    /// Preferred zone
    #[arg(long, default_value = "", hide_default_value = true)]
    pub zone: String,
    /// Preferred region
    #[arg(long, default_value = "", hide_default_value = true)]
    pub region: String,
    /// Only if the row was last changed at this revision
    #[arg(long, value_name = "REVISION")]
    pub expect_revision: Option<u64>,
}

/// Options of `election delete`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Epochs of a new election of the same name are higher than all before: a resource that has seen the
old ones needs no reset.
")]
pub struct Delete {
    /// Its name
    pub election: String,
    /// Only if the row was last changed at this revision
    #[arg(long, value_name = "REVISION")]
    pub expect_revision: Option<u64>,
}

fn expect(revision: Option<u64>) -> Option<v1::Expect> {
    let condition = v1::expect::Condition::Revision(revision?);
    Some(v1::Expect { condition: Some(condition) })
}

/// Sets the preference.
pub async fn prefer(context: &Context, args: Prefer) -> Outcome {
    let cluster = Cluster::open(&context.globals)?;
    let Prefer { election, zone, region, expect_revision } = args;
    let preferred = Some(v1::Locality { region, zone, host: String::new() });
    let request = v1::PutElectionRequest {
        request: cluster.request(),
        election: election.clone(),
        preferred: preferred.clone(),
        expect: expect(expect_revision),
    };
    let answer = cluster
        .ask(&format!("set the preference of election {election:?}"), |channel| {
            let request = request.clone();
            async move { ElectionServiceClient::new(channel).put_election(request).await }
        })
        .await?;
    let place = text::locality(&preferred);
    context.out.value(
        || json!({ "election": election, "preferred": place, "stamp": json::stamp(&answer.stamp) }),
        || match place.is_empty() {
            true => format!("{election} prefers no place"),
            false => format!("{election} prefers {place}"),
        },
    );
    Ok(())
}

/// Removes the row.
pub async fn delete(context: &Context, args: Delete) -> Outcome {
    let cluster = Cluster::open(&context.globals)?;
    let Delete { election, expect_revision } = args;
    let request = v1::DeleteElectionRequest {
        request: cluster.request(),
        election: election.clone(),
        expect: expect(expect_revision),
    };
    let answer = cluster
        .ask(&format!("delete election {election:?}"), |channel| {
            let request = request.clone();
            async move { ElectionServiceClient::new(channel).delete_election(request).await }
        })
        .await?;
    context.out.value(
        || json!({ "election": election, "stamp": json::stamp(&answer.stamp) }),
        || format!("{election} is deleted"),
    );
    Ok(())
}
