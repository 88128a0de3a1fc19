//! `regent agent`: the sidecar of one database instance, until SIGTERM or Ctrl-C. What it started
//! goes on running under its fencer.

use std::path::{Path, PathBuf};

use regent_agent::{AgentConfig, InitOptions};
use regent_node::telemetry::{self, TelemetryConfig};
use regent_rpc::tls::{Tls, TlsFiles};
use serde_json::json;

use super::{Context, Stop};
use crate::error::{CliError, Context as _, Outcome};

/// Options of `agent`.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  regent agent --config agent.toml --check
  regent agent --config agent.toml
  regent agent init --config agent.toml   # the first instance of a new service

A small configuration:
  service = \"orders\"
  instance = \"pg1\"
  nodes = [\"10.0.0.1:7400\", \"10.0.1.1:7400\", \"10.0.2.1:7400\"]
  state_dir = \"/var/lib/regent-agent\"
  [tls]
  cert = \"/etc/regent/agent.crt\"   # agent/orders/pg1
  key = \"/etc/regent/agent.key\"
  ca = \"/etc/regent/bundle.crt\"
  trust_domain = \"example.org\"
  [http]
  address = \"10.0.0.5:8008\"
  [postgres]
  data_dir = \"/var/lib/postgresql/15/orders\"
  listen_host = \"10.0.0.5\"
  port = 5432
  passfile = \"/var/lib/regent-agent/pgpass\"

Ending the agent leaves PostgreSQL running until its lease ends; a new start takes it over.
"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Configuration of the agent
    #[arg(long, value_name = "AGENT.TOML", required = true)]
    config: Option<PathBuf>,
    /// Check configuration and certificates; start nothing
    #[arg(long)]
    check: bool,
    /// What is logged: info, debug, or a filter like info,regent_agent=debug
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
}

/// Verbs below `agent`.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Make the first data directory of a service, and leave it closed
    Init(InitArgs),
}

/// Options of `agent init`.
#[derive(Debug, clap::Args)]
pub struct InitArgs {
    /// Configuration of the agent
    #[arg(long, value_name = "AGENT.TOML")]
    config: PathBuf,
    /// Also make a user for an application
    #[arg(long, value_name = "USER", requires = "app_database", requires = "app_password_file")]
    app_user: Option<String>,
    /// and a database that it owns
    #[arg(long, value_name = "NAME")]
    app_database: Option<String>,
    /// with the password in the first line of this file
    #[arg(long, value_name = "FILE")]
    app_password_file: Option<PathBuf>,
    /// Also make a superuser for people, who log in with a password
    #[arg(long, value_name = "USER", requires = "admin_password_file")]
    admin_user: Option<String>,
    /// which is the first line of this file
    #[arg(long, value_name = "FILE")]
    admin_password_file: Option<PathBuf>,
}

/// Runs it.
pub async fn run(context: &Context, args: Args) -> Outcome {
    if let Some(Verb::Init(args)) = args.verb {
        return init(context, args).await;
    }
    let path = args.config.expect("clap asks for it");
    let config = read(&path)?;
    let tls = load(&config)?;
    if args.check {
        let text = format!("{}: instance {} is well configured", path.display(), config.instance);
        let done = json!({ "ok": true, "service": config.service, "instance": config.instance });
        context.out.value(|| done, || text);
        return Ok(());
    }
    let mut stop = Stop::listen()?;
    let logging = TelemetryConfig {
        directives: args.log,
        node: format!("{}/{}", config.service, config.instance),
        ..TelemetryConfig::default()
    };
    let _telemetry = telemetry::init(&logging)
        .map_err(|error| CliError::usage("cannot set up logging").caused_by(error))?;
    let program = std::env::current_exe().or_internal(|| "cannot find this program".to_owned())?;
    let ended = regent_agent::run(config, program, tls, async move { stop.told().await }).await;
    ended.map_err(|error| CliError::refused("the agent cannot run").caused_by(error))
}

fn read(path: &Path) -> Outcome<AgentConfig> {
    AgentConfig::read(path).map_err(|error| {
        CliError::usage(format!("cannot use {} as an agent's configuration", path.display()))
            .caused_by(error)
    })
}

fn load(config: &AgentConfig) -> Outcome<std::sync::Arc<Tls>> {
    let files = TlsFiles {
        cert: config.tls.cert.clone(),
        key: config.tls.key.clone(),
        ca: config.tls.ca.clone(),
        revoked: None,
        trust: Some(config.tls.trust_domain.clone()),
    };
    Tls::load(files)
        .map_err(|error| CliError::usage("cannot use the agent's certificate").caused_by(error))
}

/// The first line of a file that only its owner should read.
fn password(file: &Path) -> Outcome<String> {
    let text = std::fs::read_to_string(file)
        .or_usage(|| format!("cannot read the password in {}", file.display()))?;
    let first = text.lines().next().unwrap_or_default();
    if first.is_empty() {
        return Err(CliError::usage(format!("the first line of {} is empty", file.display())));
    }
    Ok(first.to_owned())
}

async fn init(context: &Context, args: InitArgs) -> Outcome {
    let config = read(&args.config)?;
    let app = match (args.app_user, args.app_database, args.app_password_file) {
        (Some(user), Some(database), Some(file)) => Some((user, password(&file)?, database)),
        _ => None,
    };
    let admin = match (args.admin_user, args.admin_password_file) {
        (Some(user), Some(file)) => Some((user, password(&file)?)),
        _ => None,
    };
    let made = regent_agent::init(&config, InitOptions { app, admin }).await;
    made.map_err(|error| CliError::refused("no database was made").caused_by(error))?;
    let dir = config.postgres.data_dir.display().to_string();
    let text =
        format!("made {dir}, closed; `regent agent --config {}` runs it", args.config.display());
    context.out.value(|| json!({ "data_dir": dir }), || text);
    Ok(())
}
