//! What the engine finds and sees, in the words of the core, which keeps what the agent knows of its
//! database ([`regent_core::agent::local`]).

use regent_core::agent::{Found, Seen, SeenReceiver};
use regent_core::role::observe::Sender;
use regent_engine::Discovery;

/// What lies in the data directory.
pub fn found(found: &Discovery) -> Found {
    match found {
        Discovery::Empty => Found::Empty,
        Discovery::Cluster(cluster) => Found::Cluster {
            system: cluster.system_identifier,
            generation: cluster.generation.map_or(0, |generation| generation.0),
            is_standby: cluster.standby_signal,
        },
        Discovery::Quarantined { interrupted } => {
            Found::Broken(format!("{interrupted} was interrupted"))
        }
        Discovery::Foreign { found, wanted } => {
            Found::Broken(format!("the data directory is of cluster {found}, and not of {wanted}"))
        }
        Discovery::Unsafe { why } => Found::Broken(why.clone()),
    }
}

/// What a look at the server shows.
pub fn seen(it: regent_engine::Observation) -> Seen {
    let receiver = |it: regent_engine::Receiver| SeenReceiver {
        address: address(&it.host, it.port),
        streams: it.status == "streaming",
        silent_ms: it.last_message_age.map_or(u64::MAX, millis),
    };
    let sender = |it: regent_engine::Sender| {
        Some(Sender {
            to: it.name.parse().ok()?,
            streams: it.state == "streaming",
            is_sync: matches!(it.sync_state.as_str(), "sync" | "quorum"),
            flushed: it.flushed.unwrap_or_default(),
        })
    };
    Seen {
        in_recovery: it.in_recovery,
        position: it.position,
        replay_lag_bytes: it.replay_lag_bytes(),
        receiver: it.receiver.map(receiver),
        senders: it.senders.into_iter().filter_map(sender).collect(),
        sync_names: it.sync_names,
        overrides: it.overrides,
        disk_free_bytes: it.disk_free_bytes,
    }
}

/// As it is declared: the server knows an address of IPv6 without its brackets.
fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Whole milliseconds of it.
pub fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whom a standby streams from is found by the declared address.
    #[test]
    fn an_address_reads_as_it_is_declared() {
        assert_eq!(address("2001:db8::2", 5432), "[2001:db8::2]:5432");
        assert_eq!(address("db-2.example.org", 5433), "db-2.example.org:5433");
        assert_eq!(address("10.0.2.1", 5432), "10.0.2.1:5432");
    }
}
