//! The configuration file of an agent, as `regent agent --config` reads it.
//!
//! Own types, as for the nodes: the lab stands below the agent in the order of crates.

use std::path::PathBuf;

use serde::Serialize;

use super::{Databases, LabInstance};
use crate::layout::Lab;

/// How often an agent tells what it sees. Its own default is for networks; on loopback a failover
/// should not wait for a report.
const REPORT_MS: u64 = 200;

#[derive(Serialize)]
struct AgentFile {
    service: String,
    instance: String,
    nodes: Vec<String>,
    state_dir: PathBuf,
    report_interval_ms: u64,
    tls: Tls,
    http: Http,
    postgres: Postgres,
}

#[derive(Serialize)]
struct Tls {
    cert: PathBuf,
    key: PathBuf,
    ca: PathBuf,
    trust_domain: String,
}

#[derive(Serialize)]
struct Http {
    address: String,
}

#[derive(Serialize)]
struct Postgres {
    data_dir: PathBuf,
    listen_host: String,
    port: u16,
    passfile: PathBuf,
    tls: ServerTls,
    bin_dir: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_as: Option<String>,
}

#[derive(Serialize)]
struct ServerTls {
    cert: PathBuf,
    key: PathBuf,
    ca: PathBuf,
}

/// The name in an agent's certificate.
pub fn identity(service: &str, instance: &str) -> String {
    format!("{service}/{instance}")
}

/// The file's text.
///
/// # Errors
/// The serializer's; a path that is no UTF-8.
pub fn text(
    lab: &Lab,
    databases: &Databases,
    instance: &LabInstance,
) -> Result<String, toml::ser::Error> {
    let pki = lab.pki_dir();
    // As the authority names files: a slash cannot be in a name.
    let stem = format!("agent-{}+{}", databases.service, instance.id);
    toml::to_string(&AgentFile {
        service: databases.service.clone(),
        instance: instance.id.clone(),
        nodes: lab.endpoints(),
        state_dir: instance.state_dir(),
        report_interval_ms: REPORT_MS,
        tls: Tls {
            cert: pki.join(format!("{stem}.crt")),
            key: pki.join(format!("{stem}.key")),
            ca: pki.join("bundle.crt"),
            trust_domain: lab.trust_domain.clone(),
        },
        http: Http { address: instance.http.clone() },
        postgres: Postgres {
            data_dir: instance.data_dir(),
            listen_host: instance.host.clone(),
            port: instance.port,
            passfile: instance.passfile(),
            tls: ServerTls {
                cert: instance.server("crt"),
                key: instance.server("key"),
                ca: instance.server("ca"),
            },
            bin_dir: databases.bin_dir.clone(),
            run_as: databases.run_as.clone(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::databases::tests::lab;

    #[test]
    fn an_agents_file_has_every_key_of_the_contract() {
        let lab = lab();
        let databases = lab.databases.as_ref().expect("it has some");
        let text = text(&lab, databases, &databases.instances[1]).expect("plain data");
        let file: toml::Table = text.parse().expect("TOML");
        assert_eq!(file["service"].as_str(), Some("orders"));
        assert_eq!(file["instance"].as_str(), Some("pg2"));
        assert_eq!(file["nodes"].as_array().map(Vec::len), Some(1));
        assert_eq!(file["state_dir"].as_str(), Some("/lab/pg2/agent"));
        assert_eq!(file["tls"]["cert"].as_str(), Some("/lab/pki/agent-orders+pg2.crt"));
        assert_eq!(file["http"]["address"].as_str(), Some("127.0.0.1:22002"));
        let postgres = &file["postgres"];
        assert_eq!(postgres["data_dir"].as_str(), Some("/lab/pg2/data"));
        assert_eq!(postgres["port"].as_integer(), Some(23_002));
        assert_eq!(postgres["passfile"].as_str(), Some("/lab/pg2/regent.pgpass"));
        assert_eq!(postgres["run_as"].as_str(), Some("postgres"));
    }
}
