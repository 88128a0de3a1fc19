//! Changing whose acknowledgements a commit waits for, and proving that no older set does.
//!
//! What this relies on, in PostgreSQL's `syncrep.c` and `walsender.c` (13 to 18):
//!
//! 1. A commit waits if the shared flag `sync_standbys_defined` is set; the *checkpointer* sets it,
//!    some time after a reload. A backend does not look at the names at all.
//! 2. A commit is released by a *walsender*, which judges by the names that it has itself read, over
//!    all walsenders whose shared priority is not 0. Each walsender writes its own priority, when it
//!    has read the names; one of priority 0 releases nobody and counts for nobody.
//! 3. `pg_stat_replication.sync_priority` is that priority (or 0 before the first answer of the
//!    standby, which does not count then either). In an `ANY` list it is 1 for every member, so
//!    going from one list to the next directly leaves nothing to see, and for a moment a walsender
//!    with one list counts members of the other: a commit could be released by a mixture that
//!    satisfies neither.
//!
//! So between two sets lies a third that nobody satisfies:
//!
//! ```text
//!   S in force -> names = ANY 1 (nobody) -> S' in force
//!                 every walsender seen at priority 0: none holds S any more, none releases
//!                 a probe commit is seen waiting:      the flag is set
//!   then S' is written; only walsenders that have read it have priority 1; the probe returns, and a
//!   canary begun after that returns: acknowledged under S' by those who read S', and by nobody else.
//! ```
//!
//! Commits wait for some milliseconds meanwhile. The rejected way, ending all walsenders so that
//! each is younger than the reload, makes them wait for a reconnect of every standby (100 ms).
//! Whatever fails on the way, the names on disk are at least as strict as the stricter of the two.

use tokio::time::{Instant, timeout_at};

use super::link::{Link, get};
use super::managed::{self, Managed};
use super::standby::{pause, postmaster_has};
use super::{CANARY, PROBE, PROBE_ROW, Postgres};
use crate::engine::Postmaster;
use crate::error::{ChangeError, CommitError, DiskError};
use crate::orders::SyncNames;

/// Walsenders that may still act under old names: those of priority above 0, and those older than
/// the reload that have no answer yet, whose priority does not show.
const UNSETTLED: &str = "SELECT pid, sync_priority FROM pg_stat_replication
  WHERE state <> 'backup' AND (sync_priority > 0 OR (flush_lsn IS NULL AND backend_start < ";

const NUDGE: &str = "BEGIN; SET LOCAL synchronous_commit = local;
  UPDATE regent.canary SET n = n + 1 WHERE id = 3; COMMIT";

async fn put(
    pg: &Postgres,
    names: &SyncNames,
    postmaster: &dyn Postmaster,
) -> Result<(), ChangeError> {
    let names = names.clone();
    pg.change(move |options, programs| {
        let mut managed = Managed::load(&options.data_dir, programs.owner)?;
        managed.names(&names);
        managed.store()
    })
    .await?;
    postmaster.reload().await.map_err(ChangeError::Signal)
}

async fn now(link: &Link, by: Instant) -> Result<String, ChangeError> {
    let row = link.row("read the time", "SELECT clock_timestamp()::text AS now", by).await?;
    Ok(get(&row, "now")?)
}

async fn probe_waits(link: &Link, by: Instant) -> Result<bool, ChangeError> {
    let sql = format!(
        "SELECT count(*) AS waiting FROM pg_stat_activity WHERE wait_event = 'SyncRep'
         AND usename = 'regent_agent' AND strpos(query, '{PROBE_ROW}') > 0"
    );
    Ok(get::<i64>(&link.row("look at the probe", &sql, by).await?, "waiting")? > 0)
}

/// Until no walsender holds the old names and a commit is seen waiting.
async fn block(
    pg: &Postgres,
    link: &Link,
    postmaster: &dyn Postmaster,
    by: Instant,
) -> Result<(), ChangeError> {
    put(pg, &SyncNames::Blocked, postmaster).await?;
    postmaster_has(pg, managed::NAMES, &managed::names_text(&SyncNames::Blocked), by).await?;
    // What is forked from here on has read the new names.
    let reloaded = now(link, by).await?;
    let unsettled = format!("{UNSETTLED}'{reloaded}'))");
    let patience = Instant::now() + by.saturating_duration_since(Instant::now()) / 2;
    let mut ended = false;
    loop {
        if !pg.probe.is_running().await {
            pg.probe.begin(&pg.options, PROBE, by).await?;
        }
        let old = link.rows("look at the senders", &unsettled, by).await?;
        if old.is_empty() && probe_waits(link, by).await? {
            return Ok(());
        }
        if !old.is_empty() && !ended && Instant::now() > patience {
            // One that is stuck in a send does not get to its settings; a new one has them.
            for row in &old {
                let pid = get::<i32>(row, "pid")?;
                postmaster.terminate(pid).await.map_err(ChangeError::Signal)?;
            }
            ended = true;
        }
        pause(by, "no commit is released under the old names").await?;
    }
}

/// Until the probe returned. A walsender that has read new names releases nobody before the next
/// answer of its standby, which an idle one gives once a second: a small commit makes each answer.
async fn released(pg: &Postgres, link: &Link, by: Instant) -> Result<(), ChangeError> {
    while pg.probe.is_running().await {
        timeout_at(by, link.execute("ask for an answer", NUDGE))
            .await
            .map_err(|_| ChangeError::TimedOut("a commit returns under the new names"))??;
        pause(by, "a commit returns under the new names").await?;
    }
    match pg.probe.wait(by).await {
        // Ended by somebody: the canary is the proof anyway.
        Ok(_) | Err(CommitError::Sql(_)) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Puts `names` in force and proves it.
pub(super) async fn set(
    pg: &Postgres,
    names: &SyncNames,
    postmaster: &dyn Postmaster,
    by: Instant,
) -> Result<(), ChangeError> {
    if let SyncNames::Any { k, members } = names
        && (*k == 0 || members.len() < *k as usize)
    {
        let why = format!("{k} of {} members can never be", members.len());
        return Err(DiskError::Setting(why).into());
    }
    let link = pg.monitor(by).await?;
    let state = link.row("read the state", "SELECT pg_is_in_recovery() AS in_recovery", by).await?;
    let text = managed::names_text(names);
    if get::<bool>(&state, "in_recovery")? {
        // Nothing commits here. That the server has read them is seen in the session of the first
        // commit after a promotion (`Lane::run_under`); a walsender that has not yet has those of a
        // standby, which nobody satisfies, and releases nobody.
        // Nor does anything rest on the file yet: the promotion syncs it (`standby::promote`).
        let names = names.clone();
        pg.change(move |options, programs| {
            let mut managed = Managed::load(&options.data_dir, programs.owner)?;
            managed.names(&names);
            managed.store_whole()
        })
        .await?;
        return postmaster.reload().await.map_err(ChangeError::Signal);
    }
    if *names != SyncNames::Unprotected {
        block(pg, &link, postmaster, by).await?;
    }
    if *names == SyncNames::Blocked {
        return Ok(());
    }
    put(pg, names, postmaster).await?;
    postmaster_has(pg, managed::NAMES, &text, by).await?;
    if *names != SyncNames::Unprotected {
        released(pg, &link, by).await?;
    }
    pg.canary.run(&pg.options, CANARY, by).await?;
    Ok(())
}
