//! Names, and what is at them.

use hickory_proto::op::{Edns, Message, MessageType, ResponseCode};
use hickory_proto::rr::DNSClass;
use hickory_proto::rr::RecordType::{self, A, AAAA, ANY, AXFR, CNAME, IXFR, NS, SOA, SRV, TXT};

use super::*;

const SOA_LINE: &str =
    "auth db.example.org. 1 SOA ns.db.example.org. hostmaster.db.example.org. 7 60 10 3600 1";

fn none() -> String {
    format!("NoData\n{SOA_LINE}")
}

fn no_name() -> String {
    format!("NoName\n{SOA_LINE}")
}

#[test]
fn the_primary_has_its_address_and_nothing_else() {
    let world = world(routes(&three(), None));
    let primary = "primary.orders.db.example.org";
    assert_eq!(told(&world, primary, A), "Answered\nprimary.orders.db.example.org. 1 A 10.0.0.1");
    for kind in [AAAA, SRV, TXT, CNAME, SOA, NS] {
        assert_eq!(told(&world, primary, kind), none(), "{kind}");
    }
}

#[test]
fn whoever_is_no_primary_any_more_or_not_yet_is_not_named() {
    let closed = [
        Closed::NoPrimary,
        Closed::Fenced { kind: "failover" },
        Closed::Promoting,
        Closed::Lapsed,
        Closed::Undeclared,
        Closed::Unproven { holds: false },
        // What was said before is in nobody's hand here: a name is asked for anew each time.
        Closed::Unproven { holds: true },
    ];
    for closed in closed {
        let world = world(routes(&three(), Some(closed)));
        for kind in [A, AAAA] {
            assert_eq!(told(&world, "primary.orders.db.example.org", kind), none(), "{closed:?}");
        }
        let ports = told(&world, "_postgresql._tcp.primary.orders.db.example.org", SRV);
        assert_eq!(ports, none(), "{closed:?}");
        // Standbys stay.
        assert!(told(&world, "replicas.orders.db.example.org", A).ends_with(" A 10.0.0.2"));
    }
}

#[test]
fn replicas_are_standbys_and_the_primary_where_there_is_none() {
    let replicas = "replicas.orders.db.example.org";
    let both = world(routes(&three(), None));
    let owner = "replicas.orders.db.example.org. 1";
    assert_eq!(told(&both, replicas, A), format!("Answered\n{owner} A 10.0.0.2"));
    assert_eq!(told(&both, replicas, AAAA), format!("Answered\n{owner} AAAA fd00::3"));
    let alone = world(routes(&three()[..1], None));
    assert_eq!(told(&alone, replicas, A), format!("Answered\n{owner} A 10.0.0.1"));
    let nobody = world(routes(&three()[..1], Some(Closed::Lapsed)));
    assert_eq!(told(&nobody, replicas, A), none());
    // One address, one record, however many listen there.
    let mut all = three();
    all.push(one("pg4", "10.0.0.2:6000", at("eu", "a")));
    let twice = world(routes(&all, None));
    assert_eq!(told(&twice, replicas, A), format!("Answered\n{owner} A 10.0.0.2"));
}

/// Another server may know; and what a resolver keeps until then is not taken back.
#[test]
fn of_standbys_that_are_not_known_yet_nothing_is_said() {
    let young = Routes { reads_unknown: true, ..routes(&three()[..1], None) };
    let world = world(young);
    for name in ["replicas.orders", "_postgresql._tcp.replicas.orders"] {
        let said = told(&world, &format!("{name}.db.example.org"), SRV);
        assert_eq!(said, "NotHere", "{name}");
    }
    assert!(told(&world, "primary.orders.db.example.org", A).ends_with(" A 10.0.0.1"));
}

#[test]
fn srv_has_ports_the_nearest_first_and_the_primary_last() {
    let world = world(routes(&three(), None));
    let primary = "_postgresql._tcp.primary.orders.db.example.org";
    assert_eq!(
        told(&world, primary, SRV),
        format!(
            "Answered\n{primary}. 1 SRV 0 100 5432 pg1.orders.db.example.org.\n\
             more pg1.orders.db.example.org. 1 A 10.0.0.1"
        )
    );
    let replicas = "_postgresql._tcp.replicas.orders.db.example.org";
    assert_eq!(
        told(&world, replicas, SRV),
        format!(
            "Answered\n{replicas}. 1 SRV 0 100 5433 pg2.orders.db.example.org.\n\
             {replicas}. 1 SRV 1 100 5434 pg3.orders.db.example.org.\n\
             {replicas}. 1 SRV 2 100 5432 pg1.orders.db.example.org.\n\
             more pg2.orders.db.example.org. 1 A 10.0.0.2\n\
             more pg3.orders.db.example.org. 1 AAAA fd00::3\n\
             more pg1.orders.db.example.org. 1 A 10.0.0.1"
        )
    );
    assert_eq!(told(&world, replicas, A), none());
    // What it names is there, fenced or not: it is no role.
    let closed = super::world(routes(&three(), Some(Closed::Lapsed)));
    for world in [&world, &closed] {
        let got = told(world, "pg1.orders.db.example.org", A);
        assert_eq!(got, "Answered\npg1.orders.db.example.org. 1 A 10.0.0.1");
        assert_eq!(told(world, "pg1.orders.db.example.org", AAAA), none());
        assert_eq!(told(world, "pg9.orders.db.example.org", A), no_name());
    }
}

#[test]
fn hosts_with_names_are_aliases_and_targets_themselves() {
    let all = [
        one("a", "pg-a.example.net:5432", at("eu", "a")),
        one("b", "pg-b.example.net.:5432", at("eu", "a")),
        one("c", "pg-c.example.net:5432", at("eu", "a")),
    ];
    let world = world(routes(&all, None));
    let primary = "primary.orders.db.example.org";
    for kind in [A, AAAA, CNAME, TXT] {
        let wanted = format!("Answered\n{primary}. 1 CNAME pg-a.example.net.");
        assert_eq!(told(&world, primary, kind), wanted);
    }
    let ports = told(&world, "_postgresql._tcp.primary.orders.db.example.org", SRV);
    assert!(ports.ends_with(" SRV 0 100 5432 pg-a.example.net."), "{ports}");
    let one = told(&world, "b.orders.db.example.org", A);
    assert!(one.ends_with(" CNAME pg-b.example.net."), "{one}");

    // An alias stands for one; those who are equally near take turns.
    let mut seen = std::collections::BTreeSet::new();
    for id in 0..2 {
        let mut ask = question("replicas.orders.db.example.org", A);
        ask.metadata.id = id;
        let (reply, _) = reply(&world, &ask);
        assert_eq!(reply.answers.len(), 1);
        seen.insert(reply.answers[0].data.to_string());
    }
    assert_eq!(seen.len(), 2);

    // An alias stands alone: addresses go before names.
    let mixed = [all[0].clone(), all[1].clone(), super::one("c", "10.0.0.3:5432", at("us", ""))];
    let world = super::world(routes(&mixed, None));
    let got = told(&world, "replicas.orders.db.example.org", A);
    assert!(got.starts_with("Answered\n") && got.ends_with(" A 10.0.0.3"), "{got}");
    assert_eq!(got.lines().count(), 2);
}

#[test]
fn who_cannot_be_said_in_dns_is_left_out_with_a_reason() {
    let all = [
        one("primary", "10.0.0.1:5432", at("", "")),
        one("a.b", "10.0.0.2:5432", at("", "")),
        one("c", "c.orders.db.example.org:5432", at("", "")),
        one("d", "d.example.net:5432", at("", "")),
    ];
    let world = world(routes(&all, None));
    // Their addresses can be said, their names cannot: SRV would lead elsewhere.
    let primary = told(&world, "primary.orders.db.example.org", A);
    assert!(primary.ends_with(" A 10.0.0.1"), "{primary}");
    let ports = told(&world, "_postgresql._tcp.replicas.orders.db.example.org", SRV);
    assert_eq!(ports.lines().count(), 2, "{ports}");
    assert!(ports.ends_with("d.example.net."), "{ports}");
    assert_eq!(told(&world, "c.orders.db.example.org", A), none(), "no alias to itself");
    let why =
        |one: &Endpoint| zone().leaves_out("orders", one.instance.as_str(), &one.address).is_some();
    assert_eq!(all.each_ref().map(why), [true, true, true, false]);
}

#[test]
fn names_are_known_in_any_case_and_come_back_as_they_were_spelled() {
    let world = world(routes(&three(), None));
    let spelled = "pRiMaRy.OrDers.dB.eXample.ORG";
    let (reply, _) = reply(&world, &question(spelled, A));
    assert_eq!(reply.queries[0].name().to_ascii(), format!("{spelled}."));
    assert_eq!(reply.answers[0].name.to_ascii(), format!("{spelled}."));
    assert_eq!(reply.answers[0].data.to_string(), "10.0.0.1");
}

#[test]
fn what_lies_between_names_is_there_and_everything_else_is_not() {
    let world = world(routes(&three(), None));
    for name in ["orders", "_tcp.primary.orders", "_tcp.replicas.orders"] {
        assert_eq!(told(&world, &format!("{name}.db.example.org"), A), none(), "{name}");
    }
    let nowhere = [
        "billing",
        "primary.billing",
        "_postgresql._tcp.primary.billing",
        "x.primary.orders",
        "_udp.primary.orders",
        "_http._tcp.primary.orders",
        "x._postgresql._tcp.primary.orders",
        "_tcp.pg1.orders",
        "*.orders",
        "primary",
    ];
    for name in nowhere {
        assert_eq!(told(&world, &format!("{name}.db.example.org"), A), no_name(), "{name}");
    }
}

#[test]
fn the_zone_has_an_soa_and_servers() {
    let world = world(routes(&three(), None));
    let zone = "db.example.org";
    let soa = told(&world, zone, SOA);
    assert_eq!(soa, format!("Answered\n{}", SOA_LINE.strip_prefix("auth ").unwrap()));
    let servers = "Answered\ndb.example.org. 1 NS ns.db.example.org.\n\
                   more ns.db.example.org. 1 A 192.0.2.53";
    assert_eq!(told(&world, zone, NS), servers);
    assert_eq!(told(&world, zone, A), none());
    let own = told(&world, "ns.db.example.org", A);
    assert_eq!(own, "Answered\nns.db.example.org. 1 A 192.0.2.53");
    assert_eq!(told(&world, "ns.db.example.org", AAAA), none());

    let ns = ["ns1.example.org".to_owned(), "ns2.example.org".to_owned()];
    let named = Zone::new("db.example.org", 5, &ns, ([0, 0, 0, 0], 53).into()).unwrap();
    let ask = |name, kind| {
        let bytes = question(name, kind).to_vec().unwrap();
        let (bytes, outcome) = answer(&named, &world, &bytes, Over::Udp);
        (Message::from_vec(&bytes.unwrap()).unwrap(), outcome)
    };
    let (reply, _) = ask(zone, NS);
    assert_eq!((reply.answers.len(), reply.additionals.len()), (2, 0));
    assert_eq!(ask("ns.db.example.org", A).1, Outcome::NoName);
}

#[test]
fn the_header_says_who_answers_and_what_is_not_done_is_said_so() {
    let world = world(routes(&three(), None));
    world.services.lock().insert("young".into(), Known::NotHere);
    let ask = |name: &str, kind: RecordType, change: &dyn Fn(&mut Message)| {
        let mut message = question(name, kind);
        change(&mut message);
        let (reply, _) = reply(&world, &message);
        assert_eq!(reply.id, 77);
        assert_eq!(reply.message_type, MessageType::Response);
        assert!(!reply.recursion_available);
        (reply.response_code, reply.authoritative)
    };
    let same = |_: &mut Message| {};
    let primary = "primary.orders.db.example.org";
    assert_eq!(ask(primary, A, &same), (ResponseCode::NoError, true));
    assert_eq!(ask("x.db.example.org", A, &same), (ResponseCode::NXDomain, true));
    let young = "primary.young.db.example.org";
    assert_eq!(ask(young, A, &same), (ResponseCode::ServFail, false));
    for name in ["example.org", "org", "xdb.example.org", "primary.orders.db.example.com"] {
        assert_eq!(ask(name, A, &same), (ResponseCode::Refused, false), "{name}");
    }
    for kind in [ANY, AXFR, IXFR] {
        assert_eq!(ask(primary, kind, &same), (ResponseCode::Refused, false), "{kind}");
        assert_eq!(ask("db.example.org", kind, &same), (ResponseCode::Refused, false), "{kind}");
    }
    let chaos = |message: &mut Message| {
        message.queries[0].set_query_class(DNSClass::CH);
    };
    assert_eq!(ask(primary, A, &chaos), (ResponseCode::Refused, false));
    let update = |message: &mut Message| message.metadata.op_code = OpCode::Update;
    assert_eq!(ask(primary, SOA, &update), (ResponseCode::NotImp, false));
    let two = |message: &mut Message| {
        let again = message.queries[0].clone();
        message.add_query(again);
    };
    assert_eq!(ask(primary, A, &two), (ResponseCode::FormErr, false));
    let later = |message: &mut Message| {
        let mut edns = Edns::new();
        edns.set_version(1);
        message.set_edns(edns);
    };
    // It shares its number with another code.
    assert_eq!(u16::from(ask(primary, A, &later).0), u16::from(ResponseCode::BADVERS));
}

#[test]
fn what_is_too_long_for_a_datagram_is_had_over_tcp() {
    let many: Vec<_> = (1..=60)
        .map(|n| one(&format!("instance-number-{n}"), &format!("10.0.0.{n}:5432"), at("eu", "a")))
        .collect();
    let world = world(routes(&many, None));
    let name = "_postgresql._tcp.replicas.orders.db.example.org";
    let with = |room: Option<u16>| {
        let mut message = question(name, SRV);
        if let Some(room) = room {
            let mut edns = Edns::new();
            edns.set_max_payload(room);
            message.set_edns(edns);
        }
        message.to_vec().unwrap()
    };
    for (room, limit) in [(None, 512), (Some(100), 512), (Some(600), 600), (Some(65_535), 1232)] {
        let (bytes, outcome) = answer(&zone(), &world, &with(room), Over::Udp);
        let bytes = bytes.unwrap();
        assert!(bytes.len() <= limit, "{} {room:?}", bytes.len());
        let reply = Message::from_vec(&bytes).unwrap();
        assert!(reply.truncation && reply.answers.is_empty(), "{room:?}");
        assert_eq!((reply.edns.is_some(), outcome), (room.is_some(), Outcome::Answered));
    }
    let (bytes, _) = answer(&zone(), &world, &with(None), Over::Tcp);
    let reply = Message::from_vec(&bytes.unwrap()).unwrap();
    assert_eq!((reply.answers.len(), reply.additionals.len()), (60, 60));
    assert!(!reply.truncation);

    // What only saves another question goes first, and is not missed.
    let few = super::world(routes(&many[..7], None));
    assert!(answer(&zone(), &few, &with(None), Over::Tcp).0.unwrap().len() > 512);
    let (bytes, _) = answer(&zone(), &few, &with(None), Over::Udp);
    let reply = Message::from_vec(&bytes.unwrap()).unwrap();
    assert_eq!((reply.answers.len(), reply.additionals.len()), (7, 0));
    assert!(!reply.truncation);
}
