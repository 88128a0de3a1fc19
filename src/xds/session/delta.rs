//! The incremental form: requests say what changed in what the client wants, responses what changed
//! in that.

use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3 as ads;

use super::feed::{Feed, Said, Turn};
use super::table::Content;
use super::{Head, Protocol, Refusal, Session, Stream, bounded};
use crate::client::Client;
use crate::names::Kind;
use crate::resources::{Resource, version_of};
use crate::tuning::MAX_NAMES;

/// A stream of `DeltaAggregatedResources`.
pub type Delta = Session<Incremental>;

/// See [`Delta`].
#[derive(Debug)]
pub enum Incremental {}

impl Protocol for Incremental {
    type Ask = ads::DeltaDiscoveryRequest;
    type Answer = ads::DeltaDiscoveryResponse;

    fn head(ask: &mut Self::Ask) -> Head {
        Head {
            node: ask.node.take(),
            type_url: std::mem::take(&mut ask.type_url),
            nonce: std::mem::take(&mut ask.response_nonce),
            error: ask.error_detail.take(),
        }
    }

    /// A subscription that changes counts whatever the nonce: it is not said again.
    fn subscribe(
        feed: &mut Feed,
        client: &Client,
        turn: Turn,
        ask: Self::Ask,
    ) -> Result<(), Refusal> {
        let (added, gone) = (ask.resource_names_subscribe, ask.resource_names_unsubscribe);
        bounded(added.iter())?;
        bounded(gone.iter())?;
        bounded(ask.initial_resource_versions.keys())?;
        bounded(ask.initial_resource_versions.values())?;
        let first = turn == Turn::First;
        feed.resubscribed |= !added.is_empty() || !gone.is_empty();
        let (mut all, none) = (first && added.is_empty(), gone.iter().any(|name| name == "*"));
        for name in added {
            if name == "*" {
                all = true;
                continue;
            }
            if !first {
                // It may have dropped what it has, and asked again before that was said.
                feed.forced.insert(name.clone());
            }
            feed.touched.insert(name.clone());
            feed.explicit.insert(name);
        }
        if feed.explicit.len() > MAX_NAMES {
            return Err(Refusal::TooMany { have: feed.explicit.len() });
        }
        for name in gone {
            feed.explicit.remove(&name);
            // If everything is subscribed to, this is again, and as if for the first time.
            feed.said.remove(&name);
            feed.touched.insert(name);
        }
        feed.set_wildcard((feed.wildcard || all) && !none && feed.kind.is_whole(), client);
        feed.forget_uncovered(client);
        if !first && feed.owed {
            // What was on its way while it was not subscribed to is taken back by name.
            feed.forced.extend(feed.touched.iter().cloned());
        }
        if first {
            for (name, version) in ask.initial_resource_versions {
                // With everything subscribed to, what is not there any more is to be taken back.
                if feed.wildcard || feed.explicit.contains(&name) {
                    feed.touched.insert(name.clone());
                    feed.said.insert(name, Said::Version(version));
                    feed.owed = false;
                }
            }
        }
        Ok(())
    }

    fn due(stream: &mut Stream, kind: Kind) -> Option<Self::Answer> {
        let Stream { client, table, feeds, .. } = stream;
        let feed = &mut feeds[kind as usize];
        if feed.is_quiet() {
            return None;
        }
        if feed.owed {
            // The first answer to "everything" ends an Envoy's start, so it has to be complete.
            let waits =
                |name: &String| matches!(table.content(kind, name, client), Content::Waiting);
            if feed.wanted(client).iter().any(waits) {
                return None;
            }
        }
        let owed = std::mem::take(&mut feed.owed);
        let (mut resources, mut removed) = (Vec::new(), Vec::new());
        for (name, forced) in feed.take_candidates() {
            if !feed.covers(&name, client) {
                if let Some(Said::Version(_)) = feed.said.remove(&name) {
                    removed.push(name);
                }
                continue;
            }
            let said = feed.said.get(&name);
            match table.content(kind, &name, client) {
                Content::Waiting if forced => {
                    // It is to be sent once it is known, whatever was said before.
                    feed.said.remove(&name);
                }
                Content::Waiting => {}
                Content::Was(_) if said.is_none() => {}
                Content::Absent => {
                    let asked = feed.explicit.contains(&name) && said.is_none();
                    let had = matches!(said, Some(Said::Version(_)));
                    feed.said.insert(name.clone(), Said::Absent);
                    if asked || had || forced {
                        removed.push(name);
                    }
                }
                Content::Is(resource) | Content::Was(resource) => {
                    let word = Said::Version(resource.version.clone());
                    if forced || said != Some(&word) {
                        feed.said.insert(name, word);
                        resources.push(resource);
                    }
                }
            }
        }
        if resources.is_empty() && removed.is_empty() && !owed {
            return None;
        }
        if kind == Kind::Cluster {
            stream.say_endpoints_again(resources.iter().map(|one| one.name.clone()));
        }
        Some(respond(stream, kind, &resources, removed))
    }
}

fn respond(
    stream: &mut Stream,
    kind: Kind,
    resources: &[Arc<Resource>],
    removed_resources: Vec<String>,
) -> ads::DeltaDiscoveryResponse {
    let nonce = stream.next_nonce();
    let system_version_info = version_of(resources.iter().map(Arc::as_ref));
    stream.feed(kind).sent(&nonce, &system_version_info, resources);
    let resource = |one: &Arc<Resource>| ads::Resource {
        name: one.name.clone(),
        version: one.version.clone(),
        resource: Some(one.body.clone()),
        ..Default::default()
    };
    ads::DeltaDiscoveryResponse {
        system_version_info,
        resources: resources.iter().map(resource).collect(),
        type_url: kind.type_url().to_owned(),
        removed_resources,
        nonce,
        ..Default::default()
    }
}
