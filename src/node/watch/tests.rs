//! Tests of the hub as a whole.
