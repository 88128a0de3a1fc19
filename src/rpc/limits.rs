//! The bounds of the wire, each with its reason. Servers and clients set them on every generated
//! service (`max_decoding_message_size`, `max_encoding_message_size`).

use std::time::Duration;

use regent_core::limits::MAX_ENTRY_BYTES;

/// A request from outside: the largest is a service declaration or a renewal batch, and neither
/// may become an entry above [`MAX_ENTRY_BYTES`].
pub const MAX_REQUEST_BYTES: usize = MAX_ENTRY_BYTES;
/// An answer to the outside: a page of a list has 4 MiB and a row, the rest is room for nodes that
/// do not page.
pub const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// A message among nodes: a batch of appended entries, or a chunk of a snapshot.
pub const MAX_PEER_MESSAGE_BYTES: usize = 32 * 1024 * 1024;
/// Chunk of a snapshot or backup on the wire: large enough to be few, small enough not to delay a
/// heartbeat that shares the connection.
pub const CHUNK_BYTES: usize = 256 * 1024;
/// Renewals in one keep-alive message: one message is decoded and checked without a pause.
pub const MAX_RENEWALS_PER_MESSAGE: usize = 1_000;
/// A message of many small calls on one stream. A message this large of the smallest calls takes a
/// few MiB when decoded.
pub const MAX_CARRIED_BYTES: usize = 128 * 1024;
/// A message of an agent: an observation with as many neighbours as a service may have instances
/// takes less than half of it.
pub const MAX_AGENT_MESSAGE_BYTES: usize = 64 * 1024;
/// Streams one connection may have open: a client that multiplexes needs a few, never thousands.
pub const MAX_STREAMS_PER_CONNECTION: u32 = 1_024;
/// Bytes of headers in one request: names and a deadline.
pub const MAX_HEADER_BYTES: u32 = 16 * 1024;

/// A server or client that hears nothing on an idle connection asks after this long.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// And gives the connection up when there is no answer for this long: without it a silently
/// dropped peer would hold a stream until the kernel's timeout of minutes.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for a TCP connection and its TLS handshake when dialling.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_000);
