//! Free ports on loopback that stay free: outside the range from which the kernel takes ports for
//! outgoing connections, because a dead node's port must still be free when it is started again.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};

use rand::RngExt as _;

/// Linux gives outgoing connections 32768-60999 unless told otherwise; 20000-31999 is below that
/// and above the usual servers.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// Tries before giving up: even with half the range taken, 1,000 misses do not happen.
const TRIES: usize = 1_000;

/// Finds `count` ports nobody listens on. Somebody may still come first; the caller notices that
/// when its server does not come up, and asks again.
pub fn free(count: usize) -> Option<Vec<u16>> {
    let mut random = rand::rng();
    let mut found = BTreeSet::new();
    for _ in 0..TRIES {
        if found.len() == count {
            break;
        }
        let port = random.random_range(RANGE);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            found.insert(port);
        }
    }
    (found.len() == count).then(|| found.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_different_from_each_other_and_can_be_listened_on() {
        let ports = free(10).expect("a machine with free ports");
        let listeners: Vec<_> = ports
            .iter()
            .map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).expect("free"))
            .collect();
        assert_eq!(listeners.len(), 10);
    }
}
