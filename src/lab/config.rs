//! The configuration file of a lab's node, as `regent server --config` reads it.
//!
//! Own types, not the node's: the lab stands below the node in the order of crates, and a test of
//! the whole binary shows that the two agree.

use std::path::PathBuf;

use serde::Serialize;

use crate::layout::{Lab, LabNode};

#[derive(Serialize)]
struct NodeFile {
    node_id: u64,
    cluster: String,
    data_dir: PathBuf,
    profile: &'static str,
    label: String,
    listen: Listen,
    locality: Place,
    tls: Tls,
    initial_members: Vec<Member>,
}

#[derive(Serialize)]
struct Listen {
    grpc: String,
    http: String,
}

#[derive(Serialize)]
struct Place {
    region: &'static str,
    zone: String,
    host: String,
}

#[derive(Serialize)]
struct Tls {
    cert: PathBuf,
    key: PathBuf,
    ca: PathBuf,
    trust_domain: String,
    revoked: PathBuf,
}

#[derive(Serialize)]
struct Member {
    id: u64,
    address: String,
    http_address: String,
    label: String,
    locality: Place,
}

fn place(node: &LabNode) -> Place {
    Place { region: "lab", zone: node.zone.clone(), host: format!("host-{}", node.id) }
}

fn label(node: &LabNode) -> String {
    format!("lab node {}", node.id)
}

/// The file's text.
///
/// # Errors
/// The serializer's; a path that is no UTF-8.
pub fn text(lab: &Lab, node: &LabNode) -> Result<String, toml::ser::Error> {
    let pki = lab.pki_dir();
    let members = lab.nodes.iter().map(|member| Member {
        id: member.id,
        address: member.grpc.clone(),
        http_address: member.http.clone(),
        label: label(member),
        locality: place(member),
    });
    toml::to_string(&NodeFile {
        node_id: node.id,
        cluster: lab.cluster.clone(),
        data_dir: node.data_dir.clone(),
        profile: lab.profile.as_str(),
        label: label(node),
        listen: Listen { grpc: node.grpc.clone(), http: node.http.clone() },
        locality: place(node),
        tls: Tls {
            cert: pki.join(format!("node-{}.crt", node.id)),
            key: pki.join(format!("node-{}.key", node.id)),
            ca: pki.join("bundle.crt"),
            trust_domain: lab.trust_domain.clone(),
            revoked: lab.revoked(),
        },
        initial_members: members.collect(),
    })
}
