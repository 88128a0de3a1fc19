//! The command line of `regent`: global options and the list of verbs. The options of a verb stand
//! in the verb's own file.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::TypedValueParser as _;
use clap::{Parser, Subcommand};

use crate::command;
use crate::render::{Destination, Format};

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 refused, 2 usage, 3 unreachable, 4 internal.

Try it:
  regent demo                                  a database that loses its primary, and no row; 60 s
  regent lab up --dir /tmp/lab                 nodes and PostgreSQL on this machine
  regent lab exec --dir /tmp/lab -- status     any verb, with the lab's own identity
";

/// Decides who is primary, proves that nobody else is, and says where to go.
#[derive(Debug, Parser)]
#[command(name = "regent", version, after_help = AFTER_HELP, max_term_width = 100)]
#[command(propagate_version = true, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// Options that every verb understands.
    #[command(flatten)]
    pub globals: Globals,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every verb understands.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// Nodes to ask, any of them: host:port, separated by commas
    #[arg(
        long,
        global = true,
        env = "REGENT_ENDPOINTS",
        value_delimiter = ',',
        value_name = "HOST:PORT"
    )]
    pub endpoints: Vec<String>,
    /// Certificate chain (PEM) that says who you are
    #[arg(long, global = true, env = "REGENT_CERT", value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Private key (PEM) of --cert
    #[arg(long, global = true, env = "REGENT_KEY", value_name = "FILE", hide_env_values = true)]
    pub key: Option<PathBuf>,
    /// Certificate authorities (PEM) that the nodes must be signed by
    #[arg(long, global = true, env = "REGENT_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Trust domain of the cluster [default: the one of --cert]
    #[arg(long, global = true, env = "REGENT_TRUST_DOMAIN", value_name = "NAME")]
    pub trust_domain: Option<String>,
    /// File with the options above, for those who do not like to repeat them
    #[arg(long, global = true, env = "REGENT_CONFIG", value_name = "CLIENT.TOML")]
    pub config: Option<PathBuf>,
    /// How results are printed
    #[arg(short, long, global = true, default_value = "table", value_name = "FORMAT",
          value_parser = clap::value_parser!(Format).map(Destination::Format))]
    pub output: Destination,
    /// How long one request may take, retries included: 500ms, 10s, 1m
    #[arg(long, global = true, default_value = "10s", value_parser = crate::duration::parse)]
    pub timeout: Duration,
    /// Say more on stderr; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a coordinator node
    Server(command::server::Args),
    /// Run the sidecar of a database instance
    Agent(command::agent::Args),
    /// Show the cluster: who leads, who follows, what is wrong
    Status(command::status::Args),
    /// Declare, show and watch services
    #[command(subcommand)]
    Services(command::services::Verb),
    /// Make another instance primary, in order
    Switchover(command::operations::Switchover),
    /// Make another instance primary, because the old one is gone
    Failover(command::operations::Failover),
    /// See failovers and switchovers, give one up
    #[command(subcommand)]
    Operations(command::operations::Verb),
    /// Say what the leader knows of a service, what it would do, and why not
    Explain(command::explain::Args),
    /// Show where clients are sent, print configurations of load balancers
    Routes(command::routes::Args),
    /// Tell a HAProxy of each flip at once, beside its own checks
    HaproxySync(command::haproxy_sync::Args),
    /// Have a PgBouncer hold its clients while nobody takes writes, and let them go on elsewhere
    PgbouncerSync(command::pgbouncer_sync::Args),
    /// See what people are asked
    #[command(subcommand)]
    Approvals(command::approvals::Verb),
    /// Grant an approval
    Approve(command::approvals::Answer),
    /// Deny an approval
    Deny(command::approvals::Answer),
    /// Keep Regent's hands off a service
    Pause(command::operations::Pause),
    /// End a pause
    Resume(command::operations::Pause),
    /// Campaign for a lease, hold it, watch who has it
    #[command(subcommand)]
    Election(command::election::Verb),
    /// Change which nodes make up the cluster
    #[command(subcommand)]
    Members(command::members::Verb),
    /// Save the replicated state to a file
    Backup(command::backup::Args),
    /// Begin a new cluster from a backup
    Restore(command::restore::Args),
    /// Bring a cluster back that lost its majority for good
    Recover(command::recover::Args),
    /// Read, verify and export the audit chain
    #[command(subcommand)]
    Audit(command::audit::Verb),
    /// Make and renew certificates, for those who have no authority of their own
    #[command(subcommand)]
    Pki(command::pki::Verb),
    /// Measure a cluster
    #[command(subcommand)]
    Bench(command::bench::Verb),
    /// A whole playground on this machine
    #[command(subcommand)]
    Lab(command::lab::Verb),
    /// Show in a minute what Regent does
    Demo(command::demo::Args),
    /// Print a completion script for a shell
    Completions(command::completions::Args),
    /// For Regent's own build
    #[command(subcommand, hide = true)]
    Internal(command::internal::Verb),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_in_every_verb() {
        Cli::command().debug_assert();
    }

    /// Every command line in the help of a verb, without what a shell would do with it.
    fn examples(verb: &clap::Command, found: &mut Vec<String>) {
        let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
        for line in help.lines().filter_map(|line| line.strip_prefix("  regent ")) {
            // What follows three spaces is a remark; what follows `|` or `>` is another program.
            let line = line.split("   ").next().unwrap_or_default();
            let line = line.split(['|', '>']).next().unwrap_or_default();
            found.push(format!("regent {}", line.trim()));
        }
        verb.get_subcommands().for_each(|verb| examples(verb, found));
    }

    #[test]
    fn every_example_in_the_help_is_a_command_line_that_parses() {
        let mut found = Vec::new();
        examples(&Cli::command(), &mut found);
        assert!(found.len() > 20, "{found:?}");
        for line in found {
            let parsed = Cli::try_parse_from(line.split_whitespace());
            assert!(
                parsed.is_ok(),
                "{line}: {}",
                parsed.err().map(|e| e.to_string()).unwrap_or_default()
            );
        }
    }

    #[test]
    fn a_global_option_is_understood_before_and_after_the_verb() {
        let before = Cli::try_parse_from(["regent", "-o", "json", "members", "list"]);
        let after = Cli::try_parse_from(["regent", "members", "list", "-o", "json"]);
        for cli in [before, after] {
            let cli = cli.expect("it parses");
            assert_eq!(cli.globals.output.format(), Format::Json);
        }
    }

    #[test]
    fn the_backup_verb_takes_a_file_or_a_format_as_o_and_no_other_verb_takes_a_file() {
        let file = Cli::try_parse_from(["regent", "backup", "-o", "x.backup"]).expect("a file");
        assert_eq!(file.globals.output, Destination::File("x.backup".into()));
        let format = Cli::try_parse_from(["regent", "backup", "--file", "x", "-o", "json"]);
        assert_eq!(format.expect("a format").globals.output.format(), Format::Json);
        assert!(Cli::try_parse_from(["regent", "status", "-o", "x.backup"]).is_err());
    }

    #[test]
    fn a_node_reads_its_own_configuration_not_the_clients() {
        let cli = Cli::try_parse_from(["regent", "server", "--config", "node.toml"]);
        assert!(matches!(cli.expect("it parses").command, Command::Server(_)));
        assert!(Cli::try_parse_from(["regent", "server"]).is_err(), "it is needed");
    }
}
