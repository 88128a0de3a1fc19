//! `regent agent`: the sidecar of one database instance, until SIGTERM or Ctrl-C. What it started
//! goes on running under its fencer.

use std::path::{Path, PathBuf};

use regent_agent::{AdoptOptions, Adoption, AgentConfig, Ask, InitOptions};
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
    /// Take over a PostgreSQL that is there already; without --yes only say what that would change
    #[command(after_help = "\
Examples:
  regent agent adopt --config agent.toml                                # looks, changes nothing
  regent agent adopt --config agent.toml --yes --prepare --replace-access   # the primary: it goes on
  regent agent adopt --config agent.toml --yes --interrupt --replace-access

Prepare the primary, adopt its standbys and start their agents; then the primary, and its agent. What
is adopted is stopped: clients are cut from the primary's stop until the first grant, which comes when
the agents of all declared instances have reported.
")]
    Adopt(AdoptArgs),
    /// Make an ordinary PostgreSQL of an instance again; without --yes only say what would be done
    #[command(after_help = "\
Examples:
  regent pause orders --reason \"release\"            # then stop the agents, the standbys' first
  regent agent release --config agent.toml --yes     # on each host: stops it, leaves it closed
  regent services delete orders                      # when the lease is over
  regent agent release --config agent.toml --yes     # on each host again: opens it
")]
    Release(ReleaseArgs),
}

/// Options of `agent release`.
#[derive(Debug, clap::Args)]
pub struct ReleaseArgs {
    /// Configuration of the agent
    #[arg(long, value_name = "AGENT.TOML")]
    config: PathBuf,
    /// Do it
    #[arg(long)]
    yes: bool,
    /// How long its orderly stop may take
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = crate::duration::parse)]
    stop_within: std::time::Duration,
}

/// Options of `agent adopt`.
#[derive(Debug, clap::Args)]
pub struct AdoptArgs {
    /// Configuration of the agent
    #[arg(long, value_name = "AGENT.TOML")]
    config: PathBuf,
    /// Do it
    #[arg(long)]
    yes: bool,
    /// Only make Regent's roles and passfile, in a primary that runs: it goes on, and its standbys can be
    /// adopted before it
    #[arg(long, conflicts_with = "interrupt")]
    prepare: bool,
    /// A server that runs may be stopped, and its clients with it
    #[arg(long)]
    interrupt: bool,
    /// Rules of pg_hba.conf that client_hba does not have may go
    #[arg(long)]
    replace_access: bool,
    /// Who makes Regent's roles in a server that runs, by its socket and without a password
    #[arg(long, value_name = "ROLE", default_value = "postgres")]
    superuser: String,
    /// Its postgresql.conf, if that is neither in the data directory nor named by its last start
    #[arg(long, value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// How long its orderly stop may take
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = crate::duration::parse)]
    stop_within: std::time::Duration,
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
    match args.verb {
        Some(Verb::Init(args)) => return init(context, args).await,
        Some(Verb::Adopt(args)) => return adopt(context, args).await,
        Some(Verb::Release(args)) => return release(context, args).await,
        None => {}
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

async fn adopt(context: &Context, args: AdoptArgs) -> Outcome {
    let config = read(&args.config)?;
    let options = AdoptOptions {
        ask: Ask {
            superuser: args.superuser,
            config_file: args.config_file,
            replace_access: args.replace_access,
        },
        apply: args.yes,
        prepare: args.prepare,
        interrupt: args.interrupt,
        stop_within: args.stop_within,
    };
    let failed = |error| {
        CliError::refused(
            "the adoption failed; what was replaced lies in state_dir, and the same \
                           command goes on where it ended",
        )
        .caused_by(error)
    };
    let adoption = regent_agent::adopt(&config, load(&config)?, &options).await.map_err(failed)?;
    let survey = &adoption.survey;
    let value = json!({
        "data_dir": config.postgres.data_dir,
        "system_identifier": survey.system_identifier,
        "version": survey.version,
        "pid": survey.running.as_ref().map(|running| running.pid),
        "standby": survey.is_standby,
        "obstacles": survey.obstacles,
        "replaced": survey.replaced,
        "notes": survey.notes,
        "adopted": adoption.done,
        "prepared": adoption.prepared,
        "stopped_ms": adoption.stopped_for.map(|time| time.as_millis()),
    });
    let text = told(&config, &adoption, &args.config);
    context.out.value(|| value, || text);
    if survey.obstacles.is_empty() {
        return Ok(());
    }
    Err(CliError::refused("nothing was changed: see what speaks against the adoption"))
}

/// The survey, for people.
fn told(config: &AgentConfig, adoption: &Adoption, file: &Path) -> String {
    let survey = &adoption.survey;
    let role = if survey.is_standby { "standby" } else { "primary" };
    let how = match &survey.running {
        Some(running) => format!("runs as process {}", running.pid),
        None => "is stopped".to_owned(),
    };
    let mut text = format!(
        "{}: PostgreSQL {}, system {}, a {role} that {how}\n",
        config.postgres.data_dir.display(),
        survey.version,
        survey.system_identifier
    );
    for (title, lines) in [
        ("speaks against it", &survey.obstacles),
        ("replaced", &survey.replaced),
        ("note", &survey.notes),
    ] {
        for line in lines {
            text += &format!("{title}: {line}\n");
        }
    }
    let start = format!("`regent agent --config {}`", file.display());
    text += &match (adoption.done, adoption.stopped_for) {
        (true, Some(time)) => {
            format!("adopted; stopped for {} ms by now: start {start} at once", time.as_millis())
        }
        (true, None) => format!("adopted, closed; {start} runs it"),
        (false, _) if adoption.prepared => {
            let passfile = config.postgres.passfile.display().to_string();
            format!(
                "prepared, and it goes on: copy {passfile} to its standbys' hosts, then adopt them"
            )
        }
        (false, _) => "nothing was changed; --yes does it".to_owned(),
    };
    text
}

async fn release(context: &Context, args: ReleaseArgs) -> Outcome {
    let config = read(&args.config)?;
    let tls = load(&config)?;
    let program = std::env::current_exe().or_internal(|| "cannot find this program".to_owned())?;
    let failed = |error| CliError::refused("the release failed half-way").caused_by(error);
    let release = regent_agent::release(&config, tls, program, args.yes, args.stop_within);
    let release = release.await.map_err(failed)?;
    let (dir, service) = (config.postgres.data_dir.display().to_string(), &config.service);
    let value = json!({
        "data_dir": dir,
        "obstacles": release.obstacles,
        "standby": release.is_standby,
        "stopped": release.stopped,
        "released": release.done,
    });
    let role = if release.is_standby { "standby" } else { "primary" };
    let text = || match (release.done, release.stopped) {
        _ if !release.obstacles.is_empty() => {
            let lines = release.obstacles.iter().map(|line| format!("speaks against it: {line}"));
            lines.collect::<Vec<_>>().join("\n")
        }
        (true, _) => format!("{dir} is an ordinary {role} now: start it as you like"),
        (false, true) => format!(
            "{dir} lies stopped and closed, as a {role}; delete {service}, then the same again \
             with --yes opens it"
        ),
        (false, false) => format!("{dir} would be stopped, as a {role}; --yes does it"),
    };
    context.out.value(|| value, text);
    if release.obstacles.is_empty() {
        return Ok(());
    }
    Err(CliError::refused("nothing was changed: see what speaks against the release"))
}
