//! What a client wants of one kind, what it was told, and what it has not answered yet.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use envoy_types::pb::google::rpc::Status;
use regent_core::id::ServiceName;

use super::{Note, Reached, cut};
use crate::client::Client;
use crate::names::{Kind, Name, Side};
use crate::resources::Resource;
use crate::tuning::MAX_IN_FLIGHT;

/// What was last said of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// It has this version.
    Version(String),
    /// There is none.
    Absent,
}

/// What the nonce of a request says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The first of its kind on the stream.
    First,
    /// It answers the last response, or was sent before any.
    Current,
    /// It answers an older response: the client had not seen the last one.
    Stale,
}

/// An answer that the client has not answered.
#[derive(Debug)]
struct Flight {
    nonce: String,
    version: String,
    reached: Vec<Reached>,
}

/// The state of one kind on one stream.
#[derive(Debug)]
pub struct Feed {
    pub(super) kind: Kind,
    /// Asked for by name.
    pub(super) explicit: BTreeSet<String>,
    /// Asked for all that the client's metadata lists.
    pub(super) wildcard: bool,
    /// No request has named anything yet: the old way of asking for all.
    pub(super) nameless: bool,
    /// Of each resource that is subscribed to.
    pub(super) said: BTreeMap<String, Said>,
    /// May differ from what was said.
    pub(super) touched: BTreeSet<String>,
    /// To be said whether they differ or not.
    pub(super) forced: BTreeSet<String>,
    /// An answer is due even if there is nothing in it.
    pub(super) owed: bool,
    /// The subscription changed.
    pub(super) resubscribed: bool,
    begun: bool,
    flights: VecDeque<Flight>,
    last_nonce: String,
    good: Option<String>,
}

impl Feed {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            explicit: BTreeSet::new(),
            wildcard: false,
            nameless: true,
            said: BTreeMap::new(),
            touched: BTreeSet::new(),
            forced: BTreeSet::new(),
            owed: false,
            resubscribed: false,
            begun: false,
            flights: VecDeque::new(),
            last_nonce: String::new(),
            good: None,
        }
    }

    /// A request with `nonce` arrived. An answer to an older response still says what was applied.
    pub(super) fn answered(&mut self, nonce: &str, error: Option<&Status>) -> (Turn, Option<Note>) {
        let first = !std::mem::replace(&mut self.begun, true);
        // On a new stream the nonces of the old one mean nothing.
        if first {
            return (Turn::First, None);
        }
        let at = self.flights.iter().position(|flight| flight.nonce == nonce);
        // A client answers in order, so what it passed over it will never answer.
        let flight = at.and_then(|at| self.flights.drain(..=at).next_back());
        let note = flight.map(|flight| self.judged(flight, error));
        let current = nonce.is_empty() || nonce == self.last_nonce;
        (if current { Turn::Current } else { Turn::Stale }, note)
    }

    fn judged(&mut self, flight: Flight, error: Option<&Status>) -> Note {
        let Flight { version, reached, .. } = flight;
        let kind = self.kind;
        match error {
            None => {
                self.good = Some(version.clone());
                Note::Applied { kind, version, reached }
            }
            Some(error) => {
                let why = cut(&error.message);
                Note::Refused { kind, version, good: self.good.clone(), why }
            }
        }
    }

    /// A response with these resources is on its way.
    pub(super) fn sent(&mut self, nonce: &str, version: &str, resources: &[Arc<Resource>]) {
        let reached = resources.iter().filter_map(|one| {
            let (epoch, revision) = one.of?;
            Some(Reached { name: Name::parse(&one.name)?, epoch, revision })
        });
        if self.flights.len() == MAX_IN_FLIGHT {
            self.flights.pop_front();
        }
        self.flights.push_back(Flight {
            nonce: nonce.to_owned(),
            version: version.to_owned(),
            reached: reached.collect(),
        });
        self.last_nonce = nonce.to_owned();
    }

    /// Whether the client has yet to answer a response.
    pub(super) fn is_in_flight(&self) -> bool {
        !self.flights.is_empty()
    }

    /// Whether the client wants to be told of `name`.
    pub(super) fn covers(&self, name: &str, client: &Client) -> bool {
        self.explicit.contains(name) || self.wildcard && lists(client, name)
    }

    /// All that the client wants to be told of.
    pub(super) fn wanted(&self, client: &Client) -> BTreeSet<String> {
        let mut wanted = self.explicit.clone();
        if self.wildcard {
            wanted.extend(client.listens.keys().map(Name::to_string));
        }
        wanted
    }

    /// The services of those.
    pub(super) fn services(&self, client: &Client) -> Vec<ServiceName> {
        let named = self.explicit.iter().filter_map(|name| Some(Name::parse(name)?.service));
        let listed = client.listens.keys().map(|name| name.service.clone());
        named.chain(listed.filter(|_| self.wildcard)).collect()
    }

    /// There is news of a service.
    pub(super) fn touch(&mut self, service: &ServiceName, client: &Client) {
        for side in Side::ALL {
            let name = Name { service: service.clone(), side }.to_string();
            if self.covers(&name, client) {
                self.touched.insert(name);
            }
        }
    }

    /// Begins or ends the subscription to everything.
    pub(super) fn set_wildcard(&mut self, wildcard: bool, client: &Client) {
        if wildcard == self.wildcard {
            return;
        }
        self.wildcard = wildcard;
        self.resubscribed = true;
        if wildcard {
            self.owed = true;
            self.touched.extend(client.listens.keys().map(Name::to_string));
        } else {
            self.forget_uncovered(client);
        }
    }

    /// Forgets what was said of names that nobody wants to be told of any more.
    pub(super) fn forget_uncovered(&mut self, client: &Client) {
        let Self { explicit, wildcard, .. } = self;
        let covers = |name: &String| explicit.contains(name) || *wildcard && lists(client, name);
        self.said.retain(|name, _| covers(name));
        self.touched.retain(covers);
        self.forced.retain(covers);
    }

    /// The names that may be due, each once.
    pub(super) fn take_candidates(&mut self) -> Vec<(String, bool)> {
        let forced = std::mem::take(&mut self.forced);
        let touched = std::mem::take(&mut self.touched);
        let all = touched.union(&forced);
        all.map(|name| (name.clone(), forced.contains(name))).collect()
    }

    /// Whether there may be anything due.
    pub(super) fn is_quiet(&self) -> bool {
        !self.owed && self.touched.is_empty() && self.forced.is_empty()
    }
}

fn lists(client: &Client, name: &str) -> bool {
    Name::parse(name).is_some_and(|name| client.listens.contains_key(&name))
}
