//! What the init does with each request. Nothing here waits, but a start for its exec.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use regent_core::time::Reading;

use super::Init;
use super::life::{Life, LifeStage, Program};
use crate::clock;
use crate::receipt::Reason;
use crate::wire::{
    AgentId, Message, Notice, Phase, Protection, Refusal, Reply, Request, Running, StartCommand,
    Status, StopMode, Target,
};

impl Init<'_> {
    pub(super) fn serve_peers(&mut self) {
        for at in 0..self.peers.all.len() {
            self.peers.all[at].flush();
            for line in self.peers.all[at].lines() {
                self.serve_line(at, &line);
            }
        }
        self.peers.sweep();
    }

    fn serve_line(&mut self, at: usize, line: &[u8]) {
        let request = match serde_json::from_slice::<Request>(line) {
            Ok(request) => request,
            Err(error) => {
                self.peers.all[at].refuse_and_close(Refusal::Malformed(error.to_string()));
                return;
            }
        };
        if let Request::Hello { agent, watch } = request {
            self.hello(at, agent, watch);
            return;
        }
        let Some(agent) = self.peers.all[at].agent else {
            self.peers.all[at].refuse_and_close(Refusal::NoHello);
            return;
        };
        if let Some(have) = self.agent.filter(|have| *have != agent) {
            self.peers.all[at].refuse_and_close(Refusal::Superseded { have });
            return;
        }
        let now = clock::now();
        // Lines that came in one round were read at once, but are handled one after the other.
        self.check_deadline(now);
        let reply = match self.obey(request, now) {
            Ok(reply) => reply,
            Err(refusal) => Reply::Refused(refusal),
        };
        self.peers.all[at].send(&Message::Reply(reply));
        // An arm in the past is due now; its agent has been answered.
        self.check_deadline(clock::now());
    }

    /// F5: a later start of the agent takes over for good. Earlier connections learn it at their next
    /// request, and get no events any more.
    fn hello(&mut self, at: usize, agent: AgentId, watch: bool) {
        let older = |have: &AgentId| agent.boot_count <= have.boot_count && agent != *have;
        if let Some(have) = self.agent.filter(older) {
            self.peers.all[at].refuse_and_close(Refusal::Superseded { have });
            return;
        }
        self.agent = Some(agent);
        for peer in &mut self.peers.all {
            peer.watch &= peer.agent == Some(agent);
        }
        self.peers.all[at].agent = Some(agent);
        self.peers.all[at].watch = watch;
        let status = Reply::Status(Box::new(self.status(clock::now())));
        self.peers.all[at].send(&Message::Reply(status));
    }

    fn obey(&mut self, request: Request, now: Reading) -> Result<Reply, Refusal> {
        match request {
            // Hello was taken before; a status is what every reply is.
            Request::Hello { .. } | Request::Status => {}
            Request::Arm(arm) => self.lease.arm(&arm)?,
            Request::Disarm { pause } => self.lease.disarm(pause)?,
            Request::Start(command) => self.start(command, now)?,
            Request::Stop { mode, kill_after_ms } => self.stop(mode, kill_after_ms, now)?,
            Request::Signal { target, notice } => self.signal(target, notice)?,
            Request::Quit => {
                if self.life.is_some() {
                    return Err(Refusal::Running);
                }
                self.quit = true;
                return Ok(Reply::Quitting);
            }
        }
        Ok(Reply::Status(Box::new(self.status(clock::now()))))
    }

    fn start(&mut self, command: StartCommand, now: Reading) -> Result<(), Refusal> {
        if self.life.is_some() || self.quit {
            return Err(Refusal::Running);
        }
        let last = self.receipt.as_ref().map_or(0, |receipt| receipt.sequence);
        if command.acknowledges != last {
            return Err(Refusal::Unacknowledged { last });
        }
        let lease = self.lease.started(&command.bound, now)?;
        let left_us = lease.left_us(now).unwrap_or(u64::MAX);
        let started = self.processes.spawn(self.options, command, left_us);
        let pid = started.map_err(Refusal::CannotStart)?;
        // Only now: a start that failed leaves the latch as it was.
        self.lease = lease;
        let program = Some(Program { pid, since: now });
        self.life = Some(Life { program, stage: LifeStage::Running, exit: None });
        Ok(())
    }

    fn stop(&mut self, mode: StopMode, kill_after_ms: u64, now: Reading) -> Result<(), Refusal> {
        let Some(life) = &mut self.life else { return Err(Refusal::NotRunning) };
        let signal = match mode {
            StopMode::Fast => Some(Signal::SIGINT),
            StopMode::Immediate => Some(Signal::SIGQUIT),
            StopMode::Kill => None,
        };
        let asked_at_us = now.boottime_us.saturating_add(kill_after_ms.saturating_mul(1000));
        let (reason, earlier_us) = match &life.stage {
            LifeStage::Running => (Reason::Stop(mode), u64::MAX),
            // A second stop may hurry the first, never slow it down.
            LifeStage::Stopping { kill_at_us, .. } => (Reason::Stop(mode), *kill_at_us),
            LifeStage::Killing { .. } | LifeStage::Ended { .. } => return Ok(()),
        };
        let kill_at_us = match signal {
            Some(_) => asked_at_us.min(earlier_us),
            None => now.boottime_us,
        };
        life.stage = LifeStage::Stopping { reason, kill_at_us };
        if let (Some(signal), Some(program)) = (signal, life.program) {
            // It may have ended just now, which the next reaping sees.
            let _ = kill(program.pid, signal);
        }
        Ok(())
    }

    fn signal(&self, target: Target, notice: Notice) -> Result<(), Refusal> {
        let program = self.life.as_ref().and_then(|life| life.program);
        let program = program.ok_or(Refusal::NotRunning)?.pid;
        let pid = match target {
            Target::Postmaster => program,
            Target::Inside(pid) => Pid::from_raw(pid),
        };
        let cannot = |why: &str| Err(Refusal::CannotSignal(why.to_owned()));
        // Zero and below mean groups and everybody; one is the fencer.
        if pid.as_raw() <= 1 {
            return cannot("that is not one process of the program");
        }
        let weak = *self.processes.protection() != Protection::Namespace;
        if weak && pid != program {
            // Without a namespace the number may be anybody's.
            let own = crate::descendants::of(nix::unistd::getpid().as_raw()).unwrap_or_default();
            if !own.contains(&pid.as_raw()) {
                return cannot("that is not a process of the program");
            }
        }
        let signal = match notice {
            Notice::Reload => Signal::SIGHUP,
            Notice::Promote => Signal::SIGUSR1,
            Notice::Terminate | Notice::Cancel if pid == program => {
                return cannot("the program itself is ended by a stop");
            }
            Notice::Terminate => Signal::SIGTERM,
            Notice::Cancel => Signal::SIGINT,
        };
        kill(pid, signal).map_err(|e| Refusal::CannotSignal(e.desc().to_owned()))
    }

    fn status(&self, now: Reading) -> Status {
        let life = self.life.as_ref();
        let (phase, receipt_error) = match life.map(|life| &life.stage) {
            None => (Phase::Idle, None),
            Some(LifeStage::Running) => (Phase::Running, None),
            Some(LifeStage::Stopping { .. }) => (Phase::Stopping, None),
            Some(LifeStage::Killing { .. }) => (Phase::Killing, None),
            Some(LifeStage::Ended { error, .. }) => (Phase::Receipt, error.clone()),
        };
        let program = life.and_then(|life| life.program);
        Status {
            fencer: self.nonce,
            boot_id: self.boot_id.clone(),
            protection: self.processes.protection().clone(),
            agent: self.agent,
            lease: self.lease.view(),
            phase,
            running: program.map(|p| Running { pid: p.pid.as_raw(), since: p.since }),
            receipt: self.receipt.clone(),
            receipt_error,
            now,
        }
    }
}
