//! Mutual TLS on every port: who a peer is comes from its certificate and from nowhere else.
//!
//! An identity is one SPIFFE URI (`spiffe://<trust>/<role>/<name>`); host names and addresses in
//! certificates are not asked for, so a node keeps its identity when its address changes, and a
//! certificate for an address cannot speak as a node. TLS 1.3 only, provider *ring* named
//! explicitly (rustls has no default when two are linked), ALPN `h2` on both sides.
//!
//! [`Tls`] holds leaf, key, CA bundle and deny list as one value that is swapped whole, so no
//! connection ever sees half of a reload. Session resumption is off: a resumed session would skip
//! the check of the certificate.
//!
//! A reload must also reach connections that are open (`registry`): one whose certificate is no
//! longer accepted is ended. Otherwise a revoked identity would live as long as its TCP connection.

mod accept;
mod connection;
mod deny;
mod gather;
mod identity;
mod material;
mod registry;
#[cfg(test)]
mod tests;
mod verify;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use regent_core::authz::Principal;
use tokio::task::JoinHandle;

pub use accept::{AcceptLimits, TlsStats};
pub use connection::Connection;
pub use identity::{IdentityError, PeerIdentity};
pub use verify::ExpectPeer;

use identity::Facts;
use material::Material;
use registry::Registry;

/// How often [`Tls::watch_files`] looks at the files. A revoked identity must lose its open
/// connections within a minute, so this leaves room for a few failed looks.
pub const WATCH_INTERVAL: Duration = Duration::from_secs(3);

/// Where the files are. All PEM, but for `revoked`.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Certificate chain, leaf first.
    pub cert: PathBuf,
    /// Private key of the leaf.
    pub key: PathBuf,
    /// The certificates trusted to sign peers; more than one while a CA is being replaced.
    pub ca: PathBuf,
    /// Deny list: one `serial:<hex>` (or the hex digits alone), `sha256:<hex>` or `spiffe://...` per
    /// line, `#` begins a comment. A file that does not exist denies nobody; one that goes away
    /// while the process runs lifts nothing.
    pub revoked: Option<PathBuf>,
    /// The trust domain peers must be of; `None`: the one of the own certificate.
    pub trust: Option<String>,
}

/// Why certificates could not be loaded. The message names the file and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file's content is not what it should be.
    #[error("{}: {problem}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Key and certificate do not go together, or rustls refuses them.
    #[error("certificate {} and key {} cannot be used together", cert.display(), key.display())]
    Unusable {
        /// The certificate file.
        cert: PathBuf,
        /// The key file.
        key: PathBuf,
        /// Why.
        #[source]
        source: tokio_rustls::rustls::Error,
    },
}

/// How long certificates are still valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// The own leaf.
    pub leaf: Duration,
    /// The CA of the bundle that ends first.
    pub ca: Duration,
}

/// One process's certificates and everything that was authenticated with them.
#[derive(Debug)]
pub struct Tls {
    files: TlsFiles,
    material: ArcSwap<Material>,
    /// What was wrong with the files at the last look.
    problem: Mutex<Option<String>>,
    registry: Registry,
    stats: TlsStats,
    /// The task of [`Tls::keep_fresh`], while somebody holds it.
    watching: Mutex<Weak<Watching>>,
}

/// Looks at the files for as long as somebody holds it: see [`Tls::keep_fresh`].
#[derive(Debug)]
pub struct Watching {
    task: JoinHandle<()>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`] names the file and what is wrong with it.
    pub fn load(files: TlsFiles) -> Result<Arc<Self>, TlsError> {
        let material = Material::read(&files, None)?;
        Ok(Arc::new(Self {
            files,
            material: ArcSwap::from_pointee(material),
            problem: Mutex::default(),
            registry: Registry::default(),
            stats: TlsStats::default(),
            watching: Mutex::default(),
        }))
    }

    /// Reads the files again. When they changed and are good, connections from now on use them and
    /// open ones that they no longer accept are ended; the answer is then `true`. Also ends open
    /// connections whose certificate ran out. Blocks on files and signatures.
    ///
    /// # Errors
    /// The files are not usable now; everything stays as it was.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let read = Material::read(&self.files, Some(&self.material.load()));
        let problem = match &read {
            Ok(material) => material.warning.clone(),
            Err(error) => Some(format!(
                "the new certificate files are not usable, the old ones stay in force: {}",
                causes(error)
            )),
        };
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
        let outcome = self.take(read);
        self.stats.count_reload(&outcome);
        outcome
    }

    /// What is wrong with the files; `None` when they are as they should be. For people.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn take(&self, read: Result<Material, TlsError>) -> Result<bool, TlsError> {
        let changed = match &read {
            Ok(new) => new.digest != self.material.load().digest,
            Err(_) => false,
        };
        if changed && let Ok(new) = read {
            self.material.store(Arc::new(new));
            let ended = self.registry.end_unaccepted(&self.material.load());
            self.stats.count_revoked(ended);
            return Ok(true);
        }
        let ended = self.registry.end_expired();
        self.stats.count_revoked(ended);
        read.map(|_| false)
    }

    /// Looks at the files every `every`, for ever: spawn it, abort it to stop. Problems are logged
    /// once, not at every look.
    pub async fn watch_files(self: Arc<Self>, every: Duration) {
        let mut logged = None;
        loop {
            tokio::time::sleep(every).await;
            let this = Arc::clone(&self);
            let outcome = tokio::task::spawn_blocking(move || this.reload()).await;
            match outcome {
                Ok(Ok(true)) => {
                    let left = self.expires_in();
                    tracing::info!(
                        leaf_days = left.leaf.as_secs() / 86_400,
                        ca_days = left.ca.as_secs() / 86_400,
                        "certificates were reloaded"
                    );
                }
                Ok(Ok(false) | Err(_)) => {}
                Err(error) => tracing::error!(%error, "looking at the certificate files failed"),
            }
            let problem = self.problem();
            if let Some(problem) = problem.as_ref().filter(|_| problem != logged) {
                tracing::error!(problem, "the certificate files are not as they should be");
            }
            logged = problem;
        }
    }

    /// Reads the files again whenever they change, until the last handle is dropped. All who share
    /// these certificates share one task. Must be called in a tokio runtime.
    pub fn keep_fresh(self: &Arc<Self>) -> Arc<Watching> {
        let mut watching = self.watching.lock().unwrap_or_else(PoisonError::into_inner);
        // One whose runtime has ended looks at nothing any more.
        if let Some(running) = watching.upgrade().filter(|running| !running.task.is_finished()) {
            return running;
        }
        let task = tokio::spawn(Arc::clone(self).watch_files(WATCH_INTERVAL));
        let started = Arc::new(Watching { task });
        *watching = Arc::downgrade(&started);
        started
    }

    /// How long the certificates in force are still valid; zero when they ran out.
    pub fn expires_in(&self) -> Expiry {
        let material = self.material.load();
        Expiry {
            leaf: identity::until(material.own.not_after),
            ca: identity::until(material.ca_not_after),
        }
    }

    /// The trust domain peers must be of.
    pub fn trust(&self) -> String {
        self.material.load().trust.to_string()
    }

    /// Who this process is, by its own certificate.
    pub fn principal(&self) -> Principal {
        self.material.load().principal.clone()
    }

    /// Open connections, in and out.
    pub fn open_connections(&self) -> usize {
        self.registry.len()
    }

    /// Counters of accepting and reloading, for metrics.
    pub fn stats(&self) -> &TlsStats {
        &self.stats
    }

    fn current(&self) -> Arc<Material> {
        self.material.load_full()
    }
}

/// An error and its sources in one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

/// What a certificate says that outlives its bytes.
fn facts(der: &[u8]) -> Result<Facts, IdentityError> {
    Facts::read(der)
}
