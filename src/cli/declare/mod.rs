//! Service declarations in TOML: from a file to a checked `ServiceSpec`, every problem at once.
//!
//! ```toml
//! name = "orders"
//! description = "Orders of the web shop"
//!
//! [policy]
//! mode = "quorum"
//! ttl_ms = 5000
//!
//! [[instances]]
//! name = "pg1"
//! address = "db1.example.org:5432"
//! priority = 100
//! locality = { region = "eu", zone = "a", host = "db1" }
//! ```
//! Whether a declaration makes sense is judged by the core (`ServiceSpec::validate`), here before
//! anything is sent and by `apply` again. What is judged here is only what the core cannot see:
//! keys that do not exist and values of another type.

mod reader;
mod service;

pub use service::{TEMPLATE, parse};
