//! Logging in: to one host, or to the first that takes writes, each step with a deadline.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, Statement};

use super::Pace;
use crate::network;

/// How clients log in.
#[derive(Clone, Debug)]
pub struct Access {
    /// Address and port of every host, in the order of the instances.
    pub hosts: Vec<(String, u16)>,
    /// The role.
    pub user: String,
    /// Its password.
    pub password: String,
    /// The database.
    pub dbname: String,
    /// From which network namespace; `None`: the caller's.
    pub from: Option<String>,
    /// Address and port of a proxy's write port, for clients that know no host; those who ask for
    /// one host go straight to it.
    pub via: Option<(String, u16)>,
}

/// Why nobody could be reached, or what the database said.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Not in time.
    #[error("{what} took longer than {within:?}")]
    Late {
        /// What.
        what: &'static str,
        /// How long was waited.
        within: Duration,
    },
    /// The driver's or the server's.
    #[error("{what} failed: {}", told(source))]
    Postgres {
        /// What.
        what: &'static str,
        /// Why.
        source: tokio_postgres::Error,
    },
    /// It is there, but takes no writes.
    #[error("it takes no writes")]
    ReadOnly,
    /// No host takes writes.
    #[error("no host takes writes; the last one: {0}")]
    Nobody(String),
    /// A proxy led to a server that is none of the hosts.
    #[error("it is a server that nobody knows")]
    Stranger,
    /// No such host.
    #[error("there is no such host")]
    NoHost,
    /// No connection from another network namespace.
    #[error("connecting failed: {0}")]
    Socket(#[from] std::io::Error),
}

/// The server's own words; the driver says only "db error".
fn told(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(server), _) => format!("{} ({})", server.message(), server.code().code()),
        (None, Some(cause)) => format!("{error}: {cause}"),
        (None, None) => error.to_string(),
    }
}

fn failed(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> AccessError {
    move |source| AccessError::Postgres { what, source }
}

const CONNECTING: &str = "connecting";

async fn soon<T>(
    work: impl Future<Output = Result<T, AccessError>>,
    within: Duration,
) -> Result<T, AccessError> {
    let late = |_| AccessError::Late { what: CONNECTING, within };
    tokio::time::timeout(within, work).await.map_err(late)?
}

/// A socket keeps the namespace in which it was made.
fn dial(space: &str, address: &str, within: Duration) -> std::io::Result<std::net::TcpStream> {
    let connect = || -> std::io::Result<std::net::TcpStream> {
        let address = address.parse().map_err(std::io::Error::other)?;
        let stream = std::net::TcpStream::connect_timeout(&address, within)?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    network::within(Some(space), connect).and_then(|dialled| dialled)
}

/// One connection, and how many warnings the server sent on it.
pub struct Session {
    client: Client,
    /// What the server said of itself at the login, as libpq takes it; before PostgreSQL 14 nothing.
    takes_writes: Option<bool>,
    warnings: Arc<AtomicU64>,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        // Now, not when the server answers: a frozen one never does.
        self.driver.abort();
    }
}

/// What a server says without being asked, as far as it matters.
fn is_warning(notice: &tokio_postgres::error::DbError) -> bool {
    // In English whatever the server's language; older servers only have the translated one.
    notice.parsed_severity().map_or_else(
        || notice.severity() == "WARNING",
        |severity| matches!(severity, tokio_postgres::error::Severity::Warning),
    )
}

impl Session {
    async fn open(config: &Config, within: Duration) -> Result<Self, AccessError> {
        let opened = async { config.connect(NoTls).await.map_err(failed(CONNECTING)) };
        let (client, connection) = soon(opened, within).await?;
        Ok(Self::drive(client, connection))
    }

    /// The same, over a socket that another namespace has made.
    async fn open_from(
        space: &str,
        config: &Config,
        address: String,
        within: Duration,
    ) -> Result<Self, AccessError> {
        let space = space.to_owned();
        let opened = async {
            let dialled = tokio::task::spawn_blocking(move || dial(&space, &address, within));
            let stream = dialled.await.map_err(std::io::Error::other)??;
            let stream = tokio::net::TcpStream::from_std(stream)?;
            config.connect_raw(stream, NoTls).await.map_err(failed(CONNECTING))
        };
        let (client, connection) = soon(opened, within).await?;
        Ok(Self::drive(client, connection))
    }

    fn drive<S>(client: Client, mut connection: Connection<S, NoTlsStream>) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let is_off = |name: &str| connection.parameter(name).map(|value| value == "off");
        let said = is_off("in_hot_standby").zip(is_off("default_transaction_read_only"));
        let takes_writes = said.map(|(leads, writes)| leads && writes);
        let warnings = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&warnings);
        let driver = tokio::spawn(async move {
            // A notice comes before the end of the statement it belongs to, and is counted before
            // the driver hands that on: whoever has the answer sees the count.
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notice(notice) = message
                    && is_warning(&notice)
                {
                    count.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        Self { client, takes_writes, warnings, driver }
    }

    /// Whether it takes writes at all.
    async fn takes_writes(&self, within: Duration) -> Result<bool, AccessError> {
        if let Some(known) = self.takes_writes {
            return Ok(known);
        }
        let what = "asking whether it takes writes";
        let sql = "SELECT NOT pg_is_in_recovery() AND \
                   current_setting('transaction_read_only') = 'off'";
        let row = tokio::time::timeout(within, self.client.query_one(sql, &[]))
            .await
            .map_err(|_| AccessError::Late { what, within })?
            .map_err(failed(what))?;
        Ok(row.get(0))
    }

    /// Address and port of the server at the other end of whatever lies between.
    async fn server(&self, within: Duration) -> Result<(String, u16), AccessError> {
        let what = "asking which server it is";
        let sql = "SELECT host(inet_server_addr()), inet_server_port()";
        let row = tokio::time::timeout(within, self.client.query_one(sql, &[]))
            .await
            .map_err(|_| AccessError::Late { what, within })?
            .map_err(failed(what))?;
        let port: i32 = row.get(1);
        Ok((row.get(0), u16::try_from(port).unwrap_or(0)))
    }

    /// Runs statements without parameters.
    ///
    /// # Errors
    /// The server's, or too late.
    pub async fn batch(&self, sql: &str, within: Duration) -> Result<(), AccessError> {
        let what = "running a statement";
        tokio::time::timeout(within, self.client.batch_execute(sql))
            .await
            .map_err(|_| AccessError::Late { what, within })?
            .map_err(failed(what))
    }

    /// Prepares a statement.
    ///
    /// # Errors
    /// The server's, or too late.
    pub async fn prepare(&self, sql: &str, within: Duration) -> Result<Statement, AccessError> {
        let what = "preparing a statement";
        tokio::time::timeout(within, self.client.prepare(sql))
            .await
            .map_err(|_| AccessError::Late { what, within })?
            .map_err(failed(what))
    }

    /// The driver's own client, for what has its own deadline.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Warnings so far.
    pub fn warnings(&self) -> u64 {
        self.warnings.load(Ordering::SeqCst)
    }
}

impl Access {
    /// Logs in to one host, whatever it is.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn host(&self, at: usize, within: Duration) -> Result<Session, AccessError> {
        let (host, port) = self.hosts.get(at).ok_or(AccessError::NoHost)?;
        self.open(host, *port, within).await
    }

    async fn open(&self, host: &str, port: u16, within: Duration) -> Result<Session, AccessError> {
        let mut config = Config::new();
        config
            .host(host)
            .port(port)
            .user(&self.user)
            .password(&self.password)
            .dbname(&self.dbname)
            .application_name("regent lab")
            .connect_timeout(within)
            .tcp_user_timeout(within);
        match &self.from {
            None => Session::open(&config, within).await,
            Some(space) => {
                let address = format!("{host}:{port}");
                Session::open_from(space, &config, address, within).await
            }
        }
    }

    /// Logs in to one host if it takes writes.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn writable_host(&self, at: usize, within: Duration) -> Result<Session, AccessError> {
        // One deadline for both, as a client with a connect timeout has.
        let both = async {
            let session = self.host(at, within).await?;
            if session.takes_writes(within).await? {
                Ok(session)
            } else {
                Err(AccessError::ReadOnly)
            }
        };
        soon(both, within).await
    }

    /// Logs in to whichever server the proxy leads to, if it takes writes; which host that is.
    async fn writable_via(
        &self,
        (host, port): &(String, u16),
        within: Duration,
    ) -> Result<(Session, usize), AccessError> {
        let what = "connecting through the proxy";
        let both = async {
            let session = self.open(host, *port, within).await?;
            if !session.takes_writes(within).await? {
                return Err(AccessError::ReadOnly);
            }
            let at = session.server(within).await?;
            let at = self.hosts.iter().position(|one| *one == at).ok_or(AccessError::Stranger)?;
            Ok((session, at))
        };
        match tokio::time::timeout(within, both).await {
            Ok(result) => result,
            Err(_) => Err(AccessError::Late { what, within }),
        }
    }

    /// Through the proxy, where there is one; else tries every host once, beginning with `first`.
    /// The session and which host it is.
    ///
    /// # Errors
    /// What the last host said.
    pub async fn writable(
        &self,
        pace: Pace,
        first: usize,
    ) -> Result<(Session, usize), AccessError> {
        if let Some(via) = &self.via {
            return self.writable_via(via, pace.connect).await;
        }
        let count = self.hosts.len();
        let mut last = AccessError::NoHost;
        for step in 0..count {
            let at = (first + step) % count;
            match self.writable_host(at, pace.connect).await {
                Ok(session) => return Ok((session, at)),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Tries again and again.
    ///
    /// # Errors
    /// [`AccessError::Nobody`] in time.
    pub async fn writable_within(
        &self,
        pace: Pace,
        first: usize,
        within: Duration,
    ) -> Result<(Session, usize), AccessError> {
        let deadline = Instant::now() + within;
        loop {
            match self.writable(pace, first).await {
                Ok(found) => return Ok(found),
                Err(error) if Instant::now() >= deadline => {
                    return Err(AccessError::Nobody(error.to_string()));
                }
                Err(_) => tokio::time::sleep(pace.pause).await,
            }
        }
    }

    /// How many standbys stream from a host, and whom it waits for. Any role may ask this much.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn replication(
        &self,
        at: usize,
        within: Duration,
    ) -> Result<(usize, String), AccessError> {
        let session = self.host(at, within).await?;
        let what = "asking who replicates";
        let sql = "SELECT (SELECT count(*) FROM pg_stat_replication), \
                   current_setting('synchronous_standby_names')";
        let row = tokio::time::timeout(within, session.client.query_one(sql, &[]))
            .await
            .map_err(|_| AccessError::Late { what, within })?
            .map_err(failed(what))?;
        let streams: i64 = row.get(0);
        Ok((usize::try_from(streams).unwrap_or(0), row.get(1)))
    }
}
