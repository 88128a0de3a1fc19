//! What Envoy is started with, by the identity that this verb is run with.

use regent_xds::bootstrap::{self, Listens, Nodes, Who};
use serde_json::Value;

use crate::connect::{Dialer, Settings};
use crate::error::{CliError, Outcome};

/// The bootstrap; with the certificate of these settings, which must be of a role that may read
/// services: `router`.
///
/// # Errors
/// A node's address is none, or the certificate cannot be used.
pub fn envoy(settings: &Settings, who: &Who<'_>, listens: &Listens<'_>) -> Outcome<Value> {
    let trust_domain = Dialer::new(settings)?.trust();
    let nodes = Nodes {
        endpoints: &settings.endpoints,
        trust_domain: &trust_domain,
        cert: &settings.cert,
        key: &settings.key,
        ca: &settings.ca,
    };
    bootstrap::envoy(&nodes, who, listens).map_err(CliError::usage)
}
