//! Nothing that comes over the socket ends the fencer or moves its deadline.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use regent_fencer::receipt::Proof;
use regent_fencer::wire::{Bound, Phase};

use crate::rig::{Rig, arm, in_ms, proof_of, wait};

fn tell(rig: &Rig, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(rig.options.state_dir.join("socket")).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    // It may close while we still write.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn hostile_bytes_end_their_connection_only() {
    let rig = Rig::new("hostile");
    let mut fencer = rig.launch();
    let until = in_ms(60_000);
    fencer.start(&rig.script("sleep 1000", Bound::Until(arm(5, 1, until)))).unwrap();
    assert!(tell(&rig, b"\n").contains("Malformed"));
    assert!(tell(&rig, b"\xff\xfe\0\x01garbage\n{}\n").contains("Malformed"));
    assert!(tell(&rig, &vec![b'{'; 40_000]).is_empty());
    assert!(tell(&rig, &vec![b'['; 200_000]).contains("too long"));
    let nested = [vec![b'['; 40_000], b"\n".to_vec()].concat();
    assert!(tell(&rig, &nested).contains("Malformed"));
    assert!(tell(&rig, b"\"Status\"\n").contains("NoHello"));
    assert!(tell(&rig, b"{\"Disarm\":{\"pause\":9}}\n").contains("NoHello"));
    assert!(
        tell(&rig, b"{\"Hello\":{\"agent\":{\"boot_count\":0,\"nonce\":1},\"watch\":true}}\n")
            .contains("Superseded")
    );
    // More connections than it keeps, all silent.
    let crowd: Vec<_> = (0..200)
        .map(|_| UnixStream::connect(rig.options.state_dir.join("socket")).unwrap())
        .collect();
    let status = fencer.status().unwrap();
    assert_eq!((status.phase, status.lease.until), (Phase::Running, Some(until)));
    drop(crowd);
    assert_eq!(fencer.status().unwrap().phase, Phase::Running);
}

#[test]
fn a_flood_of_requests_does_not_delay_the_deadline() {
    let rig = Rig::new("flood");
    let mut fencer = rig.launch();
    let until = in_ms(700);
    fencer.start(&rig.script("sleep 1000", Bound::Until(arm(5, 1, until)))).unwrap();
    let stream = UnixStream::connect(rig.options.state_dir.join("socket")).unwrap();
    let flood = std::thread::spawn(move || {
        let mut stream = stream;
        let hello = b"{\"Hello\":{\"agent\":{\"boot_count\":1,\"nonce\":1001},\"watch\":false}}\n";
        let mut ok = stream.write_all(hello).is_ok();
        // Never reads an answer, until it is cut off.
        stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        while ok {
            ok = stream.write_all(&b"\"Status\"\n".repeat(500)).is_ok();
        }
    });
    let receipt = rig.wait_receipt(1);
    let late = crate::rig::late_ms(&receipt, until);
    eprintln!("under a flood gone {late:.1} ms after the deadline");
    assert!(late < 1_000.0, "{late} ms");
    flood.join().unwrap();
}

#[test]
fn what_runs_inside_cannot_command_the_fencer() {
    let rig = Rig::new("inside");
    let mut fencer = rig.launch();
    let socket = rig.options.state_dir.join("socket");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let hello = r#"{"Hello":{"agent":{"boot_count":77,"nonce":1},"watch":false}}"#;
    let script = format!(
        "perl -MIO::Socket::UNIX -e '
         $SIG{{PIPE}} = \"IGNORE\";
         $s = IO::Socket::UNIX->new(Peer => \"{}\") or die;
         print $s \"{}\\n\"; $s->flush;
         print scalar(<$s>) // \"closed\"' > out 2>&1; sleep 1000",
        socket.display(),
        hello.replace('"', "\\\""),
    );
    let status = fencer.start(&rig.script(&script, Bound::Unbound)).unwrap();
    let out = || std::fs::read_to_string(rig.dir.join("work/out")).unwrap_or_default();
    if proof_of(&status) == Proof::Weak {
        eprintln!("SKIPPED: without a namespace an inside peer cannot be told from an agent");
        return;
    }
    wait(|| !out().is_empty());
    assert!(!out().contains("Status"), "{}", out());
    assert_eq!(fencer.status().unwrap().agent, Some(Rig::agent(1)));
}
