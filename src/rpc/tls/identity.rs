//! What a certificate says about its owner: exactly one SPIFFE URI, a serial, an end.
//!
//! Must never guess: two URIs, none, or one of another trust domain make no principal at all.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use regent_core::authz::{Principal, SpiffeError};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Who is at the other end of a connection. In every request's extensions.
#[derive(Clone, Debug)]
pub struct PeerIdentity {
    /// The principal, or why the certificate names none: such a peer may do nothing, and what it
    /// tries is recorded.
    pub principal: Result<Principal, IdentityError>,
    /// The SPIFFE URI; empty when there is not exactly one.
    pub spiffe: Arc<str>,
    /// Serial number of the certificate, lower-case hex.
    pub serial: Arc<str>,
    /// SHA-256 of the certificate, lower-case hex.
    pub fingerprint: Arc<str>,
    /// Where the connection comes from.
    pub addr: SocketAddr,
}

/// Why a certificate names no principal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The certificate cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// No SPIFFE URI among its names.
    #[error("the certificate has no SPIFFE URI among its subject alternative names")]
    NoSpiffe,
    /// More than one; which one counts would be a guess.
    #[error("the certificate has {0} URIs among its subject alternative names; one is allowed")]
    ManySpiffe(usize),
    /// The URI is not one of this cluster's.
    #[error("SPIFFE URI {uri:?} is refused: {problem}")]
    Spiffe {
        /// The URI.
        uri: String,
        /// What is wrong with it.
        problem: SpiffeError,
    },
}

/// A certificate's facts, read once.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// All URIs among the subject alternative names.
    pub uris: Vec<String>,
    pub serial: String,
    pub fingerprint: String,
    /// Seconds since 1970.
    pub not_after: i64,
}

impl Facts {
    pub fn read(der: &[u8]) -> Result<Self, IdentityError> {
        let unreadable = |e: &dyn std::fmt::Display| IdentityError::Unreadable(e.to_string());
        let (_, cert) = X509Certificate::from_der(der).map_err(|e| unreadable(&e))?;
        let san = cert.subject_alternative_name().map_err(|e| unreadable(&e))?;
        let uris = san
            .iter()
            .flat_map(|san| &san.value.general_names)
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some((*uri).to_owned()),
                _ => None,
            })
            .collect();
        Ok(Self {
            uris,
            serial: serial_hex(cert.raw_serial()),
            fingerprint: hex(&Sha256::digest(der)),
            not_after: cert.validity().not_after.timestamp(),
        })
    }

    /// The one SPIFFE URI.
    pub fn spiffe(&self) -> Result<&str, IdentityError> {
        match self.uris.as_slice() {
            [] => Err(IdentityError::NoSpiffe),
            [uri] => Ok(uri),
            many => Err(IdentityError::ManySpiffe(many.len())),
        }
    }

    /// The principal it names in trust domain `trust`.
    pub fn principal(&self, trust: &str) -> Result<Principal, IdentityError> {
        let uri = self.spiffe()?;
        Principal::from_spiffe(uri, trust)
            .map_err(|problem| IdentityError::Spiffe { uri: uri.to_owned(), problem })
    }

    /// What a request handler is told.
    pub fn peer(&self, trust: &str, addr: SocketAddr) -> PeerIdentity {
        PeerIdentity {
            principal: self.principal(trust),
            spiffe: Arc::from(self.spiffe().unwrap_or_default()),
            serial: Arc::from(self.serial.as_str()),
            fingerprint: Arc::from(self.fingerprint.as_str()),
            addr,
        }
    }
}

/// A serial as people write it: no separators, no leading zero bytes.
fn serial_hex(raw: &[u8]) -> String {
    hex(raw).trim_start_matches('0').to_owned()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Seconds since 1970. Certificates speak wall time, so this is the one decision that wall time
/// makes; a clock that is wrong by days refuses peers, it never grants anything.
pub(super) fn wall_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Time left until `not_after`; zero when it is past.
pub(super) fn until(not_after: i64) -> Duration {
    Duration::from_secs(u64::try_from(not_after.saturating_sub(wall_seconds())).unwrap_or(0))
}
