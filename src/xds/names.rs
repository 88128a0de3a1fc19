//! What resources are called: `<service>.write` and `<service>.read`, whatever their kind.

use std::fmt;

use regent_core::id::ServiceName;

/// What of a service a client wants to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Its one primary.
    Write,
    /// Who takes reads, the nearest first.
    Read,
}

impl Side {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Write, Self::Read];

    /// The last part of the name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Read => "read",
        }
    }
}

/// A side of a service: the name of a resource of each kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// Whose.
    pub service: ServiceName,
    /// Which of its routes.
    pub side: Side,
}

impl Name {
    /// Reads `text`; `None`: no resource can have this name. Names of services may have dots.
    pub fn parse(text: &str) -> Option<Self> {
        let (service, side) = text.rsplit_once('.')?;
        let side = Side::ALL.into_iter().find(|one| one.as_str() == side)?;
        Some(Self { service: ServiceName::parse(service).ok()?, side })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.service, self.side.as_str())
    }
}

/// A kind of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// CDS.
    Cluster,
    /// EDS.
    Endpoints,
    /// LDS.
    Listener,
    /// RDS.
    Route,
}

impl Kind {
    /// In the order that new things are sent in: what is referred to comes before what refers to it
    /// (make before break).
    pub const MAKE: [Self; 4] = [Self::Cluster, Self::Endpoints, Self::Listener, Self::Route];
    /// In the order that things which are gone are sent in.
    pub const BREAK: [Self; 4] = [Self::Listener, Self::Route, Self::Cluster, Self::Endpoints];

    /// As clients call it.
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    /// The kind that clients call `url`.
    pub fn of(url: &str) -> Option<Self> {
        Self::MAKE.into_iter().find(|kind| kind.type_url() == url)
    }

    /// For a metric's label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "cds",
            Self::Endpoints => "eds",
            Self::Listener => "lds",
            Self::Route => "rds",
        }
    }

    /// Whether a client may ask for all there is, and an answer in state-of-the-world form must be
    /// complete: what it leaves out is deleted.
    pub const fn is_whole(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_service_and_a_side_and_services_may_have_dots() {
        for text in ["orders.write", "team/orders.eu.read"] {
            assert_eq!(Name::parse(text).map(|name| name.to_string()).as_deref(), Some(text));
        }
        for text in ["", "orders", ".write", "orders.Write", "orders.writer", "o rders.read", "*"] {
            assert_eq!(Name::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn kinds_are_found_by_their_url() {
        for kind in Kind::MAKE {
            assert_eq!(Kind::of(kind.type_url()), Some(kind));
            assert!(Kind::BREAK.contains(&kind));
        }
        assert_eq!(Kind::of("type.googleapis.com/envoy.config.core.v3.Node"), None);
    }
}
