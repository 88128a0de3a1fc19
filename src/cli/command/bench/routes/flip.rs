//! One flip of the routes.

use std::time::{Duration, Instant};

use regent_lab::Lab;
use regent_lab::databases::{REDUNDANT, wait_redundant};
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::super::failover::fault::Fault;
use super::super::report::ms;
use super::Args;
use super::applied::{Applied, Logs};
use super::probe::{self, Prober};
use super::watchers::Watchers;
use crate::command::Context;
use crate::command::lab::from_lab;
use crate::connect::Cluster;
use crate::error::{CliError, Outcome};

/// A flip that takes longer has failed.
const LONGEST: Duration = Duration::from_secs(60);
/// The last line of a log may be on its way.
const SETTLED: Duration = Duration::from_millis(300);
/// A session that is open for so long after the routes closed is not cut.
const UNCUT: Duration = Duration::from_secs(3);

/// How long it took.
pub struct Flip {
    /// From the opening to the first session, or to the last watch.
    pub moved: Duration,
    /// From the closing to the end of the old session.
    pub cut: Option<Duration>,
    /// From the closing to the opening.
    closed: Duration,
    from: String,
}

impl Flip {
    /// For programs.
    pub fn to_json(&self) -> Value {
        let us = |time: Duration| ms(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        json!({
            "from": self.from,
            "moved_ms": us(self.moved),
            "closed_ms": us(self.closed),
            "cut_ms": self.cut.map(us),
        })
    }
}

/// Flip after flip.
pub struct Flips<'a> {
    lab: Lab,
    args: &'a Args,
    watchers: Watchers,
}

impl<'a> Flips<'a> {
    /// Watches begin.
    ///
    /// # Errors
    /// They are not served.
    pub async fn begin(context: &Context, lab: Lab, args: &'a Args) -> Outcome<Self> {
        not_well(wait_redundant(&lab, REDUNDANT, &|_| {}).await.map_err(Into::into))?;
        let cluster = Cluster::with(super::super::target::settings_of(&lab, context))?;
        let endpoints = lab.endpoints();
        let connections = args.watchers.map_or(endpoints.len(), |_| args.connections as usize);
        let channels: Vec<Channel> = (0..connections)
            .map(|at| cluster.connect(&endpoints[at % endpoints.len()]))
            .collect::<Outcome<_>>()?;
        let count = args.watchers.map_or(channels.len(), |count| count as usize);
        let service = lab.databases.as_ref().map_or("", |all| all.service.as_str());
        let watchers = Watchers::begin(service, &channels, count).await?;
        Ok(Self { lab, args, watchers })
    }

    /// Once; the inner error is why it was none.
    ///
    /// # Errors
    /// The lab is not well, or the primary cannot be changed.
    pub async fn once(&mut self) -> Outcome<Result<Flip, String>> {
        let view =
            not_well(wait_redundant(&self.lab, REDUNDANT, &|_| {}).await.map_err(Into::into))?;
        let databases = self.lab.databases.clone();
        let primary = view.primary().and_then(|seen| databases.as_ref()?.instance(&seen.id));
        let primary = primary.ok_or_else(|| CliError::internal("the lab has no primary"))?.clone();
        let (mut prober, mut old) = (None, None);
        if let Some(address) = &self.args.address {
            let stream = within(Duration::from_secs(10), || probe::open(address)).await;
            let stream = stream.ok_or_else(|| {
                CliError::unreachable(format!("cannot reach the primary through {address}"))
            })?;
            old = Some(probe::watch(stream));
            prober = Some(Prober::start(address.clone()));
        }
        let logs = Logs::here(&self.lab);
        self.args.fault.inject(&self.lab, &primary).await?;
        let (applied, moved) = self.follow(&logs, &primary.id, prober.as_ref()).await;
        let cut = match old {
            Some(old) => tokio::time::timeout(UNCUT, old).await.ok().and_then(Result::ok),
            None => None,
        };
        if self.args.fault != Fault::Switchover {
            let (lab, ..) = not_well(regent_lab::heal(&self.args.dir).await)?;
            self.lab = lab;
        }
        let (Some(closed), Some(opened)) = (applied.closed, applied.opened) else {
            return Ok(Err("no node says that the routes were closed and opened".to_owned()));
        };
        let Some(moved) = moved else {
            return Ok(Err(format!("nobody was at the new primary after {LONGEST:?}")));
        };
        if self.args.address.is_some() && cut.is_none() {
            return Ok(Err(format!("an old session was open {UNCUT:?} after the flip")));
        }
        Ok(Ok(Flip {
            moved: moved.saturating_duration_since(opened),
            cut: cut.map(|at| at.saturating_duration_since(closed)),
            closed: opened.saturating_duration_since(closed),
            from: primary.id,
        }))
    }

    /// Waits until the routes are open again, and somebody is there.
    async fn follow(
        &self,
        logs: &Logs,
        old: &str,
        prober: Option<&Prober>,
    ) -> (Applied, Option<Instant>) {
        let deadline = Instant::now() + LONGEST;
        while !self.watchers.any_closed() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if let Some(prober) = prober {
            prober.is_dense(true);
        }
        let mut told = None;
        while told.is_none() && Instant::now() < deadline {
            told = self.watchers.all_moved_from(old);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let Some(prober) = prober else {
            tokio::time::sleep(SETTLED).await;
            return (logs.applied(), told);
        };
        tokio::time::sleep(SETTLED).await;
        prober.is_dense(false);
        let applied = logs.applied();
        let mut first = None;
        while first.is_none() && Instant::now() < deadline {
            first = applied.opened.and_then(|opened| prober.first_after(opened));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        (applied, first)
    }
}

fn not_well<T>(result: Result<T, regent_lab::LabError>) -> Outcome<T> {
    result.map_err(|error| from_lab("the lab is not well", error))
}

/// The first success within that time.
async fn within<T, F>(limit: Duration, mut ask: impl FnMut() -> F) -> Option<T>
where
    F: Future<Output = std::io::Result<T>>,
{
    let deadline = Instant::now() + limit;
    loop {
        if let Ok(answer) = ask().await {
            return Some(answer);
        }
        if Instant::now() >= deadline {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
