//! What the dialling side demands: a chain to a trusted CA, and the identity of a node.
//!
//! Names and addresses of the certificate are not looked at; the identity is the SPIFFE URI. So a
//! lab on loopback works like a cluster over regions, and a client certificate (which a trusted CA
//! signed, too) can never answer as a node.

use std::sync::Arc;

use regent_core::authz::Role;
use regent_core::id::NodeId;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::verify_server_cert_signed_by_trust_anchor;
use tokio_rustls::rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use super::deny::DenyList;
use super::facts;
use super::identity::Facts;

/// Who must answer at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpectPeer {
    /// Any node of the trust domain: for clients that only know addresses.
    AnyNode,
    /// Exactly this node: among nodes, where an answer in another's name would be a false vote.
    Node(NodeId),
}

/// What both sides demand of a peer's certificate.
#[derive(Debug)]
pub(super) struct PeerRules {
    pub roots: Arc<RootCertStore>,
    pub algorithms: WebPkiSupportedAlgorithms,
    pub denied: DenyList,
    pub trust: Arc<str>,
}

impl PeerRules {
    /// Whether the deny list lets this certificate in.
    pub fn not_denied(&self, facts: &Facts) -> Result<(), String> {
        match self.denied.denies(facts) {
            Some(line) => Err(format!("it is revoked by {line:?}")),
            None => Ok(()),
        }
    }
}

/// Verifies a node's certificate by CA and SPIFFE URI.
#[derive(Debug)]
pub(super) struct NodeVerifier {
    rules: Arc<PeerRules>,
    expect: ExpectPeer,
}

impl NodeVerifier {
    pub fn new(rules: Arc<PeerRules>, expect: ExpectPeer) -> Self {
        Self { rules, expect }
    }

    fn check_identity(&self, der: &[u8]) -> Result<(), String> {
        let facts = facts(der).map_err(|e| e.to_string())?;
        self.rules.not_denied(&facts)?;
        let principal = facts.principal(&self.rules.trust).map_err(|e| e.to_string())?;
        if principal.role != Role::Node {
            return Err(format!("{principal} is no node"));
        }
        match &self.expect {
            ExpectPeer::AnyNode => Ok(()),
            ExpectPeer::Node(id) if principal.name == id.to_string() => Ok(()),
            ExpectPeer::Node(id) => {
                Err(format!("{principal} answered where node/{id} was dialled"))
            }
        }
    }
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let cert = ParsedCertificate::try_from(end_entity)?;
        let roots = &self.rules.roots;
        let algorithms = self.rules.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&cert, roots, intermediates, now, algorithms)?;
        self.check_identity(end_entity).map_err(|problem| {
            tracing::warn!(problem, "refused to speak to a server");
            Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
        })?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.rules.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.rules.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.rules.algorithms.supported_schemes()
    }
}
