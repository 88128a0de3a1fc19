//! Resources: messages that follow from the routes and from who asks, and their versions.
//!
//! Of all four kinds only the endpoints change with the routes; the others say how a side of a
//! service is reached, and stand as long as the service does. So a failover is one EDS answer, and
//! nothing that Envoy would have to warm.
//!
//! The same content is the same bytes and so the same version on each node: a client that goes on
//! with another node is told nothing that it knows.

mod cluster;
mod endpoints;
mod listener;
mod wire;

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as base;
use envoy_types::pb::google::protobuf as proto;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use regent_core::id::{Epoch, Revision};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::client::Client;
use crate::names::{Kind, Name};

pub use endpoints::{Assigned, Unroutable, endpoints};

/// One resource, as it is sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// Its name; a [`Name`], but of a listener that stands for what there is not.
    pub name: String,
    /// A hash of its bytes; of endpoints with the epoch before it: `1.173-9f3c…`.
    pub version: String,
    /// Of endpoints: the epoch of the routes that they are of, and the revision that those were read
    /// at. No part of the version: the same content may be read at any.
    pub of: Option<(Epoch, Revision)>,
    /// The message.
    pub body: Any,
}

impl Resource {
    fn new(
        kind: Kind,
        name: String,
        of: Option<(Epoch, Revision)>,
        message: &impl Message,
    ) -> Self {
        let body = Any { type_url: kind.type_url().to_owned(), value: message.encode_to_vec() };
        let hash = xxh3_64(&body.value);
        let version = match of {
            Some((epoch, _)) => format!("{epoch}-{hash:016x}"),
            None => format!("{hash:016x}"),
        };
        Self { name, version, of, body }
    }
}

/// A resource that stands as long as its service does; endpoints are made by [`endpoints`].
/// `None`: this client has none of this name.
pub fn lasting(kind: Kind, name: &Name, client: &Client) -> Option<Resource> {
    match kind {
        Kind::Cluster => Some(cluster::cluster(name, client)),
        Kind::Endpoints => None,
        Kind::Listener => listener::listener(name, client),
        Kind::Route => Some(listener::route(name)),
    }
}

/// What is sent to a library within a client in the place of a listener that there is not, whatever
/// its name: one without any route. Such a client would not notice that it is left out, waits for it
/// for 15 s, and tells its callers nothing meanwhile; with this it refuses their calls at once, and
/// goes on when a listener comes.
pub fn closed_listener(name: &str) -> Resource {
    listener::closed(name)
}

/// The version of an answer with many resources. Of a single one it is that one's own.
pub fn version_of<'a>(resources: impl IntoIterator<Item = &'a Resource>) -> String {
    let mut all: Vec<_> = resources.into_iter().collect();
    if let [only] = all[..] {
        return only.version.clone();
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    let mut hash = Xxh3::new();
    for one in all {
        hash.update(one.name.as_bytes());
        hash.update(b" ");
        hash.update(one.version.as_bytes());
        hash.update(b"\n");
    }
    format!("{:016x}", hash.digest())
}

fn packed<M: Message + prost::Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// "Ask on this same stream."
fn here() -> base::ConfigSource {
    use base::config_source::ConfigSourceSpecifier::Ads;
    base::ConfigSource {
        resource_api_version: base::ApiVersion::V3 as i32,
        config_source_specifier: Some(Ads(base::AggregatedConfigSource::default())),
        ..Default::default()
    }
}

fn socket(address: std::net::SocketAddr) -> base::Address {
    use base::address::Address::SocketAddress;
    use base::socket_address::PortSpecifier::PortValue;
    base::Address {
        address: Some(SocketAddress(base::SocketAddress {
            address: address.ip().to_string(),
            port_specifier: Some(PortValue(address.port().into())),
            ..Default::default()
        })),
    }
}

fn lasts(duration: Duration) -> proto::Duration {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    let nanos = i32::try_from(duration.subsec_nanos()).unwrap_or(i32::MAX);
    proto::Duration { seconds, nanos }
}

fn number(value: u32) -> proto::UInt32Value {
    proto::UInt32Value { value }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
