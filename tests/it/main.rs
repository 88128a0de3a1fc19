//! The end-to-end tests: one binary, real processes, real certificates, loopback only.
