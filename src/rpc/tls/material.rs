//! Everything a connection needs from the files, made once per reload and never changed.

use std::path::Path;
use std::sync::Arc;

use regent_core::authz::Principal;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use sha2::{Digest, Sha256};
use tokio_rustls::rustls::client::{ClientConfig, Resumption};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{NoServerSessionStorage, ServerConfig, WebPkiClientVerifier};
use tokio_rustls::rustls::{RootCertStore, version};

use super::deny::DenyList;
use super::identity::Facts;
use super::verify::{ExpectPeer, NodeVerifier, PeerRules};
use super::{TlsError, TlsFiles, facts};

/// Largest file read: a bundle of a few hundred certificates.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// One consistent set of certificates and the rustls configurations made of it.
#[derive(Debug)]
pub(super) struct Material {
    pub server: Arc<ServerConfig>,
    client: ClientConfig,
    clients: Arc<dyn ClientCertVerifier>,
    rules: Arc<PeerRules>,
    pub own: Facts,
    pub principal: Principal,
    pub trust: Arc<str>,
    /// Seconds since 1970: the CA of the bundle that ends first.
    pub ca_not_after: i64,
    /// What the deny list said; `None` while its file has never been there.
    denied_text: Option<Vec<u8>>,
    /// What the operator should know although all this is in force.
    pub warning: Option<String>,
    /// Of the files' contents: tells whether a reload changed anything.
    pub digest: [u8; 32],
}

impl Material {
    /// Reads the files. `before` is what is in force: a deny list that was read once must not be
    /// lifted by a file that is gone, only by one that says so.
    pub fn read(files: &TlsFiles, before: Option<&Self>) -> Result<Self, TlsError> {
        let (cert_pem, key_pem) = (read(&files.cert)?, read(&files.key)?);
        let ca_pem = read(&files.ca)?;
        let (denied_text, warning) = deny_list(files, before)?;
        let denied_bytes = denied_text.clone().unwrap_or_default();
        let mut digest = Sha256::new();
        for part in [&cert_pem, &key_pem, &ca_pem, &denied_bytes] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }

        let chain = certificates(&files.cert, &cert_pem)?;
        let key = PrivateKeyDer::from_pem_slice(&key_pem)
            .map_err(|e| content(&files.key, format!("no private key can be read: {e}")))?;
        let authorities = certificates(&files.ca, &ca_pem)?;
        let own = facts(&chain[0]).map_err(|e| content(&files.cert, e.to_string()))?;
        let trust = trust_domain(files, &own)?;
        let principal = own.principal(&trust).map_err(|e| content(&files.cert, e.to_string()))?;
        let (roots, ca_not_after) = trusted(&files.ca, &authorities)?;
        let denied = match &files.revoked {
            Some(path) => {
                let text = String::from_utf8_lossy(&denied_bytes);
                DenyList::parse(&text).map_err(|problem| content(path, problem))?
            }
            None => DenyList::default(),
        };

        let provider = Arc::new(ring::default_provider());
        let rules = Arc::new(PeerRules {
            roots: Arc::clone(&roots),
            algorithms: provider.signature_verification_algorithms,
            denied,
            trust: Arc::clone(&trust),
        });
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(|e| content(&files.ca, e.to_string()))?;
        let unusable = |source| TlsError::Unusable {
            cert: files.cert.clone(),
            key: files.key.clone(),
            source,
        };
        let server = server_config(&provider, &clients, &chain, &key).map_err(unusable)?;
        let client = client_config(&provider, &rules, chain, key).map_err(unusable)?;
        Ok(Self {
            server: Arc::new(server),
            client,
            clients,
            rules,
            own,
            principal,
            trust,
            ca_not_after,
            denied_text,
            warning,
            digest: digest.finalize().into(),
        })
    }

    /// The configuration for dialling a peer that must be `expect`.
    pub fn client(&self, expect: &ExpectPeer) -> Arc<ClientConfig> {
        let mut config = self.client.clone();
        let verifier = NodeVerifier::new(Arc::clone(&self.rules), expect.clone());
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        Arc::new(config)
    }

    /// Whether an open connection's peer would still be let in.
    pub fn accepts(&self, chain: &[CertificateDer<'_>], facts: &Facts) -> Result<(), String> {
        self.rules.not_denied(facts)?;
        let (leaf, rest) = chain.split_first().ok_or("it showed no certificate")?;
        self.clients
            .verify_client_cert(leaf, rest, UnixTime::now())
            .map(|_| ())
            .map_err(|e| e.to_string())
    }
}

/// The deny list's text, and what is wrong with its file.
fn deny_list(
    files: &TlsFiles,
    before: Option<&Material>,
) -> Result<(Option<Vec<u8>>, Option<String>), TlsError> {
    let Some(path) = &files.revoked else { return Ok((None, None)) };
    match read(path) {
        Ok(text) => Ok((Some(text), None)),
        Err(TlsError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            let kept = before.and_then(|before| before.denied_text.clone());
            let warning = kept.is_some().then(|| {
                format!(
                    "the deny list {} is gone: what it said last stays in force until the process \
                     ends; write the file again, an empty one to deny nobody",
                    path.display()
                )
            });
            Ok((kept, warning))
        }
        Err(error) => Err(error),
    }
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    clients: &Arc<dyn ClientCertVerifier>,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> Result<ServerConfig, tokio_rustls::rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(Arc::clone(clients))
        .with_single_cert(chain.to_vec(), key.clone_key())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client_config(
    provider: &Arc<CryptoProvider>,
    rules: &Arc<PeerRules>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, tokio_rustls::rustls::Error> {
    let verifier = NodeVerifier::new(Arc::clone(rules), ExpectPeer::AnyNode);
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let fail = |source| TlsError::Read { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(fail)?.len();
    if size > MAX_FILE_BYTES {
        return Err(content(path, format!("it has {size} bytes; the most is {MAX_FILE_BYTES}")));
    }
    std::fs::read(path).map_err(fail)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|e| content(path, format!("it is not PEM: {e}")))?;
    if all.is_empty() {
        return Err(content(path, "it holds no certificate".to_owned()));
    }
    Ok(all)
}

fn trusted(
    path: &Path,
    authorities: &[CertificateDer<'static>],
) -> Result<(Arc<RootCertStore>, i64), TlsError> {
    let mut roots = RootCertStore::empty();
    let mut first_end = i64::MAX;
    for authority in authorities {
        let bad = |e: String| content(path, format!("a certificate cannot be trusted: {e}"));
        let facts = facts(authority).map_err(|e| bad(e.to_string()))?;
        first_end = first_end.min(facts.not_after);
        roots.add(authority.clone()).map_err(|e| bad(e.to_string()))?;
    }
    Ok((Arc::new(roots), first_end))
}

fn trust_domain(files: &TlsFiles, own: &Facts) -> Result<Arc<str>, TlsError> {
    if let Some(trust) = &files.trust {
        return Ok(Arc::from(trust.as_str()));
    }
    let uri = own.spiffe().map_err(|e| content(&files.cert, e.to_string()))?;
    let domain = uri.strip_prefix("spiffe://").and_then(|rest| rest.split('/').next());
    match domain {
        Some(domain) if !domain.is_empty() => Ok(Arc::from(domain)),
        _ => Err(content(&files.cert, format!("{uri:?} names no trust domain"))),
    }
}

fn content(path: &Path, problem: String) -> TlsError {
    TlsError::Content { path: path.to_owned(), problem }
}
