//! Cutting links and mending them: a set of ordered pairs of addresses on the switch, whose packets
//! are dropped, those of open connections too.
//!
//! Addresses are still found (ARP passes): what is cut looks like a silent machine behind a router,
//! the worst case. Without that, connections would fail after three seconds by themselves.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde::Serialize;

use super::{Network, NetworkError, space};

/// One direction that is cut.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Pair {
    /// Whose packets.
    pub from: Ipv4Addr,
    /// To whom.
    pub to: Ipv4Addr,
}

/// What to cut.
#[derive(Clone, Debug, Default)]
pub struct Cut {
    /// A machine, a zone, or `client`.
    pub who: String,
    /// From whom; nobody named: from everybody.
    pub from: Vec<String>,
    /// Only what `who` sends is dropped; it still hears the others.
    pub one_way: bool,
}

/// The rule that drops what is in the set.
pub(super) fn prepare(switch: &str) -> Result<(), NetworkError> {
    let script = "table bridge regent {\n\
                  set cut { type ipv4_addr . ipv4_addr; }\n\
                  chain forward {\n\
                  type filter hook forward priority 0; policy accept;\n\
                  ip saddr . ip daddr @cut counter drop\n\
                  }\n}\n";
    space::nft("prepare the switch", switch, script).map(|_| ())
}

impl Network {
    /// Cuts, all directions at the same instant; says which.
    ///
    /// # Errors
    /// A name is not known, or the switch refused.
    pub fn cut(&self, cuts: &[Cut]) -> Result<Vec<Pair>, NetworkError> {
        let mut pairs = BTreeSet::new();
        for cut in cuts {
            pairs.extend(self.pairs(cut)?);
        }
        let pairs: Vec<Pair> = pairs.into_iter().collect();
        if pairs.is_empty() {
            return Ok(pairs);
        }
        let elements: Vec<String> =
            pairs.iter().map(|pair| format!("{} . {}", pair.from, pair.to)).collect();
        // One command is one transaction: no packet sees half of the cut.
        let script = format!("add element bridge regent cut {{ {} }}\n", elements.join(", "));
        space::nft("cut links", &self.space("switch"), &script)?;
        Ok(pairs)
    }

    /// Mends everything that was cut.
    ///
    /// # Errors
    /// The switch refused.
    pub fn mend(&self) -> Result<(), NetworkError> {
        space::nft("mend links", &self.space("switch"), "flush set bridge regent cut\n").map(|_| ())
    }

    fn pairs(&self, cut: &Cut) -> Result<Vec<Pair>, NetworkError> {
        let who = self.parties(&cut.who)?;
        let mut from = Vec::new();
        for word in &cut.from {
            from.extend(self.parties(word)?);
        }
        if cut.from.is_empty() {
            from.extend(self.machines.iter().map(|one| (one.name.clone(), one.address)));
            from.extend(self.parties(super::CLIENT_NAME)?);
        }
        // Within a zone that is cut as a whole everything goes on.
        from.retain(|other| !who.contains(other));
        let one_way = who.iter().flat_map(|(_, one)| from.iter().map(|(_, other)| (*one, *other)));
        let mut pairs: Vec<Pair> = one_way.map(|(from, to)| Pair { from, to }).collect();
        if !cut.one_way {
            let back: Vec<_> =
                pairs.iter().map(|pair| Pair { from: pair.to, to: pair.from }).collect();
            pairs.extend(back);
        }
        Ok(pairs)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::network;
    use super::*;

    fn cut(who: &str, from: &[&str], one_way: bool) -> Vec<(u8, u8)> {
        let from = from.iter().map(|&word| word.to_owned()).collect();
        let mut pairs = network().pairs(&Cut { who: who.to_owned(), from, one_way }).unwrap();
        pairs.sort();
        pairs.iter().map(|pair| (pair.from.octets()[3], pair.to.octets()[3])).collect()
    }

    #[test]
    fn a_machine_is_cut_from_everybody_or_from_whom_is_named_both_ways_or_one() {
        assert_eq!(cut("pg1", &["pg2"], false), [(1, 2), (2, 1)]);
        assert_eq!(cut("pg1", &["pg2"], true), [(1, 2)]);
        assert_eq!(cut("pg1", &["b", "client"], true), [(1, 2), (1, 102), (1, 254)]);
        assert_eq!(cut("pg1", &[], false).len(), 2 * 6);
    }

    #[test]
    fn inside_a_zone_that_is_cut_as_a_whole_everything_goes_on() {
        let pairs = cut("a", &[], false);
        assert_eq!(pairs.len(), 2 * 2 * 5);
        assert!(!pairs.contains(&(1, 101)) && !pairs.contains(&(101, 1)));
    }
}
