//! The connections of the init: a listening Unix socket, and per connection one buffer each way, all
//! without ever waiting. Bytes in here are whatever a peer sent.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::wire::{self, AgentId, MAX_LINE_BYTES, Message, Refusal, Reply};

/// Connections at a time. An agent has two; the rest is room for its predecessor's and strangers'.
const MAX_PEERS: usize = 16;
/// Bytes waiting for a peer that does not read; more ends the connection.
const MAX_UNSENT_BYTES: usize = 1024 * 1024;
/// Requests taken from one connection before the loop turns to its deadlines again.
const MAX_LINES_A_ROUND: usize = 16;

pub(super) struct Peer {
    pub(super) stream: UnixStream,
    pub(super) agent: Option<AgentId>,
    pub(super) watch: bool,
    /// Ends as soon as what it was told is sent.
    closing: bool,
    gone: bool,
    received: Vec<u8>,
    unsent: Vec<u8>,
}

pub(super) struct Peers {
    pub(super) listener: UnixListener,
    pub(super) all: Vec<Peer>,
    /// Whether peers from inside the namespace can be told, and are turned away.
    inside_refused: bool,
}

impl Peers {
    /// Listens on `path`, which the caller's lock makes this process's own.
    pub(super) fn bind(path: &Path, inside_refused: bool) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, all: Vec::new(), inside_refused })
    }

    pub(super) fn accept(&mut self) {
        // A bounded number, for the same reason as with lines.
        for _ in 0..MAX_PEERS {
            let Ok((stream, _)) = self.listener.accept() else { return };
            if !self.welcome(&stream) || stream.set_nonblocking(true).is_err() {
                continue;
            }
            if self.all.len() >= MAX_PEERS {
                // Whoever never said hello goes first; else the oldest.
                let at = self.all.iter().position(|p| p.agent.is_none()).unwrap_or(0);
                self.all.remove(at);
            }
            self.all.push(Peer {
                stream,
                agent: None,
                watch: false,
                closing: false,
                gone: false,
                received: Vec::new(),
                unsent: Vec::new(),
            });
        }
    }

    /// The same user or root, and nobody from inside: what is fenced must not move its own deadline.
    /// A process outside the namespace has no pid in it, which the kernel shows as zero.
    fn welcome(&self, stream: &UnixStream) -> bool {
        let Ok(peer) = getsockopt(stream, PeerCredentials) else { return false };
        let same = peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw();
        same && !(self.inside_refused && peer.pid() != 0)
    }

    /// Forgets whoever is gone, and whoever was told why and has nothing more to get.
    pub(super) fn sweep(&mut self) {
        self.all.retain(|p| !(p.gone || p.closing && p.unsent.is_empty()));
    }
}

impl Peer {
    pub(super) fn wants_write(&self) -> bool {
        !self.unsent.is_empty()
    }

    pub(super) fn send(&mut self, message: &Message) {
        self.unsent.extend(wire::line(message));
        if self.unsent.len() > MAX_UNSENT_BYTES {
            self.gone = true;
        }
        self.flush();
    }

    pub(super) fn flush(&mut self) {
        while !self.unsent.is_empty() && !self.gone {
            match self.stream.write(&self.unsent) {
                Ok(0) => self.gone = true,
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.gone = true,
            }
        }
    }

    /// Says why, and ends.
    pub(super) fn refuse_and_close(&mut self, refusal: Refusal) {
        self.send(&Message::Reply(Reply::Refused(refusal)));
        self.closing = true;
    }

    /// Reads what is there and gives the whole lines of it; at most [`MAX_LINES_A_ROUND`].
    pub(super) fn lines(&mut self) -> Vec<Vec<u8>> {
        let mut chunk = [0; 16 * 1024];
        while self.received.len() <= MAX_LINE_BYTES && !self.gone && !self.closing {
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    self.gone = true;
                    break;
                }
                Ok(count) => self.received.extend_from_slice(&chunk[..count]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.gone = true,
            }
        }
        let mut lines = Vec::new();
        while lines.len() < MAX_LINES_A_ROUND {
            let Some(end) = self.received.iter().position(|b| *b == b'\n') else { break };
            let rest = self.received.split_off(end + 1);
            lines.push(std::mem::replace(&mut self.received, rest));
        }
        if self.received.len() > MAX_LINE_BYTES && !self.received.contains(&b'\n') {
            self.refuse_and_close(Refusal::Malformed("too long a line".into()));
            self.received.clear();
        }
        lines
    }

    /// Whole lines are waiting that [`Peer::lines`] did not give yet.
    pub(super) fn has_more(&self) -> bool {
        !self.closing && !self.gone && self.received.contains(&b'\n')
    }
}
