//! A new copy of the whole cluster, made beside the old one and swapped in at once.
//!
//! Until the swap the old directory is untouched, so an interrupted copy costs nothing but time. The
//! old one is kept, the newest only: it may hold what nobody else has.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::options::Options;
use super::programs::Programs;
use super::secure::TlsFiles;
use super::{Postgres, REPLICATION, control, durable, managed, marker, rewind};
use crate::error::{DiskError, RebuildError};
use crate::facts::GenerationId;
use crate::orders::Source;

/// Terabytes take hours; beyond this it hangs.
const COPY_LIMIT: Duration = Duration::from_secs(48 * 3600);
/// How often progress is told.
const TELL: Duration = Duration::from_millis(500);

fn beside(dir: &Path, ending: &str) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> DiskError {
    let path = path.to_owned();
    move |source| DiskError::Io { what, path, source }
}

/// Bytes of all files below; what vanishes meanwhile counts as nothing.
fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

fn remove_tree(dir: &Path) -> Result<(), DiskError> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", dir)(e)),
        _ => Ok(()),
    }
}

/// Puts `new` where the data directory is, and keeps what was there.
fn swap(options: &Options, new: &Path) -> Result<(), DiskError> {
    let dir = &options.data_dir;
    let parent = durable::parent(dir);
    if durable::names(dir)?.is_empty() {
        // An empty directory is replaced by the rename itself.
        fs::rename(new, dir).map_err(failed("replace", dir))?;
        return durable::sync_dir(parent);
    }
    renameat_with(CWD, new, CWD, dir, RenameFlags::EXCHANGE)
        .map_err(|e| failed("replace", dir)(e.into()))?;
    durable::sync_dir(parent)?;
    let base = dir.file_name().unwrap_or_default().to_string_lossy().into_owned() + ".old-";
    let old: Vec<_> =
        durable::names(parent)?.into_iter().filter(|n| n.starts_with(&base)).collect();
    let number = |name: &String| name[base.len()..].parse::<u64>().unwrap_or(0);
    let next = old.iter().map(number).max().unwrap_or(0) + 1;
    let kept = beside(dir, &format!(".old-{next}"));
    fs::rename(new, &kept).map_err(failed("keep", &kept))?;
    durable::sync_dir(parent)?;
    for name in old {
        remove_tree(&parent.join(name))?;
    }
    Ok(())
}

/// The whole of it.
pub(super) async fn copy(
    pg: &Postgres,
    source: &Source,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<GenerationId, RebuildError> {
    let (options, programs): (&Options, &Programs) = (&pg.options, &pg.programs);
    let new = beside(&options.data_dir, ".regent-copy");
    let begun = new.clone();
    pg.change(move |_, p| {
        remove_tree(&begun)?;
        durable::make_dir(&begun, p.owner)
    })
    .await?;
    // No password in it: that comes from the passfile.
    let server = format!(
        "host={} port={} user={REPLICATION}{}",
        managed::conn_value(&source.host),
        source.port,
        options.tls.as_ref().map(TlsFiles::words).unwrap_or_default(),
    );
    let mut args = ["-X", "stream", "-c", "fast", "--no-password", "-d"].map(OsStr::new).to_vec();
    args.extend([OsStr::new(&server), "-D".as_ref(), new.as_os_str()]);
    let env = [("PGPASSFILE", options.passfile.as_os_str())];
    let ended = {
        let turn = pg.turn().await;
        let run = programs.run_alone(turn, "pg_basebackup", &args, &env, COPY_LIMIT);
        tokio::pin!(run);
        loop {
            tokio::select! {
                ended = &mut run => break ended?,
                () = tokio::time::sleep(TELL) => {
                    let below = new.clone();
                    progress(pg.disk(move |_, _| Ok(bytes_below(&below))).await?);
                }
            }
        }
    };
    if !ended.ok {
        return Err(ended.failure("pg_basebackup").into());
    }
    let generation = pg
        .change(move |options, programs| {
            // The copy is closed before it gets its name; the mark of an interrupted rewind of the
            // old directory ends only with the swap.
            let copied = Options { data_dir: new.clone(), ..options.clone() };
            let generation = rewind::close_copy(&copied, programs)?;
            swap(options, &new)?;
            marker::end(options)?;
            Ok(generation)
        })
        .await?;
    let cluster = control::read(&options.data_dir, programs).await?;
    tracing::info!(%generation, system_identifier = cluster.system_identifier, "copied anew");
    Ok(generation)
}
