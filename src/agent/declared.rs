//! What the coordinators know of this instance's service, asked once by the verbs that change who
//! manages a directory.

use std::sync::Arc;

use regent_rpc::client::{CallErrorKind, Client, ClientOptions};
use regent_rpc::convert::common::Freshness;
use regent_rpc::pb::v1;
use regent_rpc::tls::Tls;

use crate::config::AgentConfig;

/// The service, as far as it is declared.
#[derive(Clone, Debug, Default)]
pub(crate) struct Declared {
    /// It is.
    pub service: bool,
    /// So is this instance.
    pub instance: bool,
    /// Its role, once an agent of it has reported.
    pub role: Option<v1::Role>,
}

impl Declared {
    /// Who was granted the role last.
    pub fn holder(&self) -> Option<&str> {
        let holder = self.role.as_ref().map(|role| role.holder.as_str());
        holder.filter(|name| !name.is_empty())
    }
}

/// Asks, so that the answer is of now.
///
/// # Errors
/// Why nobody could be asked, for people.
pub(crate) async fn ask(config: &AgentConfig, tls: Arc<Tls>) -> Result<Declared, String> {
    let failed = |error: &dyn std::fmt::Display| format!("the nodes cannot be asked: {error}");
    let client = Client::new(&config.nodes, tls, ClientOptions::default())
        .map_err(|error| failed(&error))?;
    let read = Freshness::Linearizable;
    let spec = match client.get_service(&config.service, read).await {
        Ok(found) => found.service.and_then(|service| service.spec).unwrap_or_default(),
        Err(error) if error.kind() == CallErrorKind::NotFound => return Ok(Declared::default()),
        Err(error) => return Err(failed(&error)),
    };
    let instance = spec.instances.iter().any(|it| it.name == config.instance.as_str());
    let roles = client.list_roles(Some(&config.service), read).await;
    let role = roles.map_err(|error| failed(&error))?.roles.into_iter().next();
    Ok(Declared { service: true, instance, role })
}
