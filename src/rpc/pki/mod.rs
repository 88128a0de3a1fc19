//! A small certificate authority for people who have none: a directory of PEM files.
//!
//! ```text
//! ca.crt ca.key          signs; keep ca.key off the nodes
//! bundle.crt             what every process trusts (`tls.ca`)
//! next.crt next.key      the next CA, while one is being replaced
//! node-1.crt node-1.key  one pair per identity, spiffe://<trust>/node/1
//! ```
//! A CA is replaced in three steps with time between them for every process to see the files:
//! [`rotate`] `Begin` (trust both), `Switch` (sign with the new one, reissue every leaf), `Finish`
//! (trust the new one only). Files appear whole or not at all; keys are 0600; no key is ever
//! overwritten unless the caller says so.

mod authority;
mod files;
mod rotate;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use regent_core::authz::{Principal, Role};

pub use rotate::{Rotated, Step, rotate};

use authority::Authority;
use files::{read_text, write_new, write_over};

/// How long a CA is valid: ten years.
pub const CA_DAYS: u32 = 3_650;
/// How long a leaf is valid by default.
pub const LEAF_DAYS: u32 = 365;

/// Why something was not done. The message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("cannot {what} {}", path.display())]
    File {
        /// "read", "write", ...
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file exists and nobody asked to replace it.
    #[error("{} exists already; it is replaced only when asked to (--force)", path.display())]
    Exists {
        /// Which file.
        path: PathBuf,
    },
    /// A file's content is not what it should be.
    #[error("{}: {problem}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The request cannot be.
    #[error("{0}")]
    Request(String),
    /// The certificate could not be made.
    #[error("the certificate cannot be made")]
    Make(#[from] rcgen::Error),
    /// The rotation is not where this step begins.
    #[error("{0}")]
    Order(&'static str),
}

/// A certificate that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The certificate's file.
    pub cert: PathBuf,
    /// The key's file.
    pub key: PathBuf,
    /// The SPIFFE URI; of a CA `spiffe://<trust>`.
    pub spiffe: String,
    /// Time until it ends.
    pub valid_for: Duration,
}

/// Makes a CA for trust domain `trust` in `dir`, which is made if need be.
///
/// # Errors
/// [`PkiError::Exists`] when there is one; `force` replaces it, and with it every certificate it
/// ever signed becomes worthless.
pub fn init(dir: &Path, trust: &str, days: u32, force: bool) -> Result<Issued, PkiError> {
    check_trust(trust)?;
    files::make_dir(dir)?;
    let ca = authority::make(trust, days)?;
    let (cert, key) = (dir.join("ca.crt"), dir.join("ca.key"));
    if force {
        write_over(&key, &ca.key_pem, files::SECRET)?;
        write_over(&cert, &ca.cert_pem, files::PUBLIC)?;
    } else {
        write_new(&key, &ca.key_pem, files::SECRET)?;
        write_over(&cert, &ca.cert_pem, files::PUBLIC)?;
    }
    write_over(&dir.join("bundle.crt"), &ca.cert_pem, files::PUBLIC)?;
    Ok(Issued { cert, key, spiffe: format!("spiffe://{trust}"), valid_for: days_long(days) })
}

/// What to issue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its role.
    pub role: Role,
    /// Its name: a node's id, an agent's `<service>/<instance>`, a person's name.
    pub name: String,
    /// DNS names and IP addresses, for clients in other languages that check them.
    pub names: Vec<String>,
    /// How long it is valid, in days; never longer than the CA.
    pub days: u32,
    /// Replace an existing pair.
    pub force: bool,
}

impl Request {
    /// A request with the defaults.
    pub fn new(role: Role, name: impl Into<String>) -> Self {
        Self { role, name: name.into(), names: Vec::new(), days: LEAF_DAYS, force: false }
    }
}

/// Issues one pair, `<role>-<name>.crt` and `.key` in `dir` (a `/` of the name becomes `+`).
///
/// # Errors
/// [`PkiError::Exists`] when there is one and `force` is not set; a name that is none; a CA that
/// is missing or has run out.
pub fn issue(dir: &Path, request: &Request) -> Result<Issued, PkiError> {
    let ca = Authority::read(dir, "ca")?;
    let spiffe = format!("spiffe://{}/{}/{}", ca.trust, request.role, request.name);
    check_name(&request.name)?;
    if let Err(problem) = Principal::from_spiffe(&spiffe, &ca.trust) {
        return Err(PkiError::Request(format!("{spiffe:?} is no identity: {problem}")));
    }
    let stem = format!("{}-{}", request.role, request.name.replace('/', "+"));
    let (cert, key) = (dir.join(format!("{stem}.crt")), dir.join(format!("{stem}.key")));
    let leaf = ca.issue(&spiffe, &request.names, request.days)?;
    if request.force {
        write_over(&key, &leaf.key_pem, files::SECRET)?;
    } else {
        if cert.exists() {
            return Err(PkiError::Exists { path: cert });
        }
        write_new(&key, &leaf.key_pem, files::SECRET)?;
    }
    // A process that looks between the two writes finds a key that does not fit, keeps what it
    // has, and looks again.
    write_over(&cert, &leaf.cert_pem, files::PUBLIC)?;
    Ok(Issued { cert, key, spiffe, valid_for: leaf.valid_for })
}

fn days_long(days: u32) -> Duration {
    Duration::from_secs(u64::from(days) * 86_400)
}

fn check_trust(trust: &str) -> Result<(), PkiError> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c);
    if trust.is_empty() || trust.len() > 255 || !trust.chars().all(good) {
        return Err(PkiError::Request(format!(
            "{trust:?} is no trust domain; use a-z, 0-9, '.', '-' and '_', like regent.example"
        )));
    }
    Ok(())
}

/// Names become file names and parts of a URI, so they are names in the core's sense.
fn check_name(name: &str) -> Result<(), PkiError> {
    regent_core::id::ServiceName::parse(name)
        .map(|_| ())
        .map_err(|problem| PkiError::Request(format!("{name:?} is no name: {problem}")))
}
