//! The generated messages, clients and servers of `proto/`.
//!
//! They end in [`crate::convert`]: nothing outside this crate and the handlers that call it should
//! reason about a prost type, because a prost type holds whatever a stranger sent.

/// `regent.v1`: what people, agents and services call.
#[allow(missing_docs, rustdoc::all, clippy::all, clippy::pedantic)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/regent.v1.rs"));
}

/// `regent.raft.v1`: what nodes say to each other.
pub mod raft {
    pub use v1::*;

    // Nested as the packages are: that is how the generated code finds those of `regent.v1`.
    #[allow(missing_docs, rustdoc::all, clippy::all, clippy::pedantic)]
    mod v1 {
        include!(concat!(env!("OUT_DIR"), "/regent.raft.v1.rs"));
    }
}

/// All of `proto/` as an encoded `FileDescriptorSet`, for the reflection service.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
