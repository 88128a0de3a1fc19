//! PgBouncer's console.

use std::time::Duration;

use tokio_postgres::{Client, Config, NoTls};

use crate::error::{CliError, Outcome};

/// PgBouncer answers its console in its event loop; PAUSE alone takes longer.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// How long PAUSE may still take once there is a new primary: sessions of the old one are over.
const PAUSE_ENDS_WITHIN: Duration = Duration::from_millis(50);

/// How to reach it, and for which databases.
#[derive(Clone)]
pub struct Admin {
    config: Config,
    databases: Vec<String>,
}

impl Admin {
    /// From a connection string.
    ///
    /// # Errors
    /// It is none.
    pub fn new(text: &str, databases: Vec<String>) -> Outcome<Self> {
        let mut config: Config = text.parse().map_err(|error: tokio_postgres::Error| {
            CliError::usage("--admin is no connection string").because(error.to_string())
        })?;
        config.dbname("pgbouncer").connect_timeout(ANSWER_WITHIN);
        // As libpq has it: arguments are seen by everybody on this machine.
        if let (None, Ok(password)) = (config.get_password(), std::env::var("PGPASSWORD")) {
            config.password(password);
        }
        Ok(Self { config, databases })
    }

    async fn open(&self) -> Result<Client, String> {
        let opened = tokio::time::timeout(ANSWER_WITHIN, self.config.connect(NoTls)).await;
        let opened = opened.map_err(|_| "its console does not answer".to_owned())?;
        let (client, connection) = opened.map_err(|error| said(&error))?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Asks it to hold clients. What is returned ends when all server connections are free.
    pub async fn pause(&self) -> Result<impl Future<Output = Result<(), String>> + use<>, String> {
        // A connection for each: its console takes one command at a time, and the one that waits must
        // not let the others go on.
        let opened = self.databases.iter().map(|_| self.open());
        let clients = futures::future::try_join_all(opened).await?;
        let databases = self.databases.clone();
        Ok(async move {
            let pauses = clients.iter().zip(&databases);
            let pauses = pauses.map(|(client, name)| pause_one(client, name));
            futures::future::try_join_all(pauses).await.map(drop)
        })
    }

    /// Has it read its files again.
    pub async fn reload(&self) -> Result<(), String> {
        answered(&self.open().await?, "RELOAD").await
    }

    /// Lets clients go on.
    pub async fn resume(&self) -> Result<(), String> {
        let client = self.open().await?;
        for name in &self.databases {
            match answered(&client, &format!("RESUME \"{name}\"")).await {
                // It was never paused, or nobody has used it yet.
                Err(why) if why.contains("not paused") => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Ends the clients of each database of which somebody still uses a server connection.
    pub async fn kill_who_hangs(&self) -> Result<(), String> {
        let client = self.open().await?;
        for name in &self.databases {
            if !self.is_free(&client, name).await {
                answered(&client, &format!("KILL \"{name}\"")).await?;
            }
        }
        Ok(())
    }

    /// Whether nobody uses a server connection of `name`, now or in a moment.
    async fn is_free(&self, client: &Client, name: &str) -> bool {
        let until = tokio::time::Instant::now() + PAUSE_ENDS_WITHIN;
        loop {
            let servers = tokio::time::timeout(ANSWER_WITHIN, client.simple_query("SHOW SERVERS"));
            let Ok(Ok(rows)) = servers.await else { return false };
            let is_of = |row: &tokio_postgres::SimpleQueryMessage| match row {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get("database") == Some(name),
                _ => false,
            };
            if !rows.iter().any(is_of) {
                return true;
            }
            if tokio::time::Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn pause_one(client: &Client, name: &str) -> Result<(), String> {
    match client.simple_query(&format!("PAUSE \"{name}\"")).await {
        Ok(_) => Ok(()),
        // By somebody else, or by this one before it was started again.
        Err(error) if said(&error).contains("already") => Ok(()),
        Err(error) => Err(said(&error)),
    }
}

async fn answered(client: &Client, command: &str) -> Result<(), String> {
    match tokio::time::timeout(ANSWER_WITHIN, client.simple_query(command)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("{command}: {}", said(&error))),
        Err(_) => Err(format!("{command}: no answer")),
    }
}

fn said(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |it| it.message().to_owned())
}
