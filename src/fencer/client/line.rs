//! One connection to a fencer: sends requests, reads answers and events, never waits longer than it
//! was told.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::ClientError;
use crate::wire::{self, Event, MAX_LINE_BYTES, Message, Refusal, Reply, Request};

/// Events kept while an answer is awaited.
const MAX_EVENTS: usize = 64;

#[derive(Debug)]
pub(super) struct Line {
    stream: UnixStream,
    received: Vec<u8>,
    events: VecDeque<Event>,
    /// The answer to hello was not read yet.
    owed: bool,
}

impl Line {
    pub(super) fn connect(path: &Path) -> Result<Self, ClientError> {
        let absent = |source| ClientError::Absent { path: path.to_owned(), source };
        let address = SocketAddrUnix::new(path).map_err(|e| absent(e.into()))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|e| absent(e.into()))?;
        match connect(&socket, &address) {
            Ok(()) => {}
            // Its queue is full of connections that it does not accept. A connect of the standard
            // library would wait here for ever.
            Err(rustix::io::Errno::AGAIN) => return Err(ClientError::Silent(Duration::ZERO)),
            Err(error) => return Err(absent(error.into())),
        }
        let stream = UnixStream::from(socket);
        Ok(Self { stream, received: Vec::new(), events: VecDeque::new(), owed: false })
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    pub(super) fn owe(&mut self) {
        self.owed = true;
    }

    /// Whether whoever listens has not closed; true of a frozen process, false of an ended one.
    pub(super) fn check_alive(&self) -> Result<(), ClientError> {
        let mut fds = [PollFd::new(&self.stream, PollFlags::OUT)];
        let lost = |e: io::Error| ClientError::Lost(e);
        poll(&mut fds, Some(&crate::clock::timespec(0))).map_err(|e| lost(e.into()))?;
        if fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
            return Err(lost(ErrorKind::ConnectionReset.into()));
        }
        Ok(())
    }

    pub(super) fn send(&mut self, request: &Request, within: Duration) -> Result<(), ClientError> {
        let bytes = wire::line(request);
        if bytes.len() > MAX_LINE_BYTES {
            return Err(Refusal::Malformed("too long a request".into()).into());
        }
        let until = Instant::now() + within;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    if !self.ready(PollFlags::OUT, until)? {
                        return Err(ClientError::Silent(within));
                    }
                }
                // What the fencer said before it closed is worth more than the broken pipe.
                Err(e) => return Err(self.last_words(until).unwrap_or(ClientError::Lost(e))),
            }
        }
        Ok(())
    }

    fn last_words(&mut self, until: Instant) -> Option<ClientError> {
        match self.message(until) {
            Ok(Some(Message::Reply(Reply::Refused(refusal)))) => Some(refusal.into()),
            _ => None,
        }
    }

    /// One request and its answer; a refusal comes as `Refused`.
    pub(super) fn ask(
        &mut self,
        request: &Request,
        until: Instant,
        within: Duration,
    ) -> Result<Reply, ClientError> {
        self.settle(until, within)?;
        self.send(request, until.saturating_duration_since(Instant::now()))?;
        self.reply(until, within)
    }

    /// Reads the answer to hello.
    pub(super) fn settle(&mut self, until: Instant, within: Duration) -> Result<(), ClientError> {
        if self.owed {
            if let Reply::Refused(refusal) = self.reply(until, within)? {
                // The fencer closes after this; the caller must not use the line again.
                return Err(match refusal {
                    Refusal::Superseded { .. } => refusal.into(),
                    other => ClientError::Strange(other.to_string()),
                });
            }
            self.owed = false;
        }
        Ok(())
    }

    fn reply(&mut self, until: Instant, within: Duration) -> Result<Reply, ClientError> {
        loop {
            match self.message(until)? {
                Some(Message::Reply(reply)) => return Ok(reply),
                Some(Message::Event(event)) => self.keep(event),
                None => return Err(ClientError::Silent(within)),
            }
        }
    }

    fn keep(&mut self, event: Event) {
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    pub(super) fn event(&mut self, until: Instant) -> Result<Option<Event>, ClientError> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        loop {
            match self.message(until)? {
                Some(Message::Event(event)) => return Ok(Some(event)),
                Some(Message::Reply(_)) => {}
                None => return Ok(None),
            }
        }
    }

    /// The next message; `None` if it is not there by `until`.
    fn message(&mut self, until: Instant) -> Result<Option<Message>, ClientError> {
        let mut chunk = [0; 16 * 1024];
        loop {
            if let Some(end) = self.received.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|e| ClientError::Strange(e.to_string()));
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ClientError::Lost(ErrorKind::UnexpectedEof.into())),
                Ok(count) => self.received.extend_from_slice(&chunk[..count]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    if !self.ready(PollFlags::IN, until)? {
                        return Ok(None);
                    }
                }
                Err(e) => return Err(ClientError::Lost(e)),
            }
        }
    }

    fn ready(&self, flags: PollFlags, until: Instant) -> Result<bool, ClientError> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left_us = u64::try_from(left.as_micros()).unwrap_or(u64::MAX);
            let mut fds = [PollFd::from_borrowed_fd(self.stream.as_fd(), flags)];
            match poll(&mut fds, Some(&crate::clock::timespec(left_us))) {
                Ok(count) => return Ok(count > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(ClientError::Lost(error.into())),
            }
        }
    }
}
