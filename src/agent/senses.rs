//! What the agent feels without being asked, each in a task of its own: facts of the server, fresh
//! connections, own synchronous commits, sessions of clients. A hung server holds up these, never the loop.

use std::sync::Arc;
use std::time::Duration;

use regent_core::id::Revision;
use regent_engine::Engine;
use tokio::sync::{Notify, mpsc};

use crate::guard::Guard;
use crate::run::Report;

/// The engine's facts: at least every `every`, and whenever a look is asked for.
pub async fn observe(
    engine: Arc<dyn Engine>,
    every: Duration,
    look: Arc<Notify>,
    reports: mpsc::UnboundedSender<Report>,
) {
    const WITHIN: Duration = Duration::from_millis(500);
    let fast = Duration::from_millis(10);
    // A standby is the first to notice that its primary is gone.
    let standby = every.min(Duration::from_millis(50));
    let mut pause = every;
    loop {
        let _ = tokio::time::timeout(pause, look.notified()).await;
        let asked = regent_fencer::clock::now();
        let seen = engine.observe(WITHIN).await;
        // A server that comes up is looked at often: each moment counts.
        pause = match &seen {
            Err(_) => fast,
            Ok(seen) if seen.in_recovery => standby,
            Ok(_) => every,
        };
        if reports.send(Report::Seen(asked, seen.map_err(|error| error.to_string()))).is_err() {
            return;
        }
    }
}

/// A fresh connection that was not made.
#[derive(Debug)]
pub struct NoLogin {
    /// Why.
    pub why: String,
    /// The server's first process, which makes the others, did something meanwhile.
    pub works: bool,
    /// For how long it was tried; no longer than is usual, for this process may have stood still itself.
    pub tried: Duration,
}

/// How often a process has been put to sleep or aside: one that is frozen, or that waits for a dead
/// disk, adds nothing to that, however many knock.
fn turns(pid: Option<i32>) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid?)).ok()?;
    let of = |line: &str| line.split_once("ctxt_switches:")?.1.trim().parse::<u64>().ok();
    Some(status.lines().filter_map(of).sum())
}

/// A fresh connection every `every` where this is a primary; a standby's are a matter of minutes, and
/// each costs it a process.
pub async fn probe(
    engine: Arc<dyn Engine>,
    guard: Guard,
    every: Duration,
    mut leads: tokio::sync::watch::Receiver<Option<Revision>>,
    reports: mpsc::UnboundedSender<Report>,
) {
    const WITHIN: Duration = Duration::from_millis(300);
    // In a storm of logins each takes its time; a server that stands never answers.
    const PATIENTLY: Duration = Duration::from_millis(1_000);
    const STANDBY: u32 = 5;
    let mut fails = false;
    loop {
        let (first, begun) = (guard.postmaster_pid().await, std::time::Instant::now());
        let mut turned = turns(first);
        let probing = engine.probe(if fails { PATIENTLY } else { WITHIN });
        tokio::pin!(probing);
        // Whether it works is looked at more often than a patient probe ends.
        let outcome = loop {
            let waited = tokio::time::timeout(every, &mut probing).await;
            let now = turns(first);
            let works = turned.zip(now).is_some_and(|(before, now)| now > before);
            turned = now;
            let tried = begun.elapsed().min(WITHIN);
            let failed = |why: String| NoLogin { why, works, tried };
            match waited {
                Ok(outcome) => break outcome.map_err(|error| failed(error.to_string())),
                Err(_) if fails => {
                    let report = Report::Probed(Err(failed("no login yet".to_owned())));
                    if reports.send(report).is_err() {
                        return;
                    }
                }
                Err(_) => {}
            }
        };
        fails = outcome.is_err();
        if reports.send(Report::Probed(outcome)).is_err() {
            return;
        }
        let pause = if leads.borrow_and_update().is_some() { every } else { every * STANDBY };
        let pause = if fails { every } else { pause };
        // Who becomes primary is looked at at once.
        let _ = tokio::time::timeout(pause, leads.changed()).await;
    }
}

/// Own commits while there is a set to certify.
pub async fn certify(
    engine: Arc<dyn Engine>,
    mut wanted: tokio::sync::watch::Receiver<Option<Revision>>,
    reports: mpsc::UnboundedSender<Report>,
) {
    const EVERY: Duration = Duration::from_millis(300);
    const WITHIN: Duration = Duration::from_secs(5);
    loop {
        let set = *wanted.borrow_and_update();
        if set.is_some() {
            let begun = regent_fencer::clock::now();
            let returned = engine.canary(WITHIN).await.is_ok();
            // A set that changed meanwhile is not the one it returned under.
            let set = set.filter(|_| *wanted.borrow() == set);
            if reports.send(Report::Canary(begun, set, returned)).is_err() {
                return;
            }
            tokio::time::sleep(EVERY).await;
        } else if wanted.changed().await.is_err() {
            return;
        }
    }
}

/// Sessions of clients whose commits wait for less than they should, while there are such commits.
pub async fn sessions(
    engine: Arc<dyn Engine>,
    guard: Guard,
    every: Duration,
    mut wanted: tokio::sync::watch::Receiver<Option<Revision>>,
    reports: mpsc::UnboundedSender<Report>,
) {
    const WITHIN: Duration = Duration::from_millis(1_000);
    loop {
        if wanted.borrow_and_update().is_none() {
            if wanted.changed().await.is_err() {
                return;
            }
            continue;
        }
        let looked = engine.lowered(guard.postmaster_pid().await, WITHIN).await;
        // A server that does not answer is told of by others.
        if let Ok(lowered) = looked
            && reports.send(Report::Sessions(lowered)).is_err()
        {
            return;
        }
        tokio::time::sleep(every).await;
    }
}
