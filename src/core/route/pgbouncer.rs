//! A configuration of PgBouncer for one service, and the file of its databases, which is written
//! anew at each flip.
//!
//! PgBouncer can hold its clients while nobody takes writes (PAUSE) and let them go on elsewhere
//! (RESUME), so a planned change is a delay to them and no error. Its own traps:
//!
//! - It pauses when every server connection is free: with pools by session that is when the last
//!   client has left. So pools are by transaction.
//! - After one failed login it tries no server for 15 seconds, by default.
//! - A server that is gone without a word is noticed when the kernel gives up, after minutes.

use std::fmt::Write as _;

use crate::id::{Epoch, ServiceName};

/// Seconds for one server to accept a connection.
const CONNECT_TIMEOUT_S: u32 = 2;
/// Seconds until a server that refused is tried again.
const LOGIN_RETRY_S: &str = "0.2";
/// After how many milliseconds without an acknowledgement a server is gone.
const USER_TIMEOUT_MS: u32 = 5_000;

/// What is asked of PgBouncer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The service.
    pub service: ServiceName,
    /// `host:port` where clients connect.
    pub listen: String,
    /// The file of its databases.
    pub databases: String,
    /// The file of its users.
    pub users: String,
    /// Directory of its Unix socket, if it is not where its package has it.
    pub socket: Option<String>,
    /// Most sessions at once.
    pub max_sessions: u32,
}

/// The configuration's text. It says neither who runs PgBouncer nor where it logs.
pub fn render(plan: &Plan) -> String {
    let (host, port) = plan.listen.rsplit_once(':').unwrap_or((&plan.listen, "6432"));
    let socket = plan.socket.as_ref().map(|dir| format!("unix_socket_dir = {dir}\n"));
    format!(
        "; Service {service}, as Regent wrote it. It is replaced, not edited.\n\
         ; Who takes writes stands in this file, which `regent pgbouncer-sync` writes.\n\
         %include {databases}\n\
         \n\
         [pgbouncer]\n\
         listen_addr = {host}\n\
         listen_port = {port}\n\
         {socket}\
         auth_type = scram-sha-256\n\
         auth_file = {users}\n\
         ; Whom its console obeys, if the file above has them.\n\
         admin_users = regent\n\
         ; By session, it could not pause before the last client has left.\n\
         pool_mode = transaction\n\
         max_client_conn = {max}\n\
         server_connect_timeout = {CONNECT_TIMEOUT_S}\n\
         ; A new primary must not wait because the old one refused.\n\
         server_login_retry = {LOGIN_RETRY_S}\n\
         server_fast_close = 1\n\
         ; A host that is gone without a word.\n\
         tcp_keepalive = 1\n\
         tcp_user_timeout = {USER_TIMEOUT_MS}\n\
         ignore_startup_parameters = extra_float_digits\n",
        service = plan.service,
        databases = plan.databases,
        host = host.trim_matches(['[', ']']),
        socket = socket.unwrap_or_default(),
        users = plan.users,
        max = plan.max_sessions,
    )
}

/// The file of its databases: all of them at one instance.
pub fn databases(
    service: &ServiceName,
    epoch: Epoch,
    names: &[String],
    address: &str,
    settings: &str,
) -> String {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "5432"));
    let host = host.trim_matches(['[', ']']);
    let mut text =
        format!("; Service {service}, epoch {epoch}: as Regent wrote it.\n[databases]\n");
    for name in names {
        let more = if settings.is_empty() { String::new() } else { format!(" {settings}") };
        // Writing into a string cannot fail.
        let _ = writeln!(text, "{name} = host={host} port={port} dbname={name}{more}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Revision;

    fn orders() -> ServiceName {
        ServiceName::parse("orders").expect("a name")
    }

    #[test]
    fn the_configuration_is_as_kept() {
        let plan = Plan {
            service: orders(),
            listen: "127.0.0.1:6432".into(),
            databases: "/etc/pgbouncer/orders.ini".into(),
            users: "/etc/pgbouncer/userlist.txt".into(),
            socket: Some("/run/pgbouncer".into()),
            max_sessions: 400,
        };
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/pgbouncer.ini");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(golden, render(&plan)).expect("it can be written");
        }
        assert_eq!(render(&plan), std::fs::read_to_string(golden).expect("it is kept"));
    }

    #[test]
    fn all_databases_are_at_one_instance() {
        let epoch = Epoch { incarnation: 1, revision: Revision(16) };
        let names = ["app".to_owned(), "stats".to_owned()];
        let text = databases(&orders(), epoch, &names, "[2001:db8::2]:5433", "pool_size=5");
        assert_eq!(
            text,
            "; Service orders, epoch 1.16: as Regent wrote it.\n[databases]\n\
             app = host=2001:db8::2 port=5433 dbname=app pool_size=5\n\
             stats = host=2001:db8::2 port=5433 dbname=stats pool_size=5\n"
        );
    }
}
