//! `regent election campaign`: win a lease, act while it holds, and not a moment longer.
//!
//! With `--hold` or `--exec` the client library keeps the lease by C1; without, the lead is asked
//! for once and lasts one ttl.

use std::process::ExitStatus;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use regent_core::id::{ElectionName, Locality};
use regent_rpc::client::{CampaignOptions, Lease, LeaseError, Session, SessionOptions};
use regent_rpc::pb::v1;
use regent_rpc::pb::v1::election_service_client::ElectionServiceClient;
use regent_rpc::pb::v1::renewed::Outcome as Renewal;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::json;
use tokio::process::{Child, Command};

use crate::command::{Context, Stop};
use crate::connect::{Cluster, from_call, from_status};
use crate::error::{CliError, Context as _, Outcome};
use crate::render::{json, text};

/// Options of `election campaign`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  regent election campaign billing --value db1:5432 --hold
  regent election campaign nightly --exec ./run-once.sh --verbose
  regent election campaign billing                          ask once, keep it for one ttl

With --hold the command waits for its turn, prints the epoch, and keeps the lease until SIGTERM or
Ctrl-C (then it resigns) or until the lease is lost (then it ends with exit code 1).

With --exec it runs a command while it leads: REGENT_ELECTION, REGENT_EPOCH and REGENT_SESSION are
in its environment. The command's whole process group is ended before the cluster could give the
lead to another. Whoever kills or freezes `regent` itself takes that protection away: what must
never be done twice belongs behind a check of the epoch, at the resource.
")]
pub struct Args {
    /// Name of the election
    pub election: String,
    /// What to publish when it leads: an address, for example
    #[arg(long, default_value = "", hide_default_value = true)]
    pub value: String,
    /// How long the cluster waits without a renewal
    #[arg(long, default_value = "10s", value_parser = crate::duration::parse)]
    pub ttl: Duration,
    /// How long this client needs to stop acting
    #[arg(long, default_value = "250ms", value_parser = crate::duration::parse)]
    pub fence_budget: Duration,
    /// Higher goes first
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub priority: i32,
    /// Region this client is in
    #[arg(long, default_value = "", hide_default_value = true)]
    pub region: String,
    /// Zone this client is in
    #[arg(long, default_value = "", hide_default_value = true)]
    pub zone: String,
    /// For people: which program this is
    #[arg(long, default_value = "regent cli", hide_default_value = true)]
    pub label: String,
    /// Wait for the lead and keep it
    #[arg(long)]
    pub hold: bool,
    /// With --hold or --exec: give up after this
    #[arg(long, value_parser = crate::duration::parse, value_name = "DURATION")]
    pub wait: Option<Duration>,
    /// Run this command while it leads; everything that follows belongs to it
    #[arg(long, num_args = 1.., allow_hyphen_values = true, value_name = "COMMAND")]
    pub exec: Vec<String>,
}

impl Args {
    fn locality(&self) -> Locality {
        Locality { region: self.region.clone(), zone: self.zone.clone(), host: String::new() }
    }
}

/// Runs it.
pub async fn run(context: &Context, args: Args) -> Outcome {
    let election = ElectionName::parse(&args.election)
        .or_usage(|| format!("{:?} is no name of an election", args.election))?;
    let cluster = Cluster::open(&context.globals)?;
    if !args.hold && args.exec.is_empty() {
        return once(context, &cluster, &args).await;
    }
    hold(context, &cluster, &args, &election).await
}

/// Asks once; the session is left to lapse.
async fn once(context: &Context, cluster: &Cluster, args: &Args) -> Outcome {
    let what = format!("campaign in {:?}", args.election);
    let nonce = rand::random_range(1..=u64::MAX);
    let open = v1::OpenSessionRequest {
        request: cluster.request(),
        ttl_ms: millis(args.ttl),
        renew_interval_ms: 0,
        fence_budget_ms: millis(args.fence_budget),
        nonce,
        label: args.label.clone(),
    };
    let opened = cluster
        .ask("open a session", |channel| {
            let open = open.clone();
            async move { ElectionServiceClient::new(channel).open_session(open).await }
        })
        .await?;
    let session = opened.session;
    let bid = v1::CampaignRequest {
        request: cluster.request(),
        election: args.election.clone(),
        session,
        nonce,
        priority: args.priority,
        locality: Some(v1::Locality {
            region: args.region.clone(),
            zone: args.zone.clone(),
            host: String::new(),
        }),
        value: args.value.clone().into_bytes().into(),
    };
    let answer = cluster
        .ask(&what, |channel| {
            let bid = bid.clone();
            async move { ElectionServiceClient::new(channel).campaign(bid).await }
        })
        .await;
    let epoch = match answer {
        Ok(v1::CampaignResponse { epoch: Some(epoch), .. }) => epoch,
        Ok(queued) => {
            close(cluster, session, nonce).await;
            let before = queued.ahead;
            return Err(CliError::refused(format!("cannot {what}"))
                .because(format!("somebody else leads, and {before} more come first"))
                .hint("--hold waits for its turn"));
        }
        Err(error) => {
            close(cluster, session, nonce).await;
            return Err(error);
        }
    };
    if let Err(error) = confirm(cluster, session, nonce, &epoch).await {
        close(cluster, session, nonce).await;
        return Err(error);
    }
    context.out.value(
        || {
            json!({
                "event": "held",
                "election": args.election,
                "epoch": json::epoch(&Some(epoch)),
                "session": session,
                "nonce": format!("{nonce:016x}"),
                "ttl_ms": opened.ttl_ms,
            })
        },
        || {
            format!(
                "{} is led under epoch {} for {} ms\nsession {session}, nonce {nonce:016x}",
                args.election,
                text::epoch(&epoch),
                opened.ttl_ms
            )
        },
    );
    Ok(())
}

/// Names the grant in a renewal and waits for its acknowledgement: before that a grant must not be
/// acted on (C8).
async fn confirm(cluster: &Cluster, session: u64, nonce: u64, epoch: &v1::Epoch) -> Outcome {
    let what = "confirm the lease";
    let known_grant = epoch.revision;
    let renewal = v1::Renewal { session, nonce, known_grant, ..v1::Renewal::default() };
    // A renewal may be answered with "send a new one" (C5); twice is a sick link.
    for number in 1..=3 {
        let renewals = vec![v1::Renewal { number, ..renewal }];
        let request = v1::KeepAliveRequest { renewals, probe: 0 };
        let mut stream = cluster
            .ask(what, |channel| {
                let requests = futures::stream::iter([request.clone()]);
                async move { ElectionServiceClient::new(channel).keep_alive(requests).await }
            })
            .await?;
        let answer = tokio::time::timeout(cluster.settings().timeout, stream.message()).await;
        match answer {
            Ok(Ok(Some(message))) => match message.renewed.first().map(v1::Renewed::outcome) {
                Some(Renewal::Extended) => return Ok(()),
                Some(Renewal::SessionGone | Renewal::NonceStale) => {
                    return Err(CliError::refused(format!("cannot {what}"))
                        .because("the session ended meanwhile")
                        .hint("use a longer --ttl"));
                }
                _ => {}
            },
            Ok(Err(status)) => return Err(from_status(what, "the node", &status)),
            Ok(Ok(None)) | Err(_) => {}
        }
    }
    Err(CliError::unreachable(format!("cannot {what}")).because("no renewal was acknowledged"))
}

/// Best effort: what cannot be closed lapses by itself.
async fn close(cluster: &Cluster, session: u64, nonce: u64) {
    let request = v1::CloseSessionRequest { request: cluster.request(), session, nonce };
    let closed = cluster
        .ask("close the session", |channel| async move {
            ElectionServiceClient::new(channel).close_session(request).await
        })
        .await;
    if let Err(error) = closed {
        tracing::debug!(%error, "the session was not closed; it lapses");
    }
}

async fn hold(
    context: &Context,
    cluster: &Cluster,
    args: &Args,
    election: &ElectionName,
) -> Outcome {
    let what = format!("campaign in {:?}", args.election);
    // Before anything is held: a signal must never find nobody listening.
    let mut stop = Stop::listen()?;
    let client = cluster.client()?;
    let options = SessionOptions {
        ttl: args.ttl,
        renew_interval: None,
        fence_budget: args.fence_budget,
        label: args.label.clone(),
    };
    let session = Session::open(&client, options)
        .await
        .map_err(|error| from_call("open a session", &error))?;
    event(context, "waiting", args, None, &session, "");
    let bid =
        CampaignOptions { priority: args.priority, locality: args.locality(), wait: args.wait };
    let won = tokio::select! {
        won = session.campaign(election, args.value.as_bytes(), bid) => won,
        () = stop.told() => {
            end(session).await;
            context.out.note("told to stop before the election was won");
            return Ok(());
        }
    };
    let lease = match won {
        Ok(lease) => lease,
        Err(error) => {
            end(session).await;
            return Err(from_lease(&what, error));
        }
    };
    event(context, "held", args, Some(&lease), &session, "");
    let ending = if args.exec.is_empty() {
        tokio::select! {
            () = lease.lost() => Ending::Lost,
            () = stop.told() => Ending::Over(Ok(())),
        }
    } else {
        run_while_held(args, &lease, &session, &mut stop).await
    };
    match ending {
        Ending::Over(result) => {
            let why = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
            event(context, "resigned", args, Some(&lease), &session, &why);
            if let Err(error) = lease.resign().await {
                tracing::warn!(%error, "the cluster may not know yet; the lease lapses by itself");
            }
            end(session).await;
            result
        }
        Ending::Lost => {
            let error = lost(args, &session);
            event(context, "lost", args, Some(&lease), &session, &error.causes.join("; "));
            drop(lease);
            end(session).await;
            Err(error)
        }
    }
}

/// Why the lease is not held any more. In both cases nothing acts on it any more either.
enum Ending {
    /// It was taken away, or ran out.
    Lost,
    /// It is not needed any more.
    Over(Outcome),
}

async fn end(session: Session) {
    if let Err(error) = session.close().await {
        tracing::debug!(%error, "the session was not closed; it lapses");
    }
}

fn lost(args: &Args, session: &Session) -> CliError {
    let why = match session.over() {
        Some(reason) => format!("the session is over: {reason:?}"),
        None => "no renewal was acknowledged in time, or the lead was taken away".to_owned(),
    };
    CliError::refused(format!("the lease of {:?} was lost", args.election))
        .because(why)
        .hint("see `regent status`; a longer --ttl survives longer outages")
}

fn from_lease(what: &str, error: LeaseError) -> CliError {
    match error {
        LeaseError::Call(error) => from_call(what, &error),
        LeaseError::NotWon { .. } => CliError::refused(format!("cannot {what}"))
            .caused_by(error)
            .hint("see who leads: `regent election show`"),
        error => CliError::refused(format!("cannot {what}")).caused_by(error),
    }
}

fn event(
    context: &Context,
    name: &str,
    args: &Args,
    lease: Option<&Lease>,
    session: &Session,
    why: &str,
) {
    let at_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    let epoch = lease.map(Lease::epoch);
    context.out.value(
        || {
            json!({
                "event": name,
                "at_ms": at_ms,
                "election": args.election,
                "session": session.id().0,
                "epoch": epoch.map(|epoch| json!({
                    "incarnation": epoch.incarnation,
                    "revision": epoch.revision.0,
                    "text": epoch.to_string(),
                })),
                "why": why,
            })
        },
        || match (name, epoch) {
            ("held", Some(epoch)) => format!("{} is led under epoch {epoch}", args.election),
            ("lost", Some(epoch)) => format!("{} is lost (epoch {epoch}): {why}", args.election),
            ("resigned", Some(epoch)) => {
                format!("{} is given up (epoch {epoch})", args.election)
            }
            _ => format!("waiting for {} with session {}", args.election, session.id()),
        },
    );
}

/// Runs the command until it ends, the lease is lost, or we are told to stop. In every case the
/// command's process group is gone when this returns, so that resigning afterwards is safe.
async fn run_while_held(args: &Args, lease: &Lease, session: &Session, stop: &mut Stop) -> Ending {
    let mut words = args.exec.iter();
    let program = words.next().expect("clap asks for at least one word");
    let started = Command::new(program)
        .args(words)
        .env("REGENT_ELECTION", &args.election)
        .env("REGENT_EPOCH", lease.epoch().to_string())
        .env("REGENT_SESSION", session.id().to_string())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .or_usage(|| format!("cannot run {program:?}"));
    let mut child = match started {
        Ok(child) => child,
        Err(error) => return Ending::Over(Err(error)),
    };
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    tokio::select! {
        status = child.wait() => {
            // The command has ended; what it left running in its group must not act on.
            kill_group(group);
            let status = status.or_internal(|| format!("cannot wait for {program:?}"));
            Ending::Over(status.and_then(|status| finished(program, status)))
        }
        () = lease.lost() => {
            // Half of the budget to end by itself; the other half is for the kill.
            end_group(&mut child, group, args.fence_budget / 2).await;
            Ending::Lost
        }
        () = stop.told() => {
            // The lease is still held and renewed: the command may take its time.
            tokio::select! {
                () = end_group(&mut child, group, Duration::from_secs(10)) => Ending::Over(Ok(())),
                () = lease.lost() => {
                    end_group(&mut child, group, Duration::ZERO).await;
                    Ending::Lost
                }
            }
        }
    }
}

fn finished(program: &str, status: ExitStatus) -> Outcome {
    if status.success() {
        return Ok(());
    }
    Err(CliError::refused(format!("{program:?} failed")).because(status.to_string()))
}

/// Ends the command and everything it started in its group: SIGTERM, then SIGKILL after `grace`.
async fn end_group(child: &mut Child, group: Option<Pid>, grace: Duration) {
    if let Some(group) = group {
        // An error means that the group is gone already.
        let _ = kill_process_group(group, Signal::TERM);
    }
    let ended = tokio::time::timeout(grace, child.wait()).await.is_ok();
    // Even when the command itself has ended: its children may not have.
    kill_group(group);
    if !ended {
        let _ = child.wait().await;
    }
}

/// SIGKILL for what is left of the group. Its number cannot be somebody else's by now: pids are
/// handed out in a circle, and the command was collected this instant.
fn kill_group(group: Option<Pid>) {
    if let Some(group) = group {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
