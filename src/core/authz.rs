//! Who may do what (S15): one table, deny by default.
//!
//! A [`Principal`] comes from a verified certificate (`spiffe://<trust>/<role>/<name>`); nothing in
//! a request can raise it. Every port asks [`allows`] before anything else looks at the request.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

use crate::id::{InstanceName, ServiceName};

/// What a certificate may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// A coordinator.
    Node,
    /// The sidecar of one instance; its name is `<service>/<instance>`.
    Agent,
    /// A load balancer.
    Router,
    /// A client of elections: any service that needs one leader.
    Client,
    /// Reads everything but the audit chain.
    Observer,
    /// Runs operations and declares services.
    Operator,
    /// Decides approvals.
    Approver,
    /// Reads everything, the audit chain too.
    Auditor,
    /// Everything a person may do, membership and recovery included.
    Admin,
}

impl Role {
    /// All roles, in the order of the documentation.
    pub const ALL: [Self; 9] = [
        Self::Node,
        Self::Agent,
        Self::Router,
        Self::Client,
        Self::Observer,
        Self::Operator,
        Self::Approver,
        Self::Auditor,
        Self::Admin,
    ];

    /// As in a SPIFFE path.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Agent => "agent",
            Self::Router => "router",
            Self::Client => "client",
            Self::Observer => "observer",
            Self::Operator => "operator",
            Self::Approver => "approver",
            Self::Auditor => "auditor",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Not a role's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no role; roles are node, agent, router, client, observer, operator, approver, auditor, admin"
)]
pub struct UnknownRole(pub String);

impl FromStr for Role {
    type Err = UnknownRole;
    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| UnknownRole(text.to_owned()))
    }
}

/// Who asks, as a certificate says it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Principal {
    /// The role of the SPIFFE path.
    pub role: Role,
    /// The rest of the SPIFFE path.
    pub name: String,
}

impl Principal {
    /// A principal of `role` named `name`.
    pub fn new(role: Role, name: impl Into<String>) -> Self {
        Self { role, name: name.into() }
    }

    /// The cluster acting by itself (expiry of leases, records).
    pub fn cluster() -> Self {
        Self::new(Role::Node, "cluster")
    }

    /// Of an agent: its service and instance, from `<service>/<instance>`.
    pub fn instance(&self) -> Option<(ServiceName, InstanceName)> {
        let (service, instance) = self.name.rsplit_once('/')?;
        let is_agent = self.role == Role::Agent;
        is_agent.then(|| Some((service.parse().ok()?, instance.parse().ok()?)))?
    }

    /// Reads `spiffe://<trust>/<role>/<name>`.
    ///
    /// # Errors
    /// [`SpiffeError`] says which part is wrong.
    pub fn from_spiffe(uri: &str, trust: &str) -> Result<Self, SpiffeError> {
        let path = uri.strip_prefix("spiffe://").ok_or(SpiffeError::Scheme)?;
        let (domain, rest) = path.split_once('/').ok_or(SpiffeError::Path)?;
        if domain != trust {
            return Err(SpiffeError::Trust { got: domain.to_owned(), want: trust.to_owned() });
        }
        let (role, name) = rest.split_once('/').ok_or(SpiffeError::Path)?;
        let role = role.parse().map_err(SpiffeError::Role)?;
        if name.is_empty() || name.len() > crate::limits::MAX_NAME_BYTES {
            return Err(SpiffeError::Path);
        }
        Ok(Self::new(role, name))
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.role, self.name)
    }
}

/// Why a URI names no principal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// Not a `spiffe://` URI.
    #[error("the URI does not begin with spiffe://")]
    Scheme,
    /// Not `<trust>/<role>/<name>`.
    #[error("the URI is not spiffe://<trust>/<role>/<name>")]
    Path,
    /// Another trust domain.
    #[error("trust domain {got:?} is not {want:?}")]
    Trust {
        /// What the certificate says.
        got: String,
        /// What this cluster is.
        want: String,
    },
    /// Not a role.
    #[error(transparent)]
    Role(UnknownRole),
}

/// What can be done. One verb per right, not per call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Verb {
    /// Raft, forwarding and clock exchange among nodes.
    Internal,
    /// Status of nodes and cluster.
    StatusRead,
    /// Members and their roles.
    MembersRead,
    /// Add, promote, remove, transfer; the timing that they all keep.
    MembersWrite,
    /// Services and their policy.
    ServicesRead,
    /// Declare, change, delete services.
    ServicesWrite,
    /// Elections: who leads, with what value.
    ElectionsRead,
    /// Campaign, proclaim, resign with an own session.
    ElectionsLead,
    /// Preferences and deletion of elections.
    ElectionsWrite,
    /// Open, renew, close own sessions.
    Sessions,
    /// Read, verify, export the audit chain.
    AuditRead,
    /// Take a backup: it holds everything, the audit chain too.
    Backup,
    /// Restore, recover: begins a new incarnation.
    Recover,
    /// Speak for one's own instance: starts, receipts, observations.
    InstanceSpeak,
    /// Operations, roles and what explains them.
    OperationsRead,
    /// Switch over, fail over, pause, give up an operation.
    OperationsRun,
    /// Answer approvals.
    ApprovalsAnswer,
}

impl Verb {
    /// All verbs, in the order of the documentation.
    pub const ALL: [Self; 17] = [
        Self::Internal,
        Self::StatusRead,
        Self::MembersRead,
        Self::MembersWrite,
        Self::ServicesRead,
        Self::ServicesWrite,
        Self::ElectionsRead,
        Self::ElectionsLead,
        Self::ElectionsWrite,
        Self::Sessions,
        Self::AuditRead,
        Self::Backup,
        Self::Recover,
        Self::InstanceSpeak,
        Self::OperationsRead,
        Self::OperationsRun,
        Self::ApprovalsAnswer,
    ];

    /// As in an audit record.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::StatusRead => "status.read",
            Self::MembersRead => "members.read",
            Self::MembersWrite => "members.write",
            Self::ServicesRead => "services.read",
            Self::ServicesWrite => "services.write",
            Self::ElectionsRead => "elections.read",
            Self::ElectionsLead => "elections.lead",
            Self::ElectionsWrite => "elections.write",
            Self::Sessions => "sessions",
            Self::AuditRead => "audit.read",
            Self::Backup => "backup",
            Self::Recover => "recover",
            Self::InstanceSpeak => "instance.speak",
            Self::OperationsRead => "operations.read",
            Self::OperationsRun => "operations.run",
            Self::ApprovalsAnswer => "approvals.answer",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The table of rights. What is not listed is denied.
pub fn allows(role: Role, verb: Verb) -> bool {
    use Verb as V;
    match role {
        Role::Node => matches!(verb, V::Internal | V::StatusRead | V::MembersRead),
        Role::Agent => {
            matches!(
                verb,
                V::StatusRead
                    | V::ServicesRead
                    | V::ElectionsRead
                    | V::Sessions
                    | V::InstanceSpeak
                    | V::OperationsRead
            )
        }
        Role::Router => matches!(verb, V::StatusRead | V::ServicesRead | V::ElectionsRead),
        Role::Client => {
            matches!(verb, V::StatusRead | V::ElectionsRead | V::ElectionsLead | V::Sessions)
        }
        Role::Observer => matches!(
            verb,
            V::StatusRead | V::MembersRead | V::ServicesRead | V::ElectionsRead | V::OperationsRead
        ),
        Role::Approver => matches!(
            verb,
            V::StatusRead
                | V::MembersRead
                | V::ServicesRead
                | V::ElectionsRead
                | V::OperationsRead
                | V::ApprovalsAnswer
        ),
        Role::Auditor => matches!(
            verb,
            V::StatusRead
                | V::MembersRead
                | V::ServicesRead
                | V::ElectionsRead
                | V::AuditRead
                | V::OperationsRead
        ),
        Role::Operator => matches!(
            verb,
            V::StatusRead
                | V::MembersRead
                | V::ServicesRead
                | V::ServicesWrite
                | V::ElectionsRead
                | V::ElectionsLead
                | V::ElectionsWrite
                | V::Sessions
                | V::OperationsRead
                | V::OperationsRun
        ),
        // A person's certificate must never speak Raft, nor for an instance.
        Role::Admin => !matches!(verb, V::Internal | V::InstanceSpeak),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_but_a_node_speaks_raft() {
        for role in Role::ALL {
            assert_eq!(allows(role, Verb::Internal), role == Role::Node, "{role}");
        }
    }

    #[test]
    fn a_spiffe_uri_of_another_trust_domain_is_no_principal() {
        let got = Principal::from_spiffe("spiffe://other/admin/eve", "here");
        assert!(matches!(got, Err(SpiffeError::Trust { .. })));
        let ok = Principal::from_spiffe("spiffe://here/agent/orders/pg1", "here");
        assert_eq!(ok, Ok(Principal::new(Role::Agent, "orders/pg1")));
    }
}
