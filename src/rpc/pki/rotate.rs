//! Replacing a CA without a refused connection: trust both, switch, trust the new one only.
//!
//! Each step can be run again after a crash in the middle of it, and refuses to run out of order.
//! Between two steps every process must have seen the files (they look every few seconds).

use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::authority::{self, Authority};
use super::files::{self, move_over, read_text, write_new, write_over};
use super::{CA_DAYS, PkiError};

/// One step of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes `next.*` and trusts both. Then give `bundle.crt` to every process.
    Begin,
    /// Signs with the new CA from now on and reissues every leaf in the directory. Then give every
    /// process its new pair.
    Switch,
    /// Trusts the new CA only. Then give `bundle.crt` to every process.
    Finish,
}

/// What a step did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotated {
    /// Files that were written and must reach the processes.
    pub written: Vec<PathBuf>,
    /// What to do next.
    pub next: &'static str,
}

/// Runs one step in `dir`.
///
/// # Errors
/// [`PkiError::Order`] out of order; else what failed. Running the step again goes on.
pub fn rotate(dir: &Path, step: Step) -> Result<Rotated, PkiError> {
    match step {
        Step::Begin => begin(dir),
        Step::Switch => switch(dir),
        Step::Finish => finish(dir),
    }
}

fn begin(dir: &Path) -> Result<Rotated, PkiError> {
    let (next_crt, next_key) = (dir.join("next.crt"), dir.join("next.key"));
    let bundle = dir.join("bundle.crt");
    if next_crt.exists() && !next_key.exists() {
        return Err(PkiError::Order("a switch was interrupted: run the step `switch` again"));
    }
    let ca = Authority::read(dir, "ca")?;
    let current = read_text(&dir.join("ca.crt"))?;
    if !next_crt.exists() && count(&read_text(&bundle)?) > 1 {
        return Err(PkiError::Order("a rotation is under way: run the step `finish` first"));
    }
    if !next_crt.exists() {
        let pair = authority::make(&ca.trust, CA_DAYS)?;
        // A key without its certificate is what a crash right here leaves behind; nothing was
        // signed with it.
        let _ = std::fs::remove_file(&next_key);
        write_new(&next_key, &pair.key_pem, files::SECRET)?;
        write_new(&next_crt, &pair.cert_pem, files::PUBLIC)?;
    }
    let next = read_text(&next_crt)?;
    write_over(&bundle, &format!("{}\n{next}", current.trim_end()), files::PUBLIC)?;
    Ok(Rotated {
        written: vec![bundle],
        next: "give bundle.crt to every process, wait until all have loaded it, then `switch`",
    })
}

fn switch(dir: &Path) -> Result<Rotated, PkiError> {
    let (next_crt, next_key) = (dir.join("next.crt"), dir.join("next.key"));
    if next_key.exists() && !next_crt.exists() {
        return Err(PkiError::Order("there is no next CA: run the step `begin` first"));
    }
    if !next_crt.exists() && count(&read_text(&dir.join("bundle.crt"))?) < 2 {
        return Err(PkiError::Order("there is no next CA: run the step `begin` first"));
    }
    // The key first: between the two renames `next.crt` alone says where to go on.
    if next_key.exists() {
        move_over(&next_key, &dir.join("ca.key"))?;
    }
    if next_crt.exists() {
        move_over(&next_crt, &dir.join("ca.crt"))?;
    }
    let ca = Authority::read(dir, "ca")?;
    let mut written = Vec::new();
    for cert in leaves(dir)? {
        let key = cert.with_extension("key");
        let Some(old) = Leaf::read(&cert)? else { continue };
        let pair = ca.issue(&old.spiffe, &old.names, old.days)?;
        write_over(&key, &pair.key_pem, files::SECRET)?;
        write_over(&cert, &pair.cert_pem, files::PUBLIC)?;
        written.extend([cert, key]);
    }
    Ok(Rotated {
        written,
        next: "give every process its new pair, wait until all have loaded it, then `finish`",
    })
}

fn finish(dir: &Path) -> Result<Rotated, PkiError> {
    if dir.join("next.crt").exists() || dir.join("next.key").exists() {
        return Err(PkiError::Order("leaves are still signed by the old CA: run `switch` first"));
    }
    let current = read_text(&dir.join("ca.crt"))?;
    let bundle = dir.join("bundle.crt");
    write_over(&bundle, &current, files::PUBLIC)?;
    Ok(Rotated {
        written: vec![bundle],
        next: "give bundle.crt to every process; connections signed by the old CA end then",
    })
}

fn count(pem: &str) -> usize {
    CertificateDer::pem_slice_iter(pem.as_bytes()).filter(Result::is_ok).count()
}

/// Certificates of `dir` that are not a CA's and have their key beside them.
fn leaves(dir: &Path) -> Result<Vec<PathBuf>, PkiError> {
    let fail = |source| PkiError::File { what: "list", path: dir.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        let leaf = path.extension().is_some_and(|e| e == "crt")
            && !["ca", "bundle", "next"].contains(&stem)
            && path.with_extension("key").exists();
        if leaf {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// What a reissued leaf takes over from the one before.
struct Leaf {
    spiffe: String,
    names: Vec<String>,
    days: u32,
}

impl Leaf {
    /// `None` when it is not one of ours.
    fn read(path: &Path) -> Result<Option<Self>, PkiError> {
        let bad = |problem: String| PkiError::Content { path: path.to_owned(), problem };
        let pem = read_text(path)?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|e| bad(format!("it is no PEM certificate: {e}")))?;
        let (_, cert) = X509Certificate::from_der(&der)
            .map_err(|e| bad(format!("it is no certificate: {e}")))?;
        let san = cert
            .subject_alternative_name()
            .map_err(|e| bad(format!("its names cannot be read: {e}")))?;
        let (mut spiffe, mut names) = (None, Vec::new());
        for name in san.iter().flat_map(|san| &san.value.general_names) {
            match name {
                GeneralName::URI(uri) => spiffe = Some((*uri).to_owned()),
                GeneralName::DNSName(dns) => names.push((*dns).to_owned()),
                GeneralName::IPAddress(ip) => names.extend(address(ip)),
                _ => {}
            }
        }
        let validity = cert.validity();
        let seconds = validity.not_after.timestamp() - validity.not_before.timestamp();
        let days = u32::try_from(seconds / 86_400).unwrap_or(super::LEAF_DAYS).max(1);
        Ok(spiffe.map(|spiffe| Self { spiffe, names, days }))
    }
}

fn address(bytes: &[u8]) -> Option<String> {
    use std::net::IpAddr;
    let ip: IpAddr = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        _ => return None,
    };
    Some(ip.to_string())
}
