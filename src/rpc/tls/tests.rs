//! Who gets in and who does not, with real certificates and connections.

#![allow(clippy::unwrap_used)]

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

use futures::StreamExt;
use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use regent_core::authz::Role;
use regent_core::id::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;
use crate::pki::{Request, Step, issue, rotate};
use crate::testing::{Pki, TRUST, eventually};

/// An echo server behind `tls`; tells who came.
async fn serve(tls: &Arc<Tls>, limits: AcceptLimits) -> (SocketAddr, mpsc::Receiver<PeerIdentity>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut incoming = Box::pin(tls.incoming(listener, limits));
    let (tx, rx) = mpsc::channel(64);
    tokio::spawn(async move {
        while let Some(Ok(mut connection)) = incoming.next().await {
            let _ = tx.send(connection.peer().clone()).await;
            tokio::spawn(async move {
                let mut byte = [0];
                while connection.read_exact(&mut byte).await.is_ok() {
                    if connection.write_all(&byte).await.is_err() {
                        return;
                    }
                    let _ = connection.flush().await;
                }
            });
        }
    });
    (addr, rx)
}

async fn echo(connection: &mut Connection) -> io::Result<()> {
    connection.write_all(b"x").await?;
    connection.flush().await?;
    let mut byte = [0];
    connection.read_exact(&mut byte).await?;
    Ok(())
}

async fn talk(tls: &Tls, addr: SocketAddr, expect: &ExpectPeer) -> io::Result<Connection> {
    let mut connection = tls.dial(&addr.to_string(), expect).await?;
    echo(&mut connection).await?;
    Ok(connection)
}

/// A leaf signed by the CA of `pki` with any names one likes.
fn forge(pki: &Pki, stem: &str, sans: &[&str]) -> TlsFiles {
    let read = |name: &str| std::fs::read_to_string(pki.dir().join(name)).unwrap();
    let ca_key = KeyPair::from_pem(&read("ca.key")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca.crt"), ca_key).unwrap();
    let mut params = CertificateParams::default();
    for san in sans {
        params.subject_alt_names.push(SanType::URI((*san).try_into().unwrap()));
    }
    let key = KeyPair::generate().unwrap();
    let cert = params.signed_by(&key, &issuer).unwrap();
    let path = |ext: &str| pki.dir().join(format!("{stem}.{ext}"));
    std::fs::write(path("crt"), cert.pem()).unwrap();
    std::fs::write(path("key"), key.serialize_pem()).unwrap();
    TlsFiles {
        cert: path("crt"),
        key: path("key"),
        ca: pki.dir().join("bundle.crt"),
        revoked: None,
        trust: Some(TRUST.to_owned()),
    }
}

#[tokio::test]
async fn a_client_of_the_same_ca_is_let_in_and_named() {
    let pki = Pki::new();
    let (node, client) = (pki.tls(Role::Node, "1"), pki.tls(Role::Client, "app"));
    let (addr, mut peers) = serve(&node, AcceptLimits::default()).await;
    talk(&client, addr, &ExpectPeer::Node(NodeId(1))).await.unwrap();
    let peer = peers.recv().await.unwrap();
    assert_eq!(peer.principal, Ok(Principal::new(Role::Client, "app")));
    assert_eq!(&*peer.spiffe, format!("spiffe://{TRUST}/client/app"));
    assert_eq!(peer.fingerprint.len(), 64);
    assert_eq!(node.stats().accepted(), 1);
    eventually("it is closed", || node.stats().open() == 0).await;
}

#[tokio::test]
async fn a_peer_of_another_ca_is_refused_by_either_side() {
    let (ours, theirs) = (Pki::new(), Pki::new());
    let node = ours.tls(Role::Node, "1");
    let (addr, _peers) = serve(&node, AcceptLimits::default()).await;
    let stranger = theirs.tls(Role::Client, "app");
    assert!(talk(&stranger, addr, &ExpectPeer::AnyNode).await.is_err());
    // One that trusts our CA is stopped by the server.
    let mut files = theirs.files(Role::Client, "app");
    files.ca = ours.dir().join("bundle.crt");
    let stranger = Tls::load(files).unwrap();
    assert!(talk(&stranger, addr, &ExpectPeer::AnyNode).await.is_err());
    eventually("both are counted", || node.stats().failed() == 2).await;
    assert_eq!(node.stats().accepted(), 0);
}

#[tokio::test]
async fn only_the_node_that_was_dialled_may_answer() {
    let pki = Pki::new();
    let client = pki.tls(Role::Node, "2");
    let (addr, _peers) = serve(&pki.tls(Role::Node, "1"), AcceptLimits::default()).await;
    assert!(talk(&client, addr, &ExpectPeer::Node(NodeId(1))).await.is_ok());
    assert!(talk(&client, addr, &ExpectPeer::Node(NodeId(3))).await.is_err());
    assert!(talk(&client, addr, &ExpectPeer::Node(NodeId(11))).await.is_err());
    // A client's certificate of the right CA is no node's.
    let (addr, _peers) = serve(&pki.tls(Role::Client, "1"), AcceptLimits::default()).await;
    assert!(talk(&client, addr, &ExpectPeer::AnyNode).await.is_err());
}

#[tokio::test]
async fn a_certificate_with_no_or_two_or_a_foreign_spiffe_uri_is_no_principal() {
    let pki = Pki::new();
    let (one, two) = (format!("spiffe://{TRUST}/client/a"), format!("spiffe://{TRUST}/admin/b"));
    let cases: [(&str, &[&str]); 4] = [
        ("none", &[]),
        ("two", &[&one, &two]),
        ("foreign", &["spiffe://other.example/admin/x"]),
        ("role", &["spiffe://test.example/king/x"]),
    ];
    let mut request = Request::new(Role::Node, "1");
    request.names = vec!["localhost".to_owned()];
    issue(pki.dir(), &request).unwrap();
    let node = pki.tls(Role::Node, "1");
    let (addr, mut peers) = serve(&node, AcceptLimits::default()).await;
    for (stem, sans) in cases {
        let files = forge(&pki, stem, sans);
        // Regent itself does not even load such a certificate, so the handshake is done by hand.
        assert!(matches!(Tls::load(files.clone()), Err(TlsError::Content { .. })), "{stem}");
        let mut stream = raw_client(&files, addr).await;
        stream.write_all(b"x").await.unwrap();
        let peer = peers.recv().await.unwrap();
        assert!(peer.principal.is_err(), "{stem}: {:?}", peer.principal);
    }
}

/// A TLS client that checks nothing of what Regent's own checks.
async fn raw_client(
    files: &TlsFiles,
    addr: SocketAddr,
) -> tokio_rustls::client::TlsStream<TcpStream> {
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring, version::TLS13};
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_file_iter(&files.ca).unwrap() {
        roots.add(ca.unwrap()).unwrap();
    }
    let chain = CertificateDer::pem_file_iter(&files.cert).unwrap().map(|c| c.unwrap()).collect();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&files.key).unwrap())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(addr).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect("localhost".try_into().unwrap(), tcp).await.unwrap()
}

#[tokio::test]
async fn without_a_client_certificate_nobody_gets_in() {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring, version::TLS13};
    let pki = Pki::new();
    let mut request = Request::new(Role::Node, "1");
    request.names = vec!["localhost".to_owned()];
    issue(pki.dir(), &request).unwrap();
    let node = pki.tls(Role::Node, "1");
    let (addr, mut peers) = serve(&node, AcceptLimits::default()).await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pki.dir().join("bundle.crt")).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(addr).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    // TLS 1.3: the client is done before the server has looked; the refusal comes with the first
    // byte that is read.
    let mut stream = connector.connect("localhost".try_into().unwrap(), tcp).await.unwrap();
    let _ = stream.write_all(b"x").await;
    let mut byte = [0];
    assert!(stream.read_exact(&mut byte).await.is_err());
    assert!(peers.try_recv().is_err());
}

#[tokio::test]
async fn silent_peers_delay_nobody_and_are_dropped_at_the_deadline() {
    let pki = Pki::new();
    let (node, client) = (pki.tls(Role::Node, "1"), pki.tls(Role::Client, "app"));
    let deadline = Duration::from_secs(2);
    let limits = AcceptLimits { connections: 100, handshakes: 2, deadline };
    let (addr, _peers) = serve(&node, limits).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(addr).await.unwrap());
    }
    let begun = Instant::now();
    talk(&client, addr, &ExpectPeer::AnyNode).await.unwrap();
    assert!(begun.elapsed() < deadline, "{:?}", begun.elapsed());
    for mut stream in silent {
        let end = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut [0])).await;
        assert!(!matches!(end.unwrap(), Ok(1..)));
    }
}

#[tokio::test]
async fn peers_that_begin_and_do_not_go_on_delay_nobody_for_long() {
    let pki = Pki::new();
    let (node, client) = (pki.tls(Role::Node, "1"), pki.tls(Role::Client, "app"));
    let deadline = Duration::from_secs(20);
    let limits = AcceptLimits { connections: 100, handshakes: 4, deadline };
    let (addr, _peers) = serve(&node, limits).await;
    let mut stuck = Vec::new();
    for _ in 0..16 {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        // The first byte of a handshake.
        stream.write_all(&[22]).await.unwrap();
        stuck.push(stream);
    }
    let begun = Instant::now();
    talk(&client, addr, &ExpectPeer::AnyNode).await.unwrap();
    assert!(begun.elapsed() < deadline / 2, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_connection_above_the_limit_is_closed_at_once_and_counted() {
    let pki = Pki::new();
    let (node, client) = (pki.tls(Role::Node, "1"), pki.tls(Role::Client, "app"));
    let limits = AcceptLimits { connections: 1, ..AcceptLimits::default() };
    let (addr, _peers) = serve(&node, limits).await;
    let first = talk(&client, addr, &ExpectPeer::AnyNode).await.unwrap();
    assert!(talk(&client, addr, &ExpectPeer::AnyNode).await.is_err());
    assert_eq!(node.stats().over_limit(), 1);
    drop(first);
    eventually("the place is free again", || node.open_connections() == 0).await;
    talk(&client, addr, &ExpectPeer::AnyNode).await.unwrap();
}

#[tokio::test]
async fn a_rotation_refuses_no_call_and_then_ends_connections_of_the_old_ca() {
    let pki = Pki::new();
    let (node, client) = (pki.tls(Role::Node, "1"), pki.tls(Role::Client, "app"));
    let (addr, _peers) = serve(&node, AcceptLimits::default()).await;
    let mut old = talk(&client, addr, &ExpectPeer::AnyNode).await.unwrap();
    for step in [Step::Begin, Step::Switch] {
        rotate(pki.dir(), step).unwrap();
        // Either may see the files first.
        assert!(node.reload().unwrap());
        talk(&client, addr, &ExpectPeer::AnyNode).await.unwrap();
        assert!(client.reload().unwrap());
        talk(&client, addr, &ExpectPeer::AnyNode).await.unwrap();
        echo(&mut old).await.unwrap();
    }
    rotate(pki.dir(), Step::Finish).unwrap();
    assert!(node.reload().unwrap());
    assert!(echo(&mut old).await.is_err(), "it was let in by a CA that is gone");
    talk(&client, addr, &ExpectPeer::AnyNode).await.unwrap();
    assert!(!node.reload().unwrap(), "nothing changed since");
    assert_eq!((node.stats().reloads(), node.stats().failed_reloads()), (3, 0));
}

#[tokio::test]
async fn a_revoked_identity_loses_its_open_connection_and_gets_no_new_one() {
    let pki = Pki::new();
    let node = pki.tls(Role::Node, "1");
    let (eve, bob) = (pki.tls(Role::Client, "eve"), pki.tls(Role::Client, "bob"));
    let (addr, _peers) = serve(&node, AcceptLimits::default()).await;
    let mut of_eve = talk(&eve, addr, &ExpectPeer::AnyNode).await.unwrap();
    let mut of_bob = talk(&bob, addr, &ExpectPeer::AnyNode).await.unwrap();
    // Nothing is read or written when it happens: the end must not wait for traffic.
    let waiting = tokio::spawn(async move { of_eve.read(&mut [0]).await });
    let watcher = tokio::spawn(Arc::clone(&node).watch_files(Duration::from_millis(10)));
    std::fs::write(pki.dir().join("revoked"), format!("spiffe://{TRUST}/client/eve\n")).unwrap();
    let end = tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    assert!(!matches!(end, Ok(1..)), "{end:?}");
    echo(&mut of_bob).await.unwrap();
    assert!(talk(&eve, addr, &ExpectPeer::AnyNode).await.is_err());
    eventually("both are counted", || node.stats().revoked() == 2).await;
    watcher.abort();
}

#[tokio::test]
async fn the_dialling_side_ends_its_connection_to_a_revoked_node() {
    let pki = Pki::new();
    let (one, two) = (pki.tls(Role::Node, "1"), pki.tls(Role::Node, "2"));
    let (addr, _peers) = serve(&one, AcceptLimits::default()).await;
    let mut open = talk(&two, addr, &ExpectPeer::Node(NodeId(1))).await.unwrap();
    std::fs::write(pki.dir().join("revoked"), format!("spiffe://{TRUST}/node/1\n")).unwrap();
    assert!(two.reload().unwrap());
    assert!(echo(&mut open).await.is_err());
    assert!(talk(&two, addr, &ExpectPeer::Node(NodeId(1))).await.is_err());
}

#[tokio::test]
async fn a_deny_list_that_goes_away_lifts_nothing_and_is_missed() {
    let pki = Pki::new();
    let (node, eve) = (pki.tls(Role::Node, "1"), pki.tls(Role::Client, "eve"));
    let (addr, _peers) = serve(&node, AcceptLimits::default()).await;
    assert!(!node.reload().unwrap() && node.problem().is_none(), "it need not be there");
    let list = pki.dir().join("revoked");
    std::fs::write(&list, format!("spiffe://{TRUST}/client/eve\n")).unwrap();
    assert!(node.reload().unwrap() && node.problem().is_none());
    std::fs::remove_file(&list).unwrap();
    assert!(!node.reload().unwrap());
    assert!(node.problem().is_some_and(|why| why.contains("is gone")));
    assert!(talk(&eve, addr, &ExpectPeer::AnyNode).await.is_err());
    std::fs::write(&list, "nonsense\n").unwrap();
    node.reload().unwrap_err();
    assert!(node.problem().is_some_and(|why| why.contains("line 1")));
    assert!(talk(&eve, addr, &ExpectPeer::AnyNode).await.is_err());
    std::fs::write(&list, "").unwrap();
    assert!(node.reload().unwrap() && node.problem().is_none());
    talk(&eve, addr, &ExpectPeer::AnyNode).await.unwrap();
}

#[tokio::test]
async fn files_that_cannot_be_used_change_nothing() {
    let pki = Pki::new();
    let files = pki.files(Role::Node, "1");
    let (node, client) = (pki.tls(Role::Node, "1"), pki.tls(Role::Client, "app"));
    let (addr, _peers) = serve(&node, AcceptLimits::default()).await;
    let mut open = talk(&client, addr, &ExpectPeer::AnyNode).await.unwrap();
    let good = |path: &Path| std::fs::read(path).unwrap();
    let revoked = files.revoked.clone().unwrap();
    std::fs::write(&revoked, "").unwrap();
    for path in [&files.cert, &files.key, &files.ca, &revoked] {
        let before = good(path);
        std::fs::write(path, "not a thing\n").unwrap();
        let problem = causes(&node.reload().unwrap_err());
        assert!(problem.contains(&path.display().to_string()), "{problem}");
        talk(&client, addr, &ExpectPeer::AnyNode).await.unwrap();
        echo(&mut open).await.unwrap();
        std::fs::write(path, before).unwrap();
    }
    // A key that does not fit, as between the two writes of a reissue.
    let other = pki.files(Role::Node, "2");
    let before = good(&files.key);
    std::fs::copy(&other.key, &files.key).unwrap();
    assert!(matches!(node.reload(), Err(TlsError::Unusable { .. })));
    std::fs::write(&files.key, before).unwrap();
    assert!(!node.reload().unwrap());
    assert_eq!((node.stats().reloads(), node.stats().failed_reloads()), (0, 5));
    std::fs::remove_file(&files.ca).unwrap();
    let problem = Tls::load(files).unwrap_err();
    assert!(problem.to_string().contains("bundle.crt"), "{problem}");
}
