//! Sessions of clients whose commits wait for less than the names ask for, as far as that can be seen
//! from outside, and their end (PROTOCOL.md D, `SyncSetTampered`).
//!
//! PostgreSQL shows what a session has `SET` to that session alone: no view, no log line and no event
//! trigger tells anybody else. Two things are left, and both are looked at:
//!
//! - what each process of the server has in its own variable ([`super::memory`]): all that lasts from
//!   one look to the next, whatever way it was set;
//! - the text of the last statement in `pg_stat_activity`: what a transaction did for itself
//!   (`SET LOCAL`), if the text names it and is still there.
//!
//! A transaction that lowers it inside a function and is over between two looks is seen by neither.

use std::time::Duration;

use tokio::time::Instant;

use super::link::{For, Link, get};
use super::memory::{Known, level_of, processes};
use super::{AGENT, Postgres, clients};
use crate::engine::Postmaster;
use crate::error::{ChangeError, SqlError};
use crate::facts::{Lowered, LoweredSession, Override};

/// Who is there, and whose last statement says that it lowers. A declaration for a role or a database
/// changes nothing in the session that makes it, and is seen as what it is.
const SESSIONS: &str = r#"SELECT a.pid, a.usename::text AS role, coalesce(a.datname::text, '') AS db,
  coalesce(r.rolsuper, true) AS by_signal,
  (a.state <> 'idle' OR a.state_change > clock_timestamp() - interval '3 s')
    AND a.query ~* 'synchronous_commit["'']?\s*(=|to\s|,)\s*[''"]?(off|local|remote_write|false|no|0)\M'
    AND a.query !~* '\malter\s+(role|user|database|system)\M'
    AND a.query !~* '\mcreate\s+(or|function|procedure)\M' AS says
  FROM pg_stat_activity a LEFT JOIN pg_roles r ON r.oid = a.usesysid
  WHERE a.backend_type = 'client backend' AND a.usename NOT LIKE 'regent\_%'"#;

/// How long finding and trying the place of the variable may take; once for each start of the server.
const LEARN: Duration = Duration::from_secs(2);

/// Finds the variable, and sees that it follows a session of our own: what is read is that, or nothing.
async fn learn(pg: &Postgres, postmaster: i32) -> Result<Known, String> {
    let by = Instant::now() + LEARN;
    let found = blocking(move || Known::find(postmaster)).await?;
    let link = Link::open(&pg.options, AGENT, For::Facts, by).await.map_err(|e| e.to_string())?;
    for (value, level) in [("remote_apply", 4), ("off", 0), ("on", 3)] {
        let sql = format!(
            "SELECT set_config('synchronous_commit', '{value}', false), pg_backend_pid() AS pid"
        );
        let row = link.row("try the variable", &sql, by).await.map_err(|e| e.to_string())?;
        let inside: i32 = get(&row, "pid").map_err(|e| e.to_string())?;
        let read = blocking(move || {
            let all = processes(postmaster)?;
            let process = all.into_iter().find(|one| one.inside == inside);
            level_of(&found, process.ok_or("its own session is not among the server's")?.outside)
        });
        let read = read.await?;
        if read != Some(level) {
            return Err(format!("the variable reads {read:?} where a session has {value}"));
        }
    }
    Ok(found)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())?
}

/// What each process of the server has, by its own pid.
async fn levels(pg: &Postgres, postmaster: i32) -> Result<Vec<(i32, i32)>, String> {
    let mut held = pg.eyes.lock().await;
    let known = match *held {
        Some(known) if known.is_of(postmaster) => known,
        _ => {
            *held = None;
            *held.insert(learn(pg, postmaster).await?)
        }
    };
    drop(held);
    blocking(move || {
        let mut levels = Vec::new();
        for process in processes(postmaster)? {
            if let Some(level) = level_of(&known, process.outside)? {
                levels.push((process.inside, level));
            }
        }
        Ok(levels)
    })
    .await
}

/// The word of a level below `on`.
fn lowered_word(level: i32) -> Option<&'static str> {
    match level {
        0 => Some("off"),
        1 => Some("local"),
        2 => Some("remote_write"),
        _ => None,
    }
}

/// Looks once.
pub(super) async fn look(
    pg: &Postgres,
    postmaster: Option<i32>,
    by: Instant,
) -> Result<Lowered, SqlError> {
    let levels = match postmaster {
        Some(pid) => levels(pg, pid).await,
        None => Err("the pid of its first process is not known".to_owned()),
    };
    // Asked after the levels: one that is gone by now is nobody's session any more.
    let rows = pg.monitor(by).await?.rows("look at the sessions", SESSIONS, by).await?;
    let (levels, unseen) = match levels {
        Ok(levels) => (levels, None),
        Err(why) => (Vec::new(), Some(why)),
    };
    let mut sessions = Vec::new();
    for row in &rows {
        let pid: i32 = get(row, "pid")?;
        let level = levels.iter().find(|(inside, _)| *inside == pid).map(|(_, level)| *level);
        let says = get::<Option<bool>>(row, "says")?.unwrap_or(false);
        let lowered = level.and_then(lowered_word);
        let Some(value) = lowered.or(says.then_some("lower, as its statement says")) else {
            continue;
        };
        sessions.push(LoweredSession {
            pid,
            role: get(row, "role")?,
            database: get(row, "db")?,
            value: value.to_owned(),
            by_signal: get(row, "by_signal")?,
        });
    }
    Ok(Lowered { sessions, unseen })
}

/// Refuses what is refused from here on, and ends the sessions that are lowered or of such a role or
/// database. A waiting backend is ended as well: its client is told nothing, and so promised nothing.
pub(super) async fn shut_out(
    pg: &Postgres,
    refused: &[Override],
    sessions: &[LoweredSession],
    postmaster: &dyn Postmaster,
    by: Instant,
) -> Result<(), ChangeError> {
    clients::put(pg, Some(refused)).await?;
    postmaster.reload().await.map_err(ChangeError::Signal)?;
    let link = pg.monitor(by).await?;
    let all = link.rows("look at the sessions", SESSIONS, by).await?;
    for row in &all {
        let (role, database) = (get::<String>(row, "role")?, get::<String>(row, "db")?);
        let pid: i32 = get(row, "pid")?;
        let is_refused = refused.iter().any(|one| {
            (one.role.is_empty() || one.role == role)
                && (one.database.is_empty() || one.database == database)
        });
        let is_lowered = sessions.iter().any(|one| one.pid == pid && one.role == role);
        if !is_refused && !is_lowered {
            continue;
        }
        if get::<bool>(row, "by_signal")? {
            // A session of a superuser is not this role's to end.
            postmaster.terminate(pid).await.map_err(ChangeError::Signal)?;
        } else {
            let sql = format!("SELECT pg_terminate_backend({pid}) AS told");
            link.row("end a lowered session", &sql, by).await?;
        }
    }
    Ok(())
}
