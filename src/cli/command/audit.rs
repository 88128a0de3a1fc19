//! `regent audit ...`: who did what, and whether anybody changed the record since.
//!
//! `verify` trusts no node: it recomputes every hash here.

use std::io::{BufRead, BufWriter, Write};
use std::path::{Path, PathBuf};

use regent_core::id::Revision;
use regent_core::state::audit::{Anchor, AuditHash, AuditRecord, verify as verify_chain};
use regent_core::time::WallMs;
use regent_rpc::convert::audit;
use regent_rpc::pb::v1;
use regent_rpc::pb::v1::audit_service_client::AuditServiceClient;
use serde_json::{Value, json};

use super::Context;
use crate::connect::{Cluster, from_status};
use crate::error::{CliError, Context as _, Outcome};
use crate::render::table::Table;
use crate::render::{json, progress, text};

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Show records
    #[command(after_help = "\
Examples:
  regent audit list --last 20
  regent audit list --from 1000 --limit 50 -o json
")]
    List(Range),
    /// Recompute the hash chain of everything the cluster still has, or of an export
    Verify {
        /// An export to verify instead, without asking anybody
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Write records as JSON lines, oldest first
    #[command(after_help = "\
Example: what is new since yesterday
  regent audit export --from 41822 --file audit.jsonl
")]
    Export {
        /// First number wanted; 0: the oldest kept
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// Where to; default: stdout
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

/// Which records.
#[derive(Clone, Debug, clap::Args)]
pub struct Range {
    /// The newest so many
    #[arg(long, default_value_t = 50, conflicts_with = "from")]
    pub last: u64,
    /// First number wanted
    #[arg(long)]
    pub from: Option<u64>,
    /// At most so many, with --from
    #[arg(long, default_value_t = 0, requires = "from", hide_default_value = true)]
    pub limit: u64,
}

/// Runs one of them.
pub async fn run(context: &Context, verb: Verb) -> Outcome {
    if let Verb::Verify { file: Some(path) } = &verb {
        return verify_file(context, path);
    }
    let cluster = Cluster::open(&context.globals)?;
    match verb {
        Verb::List(range) => list(context, &cluster, range).await,
        Verb::Verify { .. } => verify(context, &cluster).await,
        Verb::Export { from, file } => export(context, &cluster, from, file).await,
    }
}

async fn list(context: &Context, cluster: &Cluster, range: Range) -> Outcome {
    let request = match range.from {
        Some(from) => v1::ListAuditRequest { from, limit: range.limit, last: 0 },
        None => v1::ListAuditRequest { from: 0, limit: 0, last: range.last },
    };
    let mut records = Vec::new();
    stream(cluster, request, |record| {
        records.push(record);
        Ok(())
    })
    .await?;
    context.out.table(
        || json!(records.iter().map(json::audit).collect::<Vec<_>>()),
        || {
            let mut table = Table::new(["number", "at", "who", "what", "on", "outcome", "why"]);
            for record in &records {
                table.row([
                    record.number.to_string(),
                    when(record.at_ms),
                    record.who.clone(),
                    record.what.clone(),
                    record.resource.clone(),
                    record.outcome.clone(),
                    record.why.clone(),
                ]);
            }
            table
        },
    );
    Ok(())
}

/// Changes of the membership are Raft's own entries and carry no wall clock.
fn when(at_ms: u64) -> String {
    if at_ms == 0 { String::new() } else { text::instant(at_ms) }
}

async fn export(context: &Context, cluster: &Cluster, from: u64, file: Option<PathBuf>) -> Outcome {
    let request = v1::ListAuditRequest { from, limit: 0, last: 0 };
    let what = || match &file {
        Some(path) => format!("cannot write {}", path.display()),
        None => "cannot write to stdout".to_owned(),
    };
    let mut sink: Box<dyn Write + Send> = match &file {
        Some(path) => Box::new(BufWriter::new(std::fs::File::create(path).or_usage(what)?)),
        None => Box::new(BufWriter::new(std::io::stdout())),
    };
    // On a terminal of its own the bar would stand between the records.
    let bar = match &file {
        Some(_) => {
            let head = head(cluster).await?.number;
            progress::count(context.out, "records", (head + 1).saturating_sub(from.max(1)))
        }
        None => progress::hidden(),
    };
    let mut count = 0u64;
    let written = stream(cluster, request, |record| {
        count += 1;
        bar.inc(1);
        writeln!(sink, "{}", json::audit(&record)).or_internal(what)
    })
    .await;
    bar.finish_and_clear();
    written?;
    sink.flush().or_internal(what)?;
    drop(sink);
    if let Some(path) = &file {
        let result = || json!({ "records": count, "file": path });
        context.out.value(result, || format!("{count} records in {}", path.display()));
    }
    Ok(())
}

/// Hands every record to `each`, in order.
async fn stream(
    cluster: &Cluster,
    request: v1::ListAuditRequest,
    mut each: impl FnMut(v1::AuditRecord) -> Outcome,
) -> Outcome {
    let what = "read the audit chain";
    let mut records = cluster
        .ask(
            what,
            |channel| async move { AuditServiceClient::new(channel).list_audit(request).await },
        )
        .await?;
    loop {
        match records.message().await {
            Ok(Some(record)) => each(record)?,
            Ok(None) => return Ok(()),
            Err(status) => return Err(from_status(what, "the node", &status)),
        }
    }
}

async fn head(cluster: &Cluster) -> Outcome<v1::AuditHeadResponse> {
    cluster
        .ask("read the head of the audit chain", |channel| async move {
            AuditServiceClient::new(channel).audit_head(v1::AuditHeadRequest {}).await
        })
        .await
}

async fn verify(context: &Context, cluster: &Cluster) -> Outcome {
    // The head first: records may be added meanwhile, but none may be missing.
    let head = head(cluster).await?;
    let bar = progress::count(context.out, "records", head.number);
    let mut chain = Chain { watched: head.number, ..Chain::default() };
    let followed = stream(cluster, v1::ListAuditRequest::default(), |record| {
        bar.set_position(record.number);
        chain.add(record_in(record)?)
    })
    .await;
    bar.finish_and_clear();
    followed?;
    chain.must_reach(head.number, &head.hash)?;
    chain.report(context);
    Ok(())
}

/// Verifies an export, without any cluster.
fn verify_file(context: &Context, path: &Path) -> Outcome {
    let what = || format!("cannot read {}", path.display());
    let file = std::fs::File::open(path).or_usage(what)?;
    let mut chain = Chain::default();
    for (at, line) in std::io::BufReader::new(file).lines().enumerate() {
        let line = line.or_usage(what)?;
        let record = exported(&line).ok_or_else(|| {
            CliError::usage(format!("line {} of {} is no audit record", at + 1, path.display()))
                .hint("verify a file that `regent audit export` made")
        })?;
        chain.add(record)?;
    }
    chain.report(context);
    Ok(())
}

fn record_in(record: v1::AuditRecord) -> Outcome<AuditRecord> {
    audit::record_in(record).or_internal(|| "the node sent a malformed audit record".to_owned())
}

/// Reads a line that [`json::audit`] wrote.
fn exported(line: &str) -> Option<AuditRecord> {
    let value: Value = serde_json::from_str(line).ok()?;
    let number = |name: &str| value.get(name)?.as_u64();
    let text = |name: &str| value.get(name)?.as_str().map(str::to_owned);
    let hash = |name: &str| text::unhex(value.get(name)?.as_str()?)?.try_into().ok();
    Some(AuditRecord {
        number: number("number")?,
        revision: Revision(number("revision")?),
        incarnation: number("incarnation")?,
        at: WallMs(number("at_ms")?),
        who: text("who")?,
        what: text("what")?,
        resource: text("resource")?,
        why: text("why")?,
        outcome: text("outcome")?,
        before: hash("before")?,
        hash: hash("hash")?,
    })
}

/// The chain as far as it was followed; it may begin anywhere, for old records leave the nodes.
#[derive(Default)]
struct Chain {
    first: Option<u64>,
    end: Anchor,
    /// The record whose hash is compared with the head that was asked for before.
    watched: u64,
    watched_hash: Option<AuditHash>,
}

impl Chain {
    fn add(&mut self, record: AuditRecord) -> Outcome {
        if self.first.is_none() {
            self.first = Some(record.number);
            // Record 1 follows nothing: its link must be zeros, which is what the default says.
            if record.number > 1 {
                self.end = Anchor { number: record.number - 1, hash: record.before };
            }
        }
        self.end = verify_chain([&record], self.end).map_err(|fault| {
            CliError::refused("the audit chain does not verify")
                .caused_by(fault)
                .hint("compare with the other nodes (--endpoints) and with an earlier export")
        })?;
        if record.number == self.watched {
            self.watched_hash = Some(record.hash);
        }
        Ok(())
    }

    fn must_reach(&self, number: u64, hash: &[u8]) -> Outcome {
        if self.end.number < number {
            return Err(CliError::refused("the audit chain is incomplete").because(format!(
                "record {} is the newest that came, but the head is {number}",
                self.end.number
            )));
        }
        match self.watched_hash {
            Some(seen) if seen[..] != *hash => {
                Err(CliError::refused("the audit chain does not verify").because(format!(
                    "record {number} has hash {}, but the head names {}",
                    text::hex(&seen),
                    text::hex(hash)
                )))
            }
            _ => Ok(()),
        }
    }

    fn report(&self, context: &Context) {
        let first = self.first.unwrap_or(0);
        let last = self.end.number;
        let count = self.first.map_or(0, |first| last - first + 1);
        let hash = text::hex(&self.end.hash);
        context.out.value(
            || {
                json!({ "verified": true, "records": count, "first": first, "last": last,
                       "head": hash })
            },
            || format!("the chain verifies: {count} records, {first} to {last}\nhead {hash}"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(count: u64) -> Vec<AuditRecord> {
        let mut end = Anchor::default();
        (1..=count)
            .map(|number| {
                let mut record = AuditRecord {
                    number,
                    revision: Revision(number * 3),
                    incarnation: 1,
                    at: WallMs(1_700_000_000_000 + number),
                    who: "admin/root".into(),
                    what: "services.write".into(),
                    resource: "orders".into(),
                    why: "a \"test\"\n".into(),
                    outcome: "done".into(),
                    before: end.hash,
                    hash: [0; 32],
                };
                record.hash = record.computed_hash();
                end = Anchor { number, hash: record.hash };
                record
            })
            .collect()
    }

    #[test]
    fn an_exported_record_comes_back_as_it_was_and_still_verifies() {
        let mut chain = Chain::default();
        for record in records(3) {
            let line = json::audit(&audit::record_out(&record)).to_string();
            let back = exported(&line).expect("our own line");
            assert_eq!(back, record);
            chain.add(back).expect("it follows");
        }
        assert_eq!(chain.end.number, 3);
    }

    #[test]
    fn a_changed_a_missing_and_a_cut_off_record_are_all_noticed() {
        let all = records(4);
        let mut changed = all.clone();
        changed[2].outcome = "refused".into();
        let mut missing = all.clone();
        missing.remove(1);
        for wrong in [changed, missing] {
            let mut chain = Chain::default();
            let found = wrong.into_iter().try_for_each(|record| chain.add(record));
            assert_eq!(found.expect_err("noticed").kind.exit_code(), 1);
        }
        let mut chain = Chain { watched: 4, ..Chain::default() };
        all[..3].iter().try_for_each(|record| chain.add(record.clone())).expect("so far good");
        assert!(chain.must_reach(4, &all[3].hash).is_err());
    }

    #[test]
    fn a_chain_whose_beginning_was_forgotten_verifies_but_a_false_first_record_does_not() {
        let mut chain = Chain::default();
        records(5)[2..].iter().try_for_each(|record| chain.add(record.clone())).expect("good");
        let mut first = records(1).remove(0);
        first.before = [7; 32];
        first.hash = first.computed_hash();
        assert!(Chain::default().add(first).is_err(), "record 1 follows nothing");
    }
}
