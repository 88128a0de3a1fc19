//! What another instance is: its timeline and that timeline's history, asked before a rewind or a
//! start as its standby.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Config;

use super::link::{Link, get};
use super::options::Options;
use super::{REWIND, passfile};
use crate::error::SqlError;
use crate::facts::HistoryFile;
use crate::orders::Source;

/// The timeline that `source`, a primary, writes, and its history (empty for the first).
pub(super) async fn history(
    options: &Options,
    source: &Source,
    within: Duration,
) -> Result<HistoryFile, SqlError> {
    let by = Instant::now() + within;
    let password = passfile::password(&options.passfile, REWIND)?;
    let mut config = Config::new();
    config
        .host(&source.host)
        .port(source.port)
        .user(REWIND)
        .password(password.reveal())
        .dbname("postgres")
        .connect_timeout(within);
    let link = Link::connect(&config, by).await?;
    // The name of the WAL file at work begins with the timeline; the control file lags behind.
    let sql = "SELECT pg_is_in_recovery() AS in_recovery, CASE WHEN pg_is_in_recovery() THEN '' \
               ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END AS timeline";
    let row = link.row("read the source's timeline", sql, by).await?;
    if get::<bool>(&row, "in_recovery")? {
        return Err(SqlError::Hidden("the timeline of a source that is no primary yet"));
    }
    let timeline = u32::from_str_radix(get::<&str>(&row, "timeline")?, 16)
        .map_err(|_| SqlError::Hidden("the source's timeline"))?;
    if timeline <= 1 {
        return Ok(HistoryFile { timeline, text: String::new() });
    }
    let sql = format!(
        "SELECT convert_from(pg_read_binary_file('pg_wal/{timeline:08X}.history'), 'UTF8') AS text"
    );
    let row = link.row("read the source's history", &sql, by).await?;
    Ok(HistoryFile { timeline, text: get::<&str>(&row, "text")?.to_owned() })
}
