//! One ADS stream as a state machine: requests and news in, responses out; no clock, no I/O.
//!
//! ```text
//! asked(request) ─┐                                  ┌─► responses, what is referred to first
//!                 ├─► Feed per kind: names, said, ───┼─► services to follow, and to follow no more
//! told(routes) ───┘   in flight   ▲                  └─► notes: applied, refused, left out
//!                              Table: routes of the services that are followed
//! ```
//!
//! One rule makes most of the others: a resource is due when what it is now differs from what this
//! stream last said of it. So an ACK sends nothing again, nor does a refusal (the same bytes would
//! be refused again), and a name that is asked anew, of which nothing was said, is answered.
//!
//! What follows from the protocol beyond that:
//! * After each answer with clusters their endpoints are said again, for Envoy waits for that with
//!   a cluster that it warms, for 15 s if it does not come.
//! * Clusters and listeners in state-of-the-world form are always told as a whole, for what an
//!   answer leaves out is deleted; so they wait until everything in them is known.
//! * In that form one answer of a kind is under way at a time, and newer content replaces what
//!   waits. Not so endpoints: a failover does not wait for the ACK of what it supersedes.

mod delta;
mod feed;
mod sotw;
mod table;

use std::collections::BTreeSet;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::google::rpc::Status;
use regent_core::id::{Epoch, Revision, ServiceName};
use regent_core::route::table::Routes;

use crate::client::{Client, Unreadable, printable};
use crate::names::{Kind, Name};
use crate::resources::Unroutable;
use crate::tuning::{MAX_NAME_BYTES, MAX_NAMES, MAX_NOTED_BYTES, MAX_UNKNOWN_NOTED};
use feed::{Feed, Turn};
use table::Table;

pub use delta::Delta;
pub use sotw::Sotw;

/// What a stream does after an event.
#[derive(Clone, Debug, PartialEq)]
pub struct Output<Answer> {
    /// To send, in this order.
    pub responses: Vec<Answer>,
    /// Services that the stream must be told of from now on: first what their routes are now.
    pub follow: Vec<ServiceName>,
    /// Services that it needs no more.
    pub unfollow: Vec<ServiceName>,
    /// For logs and metrics.
    pub notes: Vec<Note>,
}

impl<Answer> Default for Output<Answer> {
    fn default() -> Self {
        Self { responses: vec![], follow: vec![], unfollow: vec![], notes: vec![] }
    }
}

/// What happened on a stream that somebody may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The client applied an answer.
    Applied {
        /// Of this kind.
        kind: Kind,
        /// Of this version.
        version: String,
        /// What it routes by now; of endpoints only.
        reached: Vec<Reached>,
    },
    /// The client refused an answer, and goes on with what it had.
    Refused {
        /// Of this kind.
        kind: Kind,
        /// Of this version.
        version: String,
        /// The version of the last answer of this kind that it applied, if it did any.
        good: Option<String>,
        /// In its words.
        why: String,
    },
    /// The client asked for a kind that there is none of; it is not answered.
    UnknownKind {
        /// What it asked for.
        type_url: String,
    },
    /// Instances of this side are left out of what the stream is told; empty: no longer.
    LeftOut {
        /// Of which endpoints.
        name: Name,
        /// Who, and why.
        unroutable: Vec<Unroutable>,
    },
}

/// The routes that a client has applied the endpoints of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Of which side.
    pub name: Name,
    /// Of the role.
    pub epoch: Epoch,
    /// That the routes were read at.
    pub revision: Revision,
}

/// Why a request ends its stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// What the client says of itself cannot be read.
    #[error(transparent)]
    Node(#[from] Unreadable),
    /// Too many names of one kind.
    #[error("{have} resources of one kind, the most is {MAX_NAMES}")]
    TooMany {
        /// How many.
        have: usize,
    },
    /// No resource has a name this long.
    #[error("the name of a resource has {have} bytes, the most is {MAX_NAME_BYTES}")]
    LongName {
        /// How long.
        have: usize,
    },
}

/// The part of a request that both protocols share.
#[derive(Debug)]
pub struct Head {
    node: Option<Node>,
    type_url: String,
    nonce: String,
    error: Option<Status>,
}

/// One of the two forms of the protocol.
pub trait Protocol {
    /// A request.
    type Ask;
    /// A response.
    type Answer;

    /// Takes the common part out of a request.
    fn head(ask: &mut Self::Ask) -> Head;
    /// Applies what a request subscribes to. `turn`: what its nonce says of it.
    ///
    /// # Errors
    /// [`Refusal`] if it is beyond a bound.
    fn subscribe(
        feed: &mut Feed,
        client: &Client,
        turn: Turn,
        ask: Self::Ask,
    ) -> Result<(), Refusal>;
    /// What is due of a kind now.
    fn due(stream: &mut Stream, kind: Kind) -> Option<Self::Answer>;
}

/// What a stream remembers; the same in both protocols.
#[derive(Debug)]
pub struct Stream {
    client: Client,
    table: Table,
    feeds: [Feed; 4],
    last_nonce: u64,
}

impl Stream {
    fn feed(&mut self, kind: Kind) -> &mut Feed {
        &mut self.feeds[kind as usize]
    }

    fn next_nonce(&mut self) -> String {
        self.last_nonce += 1;
        self.last_nonce.to_string()
    }

    /// Clusters were sent: their endpoints are due, changed or not.
    fn say_endpoints_again(&mut self, clusters: impl IntoIterator<Item = String>) {
        let feed = &mut self.feeds[Kind::Endpoints as usize];
        feed.forced.extend(clusters.into_iter().filter(|name| feed.explicit.contains(name)));
    }
}

/// The state machine of one stream.
#[derive(Debug)]
pub struct Session<P> {
    stream: Stream,
    /// Whether the node was read; only a stream's first request has one for certain.
    begun: bool,
    unknown: BTreeSet<String>,
    protocol: std::marker::PhantomData<fn() -> P>,
}

impl<P> Default for Session<P> {
    fn default() -> Self {
        let stream = Stream {
            client: Client::default(),
            table: Table::default(),
            feeds: Kind::MAKE.map(Feed::new),
            last_nonce: 0,
        };
        let (unknown, protocol) = (BTreeSet::new(), std::marker::PhantomData);
        Self { stream, begun: false, unknown, protocol }
    }
}

impl<P: Protocol> Session<P> {
    /// Who is at the other end, as its first request said.
    pub fn client(&self) -> &Client {
        &self.stream.client
    }

    /// A request arrived.
    ///
    /// # Errors
    /// [`Refusal`]: the stream must end with it, and nothing more be asked of this session.
    pub fn asked(&mut self, mut ask: P::Ask) -> Result<Output<P::Answer>, Refusal> {
        let mut output = Output::default();
        let head = P::head(&mut ask);
        if !self.begun {
            self.stream.client = Client::of(&head.node.unwrap_or_default())?;
            self.begun = true;
        }
        let Some(kind) = Kind::of(&head.type_url) else {
            output.notes.extend(self.note_unknown(&head.type_url));
            return Ok(output);
        };
        let Stream { client, feeds, .. } = &mut self.stream;
        let feed = &mut feeds[kind as usize];
        let (turn, note) = feed.answered(&head.nonce, head.error.as_ref());
        output.notes.extend(note);
        P::subscribe(feed, client, turn, ask)?;
        if std::mem::take(&mut feed.resubscribed) {
            self.follow(&mut output);
        }
        self.flush(&Kind::MAKE, &mut output);
        Ok(output)
    }

    /// The routes of services changed; `None`: there is no such service, or none any more.
    pub fn told(
        &mut self,
        news: impl IntoIterator<Item = (ServiceName, Option<Arc<Routes>>)>,
    ) -> Output<P::Answer> {
        let mut output = Output::default();
        let mut only_gone = true;
        for (service, routes) in news {
            let Some(changed) = self.stream.table.put(&service, routes) else { continue };
            only_gone &= changed.gone;
            for kind in Kind::MAKE {
                if kind == Kind::Endpoints || changed.existence {
                    let feed = &mut self.stream.feeds[kind as usize];
                    feed.touch(&service, &self.stream.client);
                }
            }
        }
        let order = if only_gone { &Kind::BREAK } else { &Kind::MAKE };
        self.flush(order, &mut output);
        output
    }

    fn flush(&mut self, order: &[Kind], output: &mut Output<P::Answer>) {
        for kind in order {
            output.responses.extend(P::due(&mut self.stream, *kind));
        }
        let left_out = self.stream.table.take_left_out();
        output.notes.extend(
            left_out.into_iter().map(|(name, unroutable)| Note::LeftOut { name, unroutable }),
        );
    }

    fn follow(&mut self, output: &mut Output<P::Answer>) {
        let Stream { client, table, feeds, .. } = &mut self.stream;
        let names = feeds.iter().flat_map(|feed| feed.services(client));
        let wanted: BTreeSet<ServiceName> = names.collect();
        output.unfollow = table.services().filter(|one| !wanted.contains(*one)).cloned().collect();
        output.follow = wanted.into_iter().filter(|one| !table.follows(one)).collect();
        output.unfollow.iter().for_each(|one| table.forget(one));
        output.follow.iter().for_each(|one| table.await_word_of(one));
    }

    fn note_unknown(&mut self, type_url: &str) -> Option<Note> {
        let type_url = cut(type_url);
        let new = self.unknown.len() < MAX_UNKNOWN_NOTED && self.unknown.insert(type_url.clone());
        new.then_some(Note::UnknownKind { type_url })
    }
}

/// A client's text as it is noted: one line, and no longer than it may be.
fn cut(text: &str) -> String {
    let text = printable(text.trim());
    let mut end = text.len().min(MAX_NOTED_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// Checks names before any of them is remembered.
fn bounded<'a>(names: impl ExactSizeIterator<Item = &'a String>) -> Result<(), Refusal> {
    if names.len() > MAX_NAMES {
        return Err(Refusal::TooMany { have: names.len() });
    }
    match names.map(String::len).max() {
        Some(have) if have > MAX_NAME_BYTES => Err(Refusal::LongName { have }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
