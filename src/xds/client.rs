//! Who asks: what the `node` of a stream's first request says of the client.
//!
//! An Envoy says in the metadata of its bootstrap which services it serves, and where it listens:
//!
//! ```yaml
//! node:
//!   id: web-17
//!   locality: { region: eu, zone: eu-a }
//!   metadata:
//!     regent:
//!       services:
//!         orders: { write: "127.0.0.1:6432", read: "127.0.0.1:6433" }
//! ```

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind as Is};
use regent_core::id::{Locality, ServiceName};

use crate::names::{Name, Side};
use crate::tuning::{MAX_NAME_BYTES, MAX_NAMES};

/// Which kind of client, as far as answers differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flavour {
    /// A proxy of TCP sessions: real listeners, active health checks.
    Envoy,
    /// A library within a client, and whoever does not say what it is.
    #[default]
    Grpc,
}

impl Flavour {
    /// For a metric's label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Envoy => "envoy",
            Self::Grpc => "grpc",
        }
    }
}

/// A client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// As it calls itself; for people only.
    pub id: String,
    /// What it is.
    pub flavour: Flavour,
    /// Where it is: near endpoints come first.
    pub locality: Locality,
    /// What an Envoy wants when it asks for all there is, and where it listens for it.
    pub listens: BTreeMap<Name, SocketAddr>,
}

/// A field of the `node` that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {why}")]
pub struct Unreadable {
    /// Which, from `node` on.
    pub path: String,
    /// What is wrong with it.
    pub why: String,
}

/// A client's text without what a terminal would obey.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|one| if one.is_control() { ' ' } else { one }).collect()
}

const METADATA: &str = "node.metadata.regent";

impl Client {
    /// Reads what a client says of itself.
    ///
    /// # Errors
    /// [`Unreadable`] names the first field that is not as it must be. It is better to refuse an
    /// Envoy at its start than to leave out a listener that somebody misspelt.
    pub fn of(node: &Node) -> Result<Self, Unreadable> {
        if node.id.len() > MAX_NAME_BYTES {
            return Err(unreadable("node.id", format!("longer than {MAX_NAME_BYTES} bytes")));
        }
        let place = node.locality.clone().unwrap_or_default();
        let locality = Locality { region: place.region, zone: place.zone, host: place.sub_zone };
        let flavour = match node.user_agent_name.as_str() {
            "envoy" => Flavour::Envoy,
            _ => Flavour::Grpc,
        };
        let listens = match flavour {
            Flavour::Envoy => listens(node)?,
            Flavour::Grpc => BTreeMap::new(),
        };
        Ok(Self { id: printable(&node.id), flavour, locality, listens })
    }
}

fn listens(node: &Node) -> Result<BTreeMap<Name, SocketAddr>, Unreadable> {
    let metadata = node.metadata.as_ref().and_then(|all| all.fields.get("regent"));
    let Some(metadata) = metadata else { return Ok(BTreeMap::new()) };
    let fields = fields(METADATA, metadata)?;
    known(METADATA, fields, &["services"])?;
    let Some(services) = fields.get("services") else { return Ok(BTreeMap::new()) };
    let path = format!("{METADATA}.services");
    let services = self::fields(&path, services)?;
    if services.len() > MAX_NAMES {
        let why = format!("{} services, the most is {MAX_NAMES}", services.len());
        return Err(unreadable(path, why));
    }
    let (mut listens, mut taken) = (BTreeMap::new(), BTreeMap::new());
    // In order, so that of several mistakes the same one is told each time.
    for (service, sides) in services.iter().collect::<BTreeMap<_, _>>() {
        let path = format!("{path}.{service}");
        let name = ServiceName::parse(service);
        let service = name.map_err(|error| unreadable(&path, error.to_string()))?;
        let sides = self::fields(&path, sides)?;
        known(&path, sides, &Side::ALL.map(Side::as_str))?;
        for side in Side::ALL {
            let Some(address) = sides.get(side.as_str()) else { continue };
            let path = format!("{path}.{}", side.as_str());
            let address = self::address(&path, address)?;
            let name = Name { service: service.clone(), side };
            if let Some(other) = taken.insert(address, name.clone()) {
                return Err(unreadable(path, format!("{other} listens on {address} already")));
            }
            listens.insert(name, address);
        }
    }
    Ok(listens)
}

fn address(path: &str, value: &Value) -> Result<SocketAddr, Unreadable> {
    let Some(Is::StringValue(text)) = &value.kind else {
        return Err(unreadable(path, "it must be a string, such as \"127.0.0.1:6432\""));
    };
    let wrong = |_| unreadable(path, format!("{text:?} is not an IP address and a port"));
    text.parse().map_err(wrong)
}

type Fields = HashMap<String, Value>;

fn fields<'a>(path: &str, value: &'a Value) -> Result<&'a Fields, Unreadable> {
    match &value.kind {
        Some(Is::StructValue(Struct { fields })) => Ok(fields),
        _ => Err(unreadable(path, "it must be a map")),
    }
}

fn known(path: &str, fields: &Fields, known: &[&str]) -> Result<(), Unreadable> {
    match fields.keys().filter(|key| !known.contains(&key.as_str())).min() {
        None => Ok(()),
        Some(key) => {
            let why = format!("unknown field; known are: {}", known.join(", "));
            Err(unreadable(format!("{path}.{key}"), why))
        }
    }
}

fn unreadable(path: impl Into<String>, why: impl Into<String>) -> Unreadable {
    Unreadable { path: path.into(), why: why.into() }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
