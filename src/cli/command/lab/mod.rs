//! `regent lab ...`: a whole playground on this machine, for people and for programs.

mod cut;
mod operator;
mod show;

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser as _;
use regent_core::spec::Mode;
use regent_lab::databases::ground::GroundError;
use regent_lab::databases::{DatabaseError, Front, Wanted};
use regent_lab::network::NetworkError;
use regent_lab::{Connections, Lab, LabError, Plan, Profile};
use serde_json::json;

use super::{Context, dispatch};
use crate::args::{Cli, Globals};
use crate::error::{CliError, Context as _, Outcome};
use crate::render::progress;
pub use operator::Operator;
use show::{as_json, as_text};

/// What a lab says that could have had more; without this line nobody would know.
pub const NO_HAPROXY: &str = "no HAProxy is installed, so clients name every instance; \
     to have it: sudo apt-get install haproxy";

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Make a lab: nodes in three zones, PostgreSQL with its agents, certificates, ready to use
    #[command(after_help = "\
Examples:
  regent lab up --dir /tmp/lab
  regent lab up --dir /tmp/lab --mode lease --instances 2 -o json
  regent lab up --dir /tmp/lab --nodes-only --nodes 5 --profile fast
  regent lab exec --dir /tmp/lab -- status
  regent lab down --dir /tmp/lab

-o json prints one object: nodes (id, zone, grpc, http, pid), service, policy, instances (id, zone,
role, healthy, host, port, data_dir, agent_pid, fencer_pid, postmaster_pid), user, password, dbname,
haproxy and envoy (write, read, pid; null without it), certificates, dir. PostgreSQL 13 or newer must be
installed; for root there must be a user `postgres` to run it.
")]
    Up(Up),
    /// Show what runs: processes, roles, leader, primary
    Status(Dir),
    /// Run any verb with the lab's identity
    #[command(after_help = "\
Examples:
  regent lab exec --dir /tmp/lab -- status
  regent lab exec --dir /tmp/lab --as client -- election campaign billing --value me --hold
")]
    Exec(Exec),
    /// Drop packets between machines (of a lab that was made with --network)
    Cut(cut::Args),
    /// Mend what is cut, start what died, thaw what is frozen, wait until all is well
    Heal(Dir),
    /// End the lab's processes and remove its directory
    Down(Dir),
}

/// Which lab.
#[derive(Clone, Debug, clap::Args)]
pub struct Dir {
    /// Directory of the lab
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
}

/// Options of `lab up`.
#[derive(Debug, clap::Args)]
pub struct Up {
    /// Directory of the lab: new, or empty
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Coordinator nodes only, no database
    #[arg(long)]
    pub nodes_only: bool,
    /// How many nodes
    #[arg(long, default_value_t = 3)]
    pub nodes: u64,
    /// How many database instances, each in its own zone
    #[arg(long, default_value_t = 3, conflicts_with = "nodes_only")]
    pub instances: u64,
    /// How the database replicates
    #[arg(long, value_enum, default_value_t, conflicts_with = "nodes_only")]
    pub mode: ModeName,
    /// How long a primary that falls silent keeps its right
    #[arg(long, default_value = "3s", conflicts_with = "nodes_only",
          value_parser = crate::duration::parse)]
    pub ttl: Duration,
    /// A write port and a read port in front of the databases, by HAProxy
    #[arg(long, value_enum, default_value_t, conflicts_with = "nodes_only")]
    pub haproxy: FrontName,
    /// A write port and a read port by this Envoy, too
    #[arg(long, value_name = "PROGRAM", conflicts_with = "nodes_only")]
    pub envoy: Option<PathBuf>,
    /// When the databases cannot be made, leave what there is, to look at it
    #[arg(long, conflicts_with = "nodes_only")]
    pub keep: bool,
    /// Give every node and instance a network namespace of its own, so that `lab cut` can cut links
    #[arg(long)]
    pub network: bool,
    /// How fast the nodes find a new leader
    #[arg(long, value_enum, default_value_t)]
    pub profile: ProfileName,
}

/// A Raft profile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ProfileName {
    /// Zones of one region
    #[default]
    Lan,
    /// One building
    Fast,
    /// Regions
    Wan,
}

impl From<ProfileName> for Profile {
    fn from(name: ProfileName) -> Self {
        match name {
            ProfileName::Lan => Self::Lan,
            ProfileName::Fast => Self::Fast,
            ProfileName::Wan => Self::Wan,
        }
    }
}

/// How a database replicates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ModeName {
    /// Synchronous: a failover loses nothing
    #[default]
    Quorum,
    /// Asynchronous: a failover waits for a proof that the old primary is out
    Lease,
}

impl From<ModeName> for Mode {
    fn from(name: ModeName) -> Self {
        match name {
            ModeName::Quorum => Self::Quorum,
            ModeName::Lease => Self::Lease,
        }
    }
}

/// Whether HAProxy is put in front of the databases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum FrontName {
    /// Where it is installed; a lab without it says so
    #[default]
    Auto,
    /// Always: no lab without it
    Require,
    /// Never
    Off,
}

impl From<FrontName> for Front {
    fn from(name: FrontName) -> Self {
        match name {
            FrontName::Auto => Self::Auto,
            FrontName::Require => Self::Require,
            FrontName::Off => Self::Off,
        }
    }
}

/// Options of `lab exec`.
#[derive(Debug, clap::Args)]
pub struct Exec {
    /// Directory of the lab
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// With which of the lab's identities
    #[arg(long = "as", value_enum, default_value_t, value_name = "ROLE")]
    pub identity: Identity,
    /// The verb and its options
    #[arg(last = true, required = true, value_name = "VERB")]
    pub verb: Vec<String>,
}

/// An identity that every lab has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Identity {
    /// Everything a person may do
    #[default]
    Admin,
    /// Declares services, runs operations
    Operator,
    /// Campaigns and holds leases
    Client,
    /// Reads everything
    Auditor,
    /// Follows routes
    Router,
}

/// Runs one of them.
pub async fn run(context: &Context, verb: Verb) -> Outcome {
    match verb {
        Verb::Up(args) => up(context, args).await,
        Verb::Status(args) => status(context, args).await,
        Verb::Exec(args) => exec(context, args).await,
        Verb::Cut(args) => cut::run(context, args),
        Verb::Heal(args) => heal(context, args).await,
        Verb::Down(args) => down(context, args).await,
    }
}

async fn up(context: &Context, args: Up) -> Outcome {
    let plan = Plan {
        dir: args.dir,
        binary: own_binary()?,
        nodes: args.nodes,
        profile: args.profile.into(),
        network: args.network,
    };
    let failed = |error| from_lab("cannot make the lab", error);
    let (lab, view) = if args.nodes_only {
        let what = format!("{} nodes: certificates, processes, a leader", plan.nodes);
        let _turning = progress::turning(context.out, &what);
        regent_lab::up(&plan).await.map_err(failed)?
    } else {
        let wanted = Wanted {
            instances: args.instances,
            mode: args.mode.into(),
            ttl: args.ttl,
            haproxy: args.haproxy.into(),
            envoy: args.envoy.map(|program| std::path::absolute(&program).unwrap_or(program)),
            keep: args.keep,
        };
        // One line that changes on a terminal, a line for each step elsewhere.
        let turning = progress::turning(context.out, "making the lab");
        let say = |step: String| match context.out.shows_progress() {
            true => turning.say(&step),
            false => context.out.note(&step),
        };
        let made = regent_lab::up_with(&plan, &wanted, &say).await.map_err(failed)?;
        let front = made.1.databases.as_ref().and_then(|all| all.haproxy.as_ref());
        if front.is_none() && wanted.haproxy == Front::Auto {
            context.out.note(NO_HAPROXY);
        }
        made
    };
    context.out.value(
        || as_json(&view),
        || {
            let dir = lab.dir.display();
            format!(
                "{}\ntry: regent lab exec --dir {dir} -- status\nend: regent lab down --dir {dir}",
                as_text(&view)
            )
        },
    );
    Ok(())
}

async fn status(context: &Context, args: Dir) -> Outcome {
    let lab = open(&args.dir)?;
    let connections = connect(&lab)?;
    let view = regent_lab::view(&lab, &connections).await;
    context.out.value(|| as_json(&view), || as_text(&view));
    Ok(())
}

async fn exec(context: &Context, args: Exec) -> Outcome {
    let lab = open(&args.dir)?;
    let words = std::iter::once("regent".to_owned()).chain(args.verb);
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        // Help and version are answers; clap knows.
        Err(answer) if !answer.use_stderr() => {
            return answer.print().or_internal(|| "cannot print the help".to_owned());
        }
        Err(error) => {
            let why = error.to_string().trim().to_owned();
            return Err(CliError::usage("cannot run this verb").because(why));
        }
    };
    let identity = Identity::pair(args.identity, &lab);
    let given = cli.globals;
    // The lab's settings, all of them: an environment variable meant for another cluster must not
    // reach this one. What the verb itself was told about output and time stays.
    let globals = Globals {
        endpoints: lab.endpoints(),
        cert: Some(identity.cert),
        key: Some(identity.key),
        ca: Some(lab.certificates().ca),
        trust_domain: Some(lab.trust_domain.clone()),
        config: None,
        output: match context.out.is_json() {
            true => context.globals.output.clone(),
            false => given.output,
        },
        timeout: given.timeout,
        verbose: given.verbose.max(context.globals.verbose),
    };
    dispatch(&Context::new(globals), cli.command).await
}

impl Identity {
    /// Its files in a lab.
    pub fn pair(self, lab: &Lab) -> regent_lab::layout::Pair {
        let certificates = lab.certificates();
        match self {
            Self::Admin => certificates.admin,
            Self::Operator => certificates.operator,
            Self::Client => certificates.client,
            Self::Auditor => certificates.auditor,
            Self::Router => certificates.router,
        }
    }
}

async fn heal(context: &Context, args: Dir) -> Outcome {
    let (_, view, healed) = regent_lab::heal(&args.dir)
        .await
        .map_err(|error| from_lab("cannot heal the lab", error))?;
    context.out.value(
        || {
            let mut value = as_json(&view);
            value["started"] = json!(healed.started);
            value["thawed"] = json!(healed.thawed);
            value["started_agents"] = json!(healed.instances.started_agents);
            value["started_proxies"] = json!(healed.instances.started_proxies);
            value["thawed_instances"] = json!(healed.instances.thawed_instances);
            value
        },
        || {
            let nodes = |ids: &[u64]| ids.iter().map(|id| format!("node {id}")).collect();
            let list = |nodes: Vec<String>, instances: &[String]| {
                let all = [nodes, instances.to_vec()].concat();
                if all.is_empty() { "none".to_owned() } else { all.join(", ") }
            };
            let mut started = healed.instances.started_agents.clone();
            started.extend(healed.instances.started_proxies.iter().cloned());
            format!(
                "started: {}; thawed: {}\n{}",
                list(nodes(&healed.started), &started),
                list(nodes(&healed.thawed), &healed.instances.thawed_instances),
                as_text(&view)
            )
        },
    );
    Ok(())
}

async fn down(context: &Context, args: Dir) -> Outcome {
    let ended =
        regent_lab::down(&args.dir).await.map_err(|error| from_lab("cannot end the lab", error))?;
    let dir = args.dir.display();
    context.out.value(
        || json!({ "dir": args.dir, "ended": ended }),
        || format!("{ended} processes ended, {dir} removed"),
    );
    Ok(())
}

/// The binary that runs now: the lab's servers are the same.
pub fn own_binary() -> Outcome<PathBuf> {
    std::env::current_exe().or_internal(|| "cannot find this program's own file".to_owned())
}

/// Opens a lab for a verb.
pub fn open(dir: &std::path::Path) -> Outcome<Lab> {
    Lab::open(dir).map_err(|error| from_lab("cannot use the lab", error.into()))
}

/// Connections with the lab's admin identity.
pub fn connect(lab: &Lab) -> Outcome<Connections> {
    Connections::new(lab, &lab.certificates().admin)
        .or_internal(|| "cannot use the lab's certificates".to_owned())
}

/// What a lab's error means to a person.
pub fn from_lab(what: &str, error: LabError) -> CliError {
    use regent_lab::layout::OpenError;
    let (base, hint) = match &error {
        LabError::Exists { .. } => {
            (CliError::refused(what), "end it first: `regent lab down --dir D`")
        }
        LabError::NotEmpty { .. } => (CliError::refused(what), "name a new directory"),
        LabError::Open(OpenError::None { .. }) => {
            (CliError::usage(what), "make one: `regent lab up --dir D`")
        }
        LabError::Size { .. } => (CliError::usage(what), "3 and 5 are the usual sizes"),
        LabError::NotReady { .. } => {
            (CliError::unreachable(what), "look at `regent lab status` and the nodes' logs")
        }
        LabError::Ports => (CliError::internal(what), "see which programs listen on 20000-32000"),
        LabError::Database(DatabaseError::Network(error)) | LabError::Network(error) => {
            from_network(what, error)
        }
        LabError::Database(error) => (from_database(what, error), database_hint(error)),
        _ => (CliError::internal(what), ""),
    };
    base.caused_by(error).hint(hint)
}

fn from_network(what: &str, error: &NetworkError) -> (CliError, &'static str) {
    match error {
        NetworkError::NotAllowed { .. } => (
            CliError::usage(what),
            "run it as root, in a container with --privileged, or without --network",
        ),
        NetworkError::NoProgram { .. } => (
            CliError::usage(what),
            "install it (Debian, Ubuntu: sudo apt-get install iproute2 nftables)",
        ),
        NetworkError::None => {
            (CliError::usage(what), "make a lab whose links can be cut: `regent lab up --network`")
        }
        NetworkError::Unknown { .. } => (CliError::usage(what), ""),
        _ => (CliError::internal(what), ""),
    }
}

fn from_database(what: &str, error: &DatabaseError) -> CliError {
    match error {
        DatabaseError::Ground(_) | DatabaseError::Size { .. } => CliError::usage(what),
        DatabaseError::NotReady { .. } => CliError::unreachable(what),
        DatabaseError::Declare(_) => CliError::refused(what),
        _ => CliError::internal(what),
    }
}

const fn database_hint(error: &DatabaseError) -> &'static str {
    match error {
        DatabaseError::Ground(GroundError::NoPostgres) => {
            "install it (Debian, Ubuntu: sudo apt-get install postgresql), or add --nodes-only"
        }
        DatabaseError::Ground(GroundError::NoHaproxy) => {
            "install it (Debian, Ubuntu: sudo apt-get install haproxy), or leave --haproxy out"
        }
        DatabaseError::Ground(GroundError::NoOwner) => {
            "install PostgreSQL's package, which makes it, or run the lab as an ordinary user"
        }
        DatabaseError::Ground(GroundError::Closed { .. }) => {
            "choose a directory that everybody may pass, below /tmp for one, or chmod o+x that one"
        }
        DatabaseError::Proxy { .. }
        | DatabaseError::Init { .. }
        | DatabaseError::Died { .. }
        | DatabaseError::NotReady { .. } => {
            "`regent lab up --keep` leaves the agents' logs (<dir>/pg1/agent.log) to be read"
        }
        DatabaseError::Ports => "see which programs listen on 20000-32000",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use regent_lab::LabNode;
    use regent_lab::layout::LAB_VERSION;
    use regent_node::config::NodeConfig;

    fn node(id: u64) -> LabNode {
        let home = PathBuf::from(format!("/lab/node-{id}"));
        LabNode {
            id,
            zone: "a".to_owned(),
            grpc: format!("127.0.0.1:{}", 20_000 + id),
            http: format!("127.0.0.1:{}", 21_000 + id),
            data_dir: home.join("data"),
            config: home.join("node.toml"),
            log: home.join("node.log"),
            process: None,
        }
    }

    #[test]
    fn the_configuration_that_a_lab_writes_is_one_that_a_node_reads() {
        for profile in [Profile::Lan, Profile::Fast, Profile::Wan] {
            let lab = Lab {
                version: LAB_VERSION,
                dir: "/lab".into(),
                binary: "/bin/regent".into(),
                cluster: "lab".into(),
                trust_domain: "lab.regent".into(),
                profile,
                nodes: (1..=3).map(node).collect(),
                databases: None,
                network: None,
            };
            let text = regent_lab::config::text(&lab, &lab.nodes[1]).expect("plain data");
            let config = NodeConfig::parse(&text).expect("the node reads it");
            assert_eq!(config.node_id.0, 2);
            assert_eq!(config.initial_members.len(), 3);
            let name = format!("{:?}", config.profile).to_lowercase();
            assert_eq!(name, profile.as_str());
        }
    }

    #[test]
    fn a_lab_without_postgresql_says_the_one_command_that_installs_it() {
        let error = LabError::Database(DatabaseError::Ground(GroundError::NoPostgres));
        let error = from_lab("cannot make the lab", error);
        assert_eq!(error.kind.exit_code(), 2);
        assert!(error.to_string().contains("apt-get install postgresql"), "{error}");
    }

    #[test]
    fn a_lab_that_requires_haproxy_says_the_one_command_that_installs_it() {
        let error = LabError::Database(DatabaseError::Ground(GroundError::NoHaproxy));
        let error = from_lab("cannot make the lab", error);
        assert_eq!(error.kind.exit_code(), 2);
        assert!(error.to_string().contains("apt-get install haproxy"), "{error}");
    }

    #[tokio::test]
    async fn a_directory_without_a_lab_is_a_usage_error_that_says_how_to_make_one() {
        let error = open(std::path::Path::new("/nonexistent-lab")).expect_err("there is none");
        assert_eq!(error.kind.exit_code(), 2);
        assert!(error.to_string().contains("regent lab up"), "{error}");
    }
}
