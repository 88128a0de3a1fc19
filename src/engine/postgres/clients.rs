//! Letting clients in and keeping them out: the access list, a reload, and a proof of each.

use tokio::time::Instant;

use super::link::{self, Link, get};
use super::standby::pause;
use super::{Postgres, Programs, hba};
use crate::engine::Postmaster;
use crate::error::ChangeError;
use crate::facts::Override;

/// A session of a superuser is not this role's to end; the process is ended through the fencer.
const END: &str = "SELECT a.pid, coalesce(r.rolsuper, true) AS by_signal,
  CASE WHEN coalesce(r.rolsuper, true) THEN false ELSE pg_terminate_backend(a.pid) END AS told
  FROM pg_stat_activity a LEFT JOIN pg_roles r ON r.oid = a.usesysid
  WHERE a.backend_type = 'client backend'
    AND coalesce(a.usename, '') NOT IN ('regent_agent', 'regent_replication', 'regent_rewind')";

/// Ends all sessions that are not Regent's; how many there were.
pub(super) async fn end_sessions(
    link: &Link,
    postmaster: &dyn Postmaster,
    by: Instant,
) -> Result<usize, ChangeError> {
    let rows = link.rows("end the sessions of clients", END, by).await?;
    for row in &rows {
        if get::<bool>(row, "by_signal")? {
            let pid = get::<i32>(row, "pid")?;
            postmaster.terminate(pid).await.map_err(ChangeError::Signal)?;
        }
    }
    Ok(rows.len())
}

/// Puts a list in use: the open one but for some, or the closed one.
pub(super) async fn put(pg: &Postgres, open: Option<&[Override]>) -> Result<(), ChangeError> {
    let open = open.map(<[Override]>::to_vec);
    let work =
        move |options: &_, programs: &Programs| hba::put(options, open.as_deref(), programs.owner);
    Ok(pg.change(work).await?)
}

/// Puts the open list in use, and waits until a stranger is asked for a password.
pub(super) async fn open(
    pg: &Postgres,
    refused: &[Override],
    postmaster: &dyn Postmaster,
    by: Instant,
) -> Result<(), ChangeError> {
    put(pg, Some(refused)).await?;
    postmaster.reload().await.map_err(ChangeError::Signal)?;
    if refused.iter().any(hba::is_for_strangers) {
        return Ok(());
    }
    while !link::lets_clients_in(&pg.options, by).await? {
        pause(by, "the server lets clients in").await?;
    }
    Ok(())
}

/// Puts the closed list in use, waits until a stranger is turned away, and ends all sessions. Two
/// empty looks: a session that was logging in shows only when it is in.
pub(super) async fn close(
    pg: &Postgres,
    postmaster: &dyn Postmaster,
    by: Instant,
) -> Result<(), ChangeError> {
    put(pg, None).await?;
    postmaster.reload().await.map_err(ChangeError::Signal)?;
    while link::lets_clients_in(&pg.options, by).await? {
        pause(by, "the server keeps clients out").await?;
    }
    let link = pg.monitor(by).await?;
    let mut empty = 0;
    while empty < 2 {
        let found = end_sessions(&link, postmaster, by).await?;
        empty = if found == 0 { empty + 1 } else { 0 };
        pause(by, "the sessions of clients end").await?;
    }
    Ok(())
}
