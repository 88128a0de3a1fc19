//! Strangers who send anything at all to a port: whoever is let in is served meanwhile.

use std::time::{Duration, Instant};

use regent_rpc::convert::common::Freshness;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::raw::Raw;
use crate::cluster::{Cluster, mark, marks};
use crate::http_port::ask;

/// Bytes without sense, the same each time.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let next = std::iter::repeat_with(move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    });
    next.take(bytes).collect()
}

/// What a stranger sends first; it holds the connection until that is closed at the other end.
async fn send(address: String, bytes: Vec<u8>) {
    let Ok(mut stream) = TcpStream::connect(&address).await else { return };
    let _ = stream.write_all(&bytes).await;
    let mut answer = vec![0; 4_096];
    while stream.read(&mut answer).await.is_ok_and(|read| read > 0) {}
}

/// One byte after the other, and never the end.
async fn drip(address: String, bytes: Vec<u8>) {
    let Ok(mut stream) = TcpStream::connect(&address).await else { return };
    for byte in bytes.iter().cycle() {
        if stream.write_all(&[*byte]).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Strangers of every sort at a port, for as long as the tasks live; each comes again.
pub fn besiege(address: &str) -> JoinSet<()> {
    let hello = [vec![22, 3, 1, 0x40, 0], noise(3, 16_000)].concat();
    let giant = format!("GET /health HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    let sorts: [(Vec<u8>, usize); 7] = [
        (noise(1, 64 * 1024), 8),
        (hello, 8),
        // The first byte of a handshake, and nothing more.
        (vec![22], 100),
        (Vec::new(), 100),
        (giant.into_bytes(), 8),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), 8),
        (b"write".to_vec(), 8),
    ];
    let mut strangers = JoinSet::new();
    for (bytes, many) in sorts {
        for _ in 0..many {
            let (address, bytes) = (address.to_owned(), bytes.clone());
            strangers.spawn(async move {
                loop {
                    send(address.clone(), bytes.clone()).await;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            });
        }
    }
    for first in [b"GET /health HTTP/1.1\r\n".to_vec(), vec![22, 3, 1, 2, 0, 1, 0, 1, 252]] {
        for _ in 0..20 {
            let (address, first) = (address.to_owned(), first.clone());
            strangers.spawn(async move {
                loop {
                    drip(address.clone(), first.clone()).await;
                }
            });
        }
    }
    strangers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_among_strangers_serves_those_who_are_let_in() {
    let cluster = Cluster::up("strangers", 1).await;
    let node = cluster.lab.nodes[0].clone();
    let process = node.process.clone().unwrap();
    let before = process.usage().unwrap().rss_kib;
    let _strangers = [besiege(&node.grpc), besiege(&node.http)];
    let certificates = cluster.lab.certificates();
    let begun = Instant::now();
    for round in 0..10 {
        // Each with connections of its own.
        let admin = cluster.client("admin");
        mark(&admin, &format!("m/{round}")).await.unwrap();
        let router = cluster.client("router");
        let mut raw = Raw::open(&router).await.unwrap();
        raw.ask("type.googleapis.com/envoy.config.cluster.v3.Cluster", &["x.write"]).await;
        raw.next().await.unwrap();
        let path = format!("/{}", "a".repeat(100_000));
        let got =
            ask(&node.http, &certificates.ca, Some(&certificates.auditor), &["/livez", &path]);
        assert_eq!(got["answers"][0][0], 200, "{got}");
    }
    // Milliseconds each; if strangers were waited for it would be minutes.
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    let kept = cluster.client("admin");
    kept.list_elections("m/", Freshness::Linearizable).await.unwrap();
    assert_eq!(marks(&kept, "m/").await.len(), 10);
    let used = process.usage().expect("it lives").rss_kib.saturating_sub(before);
    assert!(used < 96 * 1024, "{used} KiB more");
}
