//! Sessions with the server: one that stays open for facts, new ones for proofs.
//!
//! A session is watched for warnings, because a commit whose wait was cancelled succeeds with one.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls, Row, Socket, Statement};

use super::options::Options;
use super::{REWIND, hba, passfile};
use crate::error::SqlError;
use crate::orders::Source;

/// Nothing that Regent asks takes longer; a server that hangs must not keep sessions busy.
const STATEMENT: Duration = Duration::from_secs(2);

/// A warning: SQLSTATE and text.
pub(super) type Warning = (String, String);

/// One open session.
pub(super) struct Link {
    client: Client,
    warnings: Arc<Mutex<Vec<Warning>>>,
    prepared: Mutex<HashMap<&'static str, Statement>>,
    driver: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// How a session is to be set up.
#[derive(Clone, Copy)]
pub(super) enum For {
    /// Questions, which end in two seconds.
    Facts,
    /// Commits and checkpoints, which wait as long as the caller does.
    Commits,
}

fn config(options: &Options, role: &str, purpose: For) -> Result<Config, SqlError> {
    let password = passfile::password(&options.passfile, role)?;
    let statement = match purpose {
        For::Facts => STATEMENT.as_millis(),
        For::Commits => 0,
    };
    let mut config = Config::new();
    match &options.socket_dir {
        Some(dir) => config.host_path(dir),
        None => config.host("127.0.0.1"),
    };
    config
        .port(options.port)
        .user(role)
        .password(password.reveal())
        .dbname("postgres")
        .application_name("regent")
        .options(format!(
            "-c statement_timeout={statement} -c lock_timeout=0 -c search_path=pg_catalog \
             -c default_transaction_read_only=off"
        ));
    Ok(config)
}

impl Link {
    /// Opens a session, by `by` at the latest.
    pub(super) async fn open(
        options: &Options,
        role: &str,
        purpose: For,
        by: Instant,
    ) -> Result<Self, SqlError> {
        let config = config(options, role, purpose)?;
        Self::connect(&config, by).await
    }

    /// Opens a session with this instance's own server.
    pub(super) async fn connect(config: &Config, by: Instant) -> Result<Self, SqlError> {
        Self::connect_with(config, NoTls, by).await
    }

    /// Opens a session with another instance, which has to prove who it is where there is TLS. A host
    /// that does not answer is given up after `patience`.
    pub(super) async fn reach(
        options: &Options,
        source: &Source,
        patience: Duration,
        by: Instant,
    ) -> Result<Self, SqlError> {
        let password = passfile::password(&options.passfile, REWIND)?;
        let mut config = Config::new();
        config
            .host(&source.host)
            .port(source.port)
            .user(REWIND)
            .password(password.reveal())
            .dbname("postgres")
            .connect_timeout(patience);
        match &options.tls {
            None => Self::connect_with(&config, NoTls, by).await,
            Some(files) => {
                let secure = files.connector()?;
                Self::connect_with(config.ssl_mode(SslMode::Require), secure, by).await
            }
        }
    }

    async fn connect_with<T>(config: &Config, tls: T, by: Instant) -> Result<Self, SqlError>
    where
        T: MakeTlsConnect<Socket>,
        T::Stream: Send + 'static,
    {
        let (client, mut connection) = timeout_at(by, config.connect(tls))
            .await
            .map_err(|_| SqlError::TimedOut("opening a session"))?
            .map_err(SqlError::Connect)?;
        let warnings = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&warnings);
        let driver = tokio::spawn(async move {
            while let Some(message) = poll_fn(|cx| connection.poll_message(cx)).await {
                match message {
                    Ok(AsyncMessage::Notice(notice)) if notice.severity() == "WARNING" => {
                        let what = (notice.code().code().to_owned(), notice.message().to_owned());
                        heard.lock().push(what);
                    }
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
        });
        let prepared = Mutex::default();
        Ok(Self { client, warnings, prepared, driver: driver.abort_handle() })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Warnings since the last call.
    pub(super) fn take_warnings(&self) -> Vec<Warning> {
        std::mem::take(&mut *self.warnings.lock())
    }

    /// All rows of a question, in one round trip.
    pub(super) async fn rows(
        &self,
        what: &'static str,
        sql: &str,
        by: Instant,
    ) -> Result<Vec<Row>, SqlError> {
        timeout_at(by, self.client.query_typed(sql, &[]))
            .await
            .map_err(|_| SqlError::TimedOut(what))?
            .map_err(|source| SqlError::Statement { what, source })
    }

    /// All rows of a question that this session asks over and over: it is parsed and planned once, which
    /// for a view of the server's is most of its work.
    pub(super) async fn rows_again(
        &self,
        what: &'static str,
        sql: &'static str,
        by: Instant,
    ) -> Result<Vec<Row>, SqlError> {
        let ask = async {
            let known = self.prepared.lock().get(sql).cloned();
            let statement = match known {
                Some(statement) => statement,
                None => {
                    let fresh = self.client.prepare(sql).await?;
                    self.prepared.lock().insert(sql, fresh.clone());
                    fresh
                }
            };
            self.client.query(&statement, &[]).await
        };
        timeout_at(by, ask)
            .await
            .map_err(|_| SqlError::TimedOut(what))?
            .map_err(|source| SqlError::Statement { what, source })
    }

    /// The one row of such a question.
    pub(super) async fn row_again(
        &self,
        what: &'static str,
        sql: &'static str,
        by: Instant,
    ) -> Result<Row, SqlError> {
        self.rows_again(what, sql, by).await?.pop().ok_or(SqlError::Hidden(what))
    }

    /// The one row of a question.
    pub(super) async fn row(
        &self,
        what: &'static str,
        sql: &str,
        by: Instant,
    ) -> Result<Row, SqlError> {
        self.rows(what, sql, by).await?.pop().ok_or(SqlError::Hidden(what))
    }

    /// Statements without an answer.
    pub(super) async fn execute(&self, what: &'static str, sql: &str) -> Result<(), SqlError> {
        self.client.batch_execute(sql).await.map_err(|source| SqlError::Statement { what, source })
    }
}

/// One column; a value that cannot be read is one that the role may not see.
pub(super) fn get<'a, T>(row: &'a Row, column: &'static str) -> Result<T, SqlError>
where
    T: tokio_postgres::types::FromSql<'a>,
{
    row.try_get(column).map_err(|_| SqlError::Hidden(column))
}

/// Whether the server lets somebody in who is not Regent: asked with a name that no role has.
pub(super) async fn lets_clients_in(options: &Options, by: Instant) -> Result<bool, SqlError> {
    let mut config = Config::new();
    // Never by the socket: the open list has a line for this name on loopback.
    config.host("127.0.0.1").port(options.port).user(hba::STRANGER).dbname("postgres");
    match Link::connect(&config, by).await {
        Ok(_) => Ok(true),
        // Refused by the list itself. An open one asks for a password first, or for another proof.
        Err(SqlError::Connect(e))
            if e.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
                && e.as_db_error().is_some_and(|e| e.message().contains("pg_hba.conf")) =>
        {
            Ok(false)
        }
        Err(SqlError::Connect(e)) if e.as_db_error().is_none() && !is_io(&e) => Ok(true),
        Err(SqlError::Connect(e))
            if e.code() == Some(&SqlState::INVALID_PASSWORD)
                || e.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION) =>
        {
            Ok(true)
        }
        Err(e) => Err(e),
    }
}

fn is_io(e: &tokio_postgres::Error) -> bool {
    let mut cause = std::error::Error::source(e);
    while let Some(e) = cause {
        if e.is::<std::io::Error>() {
            return true;
        }
        cause = e.source();
    }
    e.is_closed()
}
