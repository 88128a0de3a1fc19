//! What another instance is: which cluster, its timeline and that timeline's history, and how far
//! back its WAL reaches. Asked before a rewind or a start as its standby.

use std::time::Duration;

use tokio::time::Instant;

use super::link::{Link, get};
use super::options::Options;
use crate::error::SqlError;
use crate::facts::{HistoryFile, SourceLine};
use crate::orders::Source;

/// What `source`, a primary, writes; the history of the first timeline is empty.
pub(super) async fn line(
    options: &Options,
    source: &Source,
    within: Duration,
) -> Result<SourceLine, SqlError> {
    let by = Instant::now() + within;
    let link = Link::reach(options, source, within, by).await?;
    // The name of the WAL file at work begins with the timeline; the control file lags behind.
    let sql = "SELECT pg_is_in_recovery() AS in_recovery, CASE WHEN pg_is_in_recovery() THEN '' \
               ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END AS timeline";
    let row = link.row("read the source's timeline", sql, by).await?;
    if get::<bool>(&row, "in_recovery")? {
        return Err(SqlError::Hidden("the timeline of a source that is no primary yet"));
    }
    let timeline = u32::from_str_radix(get::<&str>(&row, "timeline")?, 16)
        .map_err(|_| SqlError::Hidden("the source's timeline"))?;
    let sql = "SELECT (SELECT system_identifier FROM pg_control_system()) AS system, \
               coalesce(min(right(name, 16) COLLATE \"C\"), '') AS oldest \
               FROM pg_ls_dir('pg_wal', true, false) AS name WHERE name ~ '^[0-9A-F]{24}$'";
    let row = link.row("read the source's WAL", sql, by).await?;
    let system_identifier = get::<i64>(&row, "system")?.cast_unsigned();
    let oldest_segment = get::<&str>(&row, "oldest")?.to_owned();
    let text = match timeline {
        0 | 1 => String::new(),
        _ => {
            let sql = format!(
                "SELECT convert_from(pg_read_binary_file('pg_wal/{timeline:08X}.history'), 'UTF8') \
                 AS text"
            );
            let row = link.row("read the source's history", &sql, by).await?;
            get::<&str>(&row, "text")?.to_owned()
        }
    };
    let history = HistoryFile { timeline, text };
    Ok(SourceLine { system_identifier, history, oldest_segment })
}
