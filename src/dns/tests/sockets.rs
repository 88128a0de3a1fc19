//! The loops around the answers, over loopback.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout};

use super::*;
use crate::{Bounds, Ports, serve};

const PATIENCE: Duration = Duration::from_secs(10);

struct Running {
    at: SocketAddr,
    world: Arc<World>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn start(bounds: Bounds) -> Running {
    let ports = Ports::open(([127, 0, 0, 1], 0).into()).await.unwrap();
    let at = ports.address().unwrap();
    let world = Arc::new(world(routes(&three(), None)));
    let task = tokio::spawn(serve(ports, zone(), world.clone(), bounds));
    Running { at, world, task }
}

fn ask(id: u16) -> Vec<u8> {
    let mut message = question("primary.orders.db.example.org", RecordType::A);
    message.metadata.id = id;
    message.to_vec().unwrap()
}

async fn over_udp(at: SocketAddr, id: u16) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&ask(id), at).await.unwrap();
    let mut buffer = [0; 2048];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

fn framed(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap();
    [&length.to_be_bytes(), bytes].concat()
}

async fn read(stream: &mut TcpStream) -> Option<Message> {
    let length = timeout(PATIENCE, stream.read_u16()).await.unwrap().ok()?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await.ok()?;
    Some(Message::from_vec(&bytes).unwrap())
}

async fn over_tcp(at: SocketAddr, id: u16) -> Option<Message> {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(&framed(&ask(id))).await.unwrap();
    read(&mut stream).await
}

#[tokio::test]
async fn both_ports_answer_and_many_questions_of_one_connection_in_their_order() {
    let running = start(Bounds::default()).await;
    assert_eq!(over_udp(running.at, 5).await.id, 5);
    let mut stream = TcpStream::connect(running.at).await.unwrap();
    let all: Vec<u8> = (0..200).flat_map(|id| framed(&ask(id))).collect();
    // Even a byte at a time where they are cut.
    let (first, rest) = all.split_at(7);
    for byte in first {
        stream.write_all(&[*byte]).await.unwrap();
    }
    stream.write_all(rest).await.unwrap();
    for id in 0..200 {
        let reply = read(&mut stream).await.unwrap();
        assert_eq!((reply.id, reply.answers.len()), (id, 1));
    }
    assert_eq!(running.world.noted.lock().len(), 201);
}

#[tokio::test]
async fn garbage_ends_its_own_connection_and_nothing_else() {
    let running = start(Bounds::default()).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for length in [0, 1, 11, 12, 13, 300, 5_000, 60_000] {
        socket.send_to(&vec![0xff; length], running.at).await.unwrap();
        socket.send_to(&vec![0; length], running.at).await.unwrap();
    }
    // No question, one that is an answer, one that is too long.
    for hostile in [framed(&[]), framed(&[0xff; 40]), vec![0xff; 2]] {
        let mut stream = TcpStream::connect(running.at).await.unwrap();
        stream.write_all(&hostile).await.unwrap();
        assert!(read(&mut stream).await.is_none());
    }
    assert_eq!(over_udp(running.at, 9).await.answers.len(), 1);
    assert_eq!(over_tcp(running.at, 9).await.unwrap().answers.len(), 1);
}

#[tokio::test]
async fn a_panic_over_one_message_is_the_end_of_none_but_that() {
    let running = start(Bounds::default()).await;
    let bug = question("primary.bug.db.example.org", RecordType::A).to_vec().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&bug, running.at).await.unwrap();
    let mut stream = TcpStream::connect(running.at).await.unwrap();
    stream.write_all(&framed(&bug)).await.unwrap();
    assert!(read(&mut stream).await.is_none());
    assert_eq!(over_udp(running.at, 9).await.answers.len(), 1);
    assert_eq!(over_tcp(running.at, 9).await.unwrap().answers.len(), 1);
    let dropped = running.world.noted.lock().iter().filter(|it| **it == Outcome::Dropped).count();
    assert_eq!(dropped, 2);
}

#[tokio::test]
async fn those_who_keep_connections_are_few_and_not_for_long() {
    let idle = Duration::from_millis(300);
    let bounds = Bounds { of_one_address: 2, idle, ..Bounds::default() };
    let running = start(bounds).await;
    let mut first = TcpStream::connect(running.at).await.unwrap();
    // Half a question, and never the rest.
    first.write_all(&[0, 40, 1]).await.unwrap();
    let second = TcpStream::connect(running.at).await.unwrap();
    let begun = Instant::now();
    // Both places are taken until one of them has been silent for too long.
    while over_tcp_or_closed(running.at).await.is_none() {
        assert!(begun.elapsed() < PATIENCE);
    }
    assert!(begun.elapsed() >= idle / 2, "{:?}", begun.elapsed());
    assert!(read(&mut first).await.is_none());
    drop(second);
}

async fn over_tcp_or_closed(at: SocketAddr) -> Option<Message> {
    let mut stream = TcpStream::connect(at).await.ok()?;
    stream.write_all(&framed(&ask(1))).await.ok()?;
    read(&mut stream).await
}

#[tokio::test]
async fn a_connection_has_an_end_however_busy_it_is() {
    let life = Duration::from_millis(300);
    let running = start(Bounds { life, ..Bounds::default() }).await;
    let mut stream = TcpStream::connect(running.at).await.unwrap();
    let begun = Instant::now();
    while stream.write_all(&framed(&ask(1))).await.is_ok() && read(&mut stream).await.is_some() {
        assert!(begun.elapsed() < PATIENCE);
    }
    assert!(begun.elapsed() >= life);
}
