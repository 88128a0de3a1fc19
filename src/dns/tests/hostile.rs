//! Bytes that nobody honest would send.

use hickory_proto::op::{Edns, Message};
use proptest::prelude::*;

use super::*;

fn bounded(message: &[u8], over: Over, reply: Option<&[u8]>) {
    let Some(reply) = reply else { return };
    let limit = if over == Over::Udp { 1232 } else { usize::from(u16::MAX) };
    assert!(reply.len() <= limit, "{} bytes", reply.len());
    assert_eq!(reply[..2], message[..2], "the same number");
    assert_eq!(reply[2] & 0x80, 0x80, "it is an answer");
    assert_eq!(message[2] & 0x80, 0, "to what is none");
    assert_eq!(reply[3] & 0xa0, 0, "neither recursion nor signatures");
    Message::from_vec(reply).expect("an answer can be read");
}

fn kinds() -> impl Strategy<Value = u16> {
    prop_oneof![Just(1), Just(28), Just(33), Just(5), Just(255), any::<u16>()]
}

fn names() -> impl Strategy<Value = String> {
    let label = prop_oneof![
        Just("primary".to_owned()),
        Just("replicas".to_owned()),
        Just("orders".to_owned()),
        Just("_tcp".to_owned()),
        Just("_postgresql".to_owned()),
        Just("pg1".to_owned()),
        "[a-z0-9_-]{1,20}",
    ];
    let known = prop_oneof![
        Just("primary.orders"),
        Just("replicas.orders"),
        Just("_postgresql._tcp.primary.orders"),
        Just("_postgresql._tcp.replicas.orders"),
        Just("pg1.orders"),
    ];
    let known = known.prop_map(|known| vec![known.to_owned()]);
    let labels = prop_oneof![known, proptest::collection::vec(label, 0..5)];
    labels.prop_map(|labels| {
        let labels = labels.into_iter().chain(["db.example.org".to_owned()]);
        labels.collect::<Vec<_>>().join(".")
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..<_>::default() })]

    #[test]
    fn any_bytes_get_a_short_answer_or_none(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        tcp in any::<bool>(),
    ) {
        let over = if tcp { Over::Tcp } else { Over::Udp };
        let world = world(routes(&three(), None));
        let (reply, _) = answer(&zone(), &world, &bytes, over);
        bounded(&bytes, over, reply.as_deref());
    }

    #[test]
    fn so_do_questions_with_damage(
        name in names(),
        kind in kinds(),
        edns in any::<Option<u16>>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<Option<prop::sample::Index>>(),
        more in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut message = question(&name, kind.into());
        if let Some(room) = edns {
            let mut edns = Edns::new();
            edns.set_max_payload(room);
            message.set_edns(edns);
        }
        let mut bytes = message.to_vec().unwrap();
        bytes.extend(more);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let world = world(routes(&three(), None));
        let (reply, _) = answer(&zone(), &world, &bytes, Over::Udp);
        bounded(&bytes, Over::Udp, reply.as_deref());
    }

    #[test]
    fn whatever_is_asked_writes_are_sent_to_the_one_who_takes_them_or_to_nobody(
        name in names(),
        kind in kinds(),
        open in any::<bool>(),
        id in any::<u16>(),
    ) {
        let closed = (!open).then_some(Closed::Fenced { kind: "failover" });
        let world = world(routes(&three(), closed));
        let mut message = question(&name, kind.into());
        message.metadata.id = id;
        let (reply, _) = reply(&world, &message);
        let of_primary = name.contains("primary.orders.");
        let is_primary = |text: &str| text == "10.0.0.1" || text.ends_with("pg1.orders.db.example.org.");
        for record in &reply.answers {
            let text = record.data.to_string();
            if of_primary {
                prop_assert!(open && is_primary(&text), "{name} {text}");
            } else if !open && name.contains("replicas.orders.") {
                prop_assert!(!is_primary(&text), "{name} {text}");
            }
        }
    }
}

#[test]
fn answers_and_scraps_are_dropped_and_promises_cost_nothing() {
    let world = world(routes(&three(), None));
    let ask = |bytes: &[u8]| answer(&zone(), &world, bytes, Over::Udp);
    let good = question("primary.orders.db.example.org", 1.into()).to_vec().unwrap();
    let mut is_answer = good.clone();
    is_answer[2] |= 0x80;
    assert_eq!(ask(&is_answer), (None, Outcome::Dropped));
    for length in 0..12 {
        assert_eq!(ask(&good[..length]), (None, Outcome::Dropped), "{length}");
    }
    for count in [[0, 0], [0, 2], [0xff, 0xff]] {
        let mut many = good.clone();
        many[4..6].copy_from_slice(&count);
        let (reply, outcome) = ask(&many);
        assert_eq!((reply.unwrap().len(), outcome), (12, Outcome::Malformed));
    }
    for at in [6, 8, 10] {
        let mut promised = good.clone();
        promised[at..at + 2].copy_from_slice(&[0xff, 0xff]);
        assert_eq!(ask(&promised).1, Outcome::Malformed);
    }
    // A name that leads to itself.
    let mut looped = good[..12].to_vec();
    looped.extend([0xc0, 12, 0, 1, 0, 1]);
    assert_eq!(ask(&looped).1, Outcome::Malformed);
}
