//! DNS from the nodes, asked with `dig` as people would: through a switchover, under garbage, and at
//! a node that is alone.

use std::io::Write as _;
use std::net::{TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use regent_core::spec::Mode;
use regent_lab::databases::SERVICE;
use regent_lab::ports;

use super::rig::Rig;
use crate::cluster::until;

const ZONE: &str = "db.example.org";

/// What `dig` prints of a question to the node at `port`.
fn dig(port: u16, args: &[&str]) -> String {
    let out = Command::new("dig")
        .args(["@127.0.0.1", "-p", &port.to_string(), "+norecurse", "+time=2", "+tries=2"])
        .args(args)
        .output()
        .expect("scripts/setup installs dig");
    String::from_utf8(out.stdout).unwrap()
}

/// The records of an answer, without what comments say.
fn answer(port: u16, args: &[&str]) -> Vec<String> {
    let only = ["+noall", "+answer"];
    let text = dig(port, &[&only[..], args].concat());
    let lines = text.lines().filter(|line| !line.starts_with(';') && !line.is_empty());
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// The status of an answer, or "" without one.
fn status(port: u16, args: &[&str]) -> String {
    let text = dig(port, &[&["+noall", "+comments"][..], args].concat());
    let status = text.split_once("status: ").and_then(|(_, rest)| rest.split(',').next());
    status.unwrap_or_default().to_owned()
}

fn ports_of(role: &str) -> String {
    format!("_postgresql._tcp.{role}.{SERVICE}.{ZONE}")
}

/// Which instances take writes or reads, in the order of their priorities.
fn instances(port: u16, role: &str) -> Vec<String> {
    let mut all: Vec<_> = dig(port, &["+short", "SRV", &ports_of(role)])
        .lines()
        .filter(|line| !line.starts_with(';'))
        .map(|line| {
            let words: Vec<_> = line.split(' ').collect();
            let priority: u16 = words[0].parse().unwrap();
            (priority, words[3].split('.').next().unwrap().to_owned())
        })
        .collect();
    all.sort();
    all.into_iter().map(|(_, instance)| instance).collect()
}

/// Switches DNS on at each node, one after the other; where they answer.
async fn switch_on(rig: &mut Rig) -> Vec<u16> {
    let ports = ports::free(3).unwrap();
    for (id, port) in (1..).zip(&ports) {
        let config = rig.cluster.lab.node(id).unwrap().config.clone();
        let mut file = std::fs::OpenOptions::new().append(true).open(config).unwrap();
        writeln!(file, "\n[dns]\nlisten = \"127.0.0.1:{port}\"\nzone = \"{ZONE}\"").unwrap();
        rig.cluster.kill(id).await;
        rig.cluster.restart(id);
        rig.cluster.ready().await;
    }
    ports
}

/// What the node at `port` says of who takes writes; `None`: nothing in time. `dig` takes so long to
/// begin that it would miss most of a switchover.
fn asked(port: u16) -> Option<Option<String>> {
    let mut question = vec![0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ports_of("primary").split('.') {
        question.push(u8::try_from(label.len()).unwrap());
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 33, 0, 1]);
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    udp.send_to(&question, ("127.0.0.1", port)).unwrap();
    let mut reply = [0; 1500];
    let length = udp.recv(&mut reply).ok()?;
    assert_eq!(reply[3] & 0x0f, 0, "its code");
    let is_in = |name: &String| {
        let label = [&[u8::try_from(name.len()).unwrap()], name.as_bytes()].concat();
        reply[question.len()..length].windows(label.len()).any(|window| window == label)
    };
    let found = (1..=3).map(|n| format!("pg{n}")).filter(is_in).collect::<Vec<_>>();
    assert_eq!(found.len(), usize::from(reply[7]), "an answer has one name at most: {found:?}");
    Some(found.into_iter().next())
}

/// What a node said, each stretch once.
type Said = Vec<Option<String>>;

/// Asks a node for the primary over and over.
struct Asking {
    stop: Arc<AtomicBool>,
    said: Arc<Mutex<Said>>,
    thread: std::thread::JoinHandle<()>,
}

impl Asking {
    fn begin(port: u16) -> Self {
        let (stop, said) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Said>>::default());
        let (told, kept) = (stop.clone(), said.clone());
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                let newest = asked(port);
                let mut said = kept.lock().unwrap();
                said.extend(newest);
                said.dedup();
                drop(said);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { stop, said, thread }
    }

    fn said(&self) -> Said {
        self.said.lock().unwrap().clone()
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// Bytes that are no question, on both ports.
fn send_garbage(port: u16) {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    for length in [0, 1, 11, 12, 40, 512, 9_000] {
        for byte in [0, 0x01, 0x7f, 0xc0, 0xff] {
            let bytes = vec![byte; length];
            udp.send_to(&bytes, ("127.0.0.1", port)).unwrap();
            let mut tcp = TcpStream::connect(("127.0.0.1", port)).unwrap();
            // It may have been closed by then.
            let _ = tcp.write_all(&bytes);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dns_names_the_primary_and_its_standbys_and_never_one_that_is_fenced() {
    let mut rig = Rig::up("dns", Mode::Quorum).await;
    let old = rig.redundant().await;
    let ports = switch_on(&mut rig).await;
    let first = rig.name(old).to_string();
    let replicas = format!("replicas.{SERVICE}.{ZONE}");
    let primary = format!("primary.{SERVICE}.{ZONE}");
    for port in &ports {
        let port = *port;
        until("the primary has a name", async || instances(port, "primary") == [&*first]).await;
        until("reads go to both, then to it", async || {
            let all = instances(port, "replicas");
            all.len() == 3 && all.last() == Some(&first)
        })
        .await;
        let (host, own) = (rig.instances()[old].host.clone(), rig.instances()[old].port);
        let record = format!("{primary}. 1 IN A {host}");
        let spelled = primary.to_uppercase();
        for args in [&["A", &primary][..], &["+tcp", "A", &primary], &["+noedns", "A", &primary]] {
            assert_eq!(answer(port, args), [&*record], "{args:?}");
        }
        assert_eq!(answer(port, &["A", &spelled]), [format!("{spelled}. 1 IN A {host}")]);
        let srv =
            format!("{}. 1 IN SRV 0 100 {own} {first}.{SERVICE}.{ZONE}.", ports_of("primary"));
        for args in [&["SRV"][..], &["+tcp", "SRV"]] {
            assert_eq!(answer(port, &[args, &[&ports_of("primary")]].concat()), [&*srv]);
        }
        let target = format!("{first}.{SERVICE}.{ZONE}");
        assert_eq!(answer(port, &["A", &target]), [format!("{target}. 1 IN A {host}")]);
        assert_eq!(answer(port, &["A", &replicas]).len(), 1, "one address, one record");
        assert_eq!(answer(port, &["SOA", ZONE]).len(), 1);
        let of = |args: &[&str]| status(port, args);
        assert_eq!(of(&["AAAA", &primary]), "NOERROR");
        assert_eq!(of(&["A", &format!("primary.nothing.{ZONE}")]), "NXDOMAIN");
        assert_eq!(of(&["A", "example.org"]), "REFUSED");
        assert_eq!(of(&["+notcp", "ANY", &primary]), "REFUSED");
        assert!(dig(port, &["AXFR", ZONE]).contains("Transfer failed"));
        let header = dig(port, &["+noall", "+comments", "A", &primary]);
        assert!(header.contains("flags: qr aa;"), "{header}");
    }

    let new = (old + 1) % 3;
    let second = rig.name(new).to_string();
    let all: Vec<_> = ports.iter().map(|port| Asking::begin(*port)).collect();
    let named = Some(first.clone());
    until("each is asked", async || all.iter().all(|it| it.said() == [named.clone()])).await;
    let hostile = std::thread::spawn({
        let ports = ports.clone();
        move || ports.into_iter().for_each(send_garbage)
    });
    let out = rig.cluster.verb(&["switchover", SERVICE, "--to", &second, "--reason", "a test"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    hostile.join().unwrap();
    let stretches = [named, None, Some(second.clone())];
    for asking in all {
        until("it names the new one", async || asking.said().len() >= stretches.len()).await;
        assert_eq!(asking.said(), stretches);
        asking.end();
    }
    let before: Vec<_> = rig.cluster.lab.nodes.iter().map(|node| node.process.clone()).collect();
    for port in &ports {
        send_garbage(*port);
        assert_eq!(instances(*port, "primary"), [&*second]);
        assert_eq!(answer(*port, &["+tcp", "A", &primary]).len(), 1);
    }
    assert!(before.iter().flatten().all(|process| process.is_alive()));

    // A node that is alone can prove no lease, though the primary goes on by its policy. It names
    // nobody for writes, says that the name is there, and goes on to say who reads.
    assert_eq!(rig.redundant().await, new);
    let alone = ports[2];
    until("reads go to both, then to it", async || instances(alone, "replicas").len() == 3).await;
    let mut standbys = instances(alone, "replicas");
    assert_eq!(standbys.pop(), Some(second.clone()));
    rig.cluster.kill(1).await;
    rig.cluster.kill(2).await;
    until("it names nobody", async || instances(alone, "primary").is_empty()).await;
    assert_eq!(status(alone, &["A", &primary]), "NOERROR");
    assert_eq!(answer(alone, &["A", &primary]), [""; 0]);
    let negative = dig(alone, &["+noall", "+authority", "A", &primary]);
    let negative: Vec<_> = negative.split_whitespace().collect();
    assert_eq!(negative[..4], [&format!("{ZONE}."), "1", "IN", "SOA"]);
    assert_eq!(negative.last(), Some(&"1"), "how long it may be kept");
    // Several times as long as belief lasts: reads do not decay.
    for _ in 0..5 {
        assert_eq!(instances(alone, "replicas"), standbys);
        assert!(instances(alone, "primary").is_empty());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(rig.heal().await, new);
    for port in &ports {
        until("it is named again", async || instances(*port, "primary") == [&*second]).await;
    }
}
