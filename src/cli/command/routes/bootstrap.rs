//! What Envoy is started with: who it is, where the nodes are, and where it is to listen. Listeners,
//! clusters and endpoints come from the nodes.

use serde_json::{Value, json};

use super::grpc::Who;
use crate::connect::{Dialer, Settings};
use crate::error::{CliError, Outcome};

/// Name of the cluster of nodes.
const NODES: &str = "regent-nodes";

/// Where Envoy listens for a service.
#[derive(Clone, Debug)]
pub struct Listens<'a> {
    /// The service.
    pub service: &'a str,
    /// For writes.
    pub write: &'a str,
    /// For reads.
    pub read: &'a str,
}

/// The bootstrap; with the certificate of these settings, which must be of a role that may read
/// services: `router`.
///
/// # Errors
/// A node's address is none, or the certificate cannot be used.
pub fn envoy(settings: &Settings, who: &Who<'_>, listens: &Listens<'_>) -> Outcome<Value> {
    let endpoints: Vec<Value> =
        settings.endpoints.iter().map(|node| endpoint(node)).collect::<Outcome<_>>()?;
    let (service, sides) =
        (listens.service, json!({ "write": listens.write, "read": listens.read }));
    let from_nodes = json!({ "resource_api_version": "V3", "ads": {} });
    Ok(json!({
        "node": {
            "id": who.id,
            "cluster": "regent",
            "locality": { "region": who.region, "zone": who.zone },
            "metadata": { "regent": { "services": { service: sides } } },
        },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": NODES } }],
            },
            "lds_config": from_nodes,
            "cds_config": from_nodes,
        },
        "static_resources": { "clusters": [{
            "name": NODES,
            "type": "STRICT_DNS",
            "connect_timeout": "1s",
            "load_assignment": {
                "cluster_name": NODES,
                "endpoints": [{ "lb_endpoints": endpoints }],
            },
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": { "http2_protocol_options": {
                        // A node whose host is gone says nothing: another one is asked soon.
                        "connection_keepalive": { "interval": "2s", "timeout": "2s" },
                    } },
                },
            },
            "transport_socket": {
                "name": "envoy.transport_sockets.tls",
                "typed_config": tls(settings, &Dialer::new(settings)?.trust()),
            },
        }] },
    }))
}

fn endpoint(node: &str) -> Outcome<Value> {
    let bad = || CliError::usage(format!("{node:?} is no host:port"));
    let (host, port) = node.rsplit_once(':').ok_or_else(bad)?;
    let port: u16 = port.parse().map_err(|_| bad())?;
    let address = json!({ "address": host.trim_matches(['[', ']']), "port_value": port });
    Ok(json!({ "endpoint": { "address": { "socket_address": address } } }))
}

fn tls(settings: &Settings, trust: &str) -> Value {
    let file = |path: &std::path::Path| json!({ "filename": path });
    json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            // As a client Envoy speaks up to 1.2 unless told otherwise, and nodes nothing below 1.3.
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_3",
                "tls_maximum_protocol_version": "TLSv1_3",
            },
            "tls_certificates": [{
                "certificate_chain": file(&settings.cert),
                "private_key": file(&settings.key),
            }],
            "validation_context": {
                "trusted_ca": file(&settings.ca),
                "match_typed_subject_alt_names": [{
                    "san_type": "URI",
                    "matcher": { "prefix": format!("spiffe://{trust}/node/") },
                }],
            },
        },
    })
}
