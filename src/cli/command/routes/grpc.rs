//! What clients within a gRPC library are started with: the nodes, how to reach them, and where the
//! client is. Everything else comes from the nodes (gRFC A27, A65).

use regent_xds::bootstrap::Who;
use serde_json::{Value, json};

use crate::connect::Settings;

/// The bootstrap, with the certificate of these settings: it should be a router's.
///
/// `nodes_at` stands for all nodes. Without it each node is a server of its own, and then a client
/// leaves one that is gone only if it lacks something (gRFC A71): who has all that it asked for goes
/// on with that, and hears of no flip until this same node is back.
pub fn grpc(settings: &Settings, who: &Who<'_>, nodes_at: Option<&str>) -> Value {
    let file = |path: &std::path::Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
    let credentials = json!([{
        "type": "tls",
        "config": {
            "certificate_file": file(&settings.cert),
            "private_key_file": file(&settings.key),
            "ca_certificate_file": file(&settings.ca),
        },
    }]);
    let all: Vec<&str> = match nodes_at {
        Some(one) => vec![one],
        None => settings.endpoints.iter().map(String::as_str).collect(),
    };
    let server = |at: &str| {
        json!({
            "server_uri": at,
            "channel_creds": credentials,
            "server_features": ["xds_v3"],
        })
    };
    json!({
        "xds_servers": all.into_iter().map(server).collect::<Vec<_>>(),
        "node": {
            "id": who.id,
            "locality": { "region": who.region, "zone": who.zone },
        },
    })
}

/// How it is used, for whoever reads along.
pub fn usage(service: &str) -> String {
    format!(
        "save it to a file, start clients with GRPC_XDS_BOOTSTRAP=<file>, and have them dial\n\
         xds:///{service}.write or xds:///{service}.read"
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_node_is_a_server_unless_one_name_stands_for_all_and_paths_are_found_from_anywhere() {
        let settings = Settings {
            endpoints: vec!["n1:7400".into(), "n2:7400".into()],
            cert: "a.crt".into(),
            key: "/k/a.key".into(),
            ca: "/k/ca.crt".into(),
            trust_domain: None,
            timeout: std::time::Duration::from_secs(1),
        };
        let who = Who { id: "web", region: "eu", zone: "a" };
        let uris = |printed: &Value| {
            let all = printed["xds_servers"].as_array().unwrap().clone();
            all.iter().map(|one| one["server_uri"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let printed = grpc(&settings, &who, None);
        assert_eq!(uris(&printed), ["n1:7400", "n2:7400"]);
        assert_eq!(uris(&grpc(&settings, &who, Some("nodes:7400"))), ["nodes:7400"]);
        let files = &printed["xds_servers"][1]["channel_creds"][0]["config"];
        let here = std::env::current_dir().unwrap().join("a.crt");
        assert_eq!(files["certificate_file"], here.to_str().unwrap());
        assert_eq!(files["private_key_file"], "/k/a.key");
        assert_eq!(printed["node"]["locality"], json!({ "region": "eu", "zone": "a" }));
    }
}
