//! Sessions through a proxy: new ones while nobody takes writes, and one that is open.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// Asks a server of PostgreSQL whether it speaks TLS: the shortest question that it answers itself, and
/// no proxy for it.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
/// A client's own patience.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two new sessions while nobody takes writes, when most are refused at once.
const DENSE: Duration = Duration::from_millis(1);
/// And else: each costs the server a process.
const SPARSE: Duration = Duration::from_millis(100);

/// A session that a server has answered on.
pub async fn open(address: &str) -> std::io::Result<TcpStream> {
    let late = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
    let opened = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        stream.write_all(&SSL_REQUEST).await?;
        stream.read_u8().await?;
        Ok(stream)
    };
    tokio::time::timeout(PATIENCE, opened).await.map_err(late)?
}

/// When a session ends that nobody uses.
pub fn watch(mut stream: TcpStream) -> JoinHandle<Instant> {
    tokio::spawn(async move {
        let mut byte = [0];
        // The end, or an error: both are one.
        while stream.read(&mut byte).await.is_ok_and(|read| read > 0) {}
        Instant::now()
    })
}

/// New sessions, one after the other without waiting for the one before.
pub struct Prober {
    dense: Arc<AtomicBool>,
    answered: Arc<Mutex<Vec<Instant>>>,
    task: JoinHandle<()>,
}

impl Prober {
    /// Begins.
    pub fn start(address: String) -> Self {
        let (dense, answered) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (often, kept) = (dense.clone(), Arc::clone(&answered));
        let task = tokio::spawn(async move {
            let mut attempts = tokio::task::JoinSet::new();
            loop {
                let (address, kept): (String, Arc<Mutex<Vec<Instant>>>) =
                    (address.clone(), Arc::clone(&kept));
                attempts.spawn(async move {
                    if open(&address).await.is_ok() {
                        kept.lock().push(Instant::now());
                    }
                });
                while attempts.try_join_next().is_some() {}
                let rest = if often.load(Ordering::Relaxed) { DENSE } else { SPARSE };
                tokio::time::sleep(rest).await;
            }
        });
        Self { dense, answered, task }
    }

    /// How often it asks.
    pub fn is_dense(&self, dense: bool) {
        self.dense.store(dense, Ordering::Relaxed);
    }

    /// The first answer after `since`.
    pub fn first_after(&self, since: Instant) -> Option<Instant> {
        self.answered.lock().iter().copied().filter(|at| *at > since).min()
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.task.abort();
    }
}
