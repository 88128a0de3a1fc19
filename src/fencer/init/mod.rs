//! The init: the fencer proper. One thread, one loop: deadlines first, then processes, then peers.
//!
//! It never waits for a peer, for a program or for a lock. It does wait for a disk, but only to write
//! a receipt, when nothing it could have to kill is left.

mod life;
mod peers;
mod processes;
mod serve;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use regent_core::id::Nonce;
use regent_core::time::Reading;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use self::life::{Life, LifeStage};
use self::peers::Peers;
use self::processes::Processes;
use crate::launch::{Report, print};
use crate::lease::Lease;
use crate::options::Options;
use crate::receipt::{self, Receipt, ReceiptError};
use crate::watchdog::Watchdog;
use crate::wire::{AgentId, Protection};
use crate::{clock, disk, rights};

/// Longest sleep. poll counts CLOCK_MONOTONIC, which may be slewed against the raw clock by 500 ppm:
/// looking again this often keeps that below a millisecond.
const LOOK_AGAIN_US: u64 = 1_000_000;
/// Pause between two rounds of killing: the dying need the processor to die.
const KILL_AGAIN_US: u64 = 1_000;
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
}

fn random() -> io::Result<Nonce> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(Nonce(u64::from_le_bytes(bytes)))
}
