//! Connection strings of libpq, and of drivers that read the same words: all instances, and the
//! client asks each what it is.
//!
//! Who writes asks for a session that takes writes, which only the primary gives, so the string
//! needs no change for as long as the instances are the declared ones.

use super::haproxy::Server;

/// Seconds for one instance; libpq takes less than two for two.
const CONNECT_TIMEOUT_S: u32 = 2;

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The primary.
    Write,
    /// A standby, or the primary where there is none (libpq 14 and later).
    Read,
}

/// The string; whoever uses it adds database, user and how to verify the server.
pub fn render(servers: &[Server], want: Want) -> String {
    let parts =
        servers.iter().map(|one| one.address.rsplit_once(':').unwrap_or((&one.address, "")));
    let (hosts, ports): (Vec<_>, Vec<_>) =
        parts.map(|(host, port)| (host.trim_matches(['[', ']']), port)).unzip();
    let attrs = match want {
        Want::Write => "read-write",
        Want::Read => "prefer-standby",
    };
    format!(
        "host={} port={} target_session_attrs={attrs} connect_timeout={CONNECT_TIMEOUT_S}",
        hosts.join(","),
        ports.join(",")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instance_is_named_and_asked_what_it_is() {
        let server = |name: &str, address: &str| Server {
            name: name.parse().expect("a name"),
            address: address.into(),
            health: String::new(),
        };
        let servers = [server("pg1", "10.0.1.1:5432"), server("pg2", "[2001:db8::2]:5433")];
        assert_eq!(
            render(&servers, Want::Write),
            "host=10.0.1.1,2001:db8::2 port=5432,5433 target_session_attrs=read-write \
             connect_timeout=2"
        );
        assert!(render(&servers, Want::Read).contains("prefer-standby"));
    }
}
