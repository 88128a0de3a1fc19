//! `regent agent init`: the first data directory of a service, made and left closed.

use regent_engine::postgres::Postgres;
use regent_engine::{DiskError, Engine, RebuildError, Secret, Secrets};

use crate::config::AgentConfig;
use crate::start::engine_options;

/// An application's own user and database, made beside Regent's roles.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// User, password, database.
    pub app: Option<(String, String, String)>,
    /// Name and password of a superuser for people.
    pub admin: Option<(String, String)>,
}

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// PostgreSQL's programs or the directory.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A program failed.
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
}

/// Makes the data directory and the passwords file.
///
/// # Errors
/// [`InitError`]; what was there already is left as it was.
pub async fn init(config: &AgentConfig, options: InitOptions) -> Result<(), InitError> {
    let postgres = Postgres::new(engine_options(config))?;
    postgres.init(&Secrets::random()).await?;
    if let Some((user, password, database)) = options.app {
        postgres.create_app(&user, &Secret::of(&password), &database).await?;
    }
    if let Some((user, password)) = options.admin {
        postgres.create_admin(&user, &Secret::of(&password)).await?;
    }
    Ok(())
}
