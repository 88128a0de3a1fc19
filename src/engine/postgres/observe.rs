//! The facts of a running server, in one round trip of questions sent together.

use std::time::Duration;

use regent_core::id::{Epoch, Revision};
use regent_core::role::{Lsn, Position};
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::PgLsn;

use super::link::{Link, get};
use crate::error::SqlError;
use crate::facts::{Observation, Override, Receiver, Sender, Slot};

/// Values of `synchronous_commit` under which an acknowledged commit may be lost (S2).
const TOO_LOW: [&str; 6] = ["off", "local", "remote_write", "false", "no", "0"];

// A function that fails on the other kind of server is kept away from it by CASE.
const FACTS: &str = "SELECT pg_is_in_recovery() AS in_recovery,
  CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_flush_lsn() END AS flushed,
  CASE WHEN pg_is_in_recovery() THEN NULL
    ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END AS wal_timeline,
  pg_last_wal_receive_lsn() AS received, pg_last_wal_replay_lsn() AS replayed,
  CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END AS paused,
  current_setting('synchronous_standby_names') AS names,
  current_setting('synchronous_commit') AS sync_commit,
  (SELECT system_identifier FROM pg_control_system()) AS system,
  greatest(c.timeline_id, r.min_recovery_end_timeline) AS control_timeline,
  (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'
     AND usename NOT LIKE 'regent\\_%') AS clients
  FROM pg_control_checkpoint() c, pg_control_recovery() r";
const EPOCH: &str = "SELECT incarnation, revision FROM regent.epoch
  ORDER BY incarnation DESC, revision DESC LIMIT 1";
const RECEIVER: &str = "SELECT pid, status, sender_host, sender_port, received_tli,
  extract(epoch FROM clock_timestamp() - last_msg_receipt_time)::float8 AS age
  FROM pg_stat_wal_receiver";
const SENDERS: &str = "SELECT pid, usename::text AS usename, application_name,
  host(client_addr) AS address, state, sync_state, flush_lsn,
  extract(epoch FROM clock_timestamp() - backend_start)::float8 AS age
  FROM pg_stat_replication";
const SLOTS: &str = "SELECT slot_name::text AS slot_name, active,
  pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
    ELSE pg_current_wal_lsn() END, restart_lsn)::float8 AS retained
  FROM pg_replication_slots";
const OVERRIDES: &str = "SELECT coalesce(r.rolname::text, '') AS role,
  coalesce(d.datname::text, '') AS database, split_part(c, '=', 2) AS value
  FROM pg_db_role_setting s CROSS JOIN LATERAL unnest(s.setconfig) AS c
  LEFT JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase
  WHERE lower(split_part(c, '=', 1)) = 'synchronous_commit'";

/// A WAL position of the server.
pub(super) fn lsn(at: PgLsn) -> Lsn {
    Lsn(u64::from(at))
}

fn age(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}

/// The highest epoch in the replayed WAL; none in a cluster that Regent did not make.
pub(super) async fn epoch(link: &Link, by: Instant) -> Result<Epoch, SqlError> {
    let rows = match link.rows_again("read the epoch", EPOCH, by).await {
        Err(SqlError::Statement { source, .. })
            if source.code() == Some(&SqlState::UNDEFINED_TABLE)
                || source.code() == Some(&SqlState::INVALID_SCHEMA_NAME) =>
        {
            return Ok(Epoch::NONE);
        }
        rows => rows?,
    };
    let Some(row) = rows.first() else { return Ok(Epoch::NONE) };
    let part = |column| get::<i64>(row, column).map(i64::unsigned_abs);
    Ok(Epoch { incarnation: part("incarnation")?, revision: Revision(part("revision")?) })
}

fn receiver(row: &tokio_postgres::Row) -> Result<Receiver, SqlError> {
    Ok(Receiver {
        pid: get(row, "pid")?,
        status: get(row, "status")?,
        host: get::<Option<String>>(row, "sender_host")?.unwrap_or_default(),
        port: get::<Option<i32>>(row, "sender_port")?.and_then(|p| p.try_into().ok()).unwrap_or(0),
        last_message_age: get::<Option<f64>>(row, "age")?.map(age),
        timeline: get::<Option<i32>>(row, "received_tli")?.map_or(0, i32::unsigned_abs),
    })
}

fn sender(row: &tokio_postgres::Row) -> Result<Sender, SqlError> {
    Ok(Sender {
        pid: get(row, "pid")?,
        user: get(row, "usename")?,
        name: get(row, "application_name")?,
        address: get(row, "address")?,
        // Null for a role without the right to see it: that must not read as "no stream".
        state: get(row, "state")?,
        sync_state: get(row, "sync_state")?,
        flushed: get::<Option<PgLsn>>(row, "flush_lsn")?.map(lsn),
        age: age(get(row, "age")?),
    })
}

fn slot(row: &tokio_postgres::Row) -> Result<Slot, SqlError> {
    // Positions are below 2^53 in any cluster's life, so the float is exact.
    let retained = get::<Option<f64>>(row, "retained")?;
    Ok(Slot {
        name: get(row, "slot_name")?,
        active: get(row, "active")?,
        retained_bytes: retained.map(|bytes| bytes.max(0.0) as u64),
    })
}

/// Asks everything at once.
pub(super) async fn observe(
    link: &Link,
    disk_free_bytes: u64,
    by: Instant,
) -> Result<Observation, SqlError> {
    let (facts, epoch, receivers, senders, slots, overrides) = tokio::join!(
        link.row_again("read the state", FACTS, by),
        epoch(link, by),
        link.rows_again("read the receiver", RECEIVER, by),
        link.rows_again("read the senders", SENDERS, by),
        link.rows_again("read the slots", SLOTS, by),
        link.rows_again("read the overrides", OVERRIDES, by),
    );
    let facts = facts?;
    let receiver = receivers?.first().map(receiver).transpose()?;
    let in_recovery: bool = get(&facts, "in_recovery")?;
    let position = |column| get::<Option<PgLsn>>(&facts, column).map(|at| at.map_or(Lsn(0), lsn));
    let (received, replayed) = (position("received")?, position("replayed")?);
    let control: i32 = get(&facts, "control_timeline")?;
    let wal_timeline = get::<Option<String>>(&facts, "wal_timeline")?;
    let timeline = match (&receiver, wal_timeline) {
        // Right after a promotion the control file still has the old one.
        (_, Some(hex)) => u32::from_str_radix(&hex, 16).unwrap_or(control.unsigned_abs()),
        (Some(r), None) => r.timeline.max(control.unsigned_abs()),
        (None, None) => control.unsigned_abs(),
    };
    let end = if in_recovery { received.max(replayed) } else { position("flushed")? };
    let overrides: Result<Vec<_>, SqlError> = overrides?
        .iter()
        .map(|row| {
            Ok(Override {
                role: get(row, "role")?,
                database: get(row, "database")?,
                value: get(row, "value")?,
            })
        })
        .collect();
    Ok(Observation {
        in_recovery,
        position: Position { epoch: epoch?, end, timeline },
        replayed: if in_recovery { replayed } else { end },
        system_identifier: get::<i64>(&facts, "system")?.cast_unsigned(),
        receiver,
        senders: senders?.iter().map(sender).collect::<Result<_, _>>()?,
        slots: slots?.iter().map(slot).collect::<Result<_, _>>()?,
        sync_names: get(&facts, "names")?,
        sync_commit: get(&facts, "sync_commit")?,
        overrides: overrides?
            .into_iter()
            .filter(|o| TOO_LOW.contains(&o.value.to_ascii_lowercase().as_str()))
            .collect(),
        client_count: get::<i64>(&facts, "clients")?.try_into().unwrap_or(u32::MAX),
        replay_paused: get(&facts, "paused")?,
        disk_free_bytes,
    })
}
