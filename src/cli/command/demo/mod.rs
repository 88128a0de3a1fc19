//! `regent demo`: shows with real processes what Regent does, and fails when anything was not as
//! claimed. Ends by itself and leaves nothing behind.

mod candidate;
mod elections;
mod failover;
mod report;
mod timeline;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use regent_lab::Lab;

use super::lab::from_lab;
use super::{Context, Stop};
use crate::error::{CliError, Outcome};
use timeline::Timeline;

/// Options of `demo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Makes a lab of three nodes and three PostgreSQL instances, lets a client write into it (through
HAProxy where that is installed), kills the primary's host, and shows what happens until the old
primary is back as a standby.
Everything runs on this machine, in a temporary directory, and is gone afterwards.
Exit code 0 means that everything was as claimed: no acknowledged row was lost.
")]
pub struct Args {
    /// Where to work; default: a new temporary directory
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Without a database: clients hold a lease, its holder and the leader are killed
    #[arg(long)]
    pub elections: bool,
}

/// Runs it, and cleans up whatever happens.
pub async fn run(context: &Context, args: Args) -> Outcome {
    let name = format!("regent-demo-{}", std::process::id());
    let dir = args.dir.unwrap_or_else(|| std::env::temp_dir().join(name));
    if Lab::exists(&dir) {
        // Not ours: it must not be cleaned up in the end.
        return Err(from_lab("cannot show anything", regent_lab::LabError::Exists { dir }));
    }
    let mut stop = Stop::listen()?;
    let timeline = Arc::new(Timeline::new(context.out));
    let told = tokio::select! {
        told = show(&dir, &timeline, args.elections) => told,
        () = stop.told() => Err(CliError::refused("the demo was told to stop")),
    };
    let cleaned = clean_up(&dir, &timeline).await;
    timeline.finish();
    told.and(cleaned)?;
    timeline.verdict()
}

async fn show(dir: &Path, timeline: &Arc<Timeline>, elections: bool) -> Outcome {
    if elections {
        elections::show(dir, timeline).await
    } else {
        failover::show(dir, timeline).await
    }
}

async fn clean_up(dir: &Path, timeline: &Timeline) -> Outcome {
    if !Lab::exists(dir) {
        return Ok(());
    }
    let ended = regent_lab::down(dir).await.map_err(|error| from_lab("cannot clean up", error))?;
    timeline.say(format!("{ended} processes ended, {} removed", dir.display()));
    Ok(())
}
