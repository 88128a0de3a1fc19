//! The state-of-the-world form: each request names all that the client wants of a kind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3 as ads;
use envoy_types::pb::google::rpc::Status;

use super::feed::{Feed, Said, Turn};
use super::table::Content;
use super::{Head, Protocol, Refusal, Session, Stream, bounded};
use crate::client::{Client, Flavour};
use crate::names::Kind;
use crate::resources::{Resource, closed_listener, version_of};

/// A stream of `StreamAggregatedResources`.
pub type Sotw = Session<StateOfTheWorld>;

/// See [`Sotw`].
#[derive(Debug)]
pub enum StateOfTheWorld {}

/// `google.rpc.Code.NOT_FOUND`.
const NOT_FOUND: i32 = 5;

impl Protocol for StateOfTheWorld {
    type Ask = ads::DiscoveryRequest;
    type Answer = ads::DiscoveryResponse;

    fn head(ask: &mut Self::Ask) -> Head {
        Head {
            node: ask.node.take(),
            type_url: std::mem::take(&mut ask.type_url),
            nonce: std::mem::take(&mut ask.response_nonce),
            error: ask.error_detail.take(),
        }
    }

    fn subscribe(
        feed: &mut Feed,
        client: &Client,
        turn: Turn,
        ask: Self::Ask,
    ) -> Result<(), Refusal> {
        bounded(ask.resource_names.iter())?;
        feed.nameless &= ask.resource_names.is_empty();
        if turn == Turn::Stale {
            // The answer to the last response is still to come, and names all that is wanted then.
            return Ok(());
        }
        let mut names: BTreeSet<String> = ask.resource_names.into_iter().collect();
        let wildcard = names.remove("*") || feed.nameless;
        if names != feed.explicit {
            feed.resubscribed = true;
            let before = std::mem::replace(&mut feed.explicit, names);
            let added: Vec<_> = feed.explicit.difference(&before).cloned().collect();
            feed.owed |= feed.kind.is_whole() && !added.is_empty();
            feed.touched.extend(added);
        }
        feed.set_wildcard(wildcard && feed.kind.is_whole(), client);
        if feed.resubscribed {
            feed.forget_uncovered(client);
        }
        Ok(())
    }

    fn due(stream: &mut Stream, kind: Kind) -> Option<Self::Answer> {
        let feed = stream.feed(kind);
        let must_wait = kind != Kind::Endpoints && feed.is_in_flight();
        if feed.is_quiet() || must_wait {
            return None;
        }
        if kind.is_whole() { whole(stream, kind) } else { partly(stream, kind) }
    }
}

/// All that is subscribed to, if any of it changed.
fn whole(stream: &mut Stream, kind: Kind) -> Option<ads::DiscoveryResponse> {
    let names = stream.feeds[kind as usize].wanted(&stream.client);
    let (mut said, mut resources, mut errors) = (BTreeMap::new(), Vec::new(), Vec::new());
    let stands_in = kind == Kind::Listener && stream.client.flavour == Flavour::Grpc;
    for name in names {
        let word = match stream.table.content(kind, &name, &stream.client) {
            // An answer without it would delete it.
            Content::Waiting => return None,
            Content::Absent if stands_in => {
                let closed = closed_listener(&name);
                let word = Said::Version(closed.version.clone());
                resources.push(Arc::new(closed));
                word
            }
            Content::Absent => Said::Absent,
            Content::Is(resource) | Content::Was(resource) => {
                let word = Said::Version(resource.version.clone());
                resources.push(resource);
                word
            }
        };
        // Of what it never had, a client does not see that it is left out.
        if word == Said::Absent && stream.feed(kind).explicit.contains(&name) {
            errors.push(not_found(name.clone()));
        }
        said.insert(name, word);
    }
    let feed = stream.feed(kind);
    feed.touched.clear();
    feed.forced.clear();
    let owed = std::mem::take(&mut feed.owed);
    if !owed && said == feed.said {
        return None;
    }
    feed.said = said;
    if kind == Kind::Cluster {
        stream.say_endpoints_again(resources.iter().map(|one| one.name.clone()));
    }
    Some(respond(stream, kind, &resources, errors))
}

/// What changed. That a resource does not exist can only be said as an error.
fn partly(stream: &mut Stream, kind: Kind) -> Option<ads::DiscoveryResponse> {
    let (mut resources, mut errors) = (Vec::new(), Vec::new());
    for (name, forced) in stream.feed(kind).take_candidates() {
        let content = stream.table.content(kind, &name, &stream.client);
        let said = &mut stream.feed(kind).said;
        let word = match &content {
            Content::Waiting => continue,
            Content::Was(_) if !said.contains_key(&name) => continue,
            Content::Absent => Said::Absent,
            Content::Is(resource) | Content::Was(resource) => {
                Said::Version(resource.version.clone())
            }
        };
        if !forced && said.get(&name) == Some(&word) {
            continue;
        }
        said.insert(name.clone(), word);
        match content {
            Content::Is(resource) | Content::Was(resource) => resources.push(resource),
            Content::Absent | Content::Waiting => errors.push(not_found(name)),
        }
    }
    let nothing = resources.is_empty() && errors.is_empty();
    (!nothing).then(|| respond(stream, kind, &resources, errors))
}

fn not_found(name: String) -> ads::ResourceError {
    let message = format!("there is no {name}");
    let error = Status { code: NOT_FOUND, message, details: Vec::new() };
    let name = ads::ResourceName { name, dynamic_parameter_constraints: None };
    ads::ResourceError { resource_name: Some(name), error_detail: Some(error) }
}

fn respond(
    stream: &mut Stream,
    kind: Kind,
    resources: &[Arc<Resource>],
    resource_errors: Vec<ads::ResourceError>,
) -> ads::DiscoveryResponse {
    let nonce = stream.next_nonce();
    let version_info = version_of(resources.iter().map(Arc::as_ref));
    stream.feed(kind).sent(&nonce, &version_info, resources);
    ads::DiscoveryResponse {
        version_info,
        resources: resources.iter().map(|one| one.body.clone()).collect(),
        type_url: kind.type_url().to_owned(),
        nonce,
        resource_errors,
        ..Default::default()
    }
}
