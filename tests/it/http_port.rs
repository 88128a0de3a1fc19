//! The HTTP port: health and metrics, for those whom the trust domain knows and for nobody else.

use std::path::Path;
use std::process::Command;

use regent_lab::layout::Pair;

use crate::cluster::{Cluster, REGENT, until};
use crate::own::{Own, edit, said};

/// One question to a node's HTTP port with another TLS stack than ours.
pub fn ask(address: &str, ca: &Path, pair: Option<&Pair>, paths: &[&str]) -> serde_json::Value {
    let root = env!("CARGO_MANIFEST_DIR");
    let python = format!("{root}/target/tools/venv/bin/python");
    let none = Pair { cert: "-".into(), key: "-".into() };
    let pair = pair.unwrap_or(&none);
    let out = Command::new(&python)
        .arg(format!("{root}/tests/it/python/https.py"))
        .arg(address)
        .args([ca, &pair.cert, &pair.key])
        .args(paths)
        .output()
        .unwrap_or_else(|e| panic!("{python}: {e}; run `make setup` first"));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    serde_json::from_str(text.lines().last().unwrap_or_default())
        .unwrap_or_else(|e| panic!("{e}: {text}{}", String::from_utf8_lossy(&out.stderr)))
}

/// What `/readyz` of a node says, with the status code.
pub fn readiness(cluster: &Cluster, id: u64) -> (u64, String) {
    let certificates = cluster.lab.certificates();
    let address = &cluster.lab.node(id).unwrap().http;
    let got = ask(address, &certificates.ca, Some(&certificates.auditor), &["/readyz"]);
    let answer = &got["answers"][0];
    (answer[0].as_u64().unwrap_or(0), answer[2].as_str().unwrap_or_default().to_owned())
}

fn run(args: &[&str]) {
    let out = Command::new(REGENT).args(args).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_metrics_answer_whom_the_trust_domain_knows_and_nobody_else() {
    let cluster = Cluster::up("http", 1).await;
    let certificates = cluster.lab.certificates();
    let address = cluster.lab.nodes[0].http.clone();
    // The least of the roles: whoever may ask for the status may ask for metrics.
    let client = &certificates.client;
    let got = ask(&address, &certificates.ca, Some(client), &["/livez", "/readyz", "/metrics"]);
    assert_eq!(got["answers"][0][0], 200, "{got}");
    assert_eq!(got["answers"][0][2], "ok\n", "{got}");
    assert_eq!(got["answers"][1][0], 200, "{got}");
    assert_eq!(got["answers"][2][0], 200, "{got}");
    let kind = got["answers"][2][1].as_str().unwrap();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    let metrics = got["answers"][2][2].as_str().unwrap();
    assert!(metrics.contains("regent_process_build_info{") && metrics.ends_with("# EOF\n"));

    let nameless = ask(&address, &certificates.ca, None, &["/livez"]);
    assert!(nameless["refused"].is_string(), "answered without a certificate: {nameless}");
    // A good certificate, of somebody else's authority.
    let other = cluster.scratch.path().join("other");
    let dir = other.to_str().unwrap();
    run(&["pki", "init", "--dir", dir, "--trust-domain", "other.example"]);
    run(&["pki", "issue", "admin", "eve", "--dir", dir]);
    let eve = Pair { cert: other.join("admin-eve.crt"), key: other.join("admin-eve.key") };
    let stranger = ask(&address, &certificates.ca, Some(&eve), &["/livez"]);
    assert!(stranger["refused"].is_string(), "answered a stranger: {stranger}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_health_is_served_on_loopback_and_refused_where_others_could_read_it() {
    let mut cluster = Cluster::up("plaintext", 1).await;
    let node = cluster.lab.nodes[0].clone();
    cluster.kill(node.id).await;
    edit(&node.config, |text| text.replace("[listen]", "[listen]\nhttp_plaintext = true"));
    let good = std::fs::read_to_string(&node.config).unwrap();
    let port = node.http.rsplit_once(':').unwrap().1;
    edit(&node.config, |text| text.replace(&node.http, &format!("0.0.0.0:{port}")));
    let config = node.config.to_str().unwrap();
    // The check, which starts nothing, and the start say the same.
    for args in [["server", "--check", "--config", config], ["server", "--config", config, "-v"]] {
        let out = Command::new(REGENT).args(args).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains("http_plaintext") && said.contains("loopback"), "{said}");
    }
    std::fs::write(&node.config, good).unwrap();
    let _own = Own::instead(&mut cluster, node.id);
    until("an answer in plaintext", async || {
        use std::io::{Read as _, Write as _};
        let Ok(mut stream) = std::net::TcpStream::connect(&node.http) else { return false };
        let question = b"GET /livez HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n";
        let mut answer = String::new();
        stream.write_all(question).is_ok()
            && stream.read_to_string(&mut answer).is_ok()
            && answer.starts_with("HTTP/1.1 200")
    })
    .await;
    assert!(!said(&node).contains("panicked"));
}
