//! The open connections and the certificates they were let in with, so that a reload can end those
//! that would not be let in now.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustls_pki_types::CertificateDer;

use super::connection::Kill;
use super::identity::{Facts, wall_seconds};
use super::material::Material;

#[derive(Debug)]
struct Open {
    chain: Vec<CertificateDer<'static>>,
    facts: Facts,
    kill: Arc<Kill>,
}

type Table = Mutex<HashMap<u64, Arc<Open>>>;

/// All open connections of a process.
#[derive(Debug, Default)]
pub(super) struct Registry {
    table: Arc<Table>,
    next: AtomicU64,
}

/// A connection's place in the registry; leaves it when dropped.
#[derive(Debug)]
pub(super) struct Registered {
    id: u64,
    kill: Arc<Kill>,
    table: Weak<Table>,
}

impl Registered {
    pub fn kill(&self) -> Arc<Kill> {
        Arc::clone(&self.kill)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(table) = self.table.upgrade() {
            table.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        }
    }
}

impl Registry {
    pub fn len(&self) -> usize {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub fn add(&self, chain: Vec<CertificateDer<'static>>, facts: Facts) -> Registered {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let kill = Arc::new(Kill::default());
        let open = Arc::new(Open { chain, facts, kill: Arc::clone(&kill) });
        self.table.lock().unwrap_or_else(PoisonError::into_inner).insert(id, open);
        Registered { id, kill, table: Arc::downgrade(&self.table) }
    }

    /// Ends every connection that `material` would not let in; returns how many. Signatures are
    /// verified outside the lock, so accepting goes on meanwhile.
    pub fn end_unaccepted(&self, material: &Material) -> u64 {
        self.end(|open| material.accepts(&open.chain, &open.facts))
    }

    /// Ends every connection whose certificate has run out.
    pub fn end_expired(&self) -> u64 {
        let now = wall_seconds();
        self.end(|open| match open.facts.not_after < now {
            true => Err("it has expired".to_owned()),
            false => Ok(()),
        })
    }

    fn end(&self, accepts: impl Fn(&Open) -> Result<(), String>) -> u64 {
        let all: Vec<Arc<Open>> = {
            let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            table.values().cloned().collect()
        };
        let mut ended = 0;
        for open in all {
            if let Err(problem) = accepts(&open) {
                let who = open.facts.uris.first().map_or("", String::as_str);
                tracing::warn!(peer = who, serial = %open.facts.serial, problem,
                    "an open connection was ended: its certificate is no longer accepted");
                open.kill.kill();
                ended += 1;
            }
        }
        ended
    }
}
