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
use super::routes::follow::{Follower, Wanted, own_name};
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
    /// What it calls itself in `regent routes`; this verb, its process and its host unless given
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

/// What the routes ask of PgBouncer.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wish {
    /// Clients go there.
    Serve(String),
    /// Clients wait.
    Hold,
    /// What was done before stands: this node cannot prove anything.
    Leave,
}

fn wish(routes: &v1::Routes) -> Wish {
    match &routes.write {
        Some(one) => Wish::Serve(one.address.clone()),
        None if routes.holds || routes.unproven => Wish::Leave,
        None => Wish::Hold,
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
    let name = args.name.clone().unwrap_or_else(|| own_name("pgbouncer-sync"));
    let wanted = Wanted { service: args.service.clone(), client: None, router: Some(name) };
    let mut follower = Follower::new(&cluster, wanted);
    let mut sync = Sync::new(context, &args, service, admin);
    let ended = loop {
        // What takes time is done after this: whatever is here may be dropped half-way.
        let mut paused = None;
        tokio::select! {
            next = follower.next() => match next {
                Ok((_, routes)) => sync.wanted = Some(routes),
                // It outlives the nodes, as PgBouncer does.
                Err(error) if error.kind == Kind::Unreachable => {
                    tracing::warn!(%error, "no node answers");
                }
                Err(error) => break Err(error),
            },
            said = sync.wakes() => paused = said,
            () = stop.told() => break Ok(()),
        }
        if let Some(said) = paused {
            sync.paused(said).await;
        }
        sync.limit().await;
        match sync.go_on().await {
            Done::Applied(routes) => {
                follower.applied(&routes).await;
                sync.told(&routes);
            }
            Done::Nothing => {}
            Done::Unproven => follower.leave().await,
        }
    };
    // With nobody here who would let them go on, clients must not be held.
    if sync.holds_since.is_some()
        && let Err(why) = sync.admin.resume().await
    {
        tracing::warn!(why, "PgBouncer may still hold its clients");
    }
    ended
}

/// How far PAUSE is.
enum Pause {
    /// Not asked for.
    No,
    /// It waits for the last server connection.
    Pending(JoinHandle<Result<(), String>>),
    /// No client goes on.
    Done,
}

/// What came of the newest table.
enum Done {
    /// PgBouncer does what it says.
    Applied(Box<v1::Routes>),
    /// Not yet, or it was done before.
    Nothing,
    /// The node cannot prove anything.
    Unproven,
}

/// PgBouncer, and what it was told.
struct Sync<'a> {
    context: &'a Context,
    args: &'a Args,
    service: ServiceName,
    admin: Admin,
    /// The newest table, while PgBouncer does not do what it says.
    wanted: Option<v1::Routes>,
    /// The address that it has surely read from its file.
    loaded: Option<String>,
    pause: Pause,
    /// Since when it may hold clients. Whoever ran before may have paused it.
    holds_since: Option<Instant>,
    /// They were held for as long as may be: not again before somebody takes writes.
    limit_passed: bool,
    /// Not before: something was refused.
    again_at: Instant,
}

impl<'a> Sync<'a> {
    fn new(context: &'a Context, args: &'a Args, service: ServiceName, admin: Admin) -> Self {
        let now = Instant::now();
        Self {
            context,
            args,
            service,
            admin,
            wanted: None,
            loaded: None,
            pause: Pause::No,
            holds_since: Some(now),
            limit_passed: false,
            again_at: now,
        }
    }

    /// Returns when something is to be done though nothing was told; what PAUSE said at its end.
    async fn wakes(&mut self) -> Option<Result<(), String>> {
        let limit =
            self.holds_since.map(|since| (since + self.args.pause_limit).max(self.again_at));
        let is_pending = matches!(self.pause, Pause::Pending(_));
        let again = (self.wanted.is_some() && !is_pending).then_some(self.again_at);
        let until = |at: Option<Instant>| tokio::time::sleep_until(at.unwrap_or_else(Instant::now));
        let pause = &mut self.pause;
        let paused = async {
            match pause {
                Pause::Pending(pause) => pause.await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            said = paused => {
                self.pause = Pause::No;
                Some(said.unwrap_or_else(|end| Err(end.to_string())))
            }
            () = until(limit), if limit.is_some() => None,
            () = until(again), if again.is_some() => None,
        }
    }

    /// PAUSE has come to its end.
    async fn paused(&mut self, said: Result<(), String>) {
        match said {
            Ok(()) => self.pause = Pause::Done,
            Err(why) => {
                tracing::warn!(why, "PgBouncer did not pause");
                // Of several databases some may be.
                self.release().await;
            }
        }
    }

    /// Lets clients go on where they were; what fails is tried again.
    async fn release(&mut self) {
        self.again_at = Instant::now() + AGAIN_AFTER;
        match self.admin.resume().await {
            Ok(()) => (self.pause, self.holds_since) = (Pause::No, None),
            Err(why) => tracing::warn!(why, "PgBouncer does not let its clients go on"),
        }
    }

    /// Lets clients go on that have been held for as long as may be.
    async fn limit(&mut self) {
        let limit = self.args.pause_limit;
        let is_over = self.holds_since.is_some_and(|since| since.elapsed() >= limit);
        if is_over && Instant::now() >= self.again_at {
            tracing::warn!(?limit, "nobody took writes for so long: clients go on");
            self.limit_passed = true;
            self.release().await;
        }
    }

    /// Has PgBouncer do what the newest table says.
    async fn go_on(&mut self) -> Done {
        if Instant::now() < self.again_at {
            return Done::Nothing;
        }
        let Some(routes) = self.wanted.clone() else { return Done::Nothing };
        let done = match wish(&routes) {
            Wish::Leave => {
                self.wanted = None;
                return if routes.holds { Done::Nothing } else { Done::Unproven };
            }
            Wish::Hold => self.hold(&routes).await,
            Wish::Serve(address) => self.serve(&routes, &address).await,
        };
        match done {
            Ok(true) => {
                self.wanted = None;
                Done::Applied(Box::new(routes))
            }
            Ok(false) => Done::Nothing,
            Err(why) => {
                self.again_at = Instant::now() + AGAIN_AFTER;
                tracing::warn!(why, "PgBouncer does not do what the routes say");
                Done::Nothing
            }
        }
    }

    async fn hold(&mut self, routes: &v1::Routes) -> Result<bool, String> {
        // PgBouncer does not start without its file, and there may never have been a primary.
        if let Some(one) = routes.instances.first()
            && !self.args.databases_file.exists()
        {
            self.write(routes, &one.address)?;
        }
        match self.pause {
            Pause::Done => Ok(true),
            Pause::Pending(_) => Ok(false),
            // Nothing is acknowledged: it does not hold anybody.
            Pause::No if self.limit_passed => {
                self.again_at = Instant::now() + AGAIN_AFTER;
                Ok(false)
            }
            Pause::No => {
                let pause = self.admin.pause().await?;
                self.pause = Pause::Pending(tokio::spawn(pause));
                self.holds_since = Some(Instant::now());
                Ok(false)
            }
        }
    }

    async fn serve(&mut self, routes: &v1::Routes, address: &str) -> Result<bool, String> {
        self.write(routes, address)?;
        let moved = self.loaded.as_deref() != Some(address);
        if moved {
            self.admin.reload().await?;
        }
        // PAUSE has not come to its end, and the server is another one: somebody waits for a server that
        // may never answer. Where it is the same one nothing was to end.
        if moved && self.loaded.is_some() && matches!(self.pause, Pause::Pending(_)) {
            self.admin.kill_who_hangs().await?;
        }
        self.loaded = Some(address.to_owned());
        if self.holds_since.is_some() {
            self.admin.resume().await?;
        }
        (self.pause, self.holds_since, self.limit_passed) = (Pause::No, None, false);
        Ok(true)
    }

    fn write(&self, routes: &v1::Routes, address: &str) -> Result<(), String> {
        let names = &self.args.databases;
        let text = file::text(&self.service, routes, names, address, &self.args.settings);
        file::replace(&self.args.databases_file, &text).map(drop)
    }

    fn told(&self, routes: &v1::Routes) {
        let epoch = routes.epoch.as_ref().map(text::epoch).unwrap_or_default();
        let primary = routes.write.as_ref().map(|one| &one.instance);
        self.context.out.value(
            || json!({ "epoch": epoch, "primary": primary, "paused": primary.is_none() }),
            || match primary {
                Some(primary) => format!("epoch {epoch}: clients go on at {primary}"),
                None => format!("epoch {epoch}: clients wait: {}", routes.closed),
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
        assert_eq!(wish(&v1::Routes { unproven: true, ..nobody.clone() }), Wish::Leave);
        let write = Some(v1::RouteEndpoint { address: "a:1".into(), ..Default::default() });
        assert_eq!(wish(&v1::Routes { write, ..nobody }), Wish::Serve("a:1".into()));
    }
}
