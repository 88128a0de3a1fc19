//! Detach, recruit, follow, promote: what changes whom a standby listens to.
//!
//! **When nothing can be received any more.** Erasing the settings is not enough: the receiver
//! process runs on, and the startup process may just have asked for a new one with the old settings,
//! which is in no view until it runs. So, in this order: the settings are erased on disk and
//! reloaded; a *new* session has the erased settings, hence the postmaster has read them and has
//! signalled each of its children; after that no receiver process is seen, and the startup process
//! is not waiting for one (`RecoveryWalStream`), twice. A startup process that reads its settings
//! late ends a receiver that it asked for before, by itself.
//!
//! **When all is replayed.** Received WAL is replayed when the replayed end has reached the received
//! one, or when the startup process, finding nothing more, sleeps until its next try
//! (`RecoveryRetrieveRetryInterval`) and the replayed end stands still for longer than that sleep:
//! received WAL may end inside a record, and after a restart the received end is not known.

use std::time::Duration;

use regent_core::role::{Lsn, Position};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_postgres::types::PgLsn;

use super::link::{For, Link, get};
use super::managed::{self, Managed};
use super::observe::{epoch, lsn};
use super::{AGENT, Postgres, clients, hba, history, wal};
use crate::engine::Postmaster;
use crate::error::{ChangeError, DiskError, SqlError};
use crate::facts::Switch;
use crate::orders::{SyncNames, Upstream};

/// Between two looks at the server; a look takes half a millisecond.
const LOOK: Duration = Duration::from_millis(2);
/// Longer than `wal_retrieve_retry_interval`, which Regent sets to 100 ms.
const RETRY: Duration = Duration::from_millis(130);
/// Bound on a login that a promotion need not wait for.
const LOGIN: Duration = Duration::from_millis(200);
/// Replay that stands still for so long while there is more, waits for a query.
const STUCK: Duration = Duration::from_millis(100);

const LOOK_SQL: &str = "SELECT pg_is_in_recovery() AS in_recovery,
  (SELECT max(pid) FROM (SELECT pid FROM pg_stat_wal_receiver UNION ALL
     SELECT pid FROM pg_stat_activity WHERE backend_type = 'walreceiver') r) AS receiver,
  (SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup') AS startup,
  pg_last_wal_receive_lsn() AS received, pg_last_wal_replay_lsn() AS replayed,
  CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END AS paused";

struct Look {
    receiver: Option<i32>,
    startup: String,
    received: Option<Lsn>,
    replayed: Lsn,
    paused: bool,
}

async fn look(link: &Link, by: Instant) -> Result<Look, ChangeError> {
    let row = link.row_again("look at the standby", LOOK_SQL, by).await?;
    if !get::<bool>(&row, "in_recovery")? {
        return Err(ChangeError::NotInRecovery);
    }
    Ok(Look {
        receiver: get(&row, "receiver")?,
        startup: get::<Option<String>>(&row, "startup")?.unwrap_or_default(),
        received: get::<Option<PgLsn>>(&row, "received")?.map(lsn),
        replayed: get::<Option<PgLsn>>(&row, "replayed")?.map_or(Lsn(0), lsn),
        paused: get(&row, "paused")?,
    })
}

/// Writes the erased settings. The names of a grant that came to nothing go with them: who sends WAL
/// here must not know them still when the next grant's come.
pub(super) async fn erase(pg: &Postgres) -> Result<(), DiskError> {
    pg.change(|options, programs| {
        let mut managed = Managed::load(&options.data_dir, programs.owner)?;
        managed.no_upstream();
        managed.names(&SyncNames::Blocked);
        managed.store()
    })
    .await
}

/// The same without the sync: [`synced`] is to follow.
async fn erase_soon(pg: &Postgres) -> Result<(), DiskError> {
    pg.change(|options, programs| {
        let mut managed = Managed::load(&options.data_dir, programs.owner)?;
        managed.no_upstream();
        managed.names(&SyncNames::Blocked);
        managed.store_soon()
    })
    .await
}

async fn synced(pg: &Postgres) -> Result<(), ChangeError> {
    Ok(pg.change(|options, _| managed::sync(&options.data_dir)).await?)
}

/// Waits until a new session has `value` for `setting`: then the postmaster has read the file and
/// has told its children.
pub(super) async fn postmaster_has(
    pg: &Postgres,
    setting: &'static str,
    value: &str,
    by: Instant,
) -> Result<(), ChangeError> {
    // Not by a function: a new session would have to look that up in its catalogs first.
    let sql = format!("SHOW {setting}");
    loop {
        let link = Link::open(&pg.options, AGENT, For::Facts, by).await?;
        let row = link.row("read a setting", &sql, by).await?;
        if get::<String>(&row, setting)? == value {
            return Ok(());
        }
        pause(by, "the server reads its settings").await?;
    }
}

/// Sleeps between two looks; an error once the time is up.
pub(super) async fn pause(by: Instant, what: &'static str) -> Result<(), ChangeError> {
    timeout_at(by, sleep(LOOK)).await.map_err(|_| ChangeError::TimedOut(what))
}

/// Ends the stream, and returns when none can begin.
pub(super) async fn detach(
    pg: &Postgres,
    postmaster: &dyn Postmaster,
    by: Instant,
) -> Result<(), ChangeError> {
    // The server need not wait for the disk; who is told that this is done does.
    erase_soon(pg).await?;
    postmaster.reload().await.map_err(ChangeError::Signal)?;
    let link = pg.monitor(by).await?;
    // The receiver is ended at once, not when the startup process gets to it: that may be paused.
    let end = async {
        let ended = look(&link, by).await?.receiver;
        if let Some(pid) = ended {
            postmaster.terminate(pid).await.map_err(ChangeError::Signal)?;
        }
        Ok::<_, ChangeError>(ended)
    };
    // A login takes longer than all else here: it goes on beside. What is looked at counts from the
    // end of both.
    let erased = postmaster_has(pg, managed::CONNINFO, "", by);
    let (mut ended, (), ()) = tokio::try_join!(end, erased, synced(pg))?;
    let mut quiet = 0;
    loop {
        let now = look(&link, by).await?;
        if now.receiver.is_some() && now.receiver != ended {
            ended = now.receiver;
            if let Some(pid) = ended {
                postmaster.terminate(pid).await.map_err(ChangeError::Signal)?;
            }
        }
        let none = now.receiver.is_none() && now.startup != "RecoveryWalStream";
        quiet = if none { quiet + 1 } else { 0 };
        if quiet == 2 {
            return Ok(());
        }
        pause(by, "the receiver ends").await?;
    }
}

/// Replays everything and says how far it reaches.
pub(super) async fn recruit(
    pg: &Postgres,
    postmaster: &dyn Postmaster,
    by: Instant,
) -> Result<Position, ChangeError> {
    let link = pg.monitor(by).await?;
    let begun = Instant::now();
    let (mut still, mut since) = (Lsn(u64::MAX), begun);
    let replayed = loop {
        let now = look(&link, by).await?;
        if now.receiver.is_some() {
            return Err(ChangeError::NotDetached);
        }
        if now.paused {
            let sql = "SELECT pg_wal_replay_resume()::text";
            link.rows("resume replay", sql, by).await?;
        }
        if now.replayed != still {
            (still, since) = (now.replayed, Instant::now());
        }
        let idle = now.startup == "RecoveryRetrieveRetryInterval";
        match now.received {
            Some(received) if now.replayed >= received => break now.replayed,
            _ if idle && since.elapsed() > RETRY => {
                tracing::debug!(received = ?now.received, replayed = %now.replayed, "no whole record more");
                break now.replayed;
            }
            // It waits for a query on this standby: a role change does not.
            _ if !idle && since.elapsed() > STUCK => {
                clients::end_sessions(&link, postmaster, by).await?;
                since = Instant::now();
            }
            _ => {}
        }
        pause(by, "replay reaches the end").await?;
    };
    tracing::debug!(took = ?begun.elapsed(), "replayed");
    let row = "SELECT greatest(c.timeline_id, r.min_recovery_end_timeline) AS timeline
        FROM pg_control_checkpoint() c, pg_control_recovery() r";
    let (row, epoch) = tokio::join!(link.row("read the timeline", row, by), epoch(&link, by));
    let known = get::<i32>(&row?, "timeline")?.unsigned_abs();
    let timeline = pg.disk(move |o, _| wal::newest_timeline(&o.data_dir, known)).await?;
    Ok(Position { epoch: epoch?, end: replayed, timeline })
}

/// Follows `upstream`. The startup process starts the receiver when it reads the settings.
pub(super) async fn follow(
    pg: &Postgres,
    upstream: &Upstream,
    postmaster: &dyn Postmaster,
) -> Result<(), ChangeError> {
    let upstream = upstream.clone();
    pg.change(move |options, programs| {
        let mut managed = Managed::load(&options.data_dir, programs.owner)?;
        managed.upstream(&upstream, options);
        // Those of a grant that came to nothing: as when they are erased.
        managed.names(&SyncNames::Blocked);
        managed.store_soon()
    })
    .await?;
    postmaster.reload().await.map_err(ChangeError::Signal)?;
    synced(pg).await
}

/// Leaves recovery.
pub(super) async fn promote(pg: &Postgres, least: u32, by: Instant) -> Result<Switch, ChangeError> {
    let (closed, detached, names) = pg
        .disk(move |options, programs| {
            let managed = Managed::load(&options.data_dir, programs.owner)?;
            let detached = managed.get(managed::CONNINFO).is_empty();
            let names = managed.get(managed::NAMES).to_owned();
            Ok((hba::is_closed(options)?, detached, names))
        })
        .await?;
    if !closed {
        return Err(ChangeError::ClientsOpen);
    }
    if !detached {
        return Err(ChangeError::NotDetached);
    }
    let link = pg.monitor(by).await?;
    let in_recovery = "SELECT pg_is_in_recovery() AS in_recovery";
    if !get::<bool>(&link.row_again("read the state", in_recovery, by).await?, "in_recovery")? {
        return Err(ChangeError::NotInRecovery);
    }
    pg.change(move |o, p| {
        let own = wal::newest_timeline(&o.data_dir, 1)?;
        history::reserve(&o.data_dir, own, least, p.owner)
    })
    .await?;
    let leave = async {
        // Not pg_promote's own wait: it looks ten times a second only.
        link.row("promote", "SELECT pg_promote(false)", by).await?;
        loop {
            // Until then the name of a WAL file cannot be asked for.
            let row = link.row_again("read the state", in_recovery, by).await?;
            if !get::<bool>(&row, "in_recovery")? {
                return Ok::<(), ChangeError>(());
            }
            pause(by, "recovery ends").await?;
        }
    };
    // The session of the epoch logs in meanwhile. If it cannot, writing the epoch says why.
    let soon = by.min(Instant::now() + LOGIN);
    // The names that were set before are on disk before anything is acknowledged under them.
    let ready = pg.epoch.ready(&pg.options, &names, soon);
    let (left, on_disk, _) = tokio::join!(leave, synced(pg), ready);
    left?;
    on_disk?;
    let sql = "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline";
    let hex: String = get(&link.row("read the timeline", sql, by).await?, "timeline")?;
    let timeline = u32::from_str_radix(&hex, 16).map_err(|_| SqlError::Hidden("the timeline"))?;
    let line = pg.disk(move |o, _| history::line(&o.data_dir, timeline)).await?;
    let at = line.ancestors.last().map_or(Lsn(0), |a| a.end);
    Ok(Switch { timeline, at })
}
