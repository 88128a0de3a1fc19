//! Routes and those who follow them: real nodes, real routers, and instances that are played.

mod grpc;
mod instances;
mod stage;
