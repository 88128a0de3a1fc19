//! `regent server`: one coordinator node, until SIGTERM or Ctrl-C.

use std::path::PathBuf;

use regent_node::config::{LogFormat, NodeConfig};
use regent_node::run::RunError;
use regent_node::telemetry::{self, TelemetryConfig};
use regent_rpc::tls::{Tls, TlsFiles};
use serde_json::json;

use super::restore::{load, unusable};
use super::{Context, Stop};
use crate::error::{CliError, Outcome};

/// Options of `server`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  regent server --config node.toml --check
  regent server --config node.toml

A small configuration:
  node_id = 1
  cluster = \"prod\"
  data_dir = \"/var/lib/regent\"
  [listen]
  grpc = \"10.0.0.1:7400\"
  http = \"10.0.0.1:7480\"
  [tls]
  cert = \"/etc/regent/node-1.crt\"
  key = \"/etc/regent/node-1.key\"
  ca = \"/etc/regent/bundle.crt\"
  trust_domain = \"example.org\"
  [[initial_members]]
  id = 1
  address = \"10.0.0.1:7400\"
  # ... and the others, the same list on each node

SIGTERM hands the leadership over, finishes what is under way, and ends. A second one ends at once.
")]
pub struct Args {
    /// Configuration of the node
    #[arg(long, value_name = "NODE.TOML")]
    pub config: PathBuf,
    /// Check configuration and certificates; start nothing
    #[arg(long)]
    pub check: bool,
    /// Listen here for gRPC, instead of what the file says
    #[arg(long, value_name = "IP:PORT")]
    pub listen_grpc: Option<String>,
    /// Listen here for metrics and health, instead of what the file says
    #[arg(long, value_name = "IP:PORT")]
    pub listen_http: Option<String>,
    /// Keep the data here, instead of where the file says
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// What is logged: info, debug, or a filter like info,regent_raft=debug
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

impl Args {
    /// The file with the flags over it.
    fn resolve(&self) -> Outcome<NodeConfig> {
        let mut config = load(&self.config)?;
        if let Some(listen) = &self.listen_grpc {
            config.listen.grpc.clone_from(listen);
        }
        if let Some(listen) = &self.listen_http {
            config.listen.http.clone_from(listen);
        }
        if let Some(dir) = &self.data_dir {
            config.data_dir.clone_from(dir);
        }
        config.check().map_err(|error| unusable(&self.config, error))?;
        Ok(config)
    }
}

/// Checks, or runs the node.
pub async fn run(context: &Context, args: Args) -> Outcome {
    let config = args.resolve()?;
    if args.check {
        return check(context, &args, &config);
    }
    // Before anything is begun: a signal must never find nobody listening.
    let mut stop = Stop::listen()?;
    let logging = logging(&args, &config, context.globals.verbose);
    let telemetry = telemetry::init(&logging)
        .map_err(|error| CliError::usage("cannot set up logging").caused_by(error))?;
    let outcome = regent_node::run::run(config, async move {
        stop.told().await;
        // The second signal means it: what is under way is left to the log.
        tokio::spawn(async move {
            stop.told().await;
            std::process::exit(i32::from(crate::error::Kind::Internal.exit_code()));
        });
    })
    .await;
    // Flushing traces blocks; its own thread must not delay the end by more than its bound.
    let _ = tokio::task::spawn_blocking(|| telemetry.shutdown()).await;
    outcome.map_err(from_run)
}

fn logging(args: &Args, config: &NodeConfig, verbose: u8) -> TelemetryConfig {
    let level = match verbose {
        0 => format!("{:?}", config.log.level).to_lowercase(),
        1 => "debug".to_owned(),
        _ => "trace".to_owned(),
    };
    TelemetryConfig {
        json: config.log.format == LogFormat::Json,
        directives: args.log.clone().unwrap_or(level),
        otlp_endpoint: Some(config.otlp.endpoint.clone()).filter(|endpoint| !endpoint.is_empty()),
        node: config.node_id.to_string(),
        cluster: config.cluster.clone(),
        ..TelemetryConfig::default()
    }
}

fn check(context: &Context, args: &Args, config: &NodeConfig) -> Outcome {
    let tls = Tls::load(TlsFiles {
        cert: config.tls.cert.clone(),
        key: config.tls.key.clone(),
        ca: config.tls.ca.clone(),
        revoked: config.tls.revoked.clone(),
        trust: Some(config.tls.trust_domain.clone()),
    })
    .map_err(|error| CliError::usage("cannot use the node's certificates").caused_by(error))?;
    let found = tls.principal().to_string();
    let want = format!("node/{}", config.node_id);
    if found != want {
        return Err(CliError::usage("the certificate is not this node's")
            .because(format!("it is of {found}, but the node is {want}"))
            .hint(format!("issue one: `regent pki issue node {}`", config.node_id)));
    }
    let file = args.config.display();
    context.out.value(
        || json!({ "config": args.config, "ok": true, "node": config.node_id.0 }),
        || format!("{file} is good: node {} of cluster {:?}", config.node_id, config.cluster),
    );
    Ok(())
}

fn from_run(error: RunError) -> CliError {
    let what = "the node cannot run";
    let hint = match &error {
        RunError::Listen { .. } => "see which program has the port, or give another one",
        RunError::Fatal(_) => "the log says what came before; `regent status` shows the others",
        _ => "`regent server --config FILE --check` checks without starting",
    };
    let base = match &error {
        RunError::Config(_) | RunError::Tls(_) | RunError::WrongCertificate { .. } => {
            CliError::usage(what)
        }
        _ => CliError::internal(what),
    };
    base.caused_by(error).hint(hint)
}
