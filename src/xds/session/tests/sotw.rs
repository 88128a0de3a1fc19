//! The rules of the state-of-the-world form.

use super::*;
use crate::testing::{envoy_node, one};
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};

impl Told for DiscoveryResponse {
    fn nonce(&self) -> (Kind, String) {
        (Kind::of(&self.type_url).expect("a known kind"), self.nonce.clone())
    }
    fn line(&self) -> String {
        let missing = self.resource_errors.iter().map(|error| {
            assert_eq!(error.error_detail.as_ref().map(|status| status.code), Some(5));
            error.resource_name.clone().expect("it says of what").name
        });
        line(&self.type_url, self.resources.iter(), missing)
    }
}

/// A client that answers with the newest nonce unless it is told otherwise.
#[derive(Default)]
struct Peer {
    session: Sotw,
    nonces: Nonces,
    node: Option<Node>,
}

impl Peer {
    fn envoy(names: &[&str]) -> Self {
        Self { node: Some(envoy_node(names)), ..Self::default() }
    }

    fn send(&mut self, request: DiscoveryRequest) -> Result<String, Refusal> {
        let request = DiscoveryRequest { node: self.node.take(), ..request };
        let output = self.session.asked(request)?;
        self.nonces.see(&output);
        Ok(lines(&output))
    }

    /// Asks for `names`, which is an ACK too.
    fn ask(&mut self, kind: Kind, names: &[&str]) -> String {
        let nonce = self.nonces.of(kind);
        self.ask_with(kind, names, &nonce)
    }

    fn ask_with(&mut self, kind: Kind, names: &[&str], nonce: &str) -> String {
        let request = DiscoveryRequest {
            type_url: kind.type_url().into(),
            resource_names: strings(names),
            response_nonce: nonce.into(),
            ..Default::default()
        };
        self.send(request).expect("it is not refused")
    }

    fn nack(&mut self, kind: Kind, names: &[&str]) -> String {
        let error = Status { code: 3, message: "no\u{1b}good\n".into(), details: vec![] };
        let request = DiscoveryRequest {
            type_url: kind.type_url().into(),
            resource_names: strings(names),
            response_nonce: self.nonces.of(kind),
            error_detail: Some(error),
            ..Default::default()
        };
        self.send(request).expect("it is not refused")
    }

    fn tell(&mut self, routes: Option<Arc<Routes>>) -> String {
        self.tell_of("s", routes)
    }

    fn tell_of(&mut self, name: &str, routes: Option<Arc<Routes>>) -> String {
        let routes = routes.map(|routes| {
            Arc::new(Routes { service: service(name), ..Arc::unwrap_or_clone(routes) })
        });
        let output = self.session.told([(service(name), routes)]);
        self.nonces.see(&output);
        lines(&output)
    }
}

#[test]
fn a_grpc_client_asks_its_way_from_the_listener_to_the_endpoints() {
    let mut peer = Peer::default();
    assert_eq!(peer.ask(LDS, &["s.write"]), "follow s");
    assert_eq!(peer.tell(primary("a", 7)), "lds: s.write");
    assert_eq!(peer.ask(LDS, &["s.write"]), "applied lds");
    assert_eq!(peer.ask(RDS, &["s.write"]), "rds: s.write");
    assert_eq!(peer.ask(RDS, &["s.write"]), "applied rds");
    assert_eq!(peer.ask(CDS, &["s.write"]), "cds: s.write");
    assert_eq!(peer.ask(CDS, &["s.write"]), "applied cds");
    assert_eq!(peer.ask(EDS, &["s.write"]), "eds: s.write=a");
    assert_eq!(peer.ask(EDS, &["s.write"]), "applied eds s.write@1.7");
    assert_eq!(peer.tell(nobody(Closed::Fenced { kind: "failover" }, 7)), "eds: s.write=");
    assert_eq!(peer.tell(primary("b", 9)), "eds: s.write=b", "it does not wait for the ACK");
    assert_eq!(peer.ask(EDS, &["s.write"]), "applied eds s.write@1.9");
}

#[test]
fn an_envoy_that_asks_for_all_gets_what_its_metadata_lists() {
    let mut peer = Peer::envoy(&["s.read", "t.write"]);
    assert_eq!(peer.ask(CDS, &[]), "follow s\nfollow t");
    assert_eq!(peer.tell(primary("a", 7)), "", "an answer without t would delete it");
    assert_eq!(peer.tell_of("t", primary("b", 8)), "cds: s.read t.write");
    assert_eq!(peer.ask(CDS, &[]), "applied cds");
    assert_eq!(peer.ask(EDS, &["s.read", "t.write"]), "eds: s.read=a t.write=b");
    assert_eq!(peer.ask(LDS, &["*"]), "lds: s.read t.write");
    assert_eq!(peer.ask(LDS, &["*"]), "applied lds");
}

#[test]
fn an_empty_list_asks_for_all_only_until_something_was_named() {
    let mut peer = Peer::envoy(&["s.read"]);
    peer.ask(CDS, &[]);
    assert_eq!(peer.tell(primary("a", 7)), "cds: s.read");
    assert_eq!(peer.ask(CDS, &["s.write"]), "cds: s.write\napplied cds");
    assert_eq!(peer.ask(CDS, &[]), "unfollow s\napplied cds");
    assert_eq!(peer.tell(primary("b", 8)), "");
    assert_eq!(peer.ask(CDS, &["*"]), "follow s");
    assert_eq!(peer.tell(primary("b", 8)), "cds: s.read");
}

#[test]
fn all_of_nothing_is_answered_too_for_an_envoy_waits_for_it() {
    let mut peer = Peer::envoy(&[]);
    assert_eq!(peer.ask(CDS, &[]), "cds:");
    assert_eq!(peer.ask(CDS, &[]), "applied cds");
    assert_eq!(peer.ask(EDS, &[]), "", "of these there is no all");
    assert_eq!(peer.ask(RDS, &["*"]), "");
}

#[test]
fn an_ack_sends_nothing_and_neither_does_a_refusal_which_says_what_the_client_has() {
    let mut peer = Peer::default();
    peer.ask(CDS, &["s.write"]);
    assert_eq!(peer.tell(primary("a", 7)), "cds: s.write");
    assert_eq!(peer.nack(CDS, &["s.write"]), "refused cds: no good; has none");
    assert_eq!(peer.ask(EDS, &["s.write"]), "eds: s.write=a");
    assert_eq!(peer.ask(EDS, &["s.write"]), "applied eds s.write@1.7");
    assert_eq!(peer.ask(EDS, &["s.write"]), "", "the same ACK again");
    assert_eq!(peer.tell(primary("b", 8)), "eds: s.write=b");
    assert_eq!(peer.nack(EDS, &["s.write"]), "refused eds: no good; has an older one");
    assert_eq!(peer.tell(primary("b", 8)), "", "it would refuse the same again");
    assert_eq!(peer.tell(primary("c", 9)), "eds: s.write=c");
}

#[test]
fn a_stale_nonce_changes_no_subscription_but_says_what_was_applied() {
    let mut peer = Peer::default();
    peer.ask(EDS, &["s.write"]);
    peer.tell(primary("a", 7));
    let old = peer.nonces.of(EDS);
    assert_eq!(peer.tell(primary("b", 8)), "eds: s.write=b");
    let stale = peer.ask_with(EDS, &["s.write", "t.read"], &old);
    assert_eq!(stale, "applied eds s.write@1.7");
    assert_eq!(peer.ask_with(EDS, &["t.read"], "nonsense"), "");
    assert_eq!(peer.ask(EDS, &["s.write", "t.read"]), "follow t\napplied eds s.write@1.8");
}

#[test]
fn only_changes_and_what_is_asked_anew_are_sent_of_endpoints() {
    let mut peer = Peer::default();
    peer.ask(EDS, &["s.write", "s.read"]);
    assert_eq!(peer.tell(primary("a", 7)), "eds: s.read=a s.write=a");
    let mut with_reads = Arc::unwrap_or_clone(primary("a", 7).expect("it is there"));
    with_reads.reads = vec![one("b", 2, Default::default())];
    assert_eq!(peer.tell(Some(Arc::new(with_reads))), "eds: s.read=b+a");
    peer.ask(EDS, &["s.write", "s.read", "t.write"]);
    assert_eq!(peer.tell_of("t", primary("c", 3)), "eds: t.write=c");
    assert_eq!(peer.ask(EDS, &["s.read"]), "unfollow t\napplied eds t.write@1.3");
    assert_eq!(peer.ask(EDS, &["s.read", "s.write"]), "eds: s.write=a");
}

#[test]
fn a_change_in_the_revision_alone_is_not_sent() {
    let mut peer = Peer::default();
    peer.ask(EDS, &["s.write"]);
    let routes = Arc::unwrap_or_clone(primary("a", 7).expect("it is there"));
    peer.tell(Some(Arc::new(routes.clone())));
    let at = (routes.at.0, regent_core::id::Revision(99));
    assert_eq!(peer.tell(Some(Arc::new(Routes { at, ..routes }))), "");
}

#[test]
fn endpoints_are_said_again_after_each_answer_with_their_cluster() {
    let mut peer = Peer::default();
    peer.ask(EDS, &["s.write"]);
    peer.tell(primary("a", 7));
    peer.ask(EDS, &["s.write"]);
    assert_eq!(peer.ask(CDS, &["s.write", "t.write"]), "follow t");
    assert_eq!(peer.tell_of("t", primary("b", 8)), "cds: s.write t.write\neds: s.write=a");
    assert_eq!(peer.ask(CDS, &["s.write", "t.write"]), "applied cds");
    assert_eq!(peer.ask(EDS, &["s.write"]), "applied eds s.write@1.7");
}

#[test]
fn what_does_not_exist_is_answered_at_once_and_sent_when_it_does() {
    let mut peer = Peer::default();
    assert_eq!(peer.ask(LDS, &["s.write", "nonsense"]), "follow s");
    assert_eq!(peer.tell(None), "lds: no-nonsense no-s.write");
    assert_eq!(peer.ask(LDS, &["s.write", "nonsense"]), "applied lds");
    assert_eq!(peer.ask(EDS, &["s.write", "nonsense"]), "eds: -nonsense -s.write");
    assert_eq!(peer.ask(EDS, &["s.write", "nonsense"]), "applied eds");
    assert_eq!(peer.tell(primary("a", 7)), "eds: s.write=a\nlds: no-nonsense s.write");
    peer.ask(LDS, &["s.write", "nonsense"]);
    assert_eq!(peer.tell(None), "lds: no-nonsense no-s.write\neds: -s.write");
}

#[test]
fn to_an_envoy_no_listener_stands_for_what_there_is_not() {
    let mut peer = Peer::envoy(&["s.write"]);
    assert_eq!(peer.ask(LDS, &["*", "nonsense"]), "follow s");
    assert_eq!(peer.tell(None), "lds: -nonsense");
}

#[test]
fn new_things_come_before_what_refers_to_them_and_old_things_go_after() {
    let mut peer = Peer::default();
    for kind in Kind::BREAK {
        peer.ask(kind, &["s.write"]);
    }
    let made = "cds: s.write\neds: s.write=a\nlds: s.write\nrds: s.write";
    assert_eq!(peer.tell(primary("a", 7)), made);
    for kind in Kind::MAKE {
        peer.ask(kind, &["s.write"]);
    }
    assert_eq!(peer.tell(None), "lds: no-s.write\nrds: -s.write\ncds: -s.write\neds: -s.write");
}

#[test]
fn newer_content_of_a_kind_waits_for_the_ack_and_replaces_what_waits() {
    let mut peer = Peer::default();
    peer.ask(CDS, &["s.write"]);
    assert_eq!(peer.tell(primary("a", 7)), "cds: s.write");
    assert_eq!(peer.tell(None), "");
    assert_eq!(peer.tell(primary("a", 7)), "");
    assert_eq!(peer.tell(None), "");
    assert_eq!(peer.ask(CDS, &["s.write"]), "cds: -s.write\napplied cds");
    assert_eq!(peer.tell(primary("a", 7)), "");
    assert_eq!(
        peer.nack(CDS, &["s.write"]),
        "cds: s.write\nrefused cds: no good; has an older one"
    );
}

#[test]
fn a_hold_is_silent_to_who_was_told_and_to_who_was_not() {
    let mut peer = Peer::default();
    peer.ask(EDS, &["s.write"]);
    assert_eq!(peer.tell(nobody(HOLDS, 7)), "", "nobody can say that there is none");
    assert_eq!(peer.tell(primary("a", 7)), "eds: s.write=a");
    assert_eq!(peer.tell(nobody(HOLDS, 7)), "");
    assert_eq!(peer.ask(EDS, &["s.write", "s.read"]), "eds: s.read=a\napplied eds s.write@1.7");
    assert_eq!(peer.ask(EDS, &["s.read"]), "applied eds s.read@1.7");
    assert_eq!(peer.ask(EDS, &["s.read", "s.write"]), "", "it is told anew only what is known");
    assert_eq!(peer.tell(primary("a", 7)), "eds: s.write=a");
}

/// Who takes writes is the last resort of reads: whoever follows reads alone hears of each change of it,
/// and an operation that waits for routers is not kept waiting by one that was told nothing.
#[test]
fn who_follows_reads_alone_acknowledges_that_nobody_takes_writes_and_that_somebody_does() {
    let mut peer = Peer::default();
    peer.ask(EDS, &["s.read"]);
    assert_eq!(peer.tell(primary("a", 7)), "eds: s.read=a");
    assert_eq!(peer.tell(nobody(Closed::Draining, 8)), "eds: s.read=");
    assert_eq!(peer.ask(EDS, &["s.read"]), "applied eds s.read@1.8");
    assert_eq!(peer.tell(primary("b", 9)), "eds: s.read=b");
    assert_eq!(peer.ask(EDS, &["s.read"]), "applied eds s.read@1.9");
}

#[test]
fn a_hold_keeps_what_was_closed_closed_and_does_not_outlast_its_epoch() {
    let mut peer = Peer::default();
    peer.ask(EDS, &["s.write"]);
    peer.tell(primary("a", 7));
    assert_eq!(peer.tell(nobody(Closed::Promoting, 8)), "eds: s.write=");
    assert_eq!(peer.tell(nobody(HOLDS, 8)), "");
    assert_eq!(peer.tell(primary("b", 8)), "eds: s.write=b");
    assert_eq!(peer.tell(nobody(HOLDS, 9)), "eds: s.write=", "b was followed by somebody");
    assert_eq!(peer.tell(nobody(HOLDS, 9)), "");
}

#[test]
fn clusters_are_said_again_with_their_endpoints_during_a_hold() {
    let mut peer = Peer::default();
    peer.ask(EDS, &["s.write"]);
    peer.tell(primary("a", 7));
    peer.tell(nobody(HOLDS, 7));
    assert_eq!(peer.ask(CDS, &["s.write"]), "cds: s.write\neds: s.write=a");
}

#[test]
fn other_kinds_are_not_answered_and_noted_once() {
    let mut peer = Peer::default();
    let request = || DiscoveryRequest { type_url: "x/Secret".into(), ..Default::default() };
    assert_eq!(peer.send(request()).as_deref(), Ok("unknown x/Secret"));
    assert_eq!(peer.send(request()).as_deref(), Ok(""));
    for at in 0..100 {
        let type_url = format!("x/{at}");
        let noted = peer.send(DiscoveryRequest { type_url, ..Default::default() });
        assert_eq!(noted.expect("it is not refused").is_empty(), at >= MAX_UNKNOWN_NOTED - 1);
    }
}

#[test]
fn what_is_beyond_a_bound_ends_the_stream() {
    let names = |count: usize| (0..count).map(|at| format!("s{at}.write")).collect::<Vec<_>>();
    let ask = |resource_names| {
        let type_url = EDS.type_url().into();
        let request = DiscoveryRequest { type_url, resource_names, ..Default::default() };
        Sotw::default().asked(request).map(|output| output.follow.len())
    };
    assert_eq!(ask(names(MAX_NAMES)), Ok(MAX_NAMES));
    assert_eq!(ask(names(MAX_NAMES + 1)), Err(Refusal::TooMany { have: MAX_NAMES + 1 }));
    assert_eq!(ask(vec!["x".repeat(2_000)]), Err(Refusal::LongName { have: 2_000 }));
    assert_eq!(ask(vec!["s.write".into(); 3]), Ok(1), "a name that comes twice counts once");
    let mut peer = Peer::envoy(&["s.write"]);
    if let Some(Some(metadata)) = peer.node.as_mut().map(|node| node.metadata.as_mut()) {
        metadata.fields.insert("regent".into(), Default::default());
    }
    let refused = peer.send(DiscoveryRequest::default()).expect_err("it cannot be read");
    assert_eq!(refused.to_string(), "node.metadata.regent: it must be a map");
}

#[test]
fn of_ten_thousand_services_a_stream_hears_of_its_own() {
    let mut peer = Peer::default();
    assert_eq!(peer.ask(EDS, &["s4711.write"]), "follow s4711");
    for at in 0..10_000 {
        let told = peer.tell_of(&format!("s{at}"), primary("a", 7));
        assert_eq!(told, if at == 4711 { "eds: s4711.write=a" } else { "" });
    }
}

#[test]
fn who_is_left_out_is_noted_when_that_changes() {
    let with = |address: &str| {
        let mut routes = Arc::unwrap_or_clone(primary("a", 7).expect("it is there"));
        if let Write::To(primary) = &mut routes.write {
            primary.address = address.into();
        }
        Some(Arc::new(routes))
    };
    let mut peer = Peer::default();
    peer.ask(EDS, &["s.write"]);
    assert_eq!(peer.tell(with("db-1:5432")), "eds: s.write=\nleft out of s.write: a");
    assert_eq!(peer.tell(with("db-1:5432")), "");
    assert_eq!(peer.tell(with("10.0.0.1:5432")), "eds: s.write=a\nleft out of s.write:");
}

#[test]
fn a_client_that_never_answers_is_remembered_with_a_bound() {
    let mut peer = Peer::default();
    peer.ask(EDS, &["s.write"]);
    peer.tell(primary("a", 1));
    let old = peer.nonces.of(EDS);
    for epoch in 2..200 {
        assert_eq!(peer.tell(primary("a", epoch)), "eds: s.write=a");
    }
    assert_eq!(peer.ask_with(EDS, &["s.write"], &old), "", "long forgotten");
    assert_eq!(peer.ask(EDS, &["s.write"]), "applied eds s.write@1.199");
}
