//! The verbs, one file each, and what they share: the global options and where to print.

pub mod agent;
pub mod approvals;
pub mod audit;
pub mod backup;
pub mod bench;
pub mod completions;
pub mod demo;
pub mod election;
pub mod explain;
pub mod haproxy_sync;
pub mod internal;
pub mod lab;
pub mod members;
pub mod operations;
pub mod pgbouncer_sync;
pub mod pki;
pub mod recover;
pub mod restore;
pub mod routes;
pub mod server;
pub mod services;
pub mod status;

use std::process::ExitCode;

use futures::future::BoxFuture;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{Command, Globals};
use crate::error::{CliError, Context as _, Outcome};
use crate::render::Output;

/// What every verb is given.
#[derive(Clone, Debug)]
pub struct Context {
    /// The global options.
    pub globals: Globals,
    /// Where to print.
    pub out: Output,
}

impl Context {
    /// A context with these options.
    pub fn new(globals: Globals) -> Self {
        let out = Output { format: globals.output.format() };
        Self { globals, out }
    }

    /// Prints the error and says which exit code it means.
    pub fn fail(&self, error: &CliError) -> ExitCode {
        self.out.error(error);
        ExitCode::from(error.kind.exit_code())
    }
}

/// Runs a verb. Boxed because `lab exec` runs a verb inside a verb.
pub fn dispatch(context: &Context, command: Command) -> BoxFuture<'_, Outcome> {
    Box::pin(async move {
        match command {
            Command::Server(args) => server::run(context, args).await,
            Command::Agent(args) => agent::run(context, args).await,
            Command::Status(args) => status::run(context, args).await,
            Command::Services(verb) => services::run(context, verb).await,
            Command::Switchover(args) => operations::switchover(context, args).await,
            Command::Failover(args) => operations::failover(context, args).await,
            Command::Operations(verb) => operations::run(context, verb).await,
            Command::Explain(args) => explain::run(context, args).await,
            Command::Routes(args) => routes::run(context, args).await,
            Command::HaproxySync(args) => haproxy_sync::run(context, args).await,
            Command::PgbouncerSync(args) => pgbouncer_sync::run(context, args).await,
            Command::Approvals(verb) => approvals::run(context, verb).await,
            Command::Approve(args) => approvals::answer(context, args, true).await,
            Command::Deny(args) => approvals::answer(context, args, false).await,
            Command::Pause(args) => operations::pause(context, args, true).await,
            Command::Resume(args) => operations::pause(context, args, false).await,
            Command::Election(verb) => election::run(context, verb).await,
            Command::Members(verb) => members::run(context, verb).await,
            Command::Backup(args) => backup::run(context, args).await,
            Command::Restore(args) => restore::run(context, args).await,
            Command::Recover(args) => recover::run(context, args).await,
            Command::Audit(verb) => audit::run(context, verb).await,
            Command::Pki(verb) => pki::run(context, verb).await,
            Command::Bench(verb) => bench::run(context, verb).await,
            Command::Lab(verb) => lab::run(context, verb).await,
            Command::Demo(args) => demo::run(context, args).await,
            Command::Completions(args) => completions::run(context, &args),
            Command::Internal(verb) => internal::run(context, &verb),
        }
    })
}

/// SIGTERM and SIGINT: both mean "finish and end".
pub struct Stop {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

impl Stop {
    /// Listens from now on; from now on these signals do not end the process by themselves.
    ///
    /// # Errors
    /// The system gives no handler.
    pub fn listen() -> Outcome<Self> {
        let what = || "cannot listen for signals".to_owned();
        let term = signal(SignalKind::terminate()).or_internal(what)?;
        let int = signal(SignalKind::interrupt()).or_internal(what)?;
        Ok(Self { term, int })
    }

    /// Waits for the next one.
    pub async fn told(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}
