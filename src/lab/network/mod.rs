//! A network of the lab's own, so that links can be cut for real: every node and every instance is a
//! *machine* with its own network namespace, address and ports, all on one switch.
//!
//! ```text
//!  caller's namespace          namespace <id>-switch                 namespace <id>-pg1
//!  <id> 10.87.N.254  ──veth──  client ─┐                            (agent, fencer, PostgreSQL)
//!                                      ├─ bridge ─ pg1 ──veth── eth0 10.87.N.1
//!                                      │         ─ node-1 ──veth── eth0 10.87.N.101
//!                                      └ nft: packets of cut pairs are dropped
//! ```
//!
//! A killed process still says goodbye: its kernel sends FIN or RST for it. A machine that lost its
//! power or its cable says nothing. Cuts are drops on the switch, below both ends, so neither kernel
//! knows ([`Network::cut`]).
//!
//! Nothing leaves: no namespace has a route but its own /24, and the switch has no port to anywhere
//! but the machines and the caller. Whatever is made has the lab's id in its name, and that id is in
//! the lab's file before anything is made: a later call finds and removes all of it ([`Network::remove`]),
//! and nothing else.

mod cut;
mod space;

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;

use rand::RngExt as _;
use serde::{Deserialize, Serialize};

pub use cut::{Cut, Pair};
pub use space::within;

/// First two bytes of every lab's addresses; the third one is the lab's.
const NET: [u8; 2] = [10, 87];
/// Last byte of the caller's address.
const CLIENT: u8 = 254;
/// Last bytes of nodes' addresses come after this one, those of instances after 0.
const NODES: u8 = 100;
/// Where the caller's side is named in cuts.
pub const CLIENT_NAME: &str = "client";
/// Third bytes that are tried before giving up: labs at the same time are few.
const TRIES: usize = 32;
/// To make namespaces and their links: CAP_NET_ADMIN and CAP_SYS_ADMIN, as bits.
const NEEDED: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];

/// Ports of a machine: nobody else listens in its namespace.
pub mod port {
    /// A node's gRPC port.
    pub const GRPC: u16 = 7400;
    /// A node's HTTP port.
    pub const HTTP: u16 = 7401;
    /// PostgreSQL's.
    pub const POSTGRES: u16 = 5432;
    /// An agent's HTTP port.
    pub const AGENT: u16 = 8008;
}

/// A lab's network, as kept in its directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Beginning of every name of it; of this lab alone.
    pub id: String,
    /// Third byte of its addresses.
    pub subnet: u8,
    /// Who is in it.
    pub machines: Vec<Machine>,
}

/// One end of the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// `node-1`, `pg1`, ...
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Its address.
    pub address: Ipv4Addr,
}

/// Why the network cannot be made, cut or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Not root, or a container without the right.
    #[error("a network of its own needs {missing}")]
    NotAllowed {
        /// The capability.
        missing: &'static str,
    },
    /// A program is not installed.
    #[error("{program} is not installed")]
    NoProgram {
        /// Which.
        program: &'static str,
        /// In which Debian package it is.
        package: &'static str,
    },
    /// All addresses are taken.
    #[error("no free network was found in {}.{}.0.0/16", NET[0], NET[1])]
    NoSubnet,
    /// A program said no.
    #[error("cannot {what}: {said}")]
    Refused {
        /// What was being done.
        what: String,
        /// What it said.
        said: String,
    },
    /// The system refused.
    #[error("cannot {what}")]
    System {
        /// What was being done.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody of this name.
    #[error("{name:?} is no machine of this lab; there are {}", known.join(", "))]
    Unknown {
        /// What was said.
        name: String,
        /// What could have been said.
        known: Vec<String>,
    },
    /// The lab is not of that kind.
    #[error("this lab shares the network of its machine")]
    None,
}

impl Network {
    /// A name and nothing more yet: to be written down before [`Network::claim`].
    ///
    /// # Errors
    /// This machine cannot make networks.
    pub fn plan() -> Result<Self, NetworkError> {
        survey()?;
        let mut random = rand::rng();
        let id = format!("rg{:08x}", random.random::<u32>());
        Ok(Self { id, subnet: random.random_range(1..=254), machines: Vec::new() })
    }

    /// The addresses of an instance (`at` from 0) or a node (`id` from 1).
    pub const fn address_of_instance(&self, at: u8) -> Ipv4Addr {
        Ipv4Addr::new(NET[0], NET[1], self.subnet, 1 + at)
    }

    /// See [`Network::address_of_instance`].
    pub const fn address_of_node(&self, id: u8) -> Ipv4Addr {
        Ipv4Addr::new(NET[0], NET[1], self.subnet, NODES + id)
    }

    /// The caller's own.
    pub const fn address_of_client(&self) -> Ipv4Addr {
        Ipv4Addr::new(NET[0], NET[1], self.subnet, CLIENT)
    }

    /// Makes the switch and the caller's own link to it, and finds a subnet that nobody has.
    ///
    /// # Errors
    /// What is half made is found again by the id.
    pub fn claim(&mut self) -> Result<(), NetworkError> {
        let (id, switch) = (self.id.clone(), self.space("switch"));
        space::ip(
            "make the switch",
            None,
            &format!(
                "netns add {switch}\n\
                 link add {id} type veth peer name {CLIENT_NAME} netns {switch}\n\
                 link set {id} up\n"
            ),
        )?;
        space::ip(
            "make the switch",
            Some(&switch),
            &format!(
                "link add bridge type bridge\n\
                 link set {CLIENT_NAME} master bridge\n\
                 link set {CLIENT_NAME} up\n\
                 link set bridge up\n"
            ),
        )?;
        cut::prepare(&switch)?;
        let mut tries = 0;
        // The route is the claim: a second one to the same addresses is refused.
        while let Err(error) = self.route() {
            tries += 1;
            if tries == TRIES {
                return Err(error);
            }
            self.subnet = rand::rng().random_range(1..=254);
        }
        let own = self.address_of_client();
        space::ip("take an address", None, &format!("addr add {own}/32 dev {id}\n"))
    }

    fn route(&self) -> Result<(), NetworkError> {
        let (id, net) = (&self.id, self.net());
        // An address or a route within, of whoever: taken.
        let taken = space::said("look at the routes", &["-4", "route", "show", "root", &net])?;
        if !taken.trim().is_empty() {
            return Err(NetworkError::NoSubnet);
        }
        let route = format!("route add {net} dev {id}\n");
        space::ip("take a network", None, &route)
    }

    /// All of its addresses.
    pub fn net(&self) -> String {
        format!("{}.{}.{}.0/24", NET[0], NET[1], self.subnet)
    }

    /// Makes a machine that is in the list; whoever calls has written the list down.
    ///
    /// # Errors
    /// What is half made is found again by the id.
    pub fn join(&self, machine: &Machine) -> Result<(), NetworkError> {
        let what = format!("make the network of {}", machine.name);
        let (space, switch) = (self.space(&machine.name), self.space("switch"));
        let (name, address) = (&machine.name, machine.address);
        space::ip(
            &what,
            None,
            &format!(
                "netns add {space}\n\
                 link add eth0 netns {space} type veth peer name {name} netns {switch}\n"
            ),
        )?;
        let port = format!("link set {name} master bridge\nlink set {name} up\n");
        space::ip(&what, Some(&switch), &port)?;
        let own = format!("link set lo up\naddr add {address}/24 dev eth0\nlink set eth0 up\n");
        space::ip(&what, Some(&space), &own)
    }

    /// The name of a machine's namespace.
    pub fn space(&self, machine: &str) -> String {
        format!("{}-{machine}", self.id)
    }

    /// Removes every namespace and link that has this lab's id; what was not made is no error.
    ///
    /// # Errors
    /// The system refused; the rest was tried all the same.
    pub fn remove(&self) -> Result<(), NetworkError> {
        let what = "remove the lab's network";
        let all = space::all().map_err(|source| system(what, source))?;
        let own = format!("{}-", self.id);
        let mut first = Ok(());
        for space in all.iter().filter(|name| name.starts_with(&own)) {
            first = first.and(space::ip(what, None, &format!("netns del {space}\n")));
        }
        // With the switch goes its end of the veth, and with that ours; sooner or later.
        if std::path::Path::new("/sys/class/net").join(&self.id).exists() {
            let gone = space::ip(what, None, &format!("link del {}\n", self.id));
            if std::path::Path::new("/sys/class/net").join(&self.id).exists() {
                first = first.and(gone);
            }
        }
        first
    }

    /// The machines that a person's word means: one by its name, a zone's, or the caller.
    ///
    /// # Errors
    /// Nobody is called so.
    pub fn parties(&self, word: &str) -> Result<Vec<(String, Ipv4Addr)>, NetworkError> {
        if word == CLIENT_NAME {
            return Ok(vec![(CLIENT_NAME.to_owned(), self.address_of_client())]);
        }
        let meant = |machine: &&Machine| machine.name == word || machine.zone == word;
        let found: Vec<_> = self
            .machines
            .iter()
            .filter(meant)
            .map(|machine| (machine.name.clone(), machine.address))
            .collect();
        if !found.is_empty() {
            return Ok(found);
        }
        let zones: BTreeSet<&String> = self.machines.iter().map(|one| &one.zone).collect();
        let names = self.machines.iter().map(|one| &one.name).chain(zones).cloned();
        let known = names.chain([CLIENT_NAME.to_owned()]).collect();
        Err(NetworkError::Unknown { name: word.to_owned(), known })
    }
}

fn system(what: &str, source: io::Error) -> NetworkError {
    NetworkError::System { what: what.to_owned(), source }
}

/// Whether this machine and its user can do it at all, before anything is made.
fn survey() -> Result<(), NetworkError> {
    let status = std::fs::read_to_string("/proc/self/status")
        .map_err(|source| system("read /proc/self/status", source))?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or(0);
    if let Some((_, missing)) = NEEDED.iter().find(|(bit, _)| effective >> bit & 1 == 0) {
        return Err(NetworkError::NotAllowed { missing });
    }
    for (program, package) in [("ip", "iproute2"), ("nft", "nftables")] {
        if space::program(program).is_none() {
            return Err(NetworkError::NoProgram { program, package });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    pub(super) fn network() -> Network {
        let mut network = Network { id: "rg0".into(), subnet: 7, machines: Vec::new() };
        for (at, zone) in (0..3).zip(["a", "b", "c"]) {
            let (node, db) = (network.address_of_node(at + 1), network.address_of_instance(at));
            for (name, address) in
                [(format!("node-{}", at + 1), node), (format!("pg{}", at + 1), db)]
            {
                network.machines.push(Machine { name, zone: zone.into(), address });
            }
        }
        network
    }

    #[test]
    fn a_word_means_a_machine_a_zone_or_the_caller_and_an_unknown_one_is_answered_with_all() {
        let network = network();
        let names = |word: &str| -> Vec<String> {
            network.parties(word).unwrap().into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(names("pg2"), ["pg2"]);
        assert_eq!(names("b"), ["node-2", "pg2"]);
        assert_eq!(names("client"), ["client"]);
        let error = network.parties("pg9").unwrap_err().to_string();
        assert!(error.contains("pg3") && error.contains("node-1") && error.contains("client"));
    }

    #[test]
    fn no_address_is_given_twice() {
        let network = network();
        let mut all: Vec<_> = network.machines.iter().map(|one| one.address).collect();
        all.push(network.address_of_client());
        let different: BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
    }
}
