//! Which names there are: `<role>.<service>.<zone>`, `<instance>.<service>.<zone>`, and what lies
//! between and below.
//!
//! Names are compared without case, as DNS does. A service or an instance has a name here when its
//! own name is one label: letters, digits, `-` and `_`, at most 63 of them.

use std::net::{IpAddr, SocketAddr};

use hickory_proto::rr::Name;

/// Longest zone: below it there must be room for the longest instance of the longest service, or for
/// `_postgresql._tcp.replicas` of it.
const MAX_ZONE_BYTES: usize = 120;
/// Longest label (RFC 1035).
const MAX_LABEL_BYTES: usize = 63;

/// Why a text is no name of DNS.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// It is empty, or has an empty label.
    #[error("a part of it is empty")]
    Empty,
    /// A label is longer than DNS allows.
    #[error("{0:?} has more than 63 bytes")]
    LongLabel(String),
    /// A character that does not belong there.
    #[error("it has {0:?}; allowed are letters, digits, '-', '_' and dots between them")]
    BadCharacter(char),
    /// The whole is too long.
    #[error("it has {0} bytes, the most is {MAX_ZONE_BYTES}")]
    Long(usize),
}

/// The label of a service's or an instance's name: lower case. `None`: it has none.
pub fn label_of(name: &str) -> Option<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let is_label = (1..=MAX_LABEL_BYTES).contains(&name.len()) && name.chars().all(fits);
    is_label.then(|| name.to_ascii_lowercase())
}

/// A name of several labels, with or without the dot at its end.
pub(crate) fn name_of(text: &str) -> Result<Name, BadName> {
    let text = text.strip_suffix('.').unwrap_or(text);
    if text.len() > MAX_ZONE_BYTES * 2 {
        return Err(BadName::Long(text.len()));
    }
    let mut labels = Vec::new();
    for part in text.split('.') {
        let label =
            label_of(part).ok_or_else(|| match part.chars().find(|c| !is_of_label(*c)) {
                Some(c) => BadName::BadCharacter(c),
                None if part.is_empty() => BadName::Empty,
                None => BadName::LongLabel(part.to_owned()),
            })?;
        labels.push(label.into_bytes());
    }
    let labels = labels.iter().map(Vec::as_slice);
    Name::from_labels(labels).map_err(|_| BadName::Long(text.len()))
}

fn is_of_label(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_')
}

/// Who takes what a client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Primary,
    Replicas,
}

impl Role {
    fn of(label: &str) -> Option<Self> {
        match label {
            "primary" => Some(Self::Primary),
            "replicas" => Some(Self::Replicas),
            _ => None,
        }
    }
}

/// What a name of the zone is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The zone itself.
    Apex,
    /// This server, where nobody named another one; a service of that name is there too.
    Server,
    /// Something of a service, which has to be there.
    Of { service: String, part: Part },
    /// No service could have it.
    Nothing,
}

/// What of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Nothing stands at the name, but below it.
    Between,
    /// Addresses of those who have a role.
    Role(Role),
    /// The same with ports and order.
    Ports(Role),
    /// The address of an instance, whatever its role.
    Instance(String),
    /// There is no such name.
    Unknown,
}

/// The zone that is answered for.
#[derive(Clone, Debug)]
pub struct Zone {
    pub(crate) origin: Name,
    /// How long answers may be kept, in seconds.
    pub(crate) ttl: u32,
    /// Its servers; the first is named in the SOA, too.
    pub(crate) servers: Vec<Name>,
    /// Address of [`Asked::Server`].
    pub(crate) own: Option<IpAddr>,
    /// Whether `ns.<zone>` is this server.
    names_itself: bool,
}

impl Zone {
    /// Zone `origin`, whose answers may be kept for `ttl` seconds. `servers`: its name servers as the
    /// zone above names them; none: `ns.<zone>`, which is at `listens`.
    ///
    /// # Errors
    /// What is wrong with `origin` or one of `servers`.
    pub fn new(
        origin: &str,
        ttl: u32,
        servers: &[String],
        listens: SocketAddr,
    ) -> Result<Self, BadName> {
        let origin = name_of(origin)?;
        if origin.len() > MAX_ZONE_BYTES {
            return Err(BadName::Long(origin.len()));
        }
        let mut servers: Vec<_> =
            servers.iter().map(|name| name_of(name)).collect::<Result<_, _>>()?;
        let names_itself = servers.is_empty();
        if names_itself {
            let own = origin.prepend_label("ns").map_err(|_| BadName::Long(origin.len()))?;
            servers.push(own);
        }
        let own = Some(listens.ip()).filter(|ip| names_itself && !ip.is_unspecified());
        Ok(Self { origin, ttl, servers, own, names_itself })
    }

    /// Whether `name` lies in the zone.
    pub(crate) fn holds(&self, name: &Name) -> bool {
        self.origin.zone_of(name)
    }

    /// What `name`, which lies in the zone, is.
    pub(crate) fn asked(&self, name: &Name) -> Asked {
        let above = usize::from(self.origin.num_labels());
        let labels: Option<Vec<String>> = name.iter().map(label_in).collect();
        let Some(labels) = labels else { return Asked::Nothing };
        let below = &labels[..labels.len().saturating_sub(above)];
        let below: Vec<&str> = below.iter().map(String::as_str).collect();
        let Some((service, of_it)) = below.split_last() else { return Asked::Apex };
        let part = match of_it {
            [] if self.names_itself && *service == "ns" => return Asked::Server,
            [] => Part::Between,
            [one] => match Role::of(one) {
                Some(role) => Part::Role(role),
                None => Part::Instance((*one).to_owned()),
            },
            ["_tcp", role] if Role::of(role).is_some() => Part::Between,
            ["_postgresql", "_tcp", role] => Role::of(role).map_or(Part::Unknown, Part::Ports),
            _ => Part::Unknown,
        };
        Asked::Of { service: (*service).to_owned(), part }
    }

    /// `<instance>.<service>.<zone>`, where there is such a name that is the instance's alone.
    pub(crate) fn of_instance(&self, service: &str, instance: &str) -> Option<Name> {
        let (service, instance) = (label_of(service)?, label_of(instance)?);
        if Role::of(&instance).is_some() {
            return None;
        }
        let of_service = self.origin.prepend_label(service.as_bytes()).ok()?;
        of_service.prepend_label(instance.as_bytes()).ok()
    }

    /// Whether an instance can be found here; where not, why.
    pub fn leaves_out(&self, service: &str, instance: &str, address: &str) -> Option<&'static str> {
        match crate::records::host(self, address) {
            None => Some("its address is no name of DNS, or one of this zone"),
            Some((crate::records::Host::Name(_), _)) => None,
            Some((crate::records::Host::Ip(_), _)) => {
                let none = self.of_instance(service, instance).is_none();
                none.then_some("its name is no label of its own, so SRV cannot name it")
            }
        }
    }
}

/// A label as it is compared; `None`: none of ours looks like this.
fn label_in(label: &[u8]) -> Option<String> {
    label_of(std::str::from_utf8(label).ok()?)
}
