//! Routes and those who follow them: real nodes, real routers, and instances that are played.

mod envoy;
mod flips;
mod grpc;
pub mod hostile;
mod instances;
mod raw;
mod stage;
