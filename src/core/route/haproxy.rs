//! A whole configuration of HAProxy for one service: a port for writes, a port for reads.
//!
//! HAProxy asks each instance's agent what it is. It cannot know of fences, so the order of a flip
//! is the role change's: the old primary says no before the new one may say yes. Its own traps:
//!
//! - Each server is polled in a rhythm of its own, and every server counts as up until its first
//!   check. So the write port takes nobody while more than one server is up.
//! - A server that is marked down keeps its sessions unless told otherwise; they must be cut.
//! - It tries a refused connection again after a second, on the same server: no retries here, the
//!   client's next attempt comes sooner.
//! - Without `maxconn` it makes room for as many sessions as the process may have files, which in
//!   some containers is a thousand million.

use std::fmt::Write as _;

use super::fitness::MAX_READ_LAG_BYTES;
use crate::id::{InstanceName, ServiceName};

/// How long an agent may take to answer a check: its host may be busy, and a false "down" cuts
/// every session.
const CHECK_TIMEOUT_MS: u64 = 500;
/// How long an instance may take to accept a connection.
const CONNECT_TIMEOUT_MS: u64 = 1_000;
/// A session that says nothing for so long is ended; keepalives end those of dead peers sooner.
const IDLE_HOURS: u64 = 24;
/// Reads bear a missed answer: they are not moved by one.
const READ_FALL: u32 = 2;
/// How many times slower it asks by HTTP beside agent-check.
const BESIDE_SLOWER: u64 = 2;
/// How many times slower the read port asks; a standby that is late to leave costs one error.
const READ_SLOWER: u64 = 5;

/// What is asked of HAProxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The service; names the two ports in what HAProxy says.
    pub service: ServiceName,
    /// `host:port` where clients write.
    pub write: String,
    /// `host:port` where clients read.
    pub read: String,
    /// How often an instance is asked whether it is primary, in milliseconds. A flip costs half of
    /// it on average, all of it at worst.
    pub check_interval_ms: u64,
    /// How an instance is asked.
    pub ask: Ask,
    /// A Unix socket for whoever tells HAProxy of flips; whoever may write to it may do anything.
    pub socket: Option<String>,
    /// Most sessions at once, over both ports.
    pub max_sessions: u32,
    /// The instances, in the order of the declaration.
    pub servers: Vec<Server>,
}

/// How HAProxy asks an agent what its instance is. Both cut sessions when the answer changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// By a request of HTTP.
    Http,
    /// By agent-check, whose answers carry a weight and a reason that its statistics show; a request
    /// of HTTP beside it notices an agent that answers nothing, which agent-check does not.
    AgentCheck,
}

/// An instance, as a router reaches it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its name.
    pub name: InstanceName,
    /// `host:port` for clients.
    pub address: String,
    /// `host:port` where its agent answers HTTP; the host is an IP address where it is another.
    pub health: String,
}

/// The configuration's text. It says neither who runs HAProxy nor where its files are: that is the
/// business of whoever starts it.
pub fn render(plan: &Plan) -> String {
    let mut text = String::new();
    let mut line = |words: String| {
        // Writing into a string cannot fail.
        let _ = writeln!(text, "{words}");
    };
    let (service, every) = (&plan.service, plan.check_interval_ms);
    line(format!("# Service {service}, as Regent wrote it. It is replaced, not edited."));
    line("global".to_owned());
    line(format!("    maxconn {}", plan.max_sessions));
    if let Some(socket) = &plan.socket {
        line(format!("    stats socket {socket} mode 600 level admin"));
    }
    line(String::new());
    line("defaults".to_owned());
    line("    mode tcp".to_owned());
    line("    # A client's own next attempt is sooner than HAProxy's.".to_owned());
    line("    retries 0".to_owned());
    line(format!("    timeout connect {CONNECT_TIMEOUT_MS}ms"));
    line(format!("    timeout check {CHECK_TIMEOUT_MS}ms"));
    line(format!("    timeout client {IDLE_HOURS}h"));
    line(format!("    timeout server {IDLE_HOURS}h"));
    line("    option clitcpka".to_owned());
    line("    option srvtcpka".to_owned());
    line("    option httpchk".to_owned());
    line("    http-check expect status 200".to_owned());
    line(String::new());
    line(format!("listen {service}-write"));
    line(format!("    bind {}", plan.write));
    line(
        "    # Each server is asked in its own rhythm, and is up until its first answer."
            .to_owned(),
    );
    line(format!("    tcp-request connection reject unless {{ nbsrv({service}-write) eq 1 }}"));
    line(format!("    http-check send meth GET uri {}", asked(plan.ask, "/primary")));
    line(default_server(plan.ask, every, 1));
    plan.servers.iter().for_each(|one| line(server(one, plan.ask, "write", every)));
    line(String::new());
    line(format!("listen {service}-read"));
    line(format!("    bind {}", plan.read));
    line("    balance leastconn".to_owned());
    let replica = format!("/replica?lag={MAX_READ_LAG_BYTES}");
    line(format!("    http-check send meth GET uri {}", asked(plan.ask, &replica)));
    let slower = every.saturating_mul(READ_SLOWER);
    line(default_server(plan.ask, slower, READ_FALL));
    plan.servers.iter().for_each(|one| line(server(one, plan.ask, "read", slower)));
    text
}

/// What is asked by HTTP. Beside agent-check only whether the agent answers at all: a server is up when
/// both say so, and the slower one would delay each flip.
fn asked(ask: Ask, path: &str) -> &str {
    match ask {
        Ask::Http => path,
        Ask::AgentCheck => "/liveness",
    }
}

fn default_server(ask: Ask, every: u64, fall: u32) -> String {
    // An agent that does not answer at all is as urgent to neither.
    let every = match ask {
        Ask::Http => every,
        Ask::AgentCheck => every.saturating_mul(BESIDE_SLOWER),
    };
    format!(
        "    default-server inter {every}ms fastinter {every}ms downinter {every}ms rise 1 \
         fall {fall} on-marked-down shutdown-sessions"
    )
}

fn server(server: &Server, ask: Ask, side: &str, every: u64) -> String {
    let host_of = |address: &str| address.rsplit_once(':').map(|(host, _)| host.to_owned());
    let port = server.health.rsplit_once(':').map_or("", |(_, port)| port);
    let elsewhere =
        host_of(&server.health).filter(|host| host_of(&server.address).as_ref() != Some(host));
    let addr = elsewhere.as_ref().map(|host| format!(" addr {host}")).unwrap_or_default();
    let agent = match ask {
        Ask::Http => String::new(),
        Ask::AgentCheck => {
            let host = elsewhere.map(|host| format!(" agent-addr {host}")).unwrap_or_default();
            format!(
                " agent-check{host} agent-port {port} agent-inter {every}ms agent-send \"{side}\\n\""
            )
        }
    };
    format!("    server {} {} check{addr} port {port}{agent}", server.name, server.address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(name: &str, address: &str, health: &str) -> Server {
        let name = InstanceName::parse(name).expect("a name");
        Server { name, address: address.into(), health: health.into() }
    }

    fn kept(plan: &Plan, file: &str) {
        let golden = format!("{}/testdata/{file}", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&golden, render(plan)).expect("it can be written");
        }
        assert_eq!(render(plan), std::fs::read_to_string(golden).expect("it is kept"));
    }

    #[test]
    fn the_configurations_are_as_kept() {
        let plan = Plan {
            ask: Ask::Http,
            socket: None,
            service: ServiceName::parse("orders").expect("a name"),
            write: "127.0.0.1:6432".into(),
            read: "127.0.0.1:6433".into(),
            check_interval_ms: 50,
            max_sessions: 400,
            servers: vec![
                server("pg1", "10.0.1.1:5432", "10.0.1.1:8008"),
                server("pg2", "db-2.example.org:5432", "10.0.2.1:8008"),
            ],
        };
        kept(&plan, "haproxy.cfg");
        let socket = Some("/run/haproxy/admin.sock".to_owned());
        kept(&Plan { ask: Ask::AgentCheck, socket, ..plan }, "haproxy_agent.cfg");
    }
}
