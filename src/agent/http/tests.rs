//! The port for health checks over real connections.
#![allow(clippy::unwrap_used)]
use regent_core::agent::Naming;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

fn page(published: Published) -> Shared {
    Arc::new(Mutex::new(Page { published, naming: Naming::Paused }))
}

async fn served(published: Published) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, page(published)));
    address
}

/// What is answered to these bytes until the end of the connection.
async fn said(to: std::net::SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(std::time::Duration::from_secs(10), async {
        stream.read_to_end(&mut answer).await
    });
    let _ = read.await.expect("the connection ends");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn code(to: std::net::SocketAddr, method: &str, path: &str) -> u16 {
    let ask = format!("{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    let answer = said(to, ask.as_bytes()).await;
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line")
}

fn primary() -> Published {
    Published { run: "primary", open: true, answers: true, ..Published::default() }
}

fn standby(is_sync: bool) -> Published {
    Published {
        run: "standby",
        reads: true,
        takes_reads: true,
        answers: true,
        lag_bytes: 2 << 20,
        is_sync,
        ..Published::default()
    }
}

#[tokio::test]
async fn every_path_says_what_it_says_to_patronis_users() {
    let all = [
        ("/", [200, 503, 503, 503]),
        ("/primary", [200, 503, 503, 503]),
        ("/master", [200, 503, 503, 503]),
        ("/leader", [200, 503, 503, 503]),
        ("/read-write", [200, 503, 503, 503]),
        ("/replica", [503, 200, 200, 503]),
        ("/replica?lag=2097152", [503, 200, 200, 503]),
        ("/replica?lag=2MB", [503, 200, 200, 503]),
        ("/replica?lag=2047kB", [503, 503, 503, 503]),
        ("/replica?lag=much", [400, 400, 400, 400]),
        ("/sync", [503, 200, 503, 503]),
        ("/synchronous", [503, 200, 503, 503]),
        ("/async", [503, 503, 200, 503]),
        ("/asynchronous", [503, 503, 200, 503]),
        ("/read-only", [200, 200, 200, 503]),
        ("/readiness", [200, 200, 200, 503]),
        ("/health", [200, 200, 200, 503]),
        ("/liveness", [200, 200, 200, 200]),
        ("/metrics", [200, 200, 200, 200]),
        ("/other", [404, 404, 404, 404]),
    ];
    let pages = [primary(), standby(true), standby(false), Published::default()];
    for (at, published) in pages.into_iter().enumerate() {
        let to = served(published).await;
        for (path, codes) in all {
            assert_eq!(code(to, "GET", path).await, codes[at], "{path} of the {at}.");
        }
    }
    let to = served(primary()).await;
    for method in ["HEAD", "OPTIONS"] {
        assert_eq!(code(to, method, "/primary").await, 200, "{method}");
    }
    assert_eq!(code(to, "POST", "/primary").await, 405);
}

#[tokio::test]
async fn agent_check_is_answered_on_the_same_port_and_nonsense_is_cut_off() {
    let to = served(primary()).await;
    assert_eq!(said(to, b"write\n").await, "up 100%\n");
    assert!(said(to, b"read\n").await.starts_with("down #"));
    for nonsense in ["wrote\n", "write", "rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr"] {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(nonsense.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        assert!(answer.is_empty() || nonsense == "write", "{nonsense:?}: {answer:?}");
    }
    for nonsense in
        [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"GET", b"\0\0\0\0\r\n\r\n", b"G\r\n\r\n"]
    {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(nonsense).await.unwrap();
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{nonsense:?}");
    }
    assert_eq!(code(to, "GET", "/primary").await, 200, "it still serves");
}

#[tokio::test]
async fn who_says_nothing_keeps_nobody_from_being_answered() {
    let to = served(primary()).await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(to).await.unwrap());
    }
    assert_eq!(code(to, "GET", "/primary").await, 200);
}
