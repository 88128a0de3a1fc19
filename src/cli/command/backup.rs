//! `regent backup`: the replicated state in a file, complete or not there at all.

use std::io::Write;
use std::path::{Path, PathBuf};

use regent_rpc::pb::v1;
use regent_rpc::pb::v1::cluster_service_client::ClusterServiceClient;
use serde_json::json;

use super::Context;
use crate::connect::{Cluster, from_status};
use crate::error::{CliError, Context as _, Outcome};
use crate::render::progress;
use crate::render::{Destination, json};

/// Options of `backup`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  regent backup -o regent.backup
  regent backup --file regent.backup -o json

The file holds everything, the audit chain too: keep it as you keep your secrets.
`regent restore --config node.toml --from FILE` checks it without changing anything.
")]
pub struct Args {
    /// Where to; an existing file is not overwritten
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The same as --file, or how results are printed: table, json
    #[arg(short, long, default_value = "table", hide_default_value = true,
          value_name = "FILE or FORMAT", value_parser = Destination::parse)]
    pub output: Destination,
    /// Overwrite an existing file
    #[arg(long)]
    pub force: bool,
}

impl Args {
    fn path(&self) -> Outcome<PathBuf> {
        match (&self.file, &self.output) {
            (Some(file), Destination::Format(_)) => Ok(file.clone()),
            (None, Destination::File(file)) => Ok(file.clone()),
            (Some(_), Destination::File(file)) => {
                Err(CliError::usage("two files are named for one backup")
                    .because(format!(
                        "{:?} is no format: -o takes table or json, or the file",
                        file
                    ))
                    .hint("give either --file or -o"))
            }
            (None, Destination::Format(_)) => {
                Err(CliError::usage("no file is named").hint("name it: regent backup -o FILE"))
            }
        }
    }
}

/// Takes it.
pub async fn run(context: &Context, args: Args) -> Outcome {
    let path = &args.path()?;
    if path.exists() && !args.force {
        return Err(CliError::usage(format!("{} exists already", path.display()))
            .hint("give another name, or --force"));
    }
    let cluster = Cluster::open(&context.globals)?;
    let what = "take a backup";
    let mut chunks = cluster
        .ask(what, |channel| async move {
            ClusterServiceClient::new(channel).backup(v1::BackupRequest {}).await
        })
        .await?;
    // Beside its final place, so that a half-written file never has the name of a backup.
    let unfinished = unfinished(path);
    let failed = || format!("cannot write {}", unfinished.display());
    let mut file = std::fs::File::create(&unfinished).or_usage(failed)?;
    let mut header: Option<v1::BackupHeader> = None;
    let mut bar = progress::hidden();
    let mut written = 0u64;
    let result = loop {
        match chunks.message().await {
            Ok(Some(chunk)) => {
                if let Some(head) = chunk.header {
                    bar = progress::bytes(context.out, "backup", head.size);
                    header = Some(head);
                }
                if let Err(error) = file.write_all(&chunk.data) {
                    break Err(CliError::internal(failed()).caused_by(error));
                }
                written += chunk.data.len() as u64;
                bar.set_position(written);
            }
            Ok(None) => break Ok(()),
            Err(status) => break Err(from_status(what, "the node", &status)),
        }
    };
    bar.finish_and_clear();
    let finished = result.and_then(|()| {
        let head = header.ok_or_else(|| CliError::internal("the node sent no backup"))?;
        if head.size != written {
            return Err(CliError::internal("the backup is incomplete")
                .because(format!("{written} of {} bytes came", head.size)));
        }
        file.sync_all().or_internal(failed)?;
        std::fs::rename(&unfinished, path)
            .or_internal(|| format!("cannot name {}", path.display()))?;
        sync_directory(path)?;
        Ok(head)
    });
    let header = match finished {
        Ok(header) => header,
        Err(error) => {
            // Best effort: the error that matters is the one being returned.
            let _ = std::fs::remove_file(&unfinished);
            return Err(error);
        }
    };
    let revision = header.stamp.map(|stamp| stamp.revision).unwrap_or_default();
    context.out.value(
        || {
            json!({ "file": path, "bytes": written, "cluster": header.cluster,
                   "stamp": json::stamp(&header.stamp) })
        },
        || {
            format!(
                "{} holds cluster {} up to revision {revision} ({written} bytes)",
                path.display(),
                header.cluster
            )
        },
    );
    Ok(())
}

fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".unfinished");
    PathBuf::from(name)
}

/// A new name is durable only once its directory is.
fn sync_directory(path: &Path) -> Outcome {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::File::open(parent)
        .and_then(|directory| directory.sync_all())
        .or_internal(|| format!("cannot make {} durable", path.display()))
}
