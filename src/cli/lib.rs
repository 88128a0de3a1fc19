//! regent-cli: the verbs of `regent`, for people (tables) and programs (`-o json`).
//!
//! A verb asks the cluster, prints what it was told, and ends with an exit code that says what
//! became of it: 0 done, 1 refused, 2 usage, 3 unreachable, 4 internal. It decides nothing: what
//! may be done is decided by the nodes, and what is wrong with a declaration by `regent-core`.
//!
//! - [`args`]: the command line. [`command`]: one file per verb.
//! - [`connect`]: from flags, environment and `client.toml` to channels.
//! - [`declare`]: service files.
//! - [`error`]: what failed, why, one hint, exit code.
//! - [`follow`]: watches without gaps.
//! - [`render`]: tables and JSON.

pub mod args;
pub mod command;
pub mod config;
pub mod connect;
pub mod declare;
pub mod duration;
pub mod error;
pub mod follow;
pub mod reference;
pub mod render;
pub mod suggest;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;
use crate::command::Context;

/// Parses the command line, runs the verb, prints the error if there is one.
pub fn main() -> ExitCode {
    if let Some(code) = as_fencer() {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not errors; clap knows which stream each belongs to.
            let code = if error.use_stderr() { error::Kind::Usage.exit_code() } else { 0 };
            return match error.print() {
                Ok(()) => ExitCode::from(code),
                Err(_) => ExitCode::from(error::Kind::Internal.exit_code()),
            };
        }
    };
    run(cli)
}

/// The fencer is started by an agent with arguments that it prints itself; it must not have the
/// threads of a runtime, so it is told apart before anything else begins.
fn as_fencer() -> Option<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    if words.next()? != "fencer" {
        return None;
    }
    let outcome = match regent_fencer::Options::parse(words) {
        Ok(options) => regent_fencer::run(&options).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    Some(outcome.unwrap_or_else(|why| {
        eprintln!("error: the fencer cannot run: {why}");
        eprintln!("hint: an agent starts it; `regent agent --help`");
        ExitCode::from(error::Kind::Usage.exit_code())
    }))
}

fn run(cli: Cli) -> ExitCode {
    let context = Context::new(cli.globals);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let error =
                error::CliError::internal("cannot start the async runtime").caused_by(error);
            return context.fail(&error);
        }
    };
    // A node sets up its own logging, from its configuration.
    if !matches!(cli.command, args::Command::Server(_) | args::Command::Agent(_)) {
        log_to_stderr(context.globals.verbose);
    }
    let result = runtime.block_on(command::dispatch(&context, cli.command));
    // Threads that still wait for a blocking read (stdin, a slow disk) must not hold the exit.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => context.fail(&error),
    }
}

/// What the libraries say, for a person who asked to hear more.
fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => tracing::Level::ERROR,
        1 => tracing::Level::INFO,
        _ => tracing::Level::DEBUG,
    };
    // Fails only when somebody set up logging before; then theirs stays.
    let _ = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_target(false)
        .try_init();
}
