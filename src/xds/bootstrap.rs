//! What Envoy is started with: who it is, where the nodes are, and where it is to listen. Listeners,
//! clusters and endpoints come from the nodes.

use std::path::Path;

use serde_json::{Value, json};

/// Name of the cluster of nodes.
const NODES: &str = "regent-nodes";

/// Where Envoy listens for a service.
#[derive(Clone, Debug)]
pub struct Listens<'a> {
    /// The service.
    pub service: &'a str,
    /// For writes, as `host:port`.
    pub write: &'a str,
    /// For reads.
    pub read: &'a str,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// What it calls itself.
    pub id: &'a str,
    /// Where it is: the nearest endpoints come first.
    pub region: &'a str,
    /// See `region`.
    pub zone: &'a str,
}

/// How it reaches the nodes: by a certificate that may read services (of role `router`).
#[derive(Clone, Debug)]
pub struct Nodes<'a> {
    /// Each as `host:port`.
    pub endpoints: &'a [String],
    /// Whose certificates they have.
    pub trust_domain: &'a str,
    /// Its own certificate.
    pub cert: &'a Path,
    /// The key of that.
    pub key: &'a Path,
    /// Whom it trusts.
    pub ca: &'a Path,
}

/// The bootstrap of an Envoy.
///
/// # Errors
/// The endpoint that is no `host:port`.
pub fn envoy(nodes: &Nodes<'_>, who: &Who<'_>, listens: &Listens<'_>) -> Result<Value, String> {
    let endpoints: Vec<Value> =
        nodes.endpoints.iter().map(|node| endpoint(node)).collect::<Result<_, _>>()?;
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
                "typed_config": tls(nodes),
            },
        }] },
    }))
}

fn endpoint(node: &str) -> Result<Value, String> {
    let bad = || format!("{node:?} is no host:port");
    let (host, port) = node.rsplit_once(':').ok_or_else(bad)?;
    let port: u16 = port.parse().map_err(|_| bad())?;
    let address = json!({ "address": host.trim_matches(['[', ']']), "port_value": port });
    Ok(json!({ "endpoint": { "address": { "socket_address": address } } }))
}

fn tls(nodes: &Nodes<'_>) -> Value {
    let file = |path: &Path| json!({ "filename": path });
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
                "certificate_chain": file(nodes.cert),
                "private_key": file(nodes.key),
            }],
            "validation_context": {
                "trusted_ca": file(nodes.ca),
                "match_typed_subject_alt_names": [{
                    "san_type": "URI",
                    "matcher": { "prefix": format!("spiffe://{}/node/", nodes.trust_domain) },
                }],
            },
        },
    })
}
