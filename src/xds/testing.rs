//! What tests are made of: routes, endpoints and clients.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind as Is};
use regent_core::id::{Epoch, Incarnation, Locality, Revision};
use regent_core::route::table::{Endpoint, Routes, Write};

use crate::client::{Client, Flavour};
use crate::names::Name;

pub fn at(region: &str, zone: &str) -> Locality {
    Locality { region: region.into(), zone: zone.into(), host: String::new() }
}

/// An instance at `10.0.0.<last>`.
pub fn one(name: &str, last: u8, locality: Locality) -> Endpoint {
    Endpoint {
        instance: name.parse().expect("a name"),
        address: format!("10.0.0.{last}:5432"),
        check: String::new(),
        locality,
        lag_bytes: 0,
        weight: 100,
    }
}

pub fn to(name: &str, last: u8) -> Write {
    Write::To(one(name, last, at("eu", "a")))
}

/// The routes of a service without standbys.
pub fn routes(service: &str, epoch: u64, write: Write) -> Routes {
    Routes {
        service: service.parse().expect("a name"),
        epoch: Epoch { incarnation: 1, revision: Revision(epoch) },
        at: (Incarnation::default(), Revision(epoch)),
        write,
        former: None,
        reads: Vec::new(),
        reads_unknown: false,
        all: Vec::new(),
    }
}

/// A gRPC client that says nothing of itself.
pub fn client() -> Client {
    Client::default()
}

/// An Envoy that listens for `names` on the ports from 6000 on.
pub fn envoy(names: &[&str]) -> Client {
    let name = |text: &str| Name::parse(text).expect("a name");
    let port = |at: usize| 6000 + u16::try_from(at).expect("a few");
    let listens = names.iter().enumerate();
    let listens = listens.map(|(at, text)| (name(text), ([127, 0, 0, 1], port(at)).into()));
    Client { flavour: Flavour::Envoy, listens: listens.collect(), ..Client::default() }
}

/// What that Envoy says of itself.
pub fn envoy_node(names: &[&str]) -> Node {
    let mut services: HashMap<String, Value> = HashMap::new();
    for (name, address) in envoy(names).listens {
        let service = services.entry(name.service.to_string()).or_insert_with(|| map([]));
        if let Some(Is::StructValue(sides)) = &mut service.kind {
            let address = Value { kind: Some(Is::StringValue(address.to_string())) };
            sides.fields.insert(name.side.as_str().into(), address);
        }
    }
    let services = map(services);
    let regent = map([("services".to_owned(), services)]);
    Node {
        user_agent_name: "envoy".into(),
        metadata: Some(Struct { fields: [("regent".to_owned(), regent)].into() }),
        ..Node::default()
    }
}

fn map(fields: impl IntoIterator<Item = (String, Value)>) -> Value {
    Value { kind: Some(Is::StructValue(Struct { fields: fields.into_iter().collect() })) }
}
