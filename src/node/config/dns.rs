//! The table `[dns]`: where a node answers DNS, and for which zone.

use std::net::SocketAddr;

use regent_dns::{BadName, Zone};
use serde::{Deserialize, Serialize};

/// Longest time that answers may be kept: for as long, clients go to a primary that is none any more.
const MAX_TTL_S: u32 = 60;
const DEFAULT_TTL: &str = "1s";

/// Answers of DNS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dns {
    /// `ip:port`, UDP and TCP; port 0 lets the system choose.
    pub listen: String,
    /// Services are `primary.<service>.<zone>` and `replicas.<service>.<zone>`.
    pub zone: String,
    /// How long answers may be kept, in whole seconds: "1s".
    #[serde(default = "default_ttl")]
    pub ttl: String,
    /// The zone's name servers as the zone above names them; empty: `ns.<zone>`, which is this node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ns: Vec<String>,
}

fn default_ttl() -> String {
    DEFAULT_TTL.to_owned()
}

impl Dns {
    /// The zone, at `listens`; `None`: the check of the configuration has something to say.
    pub fn zone(&self, listens: SocketAddr) -> Option<Zone> {
        Zone::new(&self.zone, self.ttl_s()?, &self.ns, listens).ok()
    }

    fn ttl_s(&self) -> Option<u32> {
        let seconds = self.ttl.strip_suffix('s')?;
        let is_number = seconds.bytes().all(|b| b.is_ascii_digit());
        seconds.parse().ok().filter(|seconds| is_number && *seconds <= MAX_TTL_S)
    }

    pub(super) fn check(&self, bad: &mut impl FnMut(&str, String, &str)) {
        let listens = self.listen.parse::<SocketAddr>();
        if listens.is_err() {
            let problem = format!("{:?} is no address", self.listen);
            bad("dns.listen", problem, "use ip:port, as 127.0.0.1:5353");
        }
        if self.ttl_s().is_none() {
            let problem = format!("{:?} is no time that answers may be kept", self.ttl);
            bad("dns.ttl", problem, "use whole seconds from \"0s\" to \"60s\"");
        }
        let listens = listens.unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
        let mut name = |field: &str, text: &str, found: Result<Zone, BadName>, fix: &str| {
            if let Err(problem) = found {
                bad(field, format!("{text:?} is no name of DNS: {problem}"), fix);
            }
        };
        let zone = Zone::new(&self.zone, 0, &[], listens);
        name("dns.zone", &self.zone, zone, "use a name like db.example.org");
        for (at, ns) in self.ns.iter().enumerate() {
            let one = Zone::new("zone", 0, std::slice::from_ref(ns), listens);
            let fix = "use the name of a host, as the zone above has it";
            name(&format!("dns.ns[{at}]"), ns, one, fix);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(dns: &Dns) -> String {
        let mut found = String::new();
        dns.check(&mut |field, problem, fix| found += &format!("{field}: {problem}; {fix}\n"));
        found
    }

    #[test]
    fn the_zone_and_where_to_listen_are_enough_and_each_mistake_is_named() {
        let good: Dns =
            toml::from_str("listen = '127.0.0.1:53'\nzone = 'db.example.org.'").expect("TOML");
        assert_eq!((problems(&good).as_str(), good.ttl.as_str()), ("", "1s"));
        assert!(good.zone(([127, 0, 0, 1], 53).into()).is_some());
        let ns = vec!["ns1.example.org".into(), "a b".into()];
        let (listen, zone) = ("53".into(), "db..org".into());
        let got = problems(&Dns { listen, zone, ttl: "1m".into(), ns });
        for field in ["dns.listen", "dns.zone", "dns.ttl", "dns.ns[1]"] {
            assert!(got.contains(field), "{field} is missing in {got}");
        }
        assert!(!got.contains("dns.ns[0]"), "{got}");
        for ttl in ["", "s", "-1s", "+1s", "1", "61s", "1.5s", "99999999999s"] {
            let got = problems(&Dns { ttl: ttl.into(), ..good.clone() });
            assert!(got.contains("dns.ttl"), "{ttl:?}: {got}");
        }
        for ttl in ["0s", "60s"] {
            assert_eq!(problems(&Dns { ttl: ttl.into(), ..good.clone() }), "");
        }
        for zone in ["", ".", &"a.".repeat(100), "a/b", "ä.org"] {
            assert!(problems(&Dns { zone: zone.into(), ..good.clone() }).contains("dns.zone"));
        }
    }
}
