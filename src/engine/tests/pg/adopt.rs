//! A cluster that Regent did not make: what is refused, and what becomes of a configuration that lies
//! outside of the directory, as Debian's does.

use std::fs;
use std::io::Read as _;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use regent_engine::postgres::Ask;
use regent_engine::{Engine, StartAs, SyncNames};

use crate::disk::by_hand;
use crate::rig::{LONG, Node, Rig, epoch, give};

fn ask(replace_access: bool) -> Ask {
    Ask { superuser: "postgres".to_owned(), config_file: None, replace_access }
}

fn done(node: &Node, program: &str, args: &[&str]) {
    let out = by_hand(node, program, args);
    assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Starts it as its owner does, and stops it.
fn once(node: &Node, config: &Path, stop: &str) {
    let dir = node.options.data_dir.to_str().unwrap();
    let socket = node.options.data_dir.parent().unwrap().display().to_string();
    let options = format!("-c config_file={} -k {socket}", config.display());
    // The server holds the pipes of who starts it open, so its output goes to a file.
    let log = format!("{dir}.plain.log");
    done(node, "pg_ctl", &["start", "-w", "-D", dir, "-o", &options, "-l", &log]);
    done(node, "pg_ctl", &["stop", "-w", "-D", dir, "-m", stop]);
}

fn put(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    give(path);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_with_its_configuration_elsewhere_is_adopted_and_what_does_not_fit_is_refused() {
    let rig = Rig::new();
    let mut node = rig.node("a");
    let dir = node.options.data_dir.clone();
    let words = ["-k", "-U", "postgres", "--auth-local=trust", "--auth-host=reject", "-D"];
    done(&node, "initdb", &[&words[..], &[dir.to_str().unwrap()]].concat());
    let etc = rig.base.join("etc");
    fs::create_dir_all(etc.join("conf.d")).unwrap();
    let text = fs::read_to_string(dir.join("postgresql.conf")).unwrap();
    for name in ["pg_hba.conf", "pg_ident.conf", "postgresql.conf"] {
        fs::rename(dir.join(name), etc.join(name)).unwrap();
    }
    let config = etc.join("postgresql.conf");
    let (d, e, port) = (dir.display(), etc.display(), node.options.port);
    let own = format!(
        "data_directory = '{d}'\nhba_file = '{e}/pg_hba.conf'\nident_file = '{e}/pg_ident.conf'\n\
         port = {port}\ninclude_dir = 'conf.d'\n"
    );
    put(&etc.join("conf.d/own.conf"), "work_mem = '9MB'\n");
    give(&etc);
    let says = async |node: &Node, ask: &Ask, what: &str| {
        let obstacles = node.pg.survey(ask).await.unwrap().obstacles.join("; ");
        assert!(obstacles.contains(what), "{what}: {obstacles}");
        assert!(node.pg.adopt(ask).await.is_err());
    };

    // Each refused by its own reason, with nothing changed.
    put(&config, &format!("{text}\n{own}wal_level = logical\nmax_wal_senders = 33\n"));
    once(&node, &config, "immediate");
    says(&node, &ask(true), "not stopped in order").await;
    once(&node, &config, "fast");
    says(&node, &ask(true), "wal_level is logical").await;
    says(&node, &ask(true), "max_senders = 33").await;
    put(&config, &format!("{text}\n{own}recovery_target = 'immediate'\n"));
    says(&node, &ask(true), "recovery_target is set").await;
    put(&config, &format!("{text}\n{own}"));
    once(&node, &config, "fast");
    says(&node, &ask(false), "--replace-access").await;
    std::os::unix::fs::symlink(&rig.base, dir.join("pg_tblspc/77")).unwrap();
    says(&node, &ask(true), "tablespaces").await;
    fs::remove_file(dir.join("pg_tblspc/77")).unwrap();
    assert!(config.exists() && !dir.join("regent.conf").exists());
    let refused = node.pg.prepare_start(&StartAs::Standby { upstream: None }).await;
    assert!(refused.unwrap_err().to_string().contains("not Regent's"));

    node.pg.adopt(&ask(true)).await.unwrap();
    says(&node, &ask(true), "already").await;
    assert!(!config.exists() && etc.join("postgresql.conf.before-regent").exists());
    assert!(node.options.state_dir.join("adopted/pg_hba.conf").exists());
    node.start(&StartAs::Primary { names: SyncNames::Unprotected }).await;
    node.pg.write_epoch(epoch(1), LONG).await.unwrap();
    let mut rig = rig;
    rig.secrets.agent = agents_password(&node);
    let session = node.agent(&rig).await;
    let row = session.query_one("SHOW work_mem", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), "9MB", "what it included is still read");
    let row = session.query_one("SELECT rolsuper FROM pg_roles WHERE rolname = current_user", &[]);
    assert!(!row.await.unwrap().get::<_, bool>(0));
}

fn agents_password(node: &Node) -> regent_engine::Secret {
    let text = fs::read_to_string(&node.options.passfile).unwrap();
    let line = text.lines().find(|line| line.contains("regent_agent")).unwrap();
    regent_engine::Secret::of(line.rsplit(':').next().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_still_logging_in_when_clients_are_shut_out_does_not_get_in() {
    let rig = Rig::new();
    let primary = rig.primary("a").await;
    let mut stream = TcpStream::connect(("127.0.0.1", primary.options.port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut body = 196_608_u32.to_be_bytes().to_vec();
    body.extend(b"user\0app\0database\0app\0\0");
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    stream.write_all(&[&length[..], &body].concat()).unwrap();
    let mut asked = [0; 1];
    stream.read_exact(&mut asked).unwrap();
    assert_eq!(asked, *b"R", "it is asked for a password");
    primary.pg.close_clients(&primary.handle(), LONG).await.unwrap();
    let mut rest = Vec::new();
    let ended = stream.read_to_end(&mut rest);
    assert!(ended.is_ok() || ended.is_err_and(|e| e.kind() != std::io::ErrorKind::WouldBlock));
}
