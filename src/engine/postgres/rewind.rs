//! Making a diverged directory follow another timeline, without losing what only it had.
//!
//! First a copy of its own WAL from the point where the histories part, and a list of the commits in
//! it; only then `pg_rewind`. From before its first write until the directory is closed again a mark
//! outside of it says that it is unusable: an interrupted rewind leaves files of two instances.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use regent_core::role::Lsn;
use tokio::time::Instant;

use super::history::{self, Line};
use super::link::{Link, get};
use super::options::Options;
use super::programs::Programs;
use super::secure::TlsFiles;
use super::{Postgres, REWIND, control, durable, managed, marker, start, wal};
use crate::error::{DiskError, RebuildError, SqlError};
use crate::facts::{Cluster, GenerationId, HistoryFile, LostTransactions, Relation, SourceLine};
use crate::orders::Source;

/// A rewind reads and writes what changed, at worst the whole cluster; beyond this it hangs.
const REWIND_LIMIT: Duration = Duration::from_secs(3600);
/// A checkpoint at the source writes what is dirty there.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(120);

/// Where this directory's WAL parts from a source's line.
pub(super) struct Parting {
    pub cluster: Cluster,
    pub line: Line,
    pub end: Lsn,
    /// None when they share no timeline.
    pub from: Option<Lsn>,
}

/// Compares the WAL on disk with the line of a source.
pub(super) async fn parting(
    options: &Options,
    programs: &Programs,
    timeline: u32,
    history: &str,
) -> Result<Parting, DiskError> {
    let dir = &options.data_dir;
    let cluster = control::read(dir, programs).await?;
    let (end, line) = wal::end(dir, programs, &cluster).await?;
    let from = line.parts_from(end, &Line::parse(timeline, history));
    Ok(Parting { cluster, line, end, from })
}

/// How the directory relates to what a source writes.
pub(super) async fn compare(
    options: &Options,
    programs: &Programs,
    source: &SourceLine,
) -> Result<Relation, DiskError> {
    let found = control::read(&options.data_dir, programs).await?.system_identifier;
    let wanted = source.system_identifier;
    if found != wanted {
        return Ok(Relation::OtherCluster { found, wanted });
    }
    let HistoryFile { timeline, text } = &source.history;
    let parting = parting(options, programs, *timeline, text).await?;
    if parting.from.is_none_or(|from| from < parting.end) {
        return Ok(Relation::Diverged);
    }
    // A stream begins with the segment that the end lies in. An archive may have what is gone.
    let needed = wal::segment_number(parting.end, parting.cluster.segment_bytes);
    if options.restore_command.is_none() && source.oldest_segment > needed {
        return Ok(Relation::WalGone { from: parting.end });
    }
    Ok(Relation::Follows)
}

/// Copies the WAL from `from` on into a directory of its own, up to the limit.
fn keep(
    options: &Options,
    programs: &Programs,
    parting: &Parting,
    from: Lsn,
) -> Result<(PathBuf, bool), DiskError> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let name = format!("{seconds}-{:08X}-{:016X}", parting.line.timeline, from.0);
    let into = options.state_dir.join("orphaned").join(name);
    durable::make_dir(durable::parent(&into), programs.owner)?;
    durable::make_dir(&into, programs.owner)?;
    let wal_dir = options.data_dir.join("pg_wal");
    let mut left = options.orphaned_max_bytes;
    for name in wal::segments(&parting.line, from, parting.end, parting.cluster.segment_bytes) {
        if left < parting.cluster.segment_bytes {
            return Ok((into, true));
        }
        left -= durable::copy(&wal_dir.join(&name), &into.join(&name), programs.owner)?;
    }
    history::copy_all(&options.data_dir, &into, programs.owner)?;
    durable::sync_dir(&into)?;
    Ok((into, false))
}

/// Has the source write a checkpoint: a rewind below version 16 reads the source's timeline from its
/// control file, which right after a promotion still has the old one.
async fn checkpoint_source(
    options: &Options,
    programs: &Programs,
    source: &Source,
    timeline: u32,
) -> Result<(), RebuildError> {
    let by = Instant::now() + CHECKPOINT_LIMIT;
    let link = Link::reach(options, source, Duration::from_secs(5), by).await?;
    if programs.version >= 15 {
        let checkpoint = link.execute("write a checkpoint at the source", "CHECKPOINT");
        tokio::time::timeout_at(by, checkpoint)
            .await
            .map_err(|_| SqlError::TimedOut("a checkpoint at the source"))??;
    }
    let sql = "SELECT timeline_id FROM pg_control_checkpoint()";
    loop {
        let row = link.row("read the source's timeline", sql, by).await?;
        if get::<i32>(&row, "timeline_id")?.unsigned_abs() >= timeline {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn run(pg: &Postgres, source: &Source) -> Result<(), RebuildError> {
    let (options, programs) = (&pg.options, &pg.programs);
    let server = format!(
        "host={} port={} user={REWIND} dbname=postgres application_name=regent connect_timeout=5{}",
        managed::conn_value(&source.host),
        source.port,
        options.tls.as_ref().map(TlsFiles::words).unwrap_or_default(),
    );
    let server = format!("--source-server={server}");
    let args = ["--target-pgdata".as_ref(), options.data_dir.as_os_str(), OsStr::new(&server)];
    let env = [("PGPASSFILE", options.passfile.as_os_str())];
    let turn = pg.turn().await;
    let ended = programs.run_alone(turn, "pg_rewind", &args, &env, REWIND_LIMIT).await?;
    if ended.ok { Ok(()) } else { Err(ended.failure("pg_rewind").into()) }
}

/// The whole of it.
pub(super) async fn rewind(
    pg: &Postgres,
    source: &Source,
    timeline: u32,
    history: &str,
) -> Result<(GenerationId, LostTransactions), RebuildError> {
    let (options, programs) = (&pg.options, &pg.programs);
    if let Some(what) = marker::interrupted(options)? {
        return Err(DiskError::Quarantined(what).into());
    }
    let parting = parting(options, programs, timeline, history).await?;
    let Some(from) = parting.from else {
        return Err(RebuildError::CannotRewind("the histories share no timeline".to_owned()));
    };
    if from < parting.end && parting.line.timeline == timeline {
        // It would compare the numbers, find nothing to do, and leave files of two instances.
        let why = format!("timeline {timeline} was begun twice, there and here");
        return Err(RebuildError::CannotRewind(why));
    }
    if !parting.cluster.can_rewind {
        let why = "neither hint bits are logged nor do pages have checksums";
        return Err(RebuildError::CannotRewind(why.to_owned()));
    }
    checkpoint_source(options, programs, source, timeline).await?;
    let segment_bytes = parting.cluster.segment_bytes;
    let mut lost = wal::commits(
        &options.data_dir,
        programs,
        &parting.line,
        (from, parting.end),
        segment_bytes,
    )
    .await?;
    if from < parting.end {
        let (kept_in, cut_short) = pg.change(move |o, p| keep(o, p, &parting, from)).await?;
        lost.kept_in = Some(kept_in);
        lost.cut_short |= cut_short;
    }
    pg.change(|o, p| {
        marker::begin(o, "rewind", p.owner)?;
        // A crashed directory is recovered by a server in single mode first, which refuses to be a
        // standby. The mark keeps the agent from starting it meanwhile, and on disk it is closed.
        durable::remove(&o.data_dir.join("standby.signal"))
    })
    .await?;
    run(pg, source).await?;
    let generation = pg
        .change(|o, p| {
            let generation = close_copy(o, p)?;
            marker::end(o)?;
            Ok(generation)
        })
        .await?;
    Ok((generation, lost))
}

/// After files of another instance were copied: closed, a standby, a new generation.
pub(super) fn close_copy(
    options: &Options,
    programs: &Programs,
) -> Result<GenerationId, DiskError> {
    durable::write(&options.data_dir.join("standby.signal"), "", programs.owner)?;
    start::lay_closed(options, programs)?;
    start::after(options)?;
    marker::new_generation(&options.data_dir, programs.owner)
}
