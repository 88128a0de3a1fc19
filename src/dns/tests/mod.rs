//! Messages as resolvers send them, and what comes back.

#![allow(clippy::unwrap_used)]

mod hostile;
mod names;
mod sockets;

use std::collections::BTreeMap;
use std::sync::Arc;

use hickory_proto::op::{Message, OpCode, Query};
use hickory_proto::rr::{Name, Record, RecordType};
use parking_lot::Mutex;
use regent_core::id::{Epoch, Incarnation, Locality, Revision};
use regent_core::route::table::{Closed, Endpoint, Routes, Write};

use crate::{Known, Outcome, Over, Source, Zone, answer};

/// A node with some services, and a bug.
#[derive(Default)]
struct World {
    services: Mutex<BTreeMap<String, Known>>,
    noted: Mutex<Vec<Outcome>>,
}

impl Source for World {
    fn find(&self, label: &str) -> Known {
        assert_ne!(label, "bug", "a panic that bytes bring about");
        self.services.lock().get(label).cloned().unwrap_or(Known::Nothing)
    }
    fn serial(&self) -> u32 {
        7
    }
    fn place(&self) -> Locality {
        at("eu", "a")
    }
    fn noted(&self, outcome: Outcome) {
        self.noted.lock().push(outcome);
    }
}

fn at(region: &str, zone: &str) -> Locality {
    Locality { region: region.into(), zone: zone.into(), host: String::new() }
}

fn one(name: &str, address: &str, locality: Locality) -> Endpoint {
    Endpoint {
        instance: name.parse().unwrap(),
        address: address.into(),
        check: String::new(),
        locality,
        lag_bytes: 0,
        weight: 100,
    }
}

/// Routes of `orders`: the first of `all` is the primary, or else it is closed; the others read.
fn routes(all: &[Endpoint], closed: Option<Closed>) -> Routes {
    let write = closed.map_or_else(|| Write::To(all[0].clone()), Write::Nobody);
    Routes {
        service: "orders".parse().unwrap(),
        epoch: Epoch { incarnation: 1, revision: Revision(1) },
        at: (Incarnation::default(), Revision(1)),
        write,
        former: Some(all[0].clone()),
        reads: all[1..].to_vec(),
        reads_unknown: false,
        all: all.to_vec(),
    }
}

fn world(routes: Routes) -> World {
    let world = World::default();
    world.services.lock().insert("orders".into(), Known::Routes(Arc::new(routes)));
    world
}

fn zone() -> Zone {
    let listens = ([192, 0, 2, 53], 53).into();
    Zone::new("DB.example.org.", 1, &[], listens).unwrap()
}

/// Three instances with IP addresses: the primary, a standby in its zone and one elsewhere.
fn three() -> Vec<Endpoint> {
    vec![
        one("pg1", "10.0.0.1:5432", at("eu", "a")),
        one("pg2", "10.0.0.2:5433", at("eu", "a")),
        one("pg3", "[fd00::3]:5434", at("us", "x")),
    ]
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(77, hickory_proto::op::MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let name = Name::from_labels(name.split('.').map(str::as_bytes)).unwrap();
    message.add_query(Query::query(name, kind));
    message
}

/// The answer to `message` over UDP.
fn reply(world: &World, message: &Message) -> (Message, Outcome) {
    let (bytes, outcome) = answer(&zone(), world, &message.to_vec().unwrap(), Over::Udp);
    (Message::from_vec(&bytes.unwrap()).unwrap(), outcome)
}

/// What is said of `name`: outcome, answers, and what else there is.
fn told(world: &World, name: &str, kind: RecordType) -> String {
    let (reply, outcome) = reply(world, &question(name, kind));
    let mut text = format!("{outcome:?}");
    for (section, records) in
        [("", &reply.answers), ("auth ", &reply.authorities), ("more ", &reply.additionals)]
    {
        for Record { name, ttl, data, .. } in records {
            let kind = data.record_type();
            text += &format!("\n{section}{name} {ttl} {kind} {data}");
        }
    }
    text
}
