//! TLS between instances: what the server shows, and whom those that connect to it believe.
//!
//! One way only, the one that proves who is there: each server has a certificate that names its
//! host, and whoever connects checks authority and name (`verify-full`). Sessions of the agent with its
//! own server go over loopback and need none.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as Wrapped;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::error::DiskError;

/// Files of one instance, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate chain; it names the host that the instance is declared with.
    pub cert: PathBuf,
    /// Its private key, for the server's user alone.
    pub key: PathBuf,
    /// Authorities of the other instances' certificates.
    pub ca: PathBuf,
}

impl TlsFiles {
    /// What a connection string says of it, with a blank before it.
    pub(super) fn words(&self) -> String {
        let ca = super::managed::conn_value(&self.ca.to_string_lossy());
        format!(" sslmode=verify-full sslrootcert={ca}")
    }

    /// Whoever connects with it believes these authorities. Read anew each time: files are replaced.
    pub(super) fn connector(&self) -> Result<Secure, DiskError> {
        let bad =
            |what: &str| DiskError::Unreadable { what: what.to_owned(), path: self.ca.clone() };
        let mut roots = RootCertStore::empty();
        let certificates =
            CertificateDer::pem_file_iter(&self.ca).map_err(|_| bad("an authority"))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|_| bad("an authority"))?;
            roots.add(certificate).map_err(|_| bad("an authority"))?;
        }
        if roots.is_empty() {
            return Err(bad("any authority"));
        }
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|_| bad("a protocol for it"))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Secure(TlsConnector::from(Arc::new(config))))
    }
}

/// Makes sessions with servers that must prove who they are.
#[derive(Clone)]
pub(super) struct Secure(TlsConnector);

/// A session's bytes.
pub(super) struct Wire<S>(Wrapped<S>);

/// One handshake.
pub(super) struct Handshake(TlsConnector, ServerName<'static>);

type Shaking<S> = Pin<Box<dyn Future<Output = io::Result<Wire<S>>> + Send>>;

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> MakeTlsConnect<S> for Secure {
    type Stream = Wire<S>;
    type TlsConnect = Handshake;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<Handshake> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        Ok(Handshake(self.0.clone(), name))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> TlsConnect<S> for Handshake {
    type Stream = Wire<S>;
    type Error = io::Error;
    type Future = Shaking<S>;

    fn connect(self, stream: S) -> Shaking<S> {
        Box::pin(async move { Ok(Wire(self.0.connect(self.1, stream).await?)) })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Wire<S> {
    fn channel_binding(&self) -> ChannelBinding {
        // The certificate is checked against name and authority: that is what ties the session.
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
