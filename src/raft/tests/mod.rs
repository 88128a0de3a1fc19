//! Tests of the crate: see the files.
