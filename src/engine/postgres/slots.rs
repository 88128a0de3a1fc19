//! Replication slots, one for each other instance, so that WAL is kept until it has it.

use tokio::time::Instant;

use super::REPLICATION;
use super::link::{For, Link, get};
use super::options::Options;
use crate::error::ChangeError;

/// What Regent's slots begin with; others are not touched.
const PREFIX: &str = "regent_";
/// Longest name of a slot, less the prefix and a hash.
const MAX_KEPT: usize = 63 - PREFIX.len() - 9;

/// A slot's name for an instance. Slots allow less than names do, so one that had to be changed
/// gets a hash: two instances never share a slot.
pub(super) fn slot_name(instance: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let kept: String =
        instance.chars().take(MAX_KEPT).map(|c| if plain(c) { c } else { '_' }).collect();
    if kept == instance {
        return format!("{PREFIX}{kept}");
    }
    // FNV-1a: stable over versions and machines, unlike the standard library's hasher.
    let hash = instance
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{PREFIX}{kept}_{hash:08x}")
}

/// Creates what is missing and drops what is not listed and not in use.
pub(super) async fn ensure(
    options: &Options,
    instances: &[String],
    by: Instant,
) -> Result<(), ChangeError> {
    let wanted: Vec<_> = instances.iter().map(|instance| slot_name(instance)).collect();
    // The agent's own role may not make slots; the one that streams may.
    let link = Link::open(options, REPLICATION, For::Facts, by).await?;
    let sql = "SELECT slot_name::text AS slot_name, active FROM pg_replication_slots
        WHERE slot_type = 'physical'";
    let mut have = Vec::new();
    for row in link.rows("read the slots", sql, by).await? {
        have.push((get::<String>(&row, "slot_name")?, get::<bool>(&row, "active")?));
    }
    for name in wanted.iter().filter(|name| !have.iter().any(|(n, _)| n == *name)) {
        let sql = format!("SELECT pg_create_physical_replication_slot('{name}')::text");
        link.rows("create a slot", &sql, by).await?;
    }
    for (name, active) in have {
        if name.starts_with(PREFIX) && !active && !wanted.contains(&name) {
            let sql = format!("SELECT pg_drop_replication_slot('{name}')::text");
            link.rows("drop a slot", &sql, by).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_instances_never_share_a_slot() {
        assert_eq!(slot_name("pg1"), "regent_pg1");
        assert_ne!(slot_name("a-b"), slot_name("a.b"));
        let (x, y) = ("x".repeat(100), "x".repeat(99));
        assert_ne!(slot_name(&x), slot_name(&y));
        assert!(slot_name(&x).len() <= 63);
    }
}
