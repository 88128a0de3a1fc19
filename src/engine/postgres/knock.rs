//! Whether a server answers whoever knocks, without a session and without a line in its log.
//!
//! PostgreSQL's own first word says whether it speaks TLS, before anything is asked of the server
//! behind it. A connection alone proves nothing: the kernel of a host whose processes are frozen
//! accepts it for them. Who hangs up after a `yes` is logged by the server as a failure; who shakes
//! hands first is not, so that is done, beside, by one who believes anybody and says nothing.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const YES: u8 = b'S';
/// A farewell that takes longer is not worth a socket.
const FAREWELL: Duration = Duration::from_secs(1);

/// Returns at the server's first byte.
pub(super) async fn knock(address: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(&SSL_REQUEST).await?;
    if stream.read_u8().await? == YES {
        tokio::spawn(timeout(FAREWELL, farewell(stream)));
    }
    Ok(())
}

async fn farewell(stream: TcpStream) -> io::Result<()> {
    static ANYBODY: OnceLock<Option<TlsConnector>> = OnceLock::new();
    let Some(connector) = ANYBODY.get_or_init(anybody) else { return Ok(()) };
    let name = ServerName::try_from("postgresql").map_err(io::Error::other)?;
    connector.connect(name, stream).await?.shutdown().await
}

fn anybody() -> Option<TlsConnector> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .ok()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    Some(TlsConnector::from(Arc::new(config)))
}

/// Believes every certificate. Never for a session: nothing is said to it and nothing heard.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
