//! Letting clients in and keeping them out: the access list, a reload, and a proof of each.
//!
//! **When nobody is in.** A stranger who is turned away shows that the postmaster has the closed
//! list, so whatever process it makes from then on keeps to it. Sessions of before are ended. What
//! was made before and still logs in stands in no view, and can take as long as it likes to send a
//! password: it is found among the postmaster's children, and ended too. A promotion depends on that:
//! such a session would write before the epoch does.

use std::collections::BTreeSet;

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
    while !link::lets_clients_in(&pg.options, by).await? {
        pause(by, "the server lets clients in").await?;
    }
    Ok(())
}

/// Puts the closed list in use, waits until a stranger is turned away, and ends all sessions, also
/// those that are only logging in.
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
    let mut entering = unlisted(&link, postmaster, by).await?;
    for pid in &entering {
        postmaster.terminate(*pid).await.map_err(ChangeError::Signal)?;
    }
    loop {
        // Whoever got in after all is in the view now, and no more among these: each process of before
        // was entering, or is in every view until it ends. So one empty view is enough.
        if !entering.is_empty() {
            let now = unlisted(&link, postmaster, by).await?;
            entering.retain(|pid| now.contains(pid));
        }
        if end_sessions(&link, postmaster, by).await? == 0 && entering.is_empty() {
            return Ok(());
        }
        pause(by, "the sessions of clients end").await?;
    }
}

/// Processes of the server that are in no view: they log in, or start, or never are.
async fn unlisted(
    link: &Link,
    postmaster: &dyn Postmaster,
    by: Instant,
) -> Result<BTreeSet<i32>, ChangeError> {
    let children = postmaster.children().await.map_err(ChangeError::Signal)?;
    let sql = "SELECT pid, current_setting('cluster_name') AS cluster FROM pg_stat_activity";
    let rows = link.rows("list the processes", sql, by).await?;
    let mut listed = BTreeSet::new();
    let mut cluster = String::new();
    for row in &rows {
        listed.insert(get::<i32>(row, "pid")?);
        cluster = get(row, "cluster")?;
    }
    let unlisted = children.into_iter().filter(|child| !listed.contains(&child.pid));
    Ok(unlisted.filter(|it| !is_never_listed(&it.title, &cluster)).map(|it| it.pid).collect())
}

/// Whether a title is that of a process without a session that some version lists nowhere. A
/// client's has at least three words after the server's own.
fn is_never_listed(title: &str, cluster: &str) -> bool {
    let Some(title) = title.strip_prefix("postgres: ") else { return false };
    let own = format!("{cluster}: ");
    let title = title.strip_prefix(own.as_str()).unwrap_or(title).trim();
    matches!(title, "logger" | "stats collector" | "archiver")
        || title.starts_with("archiver last was ")
}

#[cfg(test)]
mod tests {
    use super::is_never_listed;

    #[test]
    fn who_logs_in_is_told_from_what_has_no_session() {
        for (title, never) in [
            ("postgres: logger ", true),
            ("postgres: main: stats collector", true),
            ("postgres: archiver last was 000000010000000000000003", true),
            ("postgres: logger app 10.0.0.1(5123) authentication", false),
            ("postgres: app app [local] authentication", false),
            // Before it has read who asks, it has its parent's.
            ("/usr/lib/postgresql/15/bin/postgres -D /data", false),
        ] {
            assert_eq!(is_never_listed(title, "main"), never, "{title}");
        }
    }
}
