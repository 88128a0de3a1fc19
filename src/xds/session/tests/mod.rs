//! Tests of the session: each rule by a script that reads as what went over the stream.

mod delta;
mod random;
mod sotw;

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::google::protobuf::{Any, value::Kind as Is};
use prost::Message;
use regent_core::id::ServiceName;
use regent_core::route::table::{Closed, Routes, Write};

use super::*;
use crate::testing::{routes, to};

const CDS: Kind = Kind::Cluster;
const EDS: Kind = Kind::Endpoints;
const LDS: Kind = Kind::Listener;
const RDS: Kind = Kind::Route;

fn service(text: &str) -> ServiceName {
    text.parse().expect("a name")
}

/// Routes of `s` with primary `name` since `epoch`.
fn primary(name: &str, epoch: u64) -> Option<Arc<Routes>> {
    Some(Arc::new(routes("s", epoch, to(name, 1))))
}

fn nobody(closed: Closed, epoch: u64) -> Option<Arc<Routes>> {
    Some(Arc::new(routes("s", epoch, Write::Nobody(closed))))
}

const HOLDS: Closed = Closed::Unproven { holds: true };

fn closed_listener_of(name: &str) -> Listener {
    let closed = crate::resources::closed_listener(name);
    Listener::decode(closed.body.value.as_slice()).expect("a listener")
}

/// The name of a resource; of a listener that stands for none `no-s.write`; of endpoints with who
/// they are: `s.write=a`.
fn named(any: &Any) -> String {
    let bytes = any.value.as_slice();
    match Kind::of(&any.type_url).expect("a known kind") {
        Kind::Cluster => Cluster::decode(bytes).expect("a cluster").name,
        Kind::Listener => {
            let listener = Listener::decode(bytes).expect("a listener");
            let closed = listener == closed_listener_of(&listener.name);
            format!("{}{}", if closed { "no-" } else { "" }, listener.name)
        }
        Kind::Route => RouteConfiguration::decode(bytes).expect("a route").name,
        Kind::Endpoints => {
            let all = ClusterLoadAssignment::decode(bytes).expect("endpoints");
            let hosts = all.endpoints.iter().flat_map(|group| &group.lb_endpoints);
            let instance = |host: &envoy_types::pb::envoy::config::endpoint::v3::LbEndpoint| {
                let metadata = host.metadata.as_ref().expect("each has it");
                match &metadata.filter_metadata["regent"].fields["instance"].kind {
                    Some(Is::StringValue(text)) => text.clone(),
                    other => panic!("{other:?}"),
                }
            };
            let hosts: Vec<_> = hosts.map(instance).collect();
            format!("{}={}", all.cluster_name, hosts.join("+"))
        }
    }
}

/// A response in one line: its kind, what is in it, and after `-` what there is not.
trait Told {
    fn nonce(&self) -> (Kind, String);
    fn line(&self) -> String;
}

fn line<'a>(
    type_url: &str,
    resources: impl Iterator<Item = &'a Any>,
    gone: impl Iterator<Item = String>,
) -> String {
    let kind = Kind::of(type_url).expect("a known kind").as_str();
    let resources = resources.map(|any| {
        assert_eq!(any.type_url, type_url);
        format!(" {}", named(any))
    });
    let all: String = resources.chain(gone.map(|name| format!(" -{name}"))).collect();
    format!("{kind}:{all}")
}

/// What came out, in lines; follows and notes after the responses.
fn lines<A: Told>(output: &Output<A>) -> String {
    let mut lines: Vec<String> = output.responses.iter().map(Told::line).collect();
    lines.extend(output.follow.iter().map(|one| format!("follow {one}")));
    lines.extend(output.unfollow.iter().map(|one| format!("unfollow {one}")));
    for note in &output.notes {
        lines.push(match note {
            Note::Applied { kind, reached, .. } => {
                let reached = reached.iter().map(|one| format!(" {}@{}", one.name, one.epoch));
                format!("applied {}{}", kind.as_str(), reached.collect::<String>())
            }
            Note::Refused { kind, why, good, .. } => {
                let good = if good.is_some() { "has an older one" } else { "has none" };
                format!("refused {}: {why}; {good}", kind.as_str())
            }
            Note::UnknownKind { type_url } => format!("unknown {type_url}"),
            Note::LeftOut { name, unroutable } => {
                let who: String =
                    unroutable.iter().map(|one| format!(" {}", one.instance)).collect();
                format!("left out of {name}:{who}")
            }
        });
    }
    lines.join("\n")
}

/// The last nonce of each kind that a client has seen.
#[derive(Default)]
struct Nonces(BTreeMap<Kind, String>);

impl Nonces {
    fn see<A: Told>(&mut self, output: &Output<A>) {
        self.0.extend(output.responses.iter().map(Told::nonce));
    }

    fn of(&self, kind: Kind) -> String {
        self.0.get(&kind).cloned().unwrap_or_default()
    }
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}
