//! What others on the host may know: the page for health checks, and a small file with the pids.

use std::path::PathBuf;

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
