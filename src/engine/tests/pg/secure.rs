//! TLS between instances: it is used, and who is not what it should be is not believed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use regent_engine::postgres::{Postgres, TlsFiles};
use regent_engine::{Engine, StartAs};

use super::rig::{LONG, Rig, give};

/// Writes a file that the server's user may read and nobody else.
fn put(path: PathBuf, text: &str) -> PathBuf {
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    give(&path);
    path
}

/// An authority, and a certificate of it for a host.
fn files(dir: &Path, name: &str, host: &str) -> TlsFiles {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let server = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![host.to_owned()]).unwrap();
    let cert = leaf.signed_by(&server, &issuer).unwrap().pem();
    TlsFiles {
        cert: put(dir.join(format!("{name}.crt")), &cert),
        key: put(dir.join(format!("{name}.key")), &server.serialize_pem()),
        ca: put(dir.join(format!("{name}.ca")), &ca),
    }
}

/// Every cause of an error.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_speak_tls_and_an_unknown_authority_or_host_is_refused_before_anything_changes() {
    let mut rig = Rig::new();
    let good = files(&rig.base, "good", "127.0.0.1");
    rig.tls = Some(good.clone());
    let primary = rig.primary("a").await;
    // Clone, the question before a rewind, and the stream.
    let mut standby = rig.standby("b", &primary).await;
    standby.pg.source_line(&primary.source(), LONG).await.unwrap();
    let sql =
        "SELECT count(*) FROM pg_stat_ssl s JOIN pg_stat_replication r USING (pid) WHERE s.ssl";
    let row = primary.agent(&rig).await.query_one(sql, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 1, "the stream is encrypted");
    let hba = fs::read_to_string(primary.options.data_dir.join("regent.hba")).unwrap();
    assert!(!hba.contains("host replication regent_replication samenet"), "{hba}");

    // Whoever only asks whether it is there leaves no trace in its log.
    let address = format!("127.0.0.1:{}", primary.options.port);
    for _ in 0..5 {
        standby.pg.knock(&address).await.unwrap();
    }
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let logged = primary.log();
    assert!(!logged.contains("SSL") && !logged.contains("startup packet"), "{logged}");
    // Another authority, and the right one for another host.
    let other = files(&rig.base, "other", "127.0.0.1");
    standby.stop();
    let copy = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().flatten().map(|it| it.path()).collect();
        names.sort();
        names
    };
    let before = copy(&standby.options.data_dir);
    let mut options = standby.options.clone();
    options.tls = Some(TlsFiles { ca: other.ca, ..good.clone() });
    let wrong = Postgres::new(options.clone()).unwrap();
    let said = causes(&wrong.source_line(&primary.source(), LONG).await.unwrap_err());
    assert!(said.contains("certificate"), "{said}");
    let said = causes(&wrong.clone_from(&primary.source(), &|_| ()).await.unwrap_err());
    assert!(said.contains("certificate verify failed"), "{said}");
    let elsewhere = regent_engine::Source { host: "localhost".into(), ..primary.source() };
    let said = causes(&standby.pg.source_line(&elsewhere, LONG).await.unwrap_err());
    assert!(said.contains("certificate"), "{said}");
    let missing = TlsFiles { ca: rig.base.join("none"), ..good };
    let nobody = Postgres::new(regent_engine::postgres::Options { tls: Some(missing), ..options });
    let said = nobody.unwrap().source_line(&primary.source(), LONG).await.unwrap_err().to_string();
    assert!(said.contains("none"), "it names the file: {said}");
    assert_eq!(copy(&standby.options.data_dir), before, "nothing was touched");

    let upstream = Some(primary.upstream_of("b"));
    standby.start(&StartAs::Standby { upstream }).await;
    primary.streams_to("b").await;
}
