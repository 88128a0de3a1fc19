//! The messages of an EDS answer, field for field as in Envoy's API, with the same bytes each time.
//!
//! The generated ones keep metadata in hash maps: their order, so their bytes and the version that
//! is a hash of them, would differ from node to node. On the wire a map is a list of entries, and
//! here it is one. Only the fields that are used; tests read them back as the generated messages.

use envoy_types::pb::envoy::config::core::v3::Locality;
use envoy_types::pb::envoy::config::endpoint::v3::Endpoint;
use envoy_types::pb::google::protobuf::{UInt32Value, Value, value::Kind as Is};
use prost::Message;

/// `envoy.config.endpoint.v3.ClusterLoadAssignment`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Assignment {
    #[prost(string, tag = "1")]
    pub cluster_name: String,
    #[prost(message, repeated, tag = "2")]
    pub endpoints: Vec<Group>,
}

/// `envoy.config.endpoint.v3.LocalityLbEndpoints`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Group {
    #[prost(message, optional, tag = "1")]
    pub locality: Option<Locality>,
    #[prost(message, repeated, tag = "2")]
    pub lb_endpoints: Vec<Host>,
    #[prost(message, optional, tag = "3")]
    pub load_balancing_weight: Option<UInt32Value>,
    #[prost(uint32, tag = "5")]
    pub priority: u32,
}

/// `envoy.config.endpoint.v3.LbEndpoint`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Host {
    #[prost(message, optional, tag = "1")]
    pub endpoint: Option<Endpoint>,
    #[prost(int32, tag = "2")]
    pub health_status: i32,
    #[prost(message, optional, tag = "3")]
    pub metadata: Option<Map>,
    #[prost(message, optional, tag = "4")]
    pub load_balancing_weight: Option<UInt32Value>,
}

/// A message whose first field is a map: `envoy.config.core.v3.Metadata`, `google.protobuf.Struct`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Map {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<Entry>,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// Metadata of one filter, `name`, that is a struct of strings.
pub(super) fn metadata<const N: usize>(name: &str, fields: [(&str, String); N]) -> Map {
    let entries = fields.into_iter().map(|(key, text)| {
        let value = Value { kind: Some(Is::StringValue(text)) };
        Entry { key: key.to_owned(), value: value.encode_to_vec() }
    });
    let fields = Map { entries: entries.collect() };
    Map { entries: vec![Entry { key: name.to_owned(), value: fields.encode_to_vec() }] }
}
