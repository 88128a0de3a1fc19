//! The init: the fencer proper. One thread, one loop: deadlines first, then processes, then peers.
//!
//! It never waits for a peer, for a program or for a lock. It does wait for a disk, but only to write
//! a receipt, when nothing it could have to kill is left.

mod peers;
mod processes;
mod serve;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use regent_core::id::Nonce;
use regent_core::time::Reading;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use self::peers::Peers;
use self::processes::Processes;
use crate::launch::{Report, print};
use crate::lease::Lease;
use crate::options::Options;
use crate::receipt::{self, ExitStatus, Proof, Reason, Receipt, ReceiptError};
use crate::watchdog::Watchdog;
use crate::wire::{AgentId, Event, Message, Protection};
use crate::{clock, disk, rights};

/// Longest sleep. poll counts CLOCK_MONOTONIC, which may be slewed against the raw clock by 500 ppm:
/// looking again this often keeps that below a millisecond.
const LOOK_AGAIN_US: u64 = 1_000_000;
/// Pause between two rounds of killing: the dying need the processor to die.
const KILL_AGAIN_US: u64 = 1_000;
/// Whoever is still there this long after the first kill cannot be killed from here (another user's
/// set-uid program): the init ends itself, and the kernel ends the namespace.
const GIVE_UP_US: u64 = 2_000_000;
/// Pause before a receipt that could not be written is tried again.
const WRITE_AGAIN_US: u64 = 500_000;

/// Why the init could not begin, or ended.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A system call failed.
    #[error("{step}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Another fencer lives on this state directory.
    #[error("another fencer lives on this state directory")]
    AlreadyRunning,
    /// The last receipt says nothing, so nobody may say what ran before.
    #[error("the last receipt cannot be used")]
    Receipt(#[from] ReceiptError),
    /// Somebody could not be killed; the end of this process is what ends them.
    #[error("a process could not be killed")]
    Unkillable,
}

/// Everything that runs, from its start to the receipt.
struct Life {
    /// The program; `None` when a deadline fired over nothing.
    program: Option<Program>,
    stage: LifeStage,
    exit: Option<ExitStatus>,
}

#[derive(Clone, Copy)]
struct Program {
    pid: Pid,
    since: Reading,
}

enum LifeStage {
    Running,
    /// Asked to stop; everything is killed at `kill_at_us` of CLOCK_BOOTTIME.
    Stopping {
        reason: Reason,
        kill_at_us: u64,
    },
    Killing {
        reason: Reason,
        since: Reading,
    },
    /// Nobody is left; the receipt is to be written, again after `again_at_us`.
    Ended {
        receipt: Box<Receipt>,
        again_at_us: u64,
        error: Option<String>,
    },
}

struct Init<'a> {
    options: &'a Options,
    boot_id: String,
    nonce: Nonce,
    lease: Lease,
    agent: Option<AgentId>,
    processes: Processes,
    peers: Peers,
    life: Option<Life>,
    receipt: Option<Receipt>,
    watchdog: Option<Watchdog>,
    quit: bool,
    signals: SignalFd,
    timer: OwnedFd,
    _lock: File,
}

/// Runs the fencer until it is told to quit.
pub(crate) fn run(options: &Options) -> Result<(), InitError> {
    let begun = Init::begin(options);
    match &begun {
        Ok((_, pid)) => print(&Report::Ready { pid: *pid }),
        Err(InitError::AlreadyRunning) => print(&Report::AlreadyRunning),
        Err(error) => {
            let source = std::error::Error::source(error).map(ToString::to_string);
            let why = format!("{error}: {}", source.unwrap_or_default());
            print(&Report::Failed { why });
        }
    }
    let (mut init, _) = begun?;
    // The launcher's pipe has served; an init must not hold on to anybody's.
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(null);
    }
    init.serve()
}

impl<'a> Init<'a> {
    fn begin(options: &'a Options) -> Result<(Self, i32), InitError> {
        let step = |step| move |source: io::Error| InitError::Step { step, source };
        // Signals are read, not obeyed: a terminal that hangs up or a unit that is stopped must not
        // take the fencer away from what it fences.
        SigSet::all().thread_block().map_err(|e| step("signal mask")(e.into()))?;
        let signals =
            SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
                .map_err(|e| step("signals")(e.into()))?;
        rustix::process::setsid().map_err(|e| step("own session")(e.into()))?;
        let _ = rustix::thread::set_name(c"regent-fencer");
        let lock = disk::lock(&options.state_dir)
            .map_err(step("lock"))?
            .ok_or(InitError::AlreadyRunning)?;
        let before =
            disk::read_init(&options.state_dir).map_err(step("record of the last init"))?;
        if before.is_some_and(|record| record.exists().unwrap_or(true)) {
            // Its lock is free already, but its namespace has not ended yet.
            return Err(InitError::AlreadyRunning);
        }
        let own = processes::own_stat().map_err(step("own pid"))?;
        let processes = Processes::new(options.weak.as_deref()).map_err(step("namespace"))?;
        rights::harden();
        rights::keep_only(rights::init_keeps()).map_err(step("giving up capabilities"))?;
        let nonce = random().map_err(step("random number"))?;
        let boot_id = clock::boot_id().map_err(step("boot id"))?;
        let receipt = receipt::last_receipt(&options.state_dir)?;
        let timer = timerfd_create(
            TimerfdClockId::Boottime,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )
        .map_err(|e| step("timer")(e.into()))?;
        let alone = *processes.protection() == Protection::Namespace;
        let peers = Peers::bind(&options.state_dir.join(disk::SOCKET_FILE), alone)
            .map_err(step("socket"))?;
        let record = disk::InitRecord {
            pid: own.pid,
            start_ticks: own.start_ticks,
            boot_id: boot_id.clone(),
            fencer: nonce,
            protection: processes.protection().clone(),
        };
        disk::write_init(&options.state_dir, &record).map_err(step("own record"))?;
        let watchdog =
            options.watchdog.as_ref().map(Watchdog::open).transpose().map_err(step("watchdog"))?;
        let init = Self {
            options,
            boot_id,
            nonce,
            lease: Lease::after(receipt.as_ref()),
            agent: None,
            processes,
            peers,
            life: None,
            receipt,
            watchdog,
            quit: false,
            signals,
            timer,
            _lock: lock,
        };
        Ok((init, own.pid))
    }

    fn serve(&mut self) -> Result<(), InitError> {
        loop {
            // Twice, so that what the first round ended is proven and written without a sleep.
            self.advance(clock::now())?;
            self.advance(clock::now())?;
            if self.quit && self.life.is_none() {
                for peer in &mut self.peers.all {
                    peer.flush();
                }
                if let Some(watchdog) = self.watchdog.take() {
                    watchdog.close();
                }
                let _ = std::fs::remove_file(self.options.state_dir.join(disk::SOCKET_FILE));
                return Ok(());
            }
            self.wait();
            while let Ok(Some(_)) = self.signals.read_signal() {}
            // Before anything a peer asks: a renewal that was read late revives nothing.
            self.check_deadline(clock::now());
            self.peers.accept();
            self.serve_peers();
        }
    }

    /// Sleeps until something can have happened. The timer counts a suspend, poll's timeout is for
    /// the raw clock and everything else.
    fn wait(&mut self) {
        let now = clock::now();
        let mut wait_us = self.next_look_us(now);
        if let Some(watchdog) = &mut self.watchdog {
            wait_us = wait_us.min(watchdog.tend(&self.lease, self.life.is_some(), now));
        }
        let until = self.lease.view().until.map_or(0, |until| until.boottime_us.max(1));
        let spec = Itimerspec { it_interval: clock::timespec(0), it_value: clock::timespec(until) };
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &spec);
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.timer.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.peers.listener.as_fd(), PollFlags::IN),
        ];
        for peer in &self.peers.all {
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, peer.wants_write());
            fds.push(PollFd::from_borrowed_fd(peer.stream.as_fd(), flags));
        }
        // EINTR cannot be, signals are blocked; of any other error the next round knows more.
        let _ = poll(&mut fds, Some(&clock::timespec(wait_us)));
    }

    fn next_look_us(&self, now: Reading) -> u64 {
        if self.peers.all.iter().any(peers::Peer::has_more) {
            return 0;
        }
        let deadline = self.lease.left_us(now).unwrap_or(LOOK_AGAIN_US);
        let life = match self.life.as_ref().map(|life| &life.stage) {
            None | Some(LifeStage::Running) => LOOK_AGAIN_US,
            Some(LifeStage::Stopping { kill_at_us, .. }) => {
                kill_at_us.saturating_sub(now.boottime_us)
            }
            Some(LifeStage::Killing { .. }) => KILL_AGAIN_US,
            Some(LifeStage::Ended { again_at_us, .. }) => {
                again_at_us.saturating_sub(now.boottime_us)
            }
        };
        deadline.min(life).min(LOOK_AGAIN_US)
    }

    /// F1: the deadline, checked before anything else is done.
    fn check_deadline(&mut self, now: Reading) {
        // A receipt that is about to be written says how this life ended; the deadline comes after.
        let ended = matches!(&self.life, Some(Life { stage: LifeStage::Ended { .. }, .. }));
        if ended || !self.lease.due(now) {
            return;
        }
        self.lease.fire();
        // The first blow before anything else, telling included.
        if self.life.is_some() {
            self.processes.kill_all();
        }
        let life =
            self.life.get_or_insert(Life { program: None, stage: LifeStage::Running, exit: None });
        let since = if let LifeStage::Killing { since, .. } = life.stage { since } else { now };
        life.stage = LifeStage::Killing { reason: Reason::Deadline, since };
        let view = self.lease.view();
        self.tell(&Event::Fired { epoch: view.epoch, number: view.number, at: now });
    }

    /// Everything that follows from time and from processes that ended.
    fn advance(&mut self, now: Reading) -> Result<(), InitError> {
        self.check_deadline(now);
        let reaped = self.processes.reap();
        for (pid, exit) in &reaped.exits {
            self.saw_exit(*pid, *exit, now);
        }
        let Some(life) = &mut self.life else { return Ok(()) };
        match &mut life.stage {
            LifeStage::Running => {}
            LifeStage::Stopping { reason, kill_at_us } => {
                if now.boottime_us >= *kill_at_us {
                    life.stage = LifeStage::Killing { reason: *reason, since: now };
                }
            }
            LifeStage::Killing { reason, since } => {
                let (reason, since) = (*reason, *since);
                // F6: nobody there to kill, and then no child there to wait for.
                if self.processes.kill_all() && self.processes.reap().none_left {
                    let proof = match self.processes.protection() {
                        Protection::Namespace => Proof::Namespace,
                        Protection::Weak { .. } => Proof::Weak,
                    };
                    self.nobody_left(reason, since, proof, now);
                } else if now.since(since).0 > GIVE_UP_US {
                    return self.give_up(reason, since, now);
                }
            }
            LifeStage::Ended { again_at_us, .. } => {
                if now.boottime_us >= *again_at_us {
                    self.write_receipt(now);
                }
            }
        }
        Ok(())
    }

    fn saw_exit(&mut self, pid: Pid, exit: ExitStatus, now: Reading) {
        let Some(life) = &mut self.life else { return };
        if life.program.map(|p| p.pid) != Some(pid) || life.exit.is_some() {
            return;
        }
        life.exit = Some(exit);
        let reason = match &life.stage {
            LifeStage::Running => Some(Reason::PostmasterExit),
            LifeStage::Stopping { reason, .. } => Some(*reason),
            LifeStage::Killing { .. } | LifeStage::Ended { .. } => None,
        };
        if let Some(reason) = reason {
            life.stage = LifeStage::Killing { reason, since: now };
        }
        self.tell(&Event::Exited { pid: pid.as_raw(), exit, at: now });
    }

    fn make_receipt(&self, reason: Reason, since: Reading, proof: Proof, now: Reading) -> Receipt {
        let view = self.lease.view();
        let life = self.life.as_ref();
        Receipt {
            sequence: self.receipt.as_ref().map_or(0, |last| last.sequence) + 1,
            boot_id: self.boot_id.clone(),
            fencer: self.nonce,
            epoch: view.epoch,
            number: view.number,
            reason,
            exit: life.and_then(|life| life.exit),
            protection: self.processes.protection().clone(),
            proof,
            started_at: life.and_then(|life| life.program).map(|program| program.since),
            killed_at: since,
            ended_at: now,
        }
    }

    fn nobody_left(&mut self, reason: Reason, since: Reading, proof: Proof, now: Reading) {
        let receipt = Box::new(self.make_receipt(reason, since, proof, now));
        self.lease.ended();
        if let Some(life) = &mut self.life {
            life.stage = LifeStage::Ended { receipt, again_at_us: 0, error: None };
        }
    }

    /// F3: first the disk, then the word. A disk that is full is tried for ever; until it takes
    /// the receipt nothing is told and nothing starts.
    fn write_receipt(&mut self, now: Reading) {
        let Some(Life { stage: LifeStage::Ended { receipt, again_at_us, error }, .. }) =
            &mut self.life
        else {
            return;
        };
        if let Err(failed) = receipt::write(&self.options.state_dir, receipt) {
            *error = Some(failed.to_string());
            *again_at_us = now.boottime_us.saturating_add(WRITE_AGAIN_US);
            return;
        }
        let receipt = *receipt.clone();
        self.receipt = Some(receipt.clone());
        self.life = None;
        self.tell(&Event::Stopped { receipt });
    }

    /// Somebody cannot be killed from here. In a namespace the kernel can, by the end of this
    /// process; without one nothing better is known than to go on trying.
    fn give_up(&mut self, reason: Reason, since: Reading, now: Reading) -> Result<(), InitError> {
        if *self.processes.protection() != Protection::Namespace {
            return Ok(());
        }
        let receipt = self.make_receipt(reason, since, Proof::EndOfInit, now);
        let _ = receipt::write(&self.options.state_dir, &receipt);
        Err(InitError::Unkillable)
    }

    fn tell(&mut self, event: &Event) {
        let message = Message::Event(event.clone());
        for peer in self.peers.all.iter_mut().filter(|peer| peer.watch) {
            peer.send(&message);
        }
    }
}

fn random() -> io::Result<Nonce> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(Nonce(u64::from_le_bytes(bytes)))
}
