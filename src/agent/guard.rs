//! The agent's hold on its fencer: a thread that asks it, one that hears it, and the end of the
//! namespace when it does not answer any more (PROTOCOL.md E1, E2).
//!
//! The fencer's client blocks, so it lives in a thread of its own; whoever asks waits with a bound.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc as channel;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use regent_core::id::{Nonce, Revision};
use regent_core::time::Reading;
use regent_fencer::client::await_end;
use regent_fencer::options::WatchdogOptions;
use regent_fencer::receipt::{ExitStatus, Proof, Reason};
use regent_fencer::wire::{Event, Notice, Phase, Refusal, StopMode, Target};
use regent_fencer::{
    AgentId, Arm, ClientError, Fencer, LaunchOptions, Options, Protection, Receipt, Stage,
    StartCommand, Status,
};
use tokio::sync::{mpsc, oneshot};

use crate::fences::{By, Fences};

/// How long the end of everything may take to be seen before it is reported as not seen.
const END_WITHIN: Duration = Duration::from_secs(10);
/// Pause of the listening thread between two looks whether it is still wanted.
const LISTEN: Duration = Duration::from_millis(500);

/// Why the fencer did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The fencer said no, or is not there.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It did not answer and everything was ended.
    #[error("the fencer did not answer; its namespace was ended: {0}")]
    Ended(String),
    /// The thread that asks it is gone: the agent ends.
    #[error("the agent ends")]
    Gone,
}

type Job = Box<dyn FnOnce(&mut Fencer) + Send>;

/// Pause between two looks at a stop that is under way.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// A stop is over this long after everything was to be killed, or the fencer does not work.
const STOPPED_WITHIN: Duration = Duration::from_secs(5);

/// The postmaster by its pid inside and its start, and its pid on the host.
type Known = ((i32, Reading), Option<i32>);

/// What the fencer says without being asked.
#[derive(Clone, Debug)]
pub enum News {
    /// Nothing runs any more; whether that is proven.
    Stopped {
        /// By the kernel's word, not by a search.
        proven: bool,
        /// PostgreSQL ended by itself with exit code 0.
        in_order: bool,
        /// The deadline of the lease did it.
        fired: bool,
        /// Of its receipt: which end this was.
        sequence: u64,
    },
    /// The postmaster itself is gone, and not in order; what it left is being ended.
    Crashed {
        /// When that was seen.
        at: Reading,
    },
    /// The fencer itself is gone.
    Lost,
}

/// A running fencer.
#[derive(Clone)]
pub struct Guard {
    jobs: channel::Sender<Job>,
    status: Arc<Mutex<Status>>,
    postmaster: Arc<Mutex<Option<Known>>>,
    pid: i32,
    fences: Fences,
    watchdog: Option<WatchdogOptions>,
}

/// How to find or launch one.
#[derive(Clone, Debug)]
pub struct GuardOptions {
    /// The product's own binary.
    pub program: PathBuf,
    /// Where it keeps socket and receipts.
    pub state_dir: PathBuf,
    /// As whom PostgreSQL runs, if the agent is root.
    pub user: Option<String>,
    /// Which start of the agent commands.
    pub agent: AgentId,
    /// Its answers must come within this, and the end of everything.
    pub answer_within: Duration,
    /// What resets the machine unless the fencer feeds it (A3).
    pub watchdog: Option<WatchdogOptions>,
}

impl Guard {
    /// Finds the fencer that a former start of the agent left, or launches one.
    ///
    /// # Errors
    /// The client's, when it is neither there nor can be launched.
    pub fn open(
        options: &GuardOptions,
        news: mpsc::UnboundedSender<News>,
    ) -> Result<Self, GuardError> {
        let mut fencer = find_or_launch(options)?;
        fencer.set_answer_within(options.answer_within);
        let status = Arc::new(Mutex::new(fencer.status()?));
        let pid = fencer.pid();
        let fences = Fences::open(&options.state_dir, options.answer_within);
        let watchdog = fed_by(pid);
        if watchdog != options.watchdog {
            tracing::warn!(
                fed = ?watchdog, configured = ?options.watchdog,
                "the fencer that runs was launched with another watchdog: it keeps that until its end"
            );
        }
        listen(&fencer, news, Lapse { fences: fences.clone(), status: Arc::clone(&status) })?;
        let (jobs, inbox) = channel::channel::<Job>();
        std::thread::Builder::new()
            .name("fencer".to_owned())
            .spawn(move || {
                while let Ok(job) = inbox.recv() {
                    job(&mut fencer);
                }
            })
            .map_err(|source| ClientError::Step {
                step: "thread of the fencer's client",
                source,
            })?;
        Ok(Self { jobs, status, postmaster: Arc::default(), pid, fences, watchdog })
    }

    async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut Fencer) -> Result<T, ClientError> + Send + 'static,
    ) -> Result<T, GuardError> {
        let (tx, rx) = oneshot::channel();
        let status = Arc::clone(&self.status);
        let job = move |fencer: &mut Fencer| {
            let answer = match ask(fencer) {
                // No heartbeat: what it guards must not outlive that (E1).
                Err(ClientError::Silent(_)) => Err(end(fencer)),
                other => other.map_err(GuardError::from),
            };
            if let Some(seen) = fencer.last_status() {
                *status.lock() = seen.clone();
            }
            let _ = tx.send(answer);
        };
        self.jobs.send(Box::new(job)).map_err(|_| GuardError::Gone)?;
        rx.await.map_err(|_| GuardError::Gone)?
    }

    /// A later deadline.
    ///
    /// # Errors
    /// [`GuardError`].
    pub async fn arm(&self, arm: Arm) -> Result<(), GuardError> {
        self.ask(move |fencer| fencer.arm(&arm).map(drop)).await
    }

    /// A later deadline, without waiting for the answer. What is posted is done in the order of the
    /// calls: a deadline never overtakes a disarming that came before it, nor the other way round.
    pub fn post_arm(&self, arm: Arm) {
        self.post("take a later deadline", move |fencer| fencer.arm(&arm).map(drop));
    }

    /// No deadline: clients are shut out. Posted, as [`Self::post_arm`].
    pub fn disarm(&self) {
        self.post("give up its deadline", |fencer| {
            let pause = fencer.status()?.lease.pause;
            fencer.disarm(pause).map(drop)
        });
    }

    /// No deadline while people keep Regent's hands off (E5). Posted, as [`Self::post_arm`].
    pub fn disarm_for(&self, pause: Revision) {
        self.post("give up its deadline", move |fencer| fencer.disarm(pause).map(drop));
    }

    fn post(
        &self,
        what: &'static str,
        ask: impl FnOnce(&mut Fencer) -> Result<(), ClientError> + Send + 'static,
    ) {
        let status = Arc::clone(&self.status);
        let job = move |fencer: &mut Fencer| {
            match ask(fencer) {
                Ok(()) => {}
                // No heartbeat: what it guards must not outlive that (E1).
                Err(ClientError::Silent(_)) => drop(end(fencer)),
                Err(error) => tracing::warn!(%error, "the fencer did not {what}"),
            }
            if let Some(seen) = fencer.last_status() {
                *status.lock() = seen.clone();
            }
        };
        // Without the thread there is no agent any more.
        let _ = self.jobs.send(Box::new(job));
    }

    /// Asks whether it is there: the heartbeat.
    ///
    /// # Errors
    /// [`GuardError`].
    pub async fn look(&self) -> Result<Status, GuardError> {
        self.ask(Fencer::status).await
    }

    /// Starts the program. The last receipt is acknowledged, and its number given back: an end with
    /// a higher one is that of this run.
    ///
    /// # Errors
    /// [`GuardError`].
    pub async fn start(&self, mut command: StartCommand) -> Result<u64, GuardError> {
        self.ask(move |fencer| {
            let status = fencer.status()?;
            command.acknowledges = status.receipt.map_or(0, |receipt| receipt.sequence);
            match fencer.start(&command) {
                Err(ClientError::Refused(Refusal::Running)) => Ok(command.acknowledges),
                other => other.map(|_| command.acknowledges),
            }
        })
        .await
    }

    /// Stops it, and ends what is left after `kill_after`. Returns when nothing runs, with whether
    /// that is proven.
    ///
    /// # Errors
    /// [`GuardError`].
    pub async fn stop(&self, mode: StopMode, kill_after: Duration) -> Result<bool, GuardError> {
        let ordered = Instant::now();
        let sequence = |status: &Status| status.receipt.as_ref().map_or(0, |it| it.sequence);
        let first = self.look().await?;
        let before = sequence(&first);
        match self.ask(move |fencer| fencer.request_stop(mode, kill_after)).await {
            // What ran before ended with the last receipt; without one nobody has seen an end.
            Err(GuardError::Client(ClientError::Refused(Refusal::NotRunning))) => {
                return Ok(is_proof(&self.look().await?));
            }
            other => drop(other?),
        }
        // In small questions: deadlines and signals must get through however long it takes.
        let within = kill_after + STOPPED_WITHIN;
        let until = Instant::now() + within;
        loop {
            let now = self.look().await?;
            if sequence(&now) > before {
                if mode == StopMode::Kill {
                    self.fences.took(ordered.elapsed(), By::Agent, "an order");
                }
                return Ok(is_proof(&now));
            }
            if Instant::now() > until {
                return self.ask(move |_| Err(ClientError::Silent(within))).await;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Ends the fencer, under which nothing runs.
    ///
    /// # Errors
    /// [`GuardError`].
    pub async fn quit(&self) -> Result<(), GuardError> {
        self.ask(Fencer::quit).await
    }

    /// A signal to the postmaster or one of its processes.
    ///
    /// # Errors
    /// [`GuardError`].
    pub async fn signal(&self, target: Target, notice: Notice) -> Result<(), GuardError> {
        self.ask(move |fencer| fencer.signal(target, notice).map(drop)).await
    }

    /// The postmaster's pid as the host sees it. Looked for once: that reads all of `/proc`, and
    /// reloads and deadlines wait behind it.
    pub async fn postmaster_pid(&self) -> Option<i32> {
        let running = self.status.lock().running?;
        let which = (running.pid, running.since);
        if let Some((of, pid)) = &*self.postmaster.lock()
            && *of == which
        {
            return *pid;
        }
        let inside = running.pid;
        let found =
            self.ask(move |fencer| Ok(fencer.host_pid(inside).ok().flatten())).await.ok()?;
        *self.postmaster.lock() = Some((which, found)).filter(|_| found.is_some());
        found
    }

    /// What it said last.
    pub fn status(&self) -> Status {
        self.status.lock().clone()
    }

    /// Which run of the fencer this is: it obeys no earlier start of the agent any more (E2).
    pub fn run(&self) -> Nonce {
        self.status.lock().fencer
    }

    /// Its pid on the host.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// How long the ends of everything took.
    pub fn fences(&self) -> &Fences {
        &self.fences
    }

    /// The watchdog that it feeds.
    pub fn watchdog(&self) -> Option<&WatchdogOptions> {
        self.watchdog.as_ref()
    }

    /// Whether PostgreSQL cannot outlive it.
    pub fn is_armed(&self) -> bool {
        matches!(self.status.lock().protection, Protection::Namespace)
    }

    /// Whether something was started after the end with this receipt: then word of it comes late,
    /// and says nothing about what runs.
    pub fn has_started_since(&self, sequence: u64) -> bool {
        let status = self.status.lock();
        let last = status.receipt.as_ref().map_or(0, |receipt| receipt.sequence);
        status.running.is_some() && last >= sequence
    }

    /// Whether what runs was started after this: then word of an earlier end says nothing about it.
    pub fn is_younger_than(&self, at: Reading) -> bool {
        self.status.lock().running.as_ref().is_some_and(|running| at.is_before(running.since))
    }

    /// Whether anything runs under it, as far as it said last.
    pub fn is_running(&self) -> bool {
        !matches!(self.status.lock().phase, Phase::Idle)
    }
}

/// What the fencer was told on its command line; the one that runs may be older than the configuration.
fn fed_by(pid: i32) -> Option<WatchdogOptions> {
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = words.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    let words = words.map(|word| OsString::from_vec(word.to_vec()));
    // The program and the verb come first.
    Options::parse(words.skip(2)).ok()?.watchdog
}

fn end(fencer: &mut Fencer) -> GuardError {
    tracing::error!("the fencer does not answer: everything under it is ended");
    match fencer.kill_namespace(END_WITHIN) {
        Ok(_) => GuardError::Ended("nothing is left".to_owned()),
        Err(error) => GuardError::Ended(error.to_string()),
    }
}

fn find_or_launch(options: &GuardOptions) -> Result<Fencer, GuardError> {
    match Fencer::attach(&options.state_dir, options.agent) {
        Ok(mut fencer) => match fencer.status() {
            Ok(status) => {
                let is_other = fed_by(fencer.pid()) != options.watchdog;
                // One that guards nothing makes room for one that feeds what it is to feed.
                let ends = is_other && status.phase == Phase::Idle && fencer.quit().is_ok();
                if !ends {
                    return Ok(fencer);
                }
            }
            Err(ClientError::Silent(_)) => drop(end(&mut fencer)),
            Err(error) => return Err(error.into()),
        },
        Err(ClientError::Absent { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    // One that is gone may still be ending: its receipt counts only after that.
    match await_end(&options.state_dir, END_WITHIN) {
        Ok(_) | Err(regent_fencer::client::EndError::NoRecord) => {}
        Err(error) => return Err(GuardError::Ended(error.to_string())),
    }
    let launch = LaunchOptions {
        program: options.program.clone(),
        options: Options {
            stage: Stage::Launch,
            state_dir: options.state_dir.clone(),
            verb: vec!["fencer".into()],
            user: options.user.clone(),
            weak: None,
            watchdog: options.watchdog.clone(),
        },
        agent: options.agent,
    };
    Ok(Fencer::launch(&launch)?)
}

/// Ends that nobody asked for are measured as well.
struct Lapse {
    fences: Fences,
    status: Arc<Mutex<Status>>,
}

impl Lapse {
    fn measure(&self, receipt: &Receipt) {
        let (since, what) = match receipt.reason {
            Reason::Stop(_) => (receipt.killed_at, "an order"),
            // A fencer that gets no time notices late.
            Reason::Deadline => {
                let until = self.status.lock().lease.until;
                let until = until.filter(|until| until.is_before(receipt.killed_at));
                (until.unwrap_or(receipt.killed_at), "its deadline")
            }
            Reason::PostmasterExit => (receipt.killed_at, "the end of the first process"),
            Reason::NamespaceKilled => (receipt.killed_at, "the agent, as the fencer was silent"),
        };
        let took = Duration::from_micros(receipt.ended_at.since(since).0);
        if receipt.started_at.is_some() {
            self.fences.took(took, By::Fencer, what);
        }
    }
}

fn listen(
    fencer: &Fencer,
    news: mpsc::UnboundedSender<News>,
    lapse: Lapse,
) -> Result<(), GuardError> {
    let mut events = fencer.watch()?;
    let body = move || {
        loop {
            if news.is_closed() {
                return;
            }
            match events.next(LISTEN) {
                Ok(Some(Event::Exited { exit, at, .. })) if exit != ExitStatus::Code(0) => {
                    let _ = news.send(News::Crashed { at });
                }
                Ok(None) | Ok(Some(Event::Fired { .. } | Event::Exited { .. })) => {}
                Ok(Some(Event::Stopped { receipt })) => {
                    lapse.measure(&receipt);
                    let _ = news.send(stopped(&receipt));
                }
                Err(_) => {
                    let _ = news.send(News::Lost);
                    return;
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("fencer-news".to_owned())
        .spawn(body)
        .map(drop)
        .map_err(|source| ClientError::Step { step: "thread of the fencer's news", source }.into())
}

/// Whether the last end is proven: the receipt's word, if it is of this boot of this machine.
pub fn is_proof(status: &Status) -> bool {
    status.receipt.as_ref().is_some_and(|receipt| receipt.proves_end(&status.boot_id))
}

/// What a receipt means for the agent.
fn stopped(receipt: &Receipt) -> News {
    News::Stopped {
        proven: receipt.proof == Proof::Namespace,
        in_order: receipt.reason == Reason::PostmasterExit
            && receipt.exit == Some(ExitStatus::Code(0)),
        fired: matches!(receipt.reason, Reason::Deadline | Reason::NamespaceKilled),
        sequence: receipt.sequence,
    }
}

#[cfg(test)]
mod tests {
    use regent_core::id::{Epoch, RenewalNumber};
    use regent_core::time::Reading;

    use super::*;

    #[test]
    fn an_end_is_as_proven_as_its_receipt_says_and_no_more() {
        // A fencer that could prove it, and a receipt that does not.
        let mut receipt = Receipt {
            sequence: 1,
            boot_id: String::new(),
            fencer: Nonce(1),
            epoch: Epoch::NONE,
            number: RenewalNumber(0),
            reason: Reason::Stop(StopMode::Kill),
            exit: None,
            protection: Protection::Namespace,
            proof: Proof::Weak,
            started_at: None,
            killed_at: Reading::at_us(1),
            ended_at: Reading::at_us(2),
        };
        assert!(!receipt.proves_end(""));
        receipt.proof = Proof::EndOfInit;
        assert!(!receipt.proves_end(""), "the end of that init is yet to be seen");
        receipt.proof = Proof::Namespace;
        assert!(receipt.proves_end(""));
        assert!(!receipt.proves_end("another"), "of an image of this disk, or before a power cut");
    }
}
