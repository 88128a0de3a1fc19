//! Liveness and readiness, with reasons.
//!
//! *Live* means: the process answers, do not restart it. A node without a leader or with a full
//! disk is live: restarting it would only cost the quorum another member. *Ready* means: send it
//! requests; whatever stands against it is listed, one reason a line.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

/// What stands against sending requests to this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Reasons by subject; empty: ready.
    pub against: BTreeMap<&'static str, String>,
    /// Set when the process can do nothing useful any more and should be restarted.
    pub dead: Option<String>,
}

/// Shared by all parts of a node; cheap to clone.
#[derive(Clone, Debug)]
pub struct Health {
    inner: Arc<RwLock<Readiness>>,
}

impl Default for Health {
    fn default() -> Self {
        Self::starting()
    }
}

impl Health {
    /// A node that has just started: not ready until its `start` reason is cleared.
    pub fn starting() -> Self {
        let health = Self { inner: Arc::default() };
        health.set("start", Some("the node is starting"));
        health
    }

    /// Sets (or with `None` clears) what stands against readiness under `subject`.
    pub fn set(&self, subject: &'static str, reason: Option<&str>) {
        let mut inner = self.inner.write();
        match reason {
            Some(reason) => {
                inner.against.insert(subject, reason.to_owned());
            }
            None => {
                inner.against.remove(subject);
            }
        }
    }

    /// The node will never work again in this process (consensus stopped, state hash mismatch).
    pub fn set_dead(&self, reason: &str) {
        self.inner.write().dead = Some(reason.to_owned());
    }

    /// What is known now.
    pub fn get(&self) -> Readiness {
        self.inner.read().clone()
    }
}

impl Readiness {
    /// Whether requests should be sent here.
    pub fn is_ready(&self) -> bool {
        self.against.is_empty() && self.dead.is_none()
    }

    /// The body of `/readyz`: `ok`, or one `subject: reason` a line.
    pub fn body(&self) -> String {
        if self.is_ready() {
            return "ok\n".to_owned();
        }
        let dead = self.dead.iter().map(|reason| format!("dead: {reason}\n"));
        let against = self.against.iter().map(|(subject, reason)| format!("{subject}: {reason}\n"));
        dead.chain(against).collect()
    }
}
