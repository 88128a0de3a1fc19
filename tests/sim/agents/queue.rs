//! Events in the order of virtual time; among equals in the order in which they were put in.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use regent_core::command::{Command, Renewal};
use regent_core::id::{ElectionName, Epoch, RenewalNumber, Revision, SessionId};
use regent_core::lease::holder::Answer;
use regent_core::reply::Reply;
use regent_core::time::Reading;

use super::machine::Time;

/// A renewal on its way, and where its answer goes.
#[derive(Clone, Copy, Debug)]
pub struct Flight {
    pub renewal: Renewal,
    pub client: usize,
    pub stream: u64,
}

/// An answer on its way back.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    pub session: SessionId,
    pub number: RenewalNumber,
    pub answer: Answer,
    pub client: usize,
    pub stream: u64,
}

/// Which attempt of which client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId {
    pub client: usize,
    pub serial: u64,
}

/// What a node can be sent.
#[derive(Clone, Debug)]
pub enum ToNode {
    Renew(Flight),
    Command {
        call: CallId,
        command: Box<Command>,
    },
    /// To the leader.
    LeaderRenew {
        from: usize,
        flights: Vec<Flight>,
    },
    LeaderCommand {
        from: usize,
        call: CallId,
        entry: Vec<u8>,
    },
    ReadIndex {
        from: usize,
        sent: Reading,
    },
    /// From the leader.
    Renewed {
        answers: Vec<Answered>,
    },
    Done {
        call: CallId,
        reply: Box<Reply>,
    },
    ReadIndexAnswer {
        sent: Reading,
        answer: Revision,
    },
    /// Somebody leads in a term; `opened` is the index of its first entry.
    Leads {
        term: u64,
        leader: usize,
        opened: u64,
    },
}

/// What a client can be sent.
#[derive(Clone, Debug)]
pub enum ToClient {
    Answer(Answered),
    Reply { call: CallId, reply: Box<Reply> },
}

/// Something that happens.
#[derive(Clone, Debug)]
pub enum Event {
    /// A message arrives; `from` is the node that sent it, if one did.
    Node {
        to: usize,
        from: Option<usize>,
        message: ToNode,
    },
    Client {
        to: usize,
        message: ToClient,
    },
    /// A node may apply up to this index.
    Apply {
        node: usize,
        upto: u64,
    },
    /// Entries in flight of this term are committed.
    Commit {
        term: u64,
    },
    /// A node hands on the renewals it collected.
    Flush {
        node: usize,
        boot: u64,
    },
    /// The leader proposes the renewals it merged.
    Propose {
        node: usize,
        boot: u64,
    },
    /// A node's duties: expiry, read index.
    Tick {
        node: usize,
    },
    /// A node compares clocks with the others.
    Compare {
        node: usize,
    },
    /// A client looks at what is due.
    Wake {
        client: usize,
        generation: u64,
    },
    /// Is there a leader that can commit?
    Supervise,
    /// Somebody asks a node who leads.
    Look,
    /// Something breaks.
    Fault,
    /// A hypervisor stops a client's machine.
    Pause {
        client: usize,
    },
    /// A node starts again.
    Restart {
        node: usize,
    },
    /// A node is connected to the others again.
    Reconnect {
        node: usize,
    },
    /// A client hears again.
    Hear {
        client: usize,
    },
    /// A write reaches the resource that an election guards, whatever became of its writer.
    Write {
        election: ElectionName,
        epoch: Epoch,
    },
}

struct Due {
    at: Time,
    order: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// The queue.
#[derive(Default)]
pub struct Queue {
    heap: BinaryHeap<Due>,
    count: u64,
}

impl Queue {
    /// `event` happens at `at`.
    pub fn push(&mut self, at: Time, event: Event) {
        self.count += 1;
        self.heap.push(Due { at, order: self.count, event });
    }

    /// The next event.
    pub fn pop(&mut self) -> Option<(Time, Event)> {
        self.heap.pop().map(|due| (due.at, due.event))
    }
}
