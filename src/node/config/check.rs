//! What a configuration must satisfy beyond its types; every problem with its fix.

use std::collections::BTreeSet;

use regent_core::limits::{MAX_ENTRY_BYTES, MAX_NAME_BYTES, MAX_TEXT_BYTES};
use regent_core::spec::Problem;
use regent_raft::api::Member;

use super::{ConfigError, NodeConfig, Profile};
use crate::announced::{self, Contradiction};
use crate::http::server::refuse_plaintext;

/// Voters beyond this only slow every write down.
const MAX_INITIAL_MEMBERS: usize = 9;

impl NodeConfig {
    /// Checks everything that needs no file and no network.
    ///
    /// # Errors
    /// [`ConfigError::Problems`] with all of them.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut found = Vec::new();
        let mut bad = |field: &str, problem: String, fix: &str| {
            found.push(Problem { field: field.into(), problem, fix: fix.into() });
        };
        if self.node_id.0 == 0 {
            bad("node_id", "it is 0".into(), "use the id of initial_members or of `members add`");
        }
        if self.node_id.0 > i64::MAX as u64 {
            bad("node_id", "it is too large".into(), "ids are small numbers");
        }
        if self.cluster.is_empty() || self.cluster.len() > MAX_NAME_BYTES {
            bad("cluster", "it is empty or too long".into(), "use a name of 1 to 128 bytes");
        }
        if self.data_dir.as_os_str().is_empty() {
            bad("data_dir", "it is empty".into(), "name a directory of this node alone");
        }
        if self.label.len() > MAX_TEXT_BYTES {
            bad("label", "it is too long".into(), "use at most 1024 bytes");
        }
        let trust = &self.tls.trust_domain;
        if trust.is_empty() || trust.contains('/') {
            bad(
                "tls.trust_domain",
                format!("{trust:?} is no trust domain"),
                "use a DNS-like name without slashes, as in the certificates",
            );
        }
        for (field, text) in
            [("listen.grpc", &self.listen.grpc), ("listen.http", &self.listen.http)]
        {
            if text.parse::<std::net::SocketAddr>().is_err() {
                bad(field, format!("{text:?} is no address"), "use ip:port, as 127.0.0.1:7400");
            }
        }
        if let Ok(http) = self.listen.http.parse()
            && let Err(exposed) = refuse_plaintext(http, self.listen.http_plaintext)
        {
            bad("listen.http_plaintext", exposed.to_string(), "remove it, or listen on 127.0.0.1");
        }
        let advertised =
            [("advertise.grpc", &self.advertise.grpc), ("advertise.http", &self.advertise.http)];
        for (field, text) in advertised {
            if !text.is_empty() && !is_host_port(text) {
                bad(field, format!("{text:?} is no address"), "use host:port");
            }
        }
        self.check_timing(&mut bad);
        self.check_members(&mut bad);
        self.check_limits(&mut bad);
        let otlp = &self.otlp.endpoint;
        if !otlp.is_empty() && !otlp.starts_with("http://") {
            bad("otlp.endpoint", format!("{otlp:?} is no endpoint"), "use http://host:port");
        }
        if let Some(dns) = &self.dns {
            dns.check(&mut bad);
        }
        if found.is_empty() { Ok(()) } else { Err(ConfigError::Problems(found)) }
    }

    fn check_timing(&self, bad: &mut impl FnMut(&str, String, &str)) {
        match (self.profile, self.timing.is_some()) {
            (Profile::Custom, false) => bad(
                "timing",
                "profile is custom but there is no [timing]".into(),
                "add the table, or use profile lan, fast or wan",
            ),
            (Profile::Lan | Profile::Fast | Profile::Wan, true) => bad(
                "profile",
                "there is a [timing] but the profile is not custom".into(),
                "set profile = \"custom\", or remove [timing]",
            ),
            _ => {}
        }
        if let Err(e) = self.timing().check() {
            bad(&format!("timing.{}", e.field), e.problem, e.fix);
        }
    }

    fn check_members(&self, bad: &mut impl FnMut(&str, String, &str)) {
        let members = &self.initial_members;
        if members.is_empty() != self.join {
            bad(
                "initial_members",
                if self.join {
                    "join is true, yet there is a list".into()
                } else {
                    "it is empty and join is not true".into()
                },
                "list the nodes that begin the cluster, or set join = true on a node that was added \
                 with `regent members add`",
            );
        }
        if members.len() > MAX_INITIAL_MEMBERS {
            bad("initial_members", format!("{} is too many", members.len()), "use 3 or 5");
        }
        if !members.is_empty() && !members.iter().any(|m| m.id == self.node_id) {
            bad(
                "initial_members",
                format!("this node, {}, is not in it", self.node_id),
                "add it, or set join = true",
            );
        }
        if let Some(own) = members.iter().find(|m| m.id == self.node_id) {
            let row = Member {
                address: own.address.clone(),
                http_address: own.http_address.clone(),
                locality: own.locality.clone().into(),
                label: own.label.clone(),
            };
            if let Some(Contradiction { field, own, known }) =
                announced::contradiction(&row, &announced::of(self))
            {
                bad(
                    field,
                    format!("{own:?} here, but {known:?} for this node in initial_members"),
                    "say it in initial_members alone, the same on each node",
                );
            }
        }
        let (mut ids, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        for (at, member) in members.iter().enumerate() {
            if member.id.0 == 0 || !ids.insert(member.id) {
                bad(
                    &format!("initial_members[{at}].id"),
                    format!("{} is 0 or appears twice", member.id),
                    "give each node its own id from 1",
                );
            }
            if !is_host_port(&member.address) || !addresses.insert(&member.address) {
                bad(
                    &format!("initial_members[{at}].address"),
                    format!("{:?} is no address, or appears twice", member.address),
                    "use the host:port that the other nodes dial",
                );
            }
        }
    }

    fn check_limits(&self, bad: &mut impl FnMut(&str, String, &str)) {
        let limits = &self.limits;
        if limits.max_connections < 16 {
            bad(
                "limits.max_connections",
                format!("{} leaves no room for the other nodes", limits.max_connections),
                "use at least 16",
            );
        }
        if limits.max_streams_per_connection < 16 {
            bad(
                "limits.max_streams_per_connection",
                format!("{} leaves no room for Raft", limits.max_streams_per_connection),
                "use at least 16",
            );
        }
        if (limits.max_request_bytes as usize) < MAX_ENTRY_BYTES {
            bad(
                "limits.max_request_bytes",
                format!("{} is below one log entry", limits.max_request_bytes),
                "use at least 1048576",
            );
        }
        if limits.max_inflight < 64 {
            bad(
                "limits.max_inflight",
                format!("{} starves clients", limits.max_inflight),
                "use at least 64",
            );
        }
    }
}

/// Whether `text` looks like `host:port`.
fn is_host_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        node_id = 1
        cluster = "prod"
        data_dir = "/var/lib/regent"
        [listen]
        grpc = "127.0.0.1:7400"
        http = "127.0.0.1:7401"
        [tls]
        cert = "node.pem"
        key = "node.key"
        ca = "ca.pem"
        trust_domain = "prod.example"
        [[initial_members]]
        id = 1
        address = "127.0.0.1:7400"
    "#;

    fn problems(text: &str) -> String {
        NodeConfig::parse(text).expect_err("it is wrong").to_string()
    }

    #[test]
    fn a_small_file_is_enough_and_survives_a_round_trip() {
        let config = NodeConfig::parse(GOOD).expect("it is right");
        assert_eq!(NodeConfig::parse(&config.to_toml()).expect("ours"), config);
    }

    #[test]
    fn every_key_of_a_full_file_is_known() {
        let mut config = NodeConfig::parse(GOOD).expect("it is right");
        config.profile = Profile::Custom;
        config.timing = Some(super::super::TimingTable::default());
        config.tls.revoked = Some("revoked.txt".into());
        let (listen, zone) = ("127.0.0.1:53".into(), "db.example.org".into());
        let (ttl, ns) = ("5s".into(), vec!["ns.example.org".into()]);
        config.dns = Some(super::super::Dns { listen, zone, ttl, ns });
        NodeConfig::parse(&config.to_toml()).expect("all keys");
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_one() {
        let got = problems(&GOOD.replace("data_dir", "datadir"));
        assert!(got.contains("datadir") && got.contains("\"data_dir\""), "{got}");
        let got = problems(&GOOD.replace("address", "adress"));
        assert!(got.contains("initial_members[0].adress"), "{got}");
    }

    #[test]
    fn all_problems_come_at_once_each_with_its_fix() {
        let text = GOOD.replace("127.0.0.1:7401", "nowhere").replace("id = 1", "id = 0");
        let got = problems(&text);
        for field in ["node_id", "listen.http", "initial_members[0].id"] {
            assert!(got.contains(field), "{field} is missing in {got}");
        }
    }

    #[test]
    fn inconsistent_timing_names_the_field() {
        let text = format!(
            "profile = \"custom\"\n{GOOD}\n[timing]\nheartbeat_ms = 100\nelection_min_ms = 150\n"
        );
        let got = problems(&text);
        assert!(got.contains("timing.election_min_ms"), "{got}");
    }

    #[test]
    fn plaintext_where_others_could_read_it_is_refused_before_anything_starts() {
        let text = GOOD.replace("[listen]", "[listen]\nhttp_plaintext = true");
        NodeConfig::parse(&text).expect("on loopback it is allowed");
        let got = problems(&text.replace("127.0.0.1:7401", "0.0.0.0:7401"));
        assert!(got.contains("listen.http_plaintext") && got.contains("loopback"), "{got}");
    }

    #[test]
    fn what_a_node_says_of_itself_beside_the_list_must_be_what_the_list_says() {
        let got = problems(&format!("label = \"x\"\n{GOOD}"));
        assert!(got.contains("label") && got.contains("initial_members alone"), "{got}");
        let text = format!("label = \"x\"\n{GOOD}\nlabel = \"x\"");
        NodeConfig::parse(&text).expect("the same");
    }

    #[test]
    fn a_node_outside_the_list_is_refused() {
        let got = problems(&GOOD.replacen("node_id = 1", "node_id = 7", 1));
        assert!(got.contains("this node, 7"), "{got}");
    }
}
