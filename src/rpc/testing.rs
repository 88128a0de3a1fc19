//! What the tests of this crate share: a directory that goes away, certificates, waiting.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use regent_core::authz::Role;

use crate::pki::{self, Request};
use crate::tls::{Tls, TlsFiles};

/// The trust domain of the tests.
pub const TRUST: &str = "test.example";

/// A directory with a CA, removed when dropped.
pub struct Pki {
    dir: PathBuf,
}

impl Pki {
    pub fn new() -> Self {
        let dir = Self::empty();
        pki::init(&dir.dir, TRUST, pki::CA_DAYS, false).unwrap();
        dir
    }

    pub fn empty() -> Self {
        let name = format!("regent-rpc-{:016x}", rand::random::<u64>());
        Self { dir: std::env::temp_dir().join(name) }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The files of an identity, which is issued if it is not there yet.
    pub fn files(&self, role: Role, name: &str) -> TlsFiles {
        let stem = format!("{role}-{}", name.replace('/', "+"));
        let cert = self.dir.join(format!("{stem}.crt"));
        if !cert.exists() {
            pki::issue(&self.dir, &Request::new(role, name)).unwrap();
        }
        TlsFiles {
            key: cert.with_extension("key"),
            cert,
            ca: self.dir.join("bundle.crt"),
            revoked: Some(self.dir.join("revoked")),
            trust: Some(TRUST.to_owned()),
        }
    }

    pub fn tls(&self, role: Role, name: &str) -> Arc<Tls> {
        Tls::load(self.files(role, name)).unwrap()
    }
}

impl Drop for Pki {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Waits until `condition` holds; fails after ten seconds, naming `what`.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
