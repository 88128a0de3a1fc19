//! Clients read on standbys, and whoever is in when a standby is promoted is not in as a writer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use regent_core::spec::Mode;
use regent_lab::writer::{Access, Session};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::load::Load;
use super::rig::Rig;
use crate::cluster::until;

const SOON: Duration = Duration::from_secs(2);

/// A session of the application's, wherever that leads.
async fn session(rig: &Rig, host: &str, port: u16) -> Option<Session> {
    let there = Access { hosts: vec![(host.to_owned(), port)], via: None, ..rig.access.clone() };
    there.host(0, SOON).await.ok()
}

/// Which server this is, if it is a standby.
async fn standby(session: &Session) -> Option<u16> {
    let sql = "SELECT inet_server_port()::int4, pg_is_in_recovery()";
    let row = tokio::time::timeout(SOON, session.client().query_one(sql, &[])).await.ok()?.ok()?;
    row.get::<_, bool>(1).then(|| u16::try_from(row.get::<_, i32>(0)).unwrap())
}

/// Somebody with a session on a standby who tries to write all the while.
struct Intruder {
    taken: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Intruder {
    fn start(session: Session, table: &str) -> Self {
        let (taken, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let ended = Arc::new(AtomicBool::new(false));
        let told = (Arc::clone(&taken), Arc::clone(&refused), Arc::clone(&ended));
        let insert = format!("INSERT INTO {table} (id) VALUES (-1)");
        let task = tokio::spawn(async move {
            while !session.client().is_closed() {
                match session.client().batch_execute(&insert).await {
                    Ok(()) => told.0.fetch_add(1, Ordering::Relaxed),
                    Err(_) => told.1.fetch_add(1, Ordering::Relaxed),
                };
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            told.2.store(true, Ordering::Relaxed);
        });
        Self { taken, refused, ended, task }
    }
}

/// A client that begins to log in and says nothing more.
async fn half_in(rig: &Rig, host: &str, port: u16) -> TcpStream {
    let mut stream = TcpStream::connect((host, port)).await.unwrap();
    let mut body = 196_608_u32.to_be_bytes().to_vec();
    for word in ["user", &rig.access.user, "database", &rig.access.dbname] {
        body.extend(word.as_bytes());
        body.push(0);
    }
    body.push(0);
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    stream.write_all(&[&length[..], &body].concat()).await.unwrap();
    let mut asked = [0; 1];
    stream.read_exact(&mut asked).await.unwrap();
    assert_eq!(asked, *b"R", "it is asked for a password");
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn the_read_port_leads_to_standbys_over_a_failover_and_no_reader_becomes_a_writer() {
    let mut rig = Rig::up_behind_haproxy("reads", Mode::Quorum).await;
    let databases = rig.cluster.lab.databases.clone().unwrap();
    rig.access = databases.through_haproxy().expect("it is required");
    let read = databases.haproxy.clone().unwrap().read;
    let first = rig.redundant().await;
    let load = Load::start(&rig).await;

    let port_of = |at: usize| rig.instances()[at].port;
    until("a read through HAProxy at a standby", async || {
        let Some(client) = session(&rig, &read.host, read.port).await else { return false };
        standby(&client).await.is_some_and(|port| port != port_of(first))
    })
    .await;

    // On each standby: one who tries to write, and one who is only at the door.
    let mut intruders = Vec::new();
    let mut doors = Vec::new();
    for at in (0..3).filter(|at| *at != first) {
        let (host, port) = (rig.instances()[at].host.clone(), port_of(at));
        let mut client = None;
        until("a session on the standby", async || {
            client = session(&rig, &host, port).await;
            client.is_some()
        })
        .await;
        intruders.push((at, Intruder::start(client.unwrap(), load.table.name())));
        doors.push((at, half_in(&rig, &host, port).await));
    }
    load.progress(100).await;

    let fault = Instant::now();
    rig.kill_host(first);
    let second = load.resumed(fault, Some(first)).await.host;
    load.progress(100).await;

    let was_in = |at: usize| &intruders.iter().find(|(of, _)| *of == at).unwrap().1;
    until("the end of the session on the new primary", async || {
        was_in(second).ended.load(Ordering::Relaxed)
    })
    .await;
    let door = doors.iter_mut().find(|(at, _)| *at == second).map(|(_, stream)| stream).unwrap();
    let mut rest = Vec::new();
    let left = tokio::time::timeout(Duration::from_secs(10), door.read_to_end(&mut rest)).await;
    assert!(left.is_ok(), "who was logging in at the promotion was sent away");
    for (at, intruder) in &intruders {
        assert_eq!(intruder.taken.load(Ordering::Relaxed), 0, "{at} took a write of a reader");
        assert!(intruder.refused.load(Ordering::Relaxed) > 0);
    }

    // Reads go on, at who is a standby now.
    until("a read at the other standby", async || {
        let Some(client) = session(&rig, &read.host, read.port).await else { return false };
        let port = standby(&client).await;
        port.is_some_and(|port| port != port_of(first) && port != port_of(second))
    })
    .await;
    for (_, intruder) in intruders {
        intruder.task.abort();
    }
    assert_eq!(rig.heal().await, second);
    load.all_kept(&rig).await;
}
