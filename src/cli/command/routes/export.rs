//! `regent routes export`: a configuration of a load balancer, or a client's connection string.

use regent_core::route::{haproxy, libpq, pgbouncer};
use regent_rpc::convert::common::{instance_name, service_name};
use regent_rpc::pb::v1;
use regent_xds::bootstrap::{Listens, Who};
use serde_json::json;

use super::bootstrap::envoy;
use super::grpc::{grpc, usage};
use super::{Context, resolve};
use crate::connect::Cluster;
use crate::error::{CliError, Context as _, Outcome};

/// Options of `routes export`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  regent routes export orders --format haproxy --write 127.0.0.1:6432 --read 127.0.0.1:6433
  regent routes export orders --format envoy --write 0.0.0.0:6432 > envoy.json
  regent routes export orders --format grpc > xds.json
  regent routes export orders --format libpq
  psql \"$(regent routes export orders --format libpq) dbname=app\"
")]
pub struct Args {
    /// The service
    pub service: String,
    /// What it is for
    #[arg(long, value_enum)]
    pub format: Format,
    /// Where clients write (haproxy, envoy, pgbouncer)
    #[arg(long, value_name = "HOST:PORT", default_value = "0.0.0.0:6432")]
    pub write: String,
    /// Where clients read (haproxy, envoy)
    #[arg(long, value_name = "HOST:PORT", default_value = "0.0.0.0:6433")]
    pub read: String,
    /// How often an agent is asked (haproxy), in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 100,
          value_parser = clap::value_parser!(u64).range(10..=60_000))]
    pub check_interval_ms: u64,
    /// Ask by agent-check, which carries weights and reasons, with HTTP beside it (haproxy)
    #[arg(long)]
    pub agent_check: bool,
    /// Unix socket through which it can be told of flips, see `haproxy-sync` (haproxy); directory of
    /// its Unix socket (pgbouncer)
    #[arg(long, value_name = "PATH")]
    pub socket: Option<String>,
    /// File of its databases, which `pgbouncer-sync` writes (pgbouncer)
    #[arg(long, value_name = "FILE", default_value = "/etc/pgbouncer/regent.ini")]
    pub databases_file: String,
    /// File of its users, as PgBouncer's `auth_file` (pgbouncer)
    #[arg(long, value_name = "FILE", default_value = "/etc/pgbouncer/userlist.txt")]
    pub users_file: String,
    /// Most sessions at once, over all ports (haproxy, pgbouncer)
    #[arg(long, value_name = "N", default_value_t = 2_000,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_sessions: u32,
    /// Port of an agent that has not said where it answers
    #[arg(long, value_name = "PORT")]
    pub check_port: Option<u16>,
    /// What it calls itself in `regent routes`; else the format's name (envoy, grpc)
    #[arg(long, value_name = "NAME")]
    pub id: Option<String>,
    /// Region of the clients: near instances come first for reads (envoy, grpc)
    #[arg(long, default_value = "")]
    pub region: String,
    /// Zone of the clients (envoy, grpc)
    #[arg(long, default_value = "")]
    pub zone: String,
    /// One name that stands for all nodes, in their place (grpc): a client that has all that it
    /// asked for leaves a node that is gone for no other server, but for another address of its own
    #[arg(long, value_name = "HOST:PORT")]
    pub nodes_at: Option<String>,
    /// For sessions that read (libpq)
    #[arg(long)]
    pub reads: bool,
}

/// What can be printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A whole configuration of HAProxy
    Haproxy,
    /// What Envoy is started with, with the certificate that this verb is run with: it should be a
    /// router's
    Envoy,
    /// A whole configuration of PgBouncer, to be run beside `pgbouncer-sync`
    Pgbouncer,
    /// What clients within a gRPC library are started with (GRPC_XDS_BOOTSTRAP), with the
    /// certificate that this verb is run with; they dial `xds:///SERVICE.write` and
    /// `xds:///SERVICE.read`
    Grpc,
    /// A connection string of libpq that names every instance
    Libpq,
}

/// Runs it.
pub async fn run(context: &Context, args: Args) -> Outcome {
    let cluster = Cluster::open(&context.globals)?;
    let answer = resolve(&cluster, &args.service, None).await?;
    let instances = answer.routes.unwrap_or_default().instances;
    let Args { service, write, read, region, zone, .. } = &args;
    let bootstrap = match args.format {
        Format::Envoy => {
            let who = Who { id: args.id.as_deref().unwrap_or("envoy"), region, zone };
            Some(envoy(cluster.settings(), &who, &Listens { service, write, read })?)
        }
        Format::Grpc => {
            let who = Who { id: args.id.as_deref().unwrap_or("grpc"), region, zone };
            Some(grpc(cluster.settings(), &who, args.nodes_at.as_deref()))
        }
        Format::Haproxy | Format::Pgbouncer | Format::Libpq => None,
    };
    if let Some(bootstrap) = bootstrap {
        context.out.value(|| bootstrap.clone(), || format!("{bootstrap:#}"));
        if args.format == Format::Grpc {
            context.out.note(&usage(service));
        }
        return Ok(());
    }
    let text = match args.format {
        Format::Haproxy => {
            let servers = instances.iter().map(|one| server(one, args.check_port));
            haproxy::render(&haproxy::Plan {
                service: service_name("service", &args.service).or_internal(odd)?,
                write: args.write,
                read: args.read,
                check_interval_ms: args.check_interval_ms,
                ask: if args.agent_check { haproxy::Ask::AgentCheck } else { haproxy::Ask::Http },
                socket: args.socket,
                max_sessions: args.max_sessions,
                servers: servers.collect::<Outcome<_>>()?,
            })
        }
        Format::Pgbouncer => pgbouncer::render(&pgbouncer::Plan {
            service: service_name("service", &args.service).or_internal(odd)?,
            listen: args.write,
            databases: args.databases_file,
            users: args.users_file,
            socket: args.socket,
            max_sessions: args.max_sessions,
        }),
        Format::Envoy | Format::Grpc | Format::Libpq => {
            // Nobody but its clients asks an instance here.
            let servers = instances.iter().map(|one| server(one, Some(1)));
            let want = if args.reads { libpq::Want::Read } else { libpq::Want::Write };
            libpq::render(&servers.collect::<Outcome<Vec<_>>>()?, want)
        }
    };
    context.out.value(|| json!({ "text": text }), || text.clone());
    Ok(())
}

fn odd() -> String {
    "the node answered with what is no name".to_owned()
}

fn server(one: &v1::RouteEndpoint, check_port: Option<u16>) -> Outcome<haproxy::Server> {
    let host = one.address.rsplit_once(':').map_or(one.address.as_str(), |(host, _)| host);
    let health = match (one.check.is_empty(), check_port) {
        (false, _) => one.check.clone(),
        (true, Some(port)) => format!("{host}:{port}"),
        (true, None) => {
            let what = format!("the agent of {} has never said where it answers", one.instance);
            let hint = "start it, or give the port that all agents answer at with --check-port";
            return Err(CliError::refused(what).hint(hint));
        }
    };
    let name = instance_name("instance", &one.instance).or_internal(odd)?;
    Ok(haproxy::Server { name, address: one.address.clone(), health })
}
