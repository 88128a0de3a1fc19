//! `regent pgbouncer-sync`: PgBouncer holds its clients while nobody takes writes, and lets them go on
//! at the new primary.
//!
//! ```text
//! nobody takes writes ── PAUSE ── all server connections are free: acknowledged
//! somebody does ── file of databases ── RELOAD ── (KILL, if PAUSE never came to its end) ── RESUME
//! ```
//!
//! What pauses must not pause for ever: with no word for `--pause-limit` clients are let go on to where
//! they were, and meet whatever the instance says. This process may be ended and started at any time:
//! it begins with what the nodes say now.

mod admin;
mod file;

use std::path::PathBuf;
use std::time::Duration;

use regent_core::id::ServiceName;
use regent_rpc::convert::common::service_name;
use regent_rpc::pb::v1;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::admin::Admin;
use super::Context;
use super::routes::follow::{Follower, Wanted};
use crate::connect::Cluster;
use crate::error::{CliError, Kind, Outcome};
use crate::render::text;

/// Between two tries to tell a PgBouncer that is not there.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Options of `pgbouncer-sync`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
PgBouncer must run what `regent routes export --format pgbouncer` prints, or include the file that
is written here, with pools by transaction. Start this first: it writes the file.

Where a planned change should wait until PgBouncer holds its clients, the service says so:
  [policy.await_routers]
  percent = 100
  within_ms = 5000

Examples:
  regent pgbouncer-sync orders --database app --databases-file /etc/pgbouncer/regent.ini
  regent pgbouncer-sync orders --database app --settings pool_size=20
  regent pgbouncer-sync orders --admin postgres://pgbouncer@127.0.0.1:6432
")]
pub struct Args {
    /// The service
    pub service: String,
    /// A database of it, as clients name it; the service's own name unless given
    #[arg(long = "database", value_name = "NAME")]
    pub databases: Vec<String>,
    /// The file that PgBouncer includes
    #[arg(long, value_name = "FILE", default_value = "/etc/pgbouncer/regent.ini")]
    pub databases_file: PathBuf,
    /// More settings of each database, as PgBouncer reads them
    #[arg(long, value_name = "WORDS", default_value = "")]
    pub settings: String,
    /// How to reach its console. The user `pgbouncer` needs no password over the Unix socket, if this
    /// runs as the same user of the system; for another one it is taken from PGPASSWORD
    #[arg(
        long,
        value_name = "STRING",
        default_value = "host=/var/run/postgresql port=6432 user=pgbouncer"
    )]
    pub admin: String,
    /// Longest time for which clients are held
    #[arg(long, default_value = "30s", value_parser = crate::duration::parse)]
    pub pause_limit: Duration,
    /// What it calls itself in `regent routes`
    #[arg(long, value_name = "NAME", default_value = "pgbouncer-sync")]
    pub name: String,
}

/// What the routes ask of PgBouncer.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wish {
    /// Clients go there.
    Serve(String),
    /// Clients wait.
    Hold,
    /// What was done before stands.
    Leave,
}

fn wish(routes: &v1::Routes) -> Wish {
    match &routes.write {
        Some(one) => Wish::Serve(one.address.clone()),
        None if routes.holds => Wish::Leave,
        None => Wish::Hold,
    }
}

/// How far PgBouncer is.
enum Held {
    /// Clients go on.
    No,
    /// PAUSE waits for the last server connection, since then.
    Pausing(JoinHandle<Result<(), String>>, Instant),
    /// Nobody goes on, since then.
    Paused(Instant),
}

impl Held {
    fn since(&self) -> Option<Instant> {
        match self {
            Self::No => None,
            Self::Pausing(_, since) | Self::Paused(since) => Some(*since),
        }
    }
}

/// Runs it until it is told to end.
pub async fn run(context: &Context, mut args: Args) -> Outcome {
    let service = service_name("service", &args.service).map_err(|bad| {
        CliError::usage(format!("{:?} is no service", args.service)).because(bad.to_string())
    })?;
    if args.databases.is_empty() {
        args.databases.push(args.service.clone());
    }
    file::check(&args.databases, &args.settings)?;
    let admin = Admin::new(&args.admin, args.databases.clone())?;
    let cluster = Cluster::open(&context.globals)?;
    let mut stop = super::Stop::listen()?;
    let wanted =
        Wanted { service: args.service.clone(), client: None, router: Some(args.name.clone()) };
    let mut follower = Follower::new(&cluster, wanted);
    let mut sync =
        Sync { context, args: &args, service, admin, held: Held::No, limit_passed: false };
    // The newest table, while PgBouncer does not do what it says.
    let mut waits: Option<v1::Routes> = None;
    loop {
        tokio::select! {
            next = follower.next() => match next {
                Ok((_, routes)) => {
                    sync.limit_passed = false;
                    waits = Some(routes);
                }
                // It outlives the nodes, as PgBouncer does.
                Err(error) if error.kind == Kind::Unreachable => {
                    tracing::warn!(%error, "no node answers");
                }
                Err(error) => return Err(error),
            },
            () = sync.held.ends(args.pause_limit) => {}
            () = tokio::time::sleep(AGAIN_AFTER), if waits.is_some() && !sync.is_pausing() => {}
            () = stop.told() => return Ok(()),
        }
        sync.limit().await;
        let Some(routes) = &waits else { continue };
        match sync.go_on(routes).await {
            Ok(true) => {
                follower.applied(routes).await;
                sync.told(routes);
                waits = None;
            }
            Ok(false) => {}
            Err(why) => tracing::warn!(why, "PgBouncer does not do what the routes say"),
        }
    }
}

impl Held {
    /// Returns when PAUSE is over, or clients have been held for too long.
    async fn ends(&mut self, limit: Duration) {
        let Some(since) = self.since() else { return std::future::pending().await };
        let too_long = tokio::time::sleep_until(since + limit);
        match self {
            Self::Pausing(pause, since) => {
                let since = *since;
                let paused = tokio::select! {
                    paused = pause => paused,
                    () = too_long => return,
                };
                *self = match paused {
                    Ok(Ok(())) => Self::Paused(since),
                    Ok(Err(why)) => {
                        tracing::warn!(why, "PgBouncer did not pause");
                        Self::No
                    }
                    Err(_) => Self::No,
                };
            }
            Self::Paused(_) => too_long.await,
            Self::No => {}
        }
    }
}

/// PgBouncer, and what it was told.
struct Sync<'a> {
    context: &'a Context,
    args: &'a Args,
    service: ServiceName,
    admin: Admin,
    held: Held,
    /// Clients were held for as long as may be: not again before the next table.
    limit_passed: bool,
}

impl Sync<'_> {
    fn is_pausing(&self) -> bool {
        matches!(self.held, Held::Pausing(..))
    }

    /// Whether PgBouncer does what these routes say.
    async fn go_on(&mut self, routes: &v1::Routes) -> Result<bool, String> {
        match wish(routes) {
            Wish::Leave => Ok(true),
            Wish::Hold => self.hold(routes).await,
            Wish::Serve(address) => self.serve(routes, &address).await,
        }
    }

    async fn hold(&mut self, routes: &v1::Routes) -> Result<bool, String> {
        // PgBouncer does not start without its file, and there may never have been a primary.
        if let Some(one) = routes.instances.first()
            && !self.args.databases_file.exists()
        {
            self.write(routes, &one.address)?;
        }
        match self.held {
            Held::Paused(_) => Ok(true),
            Held::Pausing(..) => Ok(false),
            Held::No if self.limit_passed => Ok(true),
            Held::No => {
                let pause = self.admin.pause().await?;
                self.held = Held::Pausing(tokio::spawn(pause), Instant::now());
                Ok(false)
            }
        }
    }

    async fn serve(&mut self, routes: &v1::Routes, address: &str) -> Result<bool, String> {
        let is_new = self.write(routes, address)?;
        // PAUSE that never ended: somebody waits for a server that will not answer. Said to be over by
        // itself within a moment, it need not cost anybody a session.
        let hangs = self.is_pausing();
        self.admin.serve(is_new, hangs).await?;
        self.held = Held::No;
        Ok(true)
    }

    /// Lets clients go on that have been held for as long as may be.
    async fn limit(&mut self) {
        let is_over = |since: Instant| since.elapsed() >= self.args.pause_limit;
        if !self.held.since().is_some_and(is_over) {
            return;
        }
        tracing::warn!(limit = ?self.args.pause_limit, "nobody took writes for so long: clients go on");
        if let Err(why) = self.admin.serve(false, false).await {
            tracing::warn!(why, "PgBouncer was not told");
        }
        (self.held, self.limit_passed) = (Held::No, true);
    }

    /// Whether the file says something else now.
    fn write(&self, routes: &v1::Routes, address: &str) -> Result<bool, String> {
        let names = &self.args.databases;
        let text = file::text(&self.service, routes, names, address, &self.args.settings);
        file::replace(&self.args.databases_file, &text)
    }

    fn told(&self, routes: &v1::Routes) {
        let epoch = routes.epoch.as_ref().map(text::epoch).unwrap_or_default();
        let primary = routes.write.as_ref().map(|one| &one.instance);
        let paused = matches!(self.held, Held::Paused(_));
        self.context.out.value(
            || json!({ "epoch": epoch, "primary": primary, "paused": paused }),
            || match primary {
                Some(primary) => format!("epoch {epoch}: clients go on at {primary}"),
                None if paused => format!("epoch {epoch}: clients wait: {}", routes.closed),
                None => format!("epoch {epoch}: nobody takes writes: {}", routes.closed),
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_wait_while_nobody_takes_writes_but_for_a_primary_that_holds() {
        let nobody = v1::Routes::default();
        assert_eq!(wish(&nobody), Wish::Hold);
        assert_eq!(wish(&v1::Routes { drains: true, ..nobody.clone() }), Wish::Hold);
        assert_eq!(wish(&v1::Routes { holds: true, ..nobody.clone() }), Wish::Leave);
        let write = Some(v1::RouteEndpoint { address: "a:1".into(), ..Default::default() });
        assert_eq!(wish(&v1::Routes { write, ..nobody }), Wish::Serve("a:1".into()));
    }
}
