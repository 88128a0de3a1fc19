//! What others on the host may know: the page for health checks, and a small file with the pids.

use std::path::PathBuf;

use regent_core::agent::Naming;
use regent_core::time::Reading;
use serde::Serialize;

use crate::guard::Guard;

/// What the agent says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Published {
    /// The instance.
    #[serde(rename = "instance")]
    pub service: String,
    /// What runs.
    #[serde(rename = "role")]
    pub run: &'static str,
    /// It takes writes of clients.
    pub open: bool,
    /// It is a standby that lets clients in, to read.
    pub reads: bool,
    /// And readers are to be sent there: it streams, or lost its stream a moment ago, or while no
    /// coordinator hears it.
    pub takes_reads: bool,
    /// It takes them by its standbys' acknowledgements alone: no lease is confirmed (PROTOCOL.md F).
    pub held: bool,
    /// It answers fresh connections.
    pub answers: bool,
    /// The last epoch it has led.
    pub epoch: String,
    /// It streams from an upstream.
    pub streams: bool,
    /// Received and not replayed.
    pub lag_bytes: u64,
    /// Flushed end.
    pub position: String,
    /// What it does now.
    pub doing: String,
    /// What went wrong last.
    pub problem: String,
    /// A coordinator hears it.
    pub attached: bool,
    /// PostgreSQL cannot outlive its fencer.
    pub armed: bool,
    /// Commits wait for it.
    pub is_sync: bool,
    /// The slowest end of everything so far; 0: none was measured.
    pub slowest_fence_ms: u64,
    /// What is set aside for one.
    pub fence_budget_ms: u64,
    /// Timeout of the watchdog that its fencer feeds; 0: it feeds none.
    pub watchdog_ms: u64,
}

/// What the port for health checks tells from.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// As of the loop's last turn.
    pub published: Published,
    /// For how long it may be said that it takes writes.
    pub naming: Naming,
}

impl Page {
    /// What is true at this moment (S8).
    pub fn at(&self, now: Reading) -> Published {
        let mut told = self.published.clone();
        let named = self.naming.holds(now);
        told.open &= named;
        told.held &= named;
        told
    }
}

/// `status.json` in the state directory.
#[derive(Clone, Debug)]
pub struct Status {
    /// Where.
    pub path: PathBuf,
}

#[derive(Serialize)]
struct File<'a> {
    agent_pid: u32,
    fencer_pid: i32,
    postmaster_pid: Option<i32>,
    #[serde(flatten)]
    published: &'a Published,
}

impl Status {
    /// Writes it beside the loop: a slow disk must not hold that up. Nothing rests on this file.
    pub fn write(&self, published: &Published, guard: &Guard) {
        let (path, published, guard) = (self.path.clone(), published.clone(), guard.clone());
        tokio::spawn(async move {
            let postmaster_pid = guard.postmaster_pid().await;
            let file = File {
                agent_pid: std::process::id(),
                fencer_pid: guard.pid(),
                postmaster_pid,
                published: &published,
            };
            let Ok(text) = serde_json::to_vec_pretty(&file) else { return };
            let fresh = path.with_extension(format!("new{}", rand::random::<u32>()));
            let written =
                std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, &path));
            if let Err(error) = written {
                tracing::debug!(%error, "status.json was not written");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// S8: the loop may wait for a disk while the page is asked.
    #[test]
    fn nobody_is_named_beyond_the_right_that_the_loop_saw_last() {
        let published =
            Published { run: "primary", open: true, held: true, ..Published::default() };
        let mut page = Page { published, naming: Naming::Until(Reading::at_us(100)) };
        assert!(page.at(Reading::at_us(99)).open && page.at(Reading::at_us(99)).held);
        for over in [Reading::at_us(100), Reading { boottime_us: 100, raw_us: 50 }] {
            assert!(!page.at(over).open && !page.at(over).held, "{over:?}");
        }
        page.naming = Naming::Paused;
        assert!(page.at(Reading::at_us(500)).open);
        page.naming = Naming::Never;
        assert!(!page.at(Reading::at_us(50)).open);
        let reads = Published { run: "standby", reads: true, ..Published::default() };
        let standby = Page { published: reads, naming: Naming::Never };
        assert!(standby.at(Reading::at_us(500)).reads);
    }
}
