//! `regent election ...`: one leader among clients.

mod campaign;
mod observe;
mod prefer;

use regent_rpc::convert::page::gets_on;
use regent_rpc::limits::MAX_ANSWER_BYTES;
use regent_rpc::pb::v1;
use regent_rpc::pb::v1::election_service_client::ElectionServiceClient;
use serde_json::json;

use super::Context;
use crate::connect::Cluster;
use crate::error::{CliError, Outcome};
use crate::render::table::Table;
use crate::render::{json, text};

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Campaign for the lead, hold it, and resign when told to stop
    Campaign(campaign::Args),
    /// See every change of an election, or of all
    Observe(observe::Args),
    /// Give up the lead, or the place in the queue, of a session
    #[command(after_help = "\
Session, nonce and epoch are what `regent election campaign -o json` printed. With --epoch a lead
that the session has won since is left alone. A holder that runs in another terminal resigns by
itself on SIGTERM or Ctrl-C.
")]
    Resign {
        /// Name of the election
        election: String,
        /// Its session
        #[arg(long)]
        session: u64,
        /// The session's nonce, in hexadecimal
        #[arg(long, value_parser = parse_nonce)]
        nonce: u64,
        /// Give up the lead under this epoch only, as INCARNATION.REVISION
        #[arg(long, value_parser = parse_epoch)]
        epoch: Option<v1::Epoch>,
    },
    /// Show one election: holder, epoch, queue
    Show {
        /// Its name
        election: String,
        #[command(flatten)]
        read: Read,
    },
    /// List elections
    List {
        /// Only those whose name begins so
        #[arg(default_value = "", hide_default_value = true)]
        prefix: String,
        #[command(flatten)]
        read: Read,
    },
    /// Say where the leader of an election should rather be
    Prefer(prefer::Prefer),
    /// Remove an election that nobody holds and nobody waits for
    Delete(prefer::Delete),
    /// Publish a value under the epoch of the holder
    #[command(after_help = "\
Refused when the epoch is not in force any more: that is what epochs are for.

Example:
  regent election proclaim billing --session 1042 --epoch 1.1043 --value db2:5432
")]
    Proclaim {
        /// Name of the election
        election: String,
        /// The session that holds it
        #[arg(long)]
        session: u64,
        /// Its epoch, as INCARNATION.REVISION
        #[arg(long, value_parser = parse_epoch)]
        epoch: v1::Epoch,
        /// What to publish
        #[arg(long)]
        value: String,
    },
}

/// How fresh an answer must be.
#[derive(Clone, Debug, clap::Args)]
pub struct Read {
    /// Accept an answer that is at most this old; default: linearizable
    #[arg(long, value_parser = crate::duration::parse, value_name = "DURATION")]
    pub max_age: Option<std::time::Duration>,
}

impl Read {
    /// As the request says it.
    pub fn to_wire(&self) -> Option<v1::Read> {
        self.max_age.map(|age| v1::Read { max_age_ms: age.as_millis() as u64 })
    }
}

fn parse_nonce(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16)
        .map_err(|_| format!("{text:?} is no nonce; it is up to 16 hexadecimal digits"))
}

fn parse_epoch(text: &str) -> Result<v1::Epoch, String> {
    let parsed = text.split_once('.').and_then(|(incarnation, revision)| {
        Some(v1::Epoch { incarnation: incarnation.parse().ok()?, revision: revision.parse().ok()? })
    });
    parsed.ok_or_else(|| format!("{text:?} is no epoch; write <incarnation>.<revision>, as 1.1043"))
}

/// Runs one of them.
pub async fn run(context: &Context, verb: Verb) -> Outcome {
    match verb {
        Verb::Campaign(args) => campaign::run(context, args).await,
        Verb::Observe(args) => observe::run(context, args).await,
        Verb::Prefer(args) => prefer::prefer(context, args).await,
        Verb::Delete(args) => prefer::delete(context, args).await,
        Verb::Resign { election, session, nonce, epoch } => {
            resign(context, election, session, nonce, epoch).await
        }
        Verb::Show { election, read } => show(context, election, read).await,
        Verb::List { prefix, read } => list(context, prefix, read).await,
        Verb::Proclaim { election, session, epoch, value } => {
            proclaim(context, election, session, epoch, value).await
        }
    }
}

async fn resign(
    context: &Context,
    election: String,
    session: u64,
    nonce: u64,
    epoch: Option<v1::Epoch>,
) -> Outcome {
    let cluster = Cluster::open(&context.globals)?;
    let request = v1::ResignRequest {
        request: cluster.request(),
        election: election.clone(),
        session,
        nonce,
        epoch,
    };
    let answer = cluster
        .ask(&format!("resign from {election:?}"), |channel| {
            let request = request.clone();
            async move { ElectionServiceClient::new(channel).resign(request).await }
        })
        .await?;
    context.out.value(
        || json!({ "election": election, "session": session, "stamp": json::stamp(&answer.stamp) }),
        || format!("session {session} has resigned from {election}"),
    );
    Ok(())
}

async fn proclaim(
    context: &Context,
    election: String,
    session: u64,
    epoch: v1::Epoch,
    value: String,
) -> Outcome {
    let cluster = Cluster::open(&context.globals)?;
    let request = v1::ProclaimRequest {
        request: cluster.request(),
        election: election.clone(),
        session,
        epoch: Some(epoch),
        value: value.into_bytes().into(),
    };
    let answer = cluster
        .ask(&format!("proclaim a value in {election:?}"), |channel| {
            let request = request.clone();
            async move { ElectionServiceClient::new(channel).proclaim(request).await }
        })
        .await?;
    let revision = answer.stamp.map(|stamp| stamp.revision).unwrap_or_default();
    context.out.value(
        || json!({ "election": election, "stamp": json::stamp(&answer.stamp) }),
        || format!("proclaimed in {election} at revision {revision}"),
    );
    Ok(())
}

async fn show(context: &Context, election: String, read: Read) -> Outcome {
    let cluster = Cluster::open(&context.globals)?;
    let request = v1::LeaderRequest { election: election.clone(), read: read.to_wire() };
    let answer = cluster
        .ask(&format!("show election {election:?}"), |channel| {
            let request = request.clone();
            async move { ElectionServiceClient::new(channel).leader(request).await }
        })
        .await?;
    let Some(row) = answer.election else {
        return Err(CliError::refused(format!("cannot show election {election:?}"))
            .because("there is no such election")
            .hint("`regent election list` shows those there are"));
    };
    context.out.value(
        || json!({ "stamp": json::stamp(&answer.stamp), "election": json::election(&row) }),
        || as_text(&row),
    );
    Ok(())
}

fn as_text(row: &v1::Election) -> String {
    let mut head = Table::pairs();
    head.pair("election", &row.name);
    head.pair("epoch", row.epoch.as_ref().map(text::epoch).unwrap_or_default());
    match &row.holder {
        Some(holder) => {
            head.pair("holder", format!("{} (session {})", holder.owner, holder.session));
            head.pair("label", &holder.label);
            head.pair("where", text::locality(&holder.locality));
            head.pair(
                "acts",
                if holder.confirmed { "yes" } else { "not yet: no renewal named its epoch" },
            );
            head.pair("value", text::value(&holder.value));
        }
        None => head.pair("holder", "none, as far as this node may say"),
    }
    head.pair("preferred", text::locality(&row.preferred));
    if row.queue.is_empty() {
        head.pair("waiting", "nobody");
        return head.to_string();
    }
    let mut queue = Table::new(["waits", "session", "owner", "priority", "where", "since"]);
    for (at, candidate) in row.queue.iter().enumerate() {
        queue.row([
            (at + 1).to_string(),
            candidate.session.to_string(),
            candidate.owner.clone(),
            candidate.priority.to_string(),
            text::locality(&candidate.locality),
            candidate.since.to_string(),
        ]);
    }
    format!("{head}\n{queue}")
}

async fn list_page(
    cluster: &Cluster,
    request: &v1::ListElectionsRequest,
) -> Outcome<v1::ListElectionsResponse> {
    let ask = |channel| {
        let request = request.clone();
        async move {
            let after = request.after.clone();
            let page = ElectionServiceClient::new(channel)
                .max_decoding_message_size(MAX_ANSWER_BYTES)
                .list_elections(request)
                .await?;
            gets_on(&after, page)
        }
    };
    cluster.ask("list the elections", ask).await
}

async fn list(context: &Context, prefix: String, read: Read) -> Outcome {
    let cluster = Cluster::open(&context.globals)?;
    let mut request =
        v1::ListElectionsRequest { prefix, read: read.to_wire(), after: String::new() };
    let mut answer = list_page(&cluster, &request).await?;
    while let (true, Some(last)) = (answer.more, answer.elections.last()) {
        request.after = last.name.clone();
        let page = list_page(&cluster, &request).await?;
        answer.elections.extend(page.elections);
        answer.more = page.more;
    }
    context.out.table(
        || {
            json!({
                "stamp": json::stamp(&answer.stamp),
                "elections": answer.elections.iter().map(json::election).collect::<Vec<_>>(),
            })
        },
        || {
            let mut table = Table::new(["election", "epoch", "holder", "value", "waiting"]);
            for row in &answer.elections {
                let holder = row.holder.clone().unwrap_or_default();
                table.row([
                    row.name.clone(),
                    row.epoch.as_ref().map(text::epoch).unwrap_or_default(),
                    holder.owner,
                    text::value(&holder.value),
                    row.queue.len().to_string(),
                ]);
            }
            table
        },
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_read_as_it_is_printed() {
        let epoch = v1::Epoch { incarnation: 2, revision: 1043 };
        assert_eq!(parse_epoch(&text::epoch(&epoch)), Ok(epoch));
        for wrong in ["", "1", "1.", ".1", "1.x", "1.2.3", "-1.2"] {
            assert!(parse_epoch(wrong).is_err(), "{wrong}");
        }
    }
}
