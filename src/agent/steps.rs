//! Does one step of the core to the database, and says what that changed.
//!
//! Every step may be repeated, and may end at any instant: what it did is looked at again, never
//! assumed. It must never start PostgreSQL as a primary without a deadline in the fencer.

use std::sync::Arc;
use std::time::Duration;

use regent_core::agent::{Data, Local, Step, Wanted};
use regent_core::id::{Epoch, InstanceName};
use regent_core::role::{Lsn, Position, SyncSet};
use regent_core::spec::InstanceSpec;
use regent_core::time::{Micros, Reading};
use regent_engine::{
    Discovery, Engine, HistoryFile, MemberName, Postmaster, RebuildError, Relation, Source,
    StartAs, SyncNames, Upstream,
};
use regent_fencer::Arm;
use regent_fencer::wire::{Bound, Notice, StartCommand, StopMode, Target};

use crate::guard::Guard;
use crate::local::found;

/// Bound on a small change; a hung server must not hold the agent up for longer.
const SOON: Duration = Duration::from_millis(1_500);
/// Bound on sending readers away before a promotion; a start anew takes about as long.
const READERS: Duration = Duration::from_millis(500);
/// Bound on a commit that waits for standbys: they may be on their way.
const COMMIT: Duration = Duration::from_secs(5);
/// What was received is replayed within this, mostly, and on a busy host too: then one receipt says
/// both. In quorum mode nobody is granted by the first of two, and in lease mode nobody's end is proved
/// by it, so it is not missed meanwhile. Longer than a startup process takes to see that the last
/// record is no whole one.
const AT_ONCE: Duration = Duration::from_millis(200);
/// Bound on replaying what was received.
const REPLAY: Duration = Duration::from_secs(60);
/// How long an orderly shutdown may take before all is ended.
const SHUTDOWN: Duration = Duration::from_secs(15);
/// What becomes dirty within this long is written by the stop itself: its clients wait for that, and
/// for no second checkpoint.
const STILL_CLEAN: Micros = Micros::from_ms(1_000);
/// A step that failed is tried again after this long.
pub const TRY_AGAIN: Duration = Duration::from_millis(100);

/// What a step changed, to be told to [`Local`].
pub type Change = Box<dyn FnOnce(&mut Local) + Send>;

/// Why a step failed; it is tried again as long as it is the next one.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {why}")]
pub struct StepError {
    /// What was being done.
    pub doing: &'static str,
    /// Causes, without any secret.
    pub why: String,
}

/// What steps work with.
#[derive(Clone)]
pub struct Tools {
    /// The database.
    pub engine: Arc<dyn Engine>,
    /// The fencer.
    pub guard: Guard,
    /// This instance.
    pub me: InstanceName,
    /// The highest epoch that its WAL may carry.
    pub led: Epoch,
    /// Whom the policy refuses, and whose sessions it ends.
    pub lowered: Wanted,
    /// Where the instances are.
    pub declared: Vec<InstanceSpec>,
    /// What PostgreSQL writes to its own log.
    pub log: std::path::PathBuf,
    /// The directory PostgreSQL starts in.
    pub dir: std::path::PathBuf,
    /// Held by the step that is being done. One that is aborted holds it until it has let go.
    pub turn: Arc<tokio::sync::Mutex<()>>,
    /// When the last checkpoint for a switchover of this run was over.
    pub checkpointed: Option<Reading>,
}

#[async_trait::async_trait]
impl Postmaster for Guard {
    async fn reload(&self) -> std::io::Result<()> {
        self.signal(Target::Postmaster, Notice::Reload).await.map_err(std::io::Error::other)
    }

    async fn children(&self) -> std::io::Result<Vec<regent_engine::Child>> {
        let unknown = || std::io::Error::other("the first process of the server is not known");
        let pid = self.postmaster_pid().await.ok_or_else(unknown)?;
        tokio::task::spawn_blocking(move || crate::children::of(pid)).await?
    }

    async fn terminate(&self, pid: i32) -> std::io::Result<()> {
        use regent_fencer::ClientError;
        use regent_fencer::wire::Refusal;
        match self.signal(Target::Inside(pid), Notice::Terminate).await {
            // Gone already.
            Err(crate::guard::GuardError::Client(ClientError::Refused(Refusal::CannotSignal(
                _,
            )))) => Ok(()),
            other => other.map_err(std::io::Error::other),
        }
    }
}

fn failed<E: std::error::Error>(doing: &'static str) -> impl FnOnce(E) -> StepError {
    move |error| {
        let mut why = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            why = format!("{why}: {cause}");
            source = cause.source();
        }
        StepError { doing, why }
    }
}

/// Data of another cluster is nobody's copy: it is neither started nor rewound nor replaced.
fn other_cluster(doing: &'static str, of: &InstanceName, found: u64, wanted: u64) -> StepError {
    let why = format!(
        "the data directory is of database system {found}, {of} is of {wanted}: nothing of it is \
         started or changed; move it away to have {of} cloned"
    );
    StepError { doing, why }
}

/// Where a WAL ends that is not read: which epoch it carries is known to who wrote it.
fn at(end: Lsn, timeline: u32) -> Position {
    Position { epoch: Epoch::NONE, end, timeline }
}

fn nothing() -> Change {
    Box::new(|_| {})
}

impl Tools {
    /// Does it.
    ///
    /// # Errors
    /// [`StepError`].
    pub async fn run(&self, step: &Step, arm: Option<Arm>) -> Result<Change, StepError> {
        let _turn = self.turn.lock().await;
        if !matches!(step, Step::Kill) {
            // What an aborted step still writes comes first (S2): an end must not wait for a disk.
            self.engine.settled().await;
        }
        let done = self.take(step, arm).await;
        if done.is_err() && matches!(step, Step::StartStandby(_) | Step::StartPrimary) {
            // Whether it runs all the same is asked, not remembered: what the fencer said last may be
            // older than the end that this start follows.
            let _ = self.guard.look().await;
        }
        done
    }

    async fn take(&self, step: &Step, arm: Option<Arm>) -> Result<Change, StepError> {
        match step {
            Step::Kill => self.kill().await,
            Step::ShutDown => self.shut_down().await,
            Step::CloseOnDisk => self.close_on_disk().await,
            Step::FindEnd => self.find_end().await,
            Step::Detach => self.detach().await,
            Step::Replay => self.replay().await,
            Step::StartStandby(upstream) => self.start_standby(upstream.as_ref()).await,
            Step::Follow(upstream) => self.follow(upstream).await,
            Step::Compare(upstream) => self.compare(upstream).await,
            Step::Rewind(upstream) => self.rewind(upstream).await,
            Step::Clone(upstream) => self.clone_from(upstream).await,
            Step::EnsureSlots => self.ensure_slots().await,
            Step::SetNames(set) => self.set_names(set).await,
            Step::StartPrimary => self.start_primary(arm).await,
            Step::Promote(timeline) => self.promote(*timeline, arm).await,
            Step::WriteEpoch(epoch) => self.write_epoch(*epoch).await,
            Step::Open => self.open().await,
            Step::Close => self.close().await,
            Step::ShutOut => self.shut_out().await,
            Step::ShutReaders => self.shut_readers().await,
            // Done by the loop itself: they are words, not deeds.
            Step::Rest
            | Step::Stuck(_)
            | Step::Pledge(_)
            | Step::SendReceipt
            | Step::NoteLead(_)
            | Step::ConfirmSet(_)
            | Step::ReportCovered(_)
            | Step::ReportPromoted(_) => Ok(nothing()),
        }
    }

    /// What lies on disk after a step that may have left it half done; as long as that takes.
    pub async fn inspect(&self) -> Discovery {
        drop(self.turn.lock().await);
        self.engine.settled().await;
        let mut said = String::new();
        loop {
            match self.engine.check().await {
                Ok(found) => return found,
                Err(error) if said != error.to_string() => {
                    said = error.to_string();
                    tracing::warn!(%error, "what lies on disk cannot be read");
                }
                Err(_) => {}
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }

    async fn kill(&self) -> Result<Change, StepError> {
        let stopped = self.guard.stop(StopMode::Kill, Duration::ZERO).await;
        let proven = stopped.map_err(failed("ending all"))?;
        Ok(Box::new(move |local| local.ended(proven, false)))
    }

    async fn shut_down(&self) -> Result<Change, StepError> {
        let doing = "shutting down";
        // Clients are sent away by the fast stop; the checkpoint before it makes that short.
        let now = regent_fencer::clock::now();
        if self.checkpointed.is_none_or(|at| now.since(at) > STILL_CLEAN) {
            self.engine.checkpoint(SHUTDOWN).await.map_err(failed("checkpoint"))?;
        }
        let stopped = self.guard.stop(StopMode::Fast, SHUTDOWN).await;
        let proven = stopped.map_err(failed(doing))?;
        // Where it ended is read while it is closed on disk; neither needs the other.
        let close = StartAs::Standby { upstream: None };
        let (clean, closed) =
            tokio::join!(self.engine.clean_stop(), self.engine.prepare_start(&close));
        // It is over, whether its end can be read at once or not: then it is looked for later.
        let clean = clean.unwrap_or_else(|error| {
            tracing::warn!(%error, "where an orderly stop ended cannot be read");
            None
        });
        let clean = clean.map(|it| at(it.end, it.timeline));
        Ok(Box::new(move |local| local.stopped(proven, clean, closed.is_ok())))
    }

    async fn close_on_disk(&self) -> Result<Change, StepError> {
        let start = StartAs::Standby { upstream: None };
        self.engine.prepare_start(&start).await.map_err(failed("closing on disk"))?;
        Ok(Box::new(Local::closed_on_disk))
    }

    async fn find_end(&self) -> Result<Change, StepError> {
        let end = self.engine.wal_end().await.map_err(failed("finding the end of the WAL"))?;
        let led = self.led;
        Ok(Box::new(move |local| local.found_end(at(end.end, end.timeline), led)))
    }

    async fn detach(&self) -> Result<Change, StepError> {
        self.engine.detach(&self.guard, SOON).await.map_err(failed("detaching"))?;
        let replayed = self.engine.recruit(&self.guard, AT_ONCE).await.ok();
        Ok(Box::new(move |local| local.detached(replayed)))
    }

    async fn replay(&self) -> Result<Change, StepError> {
        let end = self.engine.recruit(&self.guard, REPLAY).await.map_err(failed("replaying"))?;
        Ok(Box::new(move |local| local.has_replayed(end)))
    }

    /// The fencer feeds its watchdog until the timeout before the deadline, so a lease that is not
    /// longer than that would end in a reset of a machine that is well.
    fn fits(&self, doing: &'static str, arm: &Arm) -> Result<(), StepError> {
        let Some(watchdog) = self.guard.watchdog() else { return Ok(()) };
        let left_us = arm.until.since(regent_fencer::clock::now()).0;
        if left_us > watchdog.timeout_ms.saturating_mul(1_000) {
            return Ok(());
        }
        let why = format!(
            "the watchdog's timeout of {} ms does not fit into the lease, of which {} ms are left: \
             lower it, or raise policy.ttl_ms",
            watchdog.timeout_ms,
            left_us / 1_000
        );
        Err(StepError { doing, why })
    }

    fn upstream(&self, name: &InstanceName) -> Result<Upstream, StepError> {
        let (host, port) = self.address(name)?;
        let me = self.member(&self.me)?;
        Ok(Upstream { host, port, me, slot: Some(self.me.to_string()) })
    }

    fn source(&self, name: &InstanceName) -> Result<Source, StepError> {
        let (host, port) = self.address(name)?;
        Ok(Source { host, port })
    }

    fn address(&self, name: &InstanceName) -> Result<(String, u16), StepError> {
        let doing = "finding the upstream";
        let declared = self.declared.iter().find(|one| one.name == *name);
        let address = declared.map(|one| one.address.as_str()).unwrap_or_default();
        let parsed = address.rsplit_once(':').and_then(|(host, port)| {
            Some((host.trim_matches(['[', ']']).to_owned(), port.parse().ok()?))
        });
        parsed.ok_or_else(|| StepError { doing, why: format!("{name} is not declared any more") })
    }

    fn member(&self, name: &InstanceName) -> Result<MemberName, StepError> {
        MemberName::parse(name.as_str()).map_err(failed("naming an instance"))
    }

    async fn start(&self, start: &StartAs, bound: Bound) -> Result<u64, StepError> {
        let doing = "starting";
        let command = self.engine.prepare_start(start).await.map_err(failed(doing))?;
        let words = |word: std::ffi::OsString| word.into();
        let command = StartCommand {
            program: command.program.into(),
            args: command.args.into_iter().map(words).collect(),
            env: command.env.into_iter().map(|(key, value)| (key.into(), value.into())).collect(),
            dir: self.dir.clone().into(),
            log: self.log.clone().into(),
            bound,
            acknowledges: 0,
        };
        let after = self.guard.start(command).await.map_err(failed(doing))?;
        self.engine.after_start().await.map_err(failed(doing))?;
        Ok(after)
    }

    async fn start_standby(&self, upstream: Option<&InstanceName>) -> Result<Change, StepError> {
        let start =
            StartAs::Standby { upstream: upstream.map(|name| self.upstream(name)).transpose()? };
        let after = self.start(&start, Bound::Unbound).await?;
        let upstream = upstream.cloned();
        Ok(Box::new(move |local| local.started_standby(after, upstream)))
    }

    async fn start_primary(&self, arm: Option<Arm>) -> Result<Change, StepError> {
        let doing = "starting as primary";
        let arm = arm.ok_or(StepError { doing, why: "there is no deadline".to_owned() })?;
        self.fits(doing, &arm)?;
        // Names that nobody matches until the set is confirmed: nothing is acknowledged meanwhile.
        let start = StartAs::Primary { names: SyncNames::Blocked };
        let after = self.start(&start, Bound::Until(arm)).await?;
        Ok(Box::new(move |local| local.started_primary(after)))
    }

    async fn follow(&self, name: &InstanceName) -> Result<Change, StepError> {
        let upstream = self.upstream(name)?;
        self.engine.follow(&upstream, &self.guard).await.map_err(failed("following"))?;
        let name = name.clone();
        Ok(Box::new(move |local| local.follows(name)))
    }

    async fn compare(&self, name: &InstanceName) -> Result<Change, StepError> {
        let doing = "comparing histories";
        let source = self.source(name)?;
        let line = self.engine.source_line(&source, SOON).await.map_err(failed(doing))?;
        let diverged = match self.engine.compare(&line).await.map_err(failed(doing))? {
            Relation::Follows => false,
            Relation::Diverged => true,
            Relation::WalGone { from } => {
                let why = format!("{name} has no WAL from {from} on any more: a clone is needed");
                tracing::warn!(why);
                return Ok(Box::new(move |local| {
                    local.data = Data::Broken;
                    local.problem = why;
                }));
            }
            Relation::OtherCluster { found, wanted } => {
                return Err(other_cluster(doing, name, found, wanted));
            }
        };
        Ok(Box::new(move |local| local.compared(diverged)))
    }

    async fn rewind(&self, name: &InstanceName) -> Result<Change, StepError> {
        let doing = "rewinding";
        let source = self.source(name)?;
        let line = self.engine.source_line(&source, SOON).await.map_err(failed(doing))?;
        if let Relation::OtherCluster { found, wanted } =
            self.engine.compare(&line).await.map_err(failed(doing))?
        {
            return Err(other_cluster(doing, name, found, wanted));
        }
        let HistoryFile { timeline, text: history } = line.history;
        let result = self.engine.rewind(&source, timeline, &history).await;
        let (generation, lost) = match result {
            Ok(done) => done,
            Err(error) => {
                let now = self.engine.check().await.map_err(failed(doing))?;
                tracing::warn!(%error, "the rewind failed");
                // What cannot be rewound now cannot be later either: only a clone helps.
                let never = matches!(error, RebuildError::CannotRewind(_));
                return Ok(Box::new(move |local| {
                    local.discovered(found(&now));
                    if never {
                        local.data = Data::Broken;
                    }
                }));
            }
        };
        tracing::info!(
            lost = lost.count, from = %lost.from, to = %lost.to,
            "rewound; what only this instance had was kept aside"
        );
        Ok(Box::new(move |local| local.rebuilt(generation.0)))
    }

    async fn clone_from(&self, name: &InstanceName) -> Result<Change, StepError> {
        let source = self.source(name)?;
        let progress = |bytes: u64| tracing::debug!(bytes, "cloning");
        let cloned = self.engine.as_ref().clone_from(&source, &progress).await;
        let generation = cloned.map_err(failed("cloning"))?;
        let now = self.engine.check().await.map_err(failed("cloning"))?;
        Ok(Box::new(move |local| {
            local.discovered(found(&now));
            local.rebuilt(generation.0);
        }))
    }

    fn names(&self, set: &SyncSet) -> Result<SyncNames, StepError> {
        if set.is_degraded() {
            return Ok(SyncNames::Unprotected);
        }
        let members = set.members.iter().map(|name| self.member(name)).collect::<Result<_, _>>()?;
        Ok(SyncNames::Any { k: set.k, members })
    }

    async fn set_names(&self, set: &SyncSet) -> Result<Change, StepError> {
        let doing = "setting the names";
        let status = self.guard.look().await.map_err(failed(doing))?;
        if status.running.is_none() {
            let revision = set.revision;
            return Ok(Box::new(move |local| local.will_have_names(revision)));
        }
        let names = self.names(set)?;
        let text = names.setting();
        self.engine.set_sync_names(&names, &self.guard, COMMIT).await.map_err(failed(doing))?;
        let revision = set.revision;
        Ok(Box::new(move |local| local.has_names(revision, text)))
    }

    async fn ensure_slots(&self) -> Result<Change, StepError> {
        let others: Vec<String> = self
            .declared
            .iter()
            .filter(|one| one.name != self.me)
            .map(|one| one.name.to_string())
            .collect();
        self.engine.ensure_slots(&others, SOON).await.map_err(failed("making slots"))?;
        Ok(Box::new(|local| local.has_slots = true))
    }

    async fn promote(&self, timeline: u32, arm: Option<Arm>) -> Result<Change, StepError> {
        let doing = "promoting";
        let arm = arm.ok_or(StepError { doing, why: "there is no deadline".to_owned() })?;
        self.fits(doing, &arm)?;
        self.guard.arm(arm).await.map_err(failed(doing))?;
        let switch = self.engine.promote(timeline, COMMIT).await.map_err(failed(doing))?;
        tracing::info!(timeline = switch.timeline, at = %switch.at, "promoted");
        Ok(Box::new(move |local| local.promoted(switch.timeline)))
    }

    async fn write_epoch(&self, epoch: Epoch) -> Result<Change, StepError> {
        let written = self.engine.write_epoch(epoch, COMMIT).await;
        written.map_err(failed("writing the epoch"))?;
        Ok(Box::new(move |local| local.wrote(epoch)))
    }

    async fn open(&self) -> Result<Change, StepError> {
        let refused = self.lowered.refused.clone();
        let opened = self.engine.open_clients(&refused, &self.guard, SOON).await;
        opened.map_err(failed("letting clients in"))?;
        Ok(Box::new(|local| local.opened(refused)))
    }

    async fn shut_out(&self) -> Result<Change, StepError> {
        let Wanted { refused, ended } = self.lowered.clone();
        let done = self.engine.shut_out(&refused, &ended, &self.guard, SOON).await;
        done.map_err(failed("shutting lowered commits out"))?;
        for one in &refused {
            let (value, role, database) = (&one.value, &one.role, &one.database);
            tracing::warn!(value, role, database, "refused: it lowers synchronous_commit");
        }
        for one in &ended {
            let (value, role, pid) = (&one.value, &one.role, one.pid);
            tracing::warn!(value, role, pid, "ended: the session lowers synchronous_commit");
        }
        Ok(Box::new(|local| local.has_shut_out(refused)))
    }

    async fn close(&self) -> Result<Change, StepError> {
        let closed = self.engine.close_clients(&self.guard, SOON).await;
        closed.map_err(failed("shutting clients out"))?;
        Ok(Box::new(Local::closed))
    }

    /// A promotion does not wait for readers that cannot be sent away.
    async fn shut_readers(&self) -> Result<Change, StepError> {
        match self.engine.close_clients(&self.guard, READERS).await {
            Ok(()) => Ok(Box::new(Local::closed)),
            Err(error) => {
                tracing::warn!(%error, "readers do not leave: all is ended, and comes up closed");
                self.kill().await
            }
        }
    }
}
