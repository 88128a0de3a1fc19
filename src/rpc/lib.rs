//! regent-rpc: the wire. Generated messages and their conversion, mutual TLS, certificates, and
//! the client that other programs use.
//!
//! # Map
//!
//! - [`pb`]: generated from `proto/`; [`convert`]: between its types and the core's, checked.
//! - [`tls`]: who is at the other end, and hot reload; [`pki`]: a small CA for people without one.
//! - [`channel`]: dialling one node; [`calls`]: asking it, many calls over one stream ([`mux`]).
//! - [`client`]: talking to the cluster: leader hints, retries, watches, sessions and leases.
//! - [`codec`]: how messages get onto the wire; [`limits`]: how large and how many they may be.
//! - [`clock`]: the only place that reads a clock.
//!
//! Nothing here decides: what a request may do, and what becomes of it, is the core's business.

pub mod calls;
pub mod channel;
pub mod client;
pub mod clock;
pub mod codec;
pub mod convert;
pub mod limits;
pub mod mux;
pub mod pb;
pub mod pki;
#[cfg(test)]
mod testing;
pub mod tls;
