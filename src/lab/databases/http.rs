//! One small HTTP request to an agent on loopback. A client library would be the largest thing in
//! this crate, for a status code and a short body.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longest answer that is read; an agent's health is far below a kilobyte.
const MOST: u64 = 64 * 1024;

/// Asks `address` (`host:port`) for `path`; `None` when no whole answer comes within `patience`.
pub async fn get(address: &str, path: &str, patience: Duration) -> Option<Answer> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut text = Vec::new();
        stream.take(MOST).read_to_end(&mut text).await.ok()?;
        parse(&String::from_utf8_lossy(&text))
    };
    tokio::time::timeout(patience, ask).await.ok()?
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub code: u16,
    /// The body.
    pub body: String,
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let code = head.lines().next()?.split_whitespace().nth(1)?.parse().ok()?;
    Some(Answer { code, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn code_and_body_of_an_answer_are_read_and_silence_is_none() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it has one").to_string();
        tokio::spawn(async move {
            let (mut first, _) = listener.accept().await.expect("a client");
            let mut seen = [0; 1024];
            let count = first.read(&mut seen).await.expect("a request");
            assert!(seen[..count].starts_with(b"GET /primary HTTP/1.1\r\n"));
            first
                .write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno")
                .await
                .expect("it listens");
            drop(first);
            // The second is never answered.
            let (_second, _) = listener.accept().await.expect("a client");
            tokio::time::sleep(Duration::from_secs(60)).await;
        });
        let patience = Duration::from_secs(10);
        let answer = get(&address, "/primary", patience).await;
        assert_eq!(answer, Some(Answer { code: 503, body: "no".into() }));
        assert_eq!(get(&address, "/primary", Duration::from_millis(50)).await, None);
    }
}
