//! The rules of the incremental form.

use super::*;
use crate::testing::envoy_node;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};

impl Told for DeltaDiscoveryResponse {
    fn nonce(&self) -> (Kind, String) {
        (Kind::of(&self.type_url).expect("a known kind"), self.nonce.clone())
    }
    fn line(&self) -> String {
        let resources =
            self.resources.iter().map(|one| one.resource.as_ref().expect("it is there"));
        line(&self.type_url, resources, self.removed_resources.iter().cloned())
    }
}

#[derive(Default)]
struct Peer {
    session: Delta,
    nonces: Nonces,
    node: Option<Node>,
    /// What it had before the stream.
    had: Vec<(String, String)>,
}

impl Peer {
    fn envoy(names: &[&str]) -> Self {
        Self { node: Some(envoy_node(names)), ..Self::default() }
    }

    fn send(&mut self, request: DeltaDiscoveryRequest) -> Result<String, Refusal> {
        let initial_resource_versions = std::mem::take(&mut self.had).into_iter().collect();
        let node = self.node.take();
        let request = DeltaDiscoveryRequest { node, initial_resource_versions, ..request };
        let output = self.session.asked(request)?;
        self.nonces.see(&output);
        Ok(lines(&output))
    }

    /// `+name` subscribes, `-name` unsubscribes. Not an answer to anything.
    fn ask(&mut self, kind: Kind, names: &[&str]) -> String {
        let with = |sign| names.iter().filter_map(move |name| name.strip_prefix(sign));
        let request = DeltaDiscoveryRequest {
            type_url: kind.type_url().into(),
            resource_names_subscribe: with('+').map(str::to_owned).collect(),
            resource_names_unsubscribe: with('-').map(str::to_owned).collect(),
            ..Default::default()
        };
        self.send(request).expect("it is not refused")
    }

    /// Answers the last response of a kind: an ACK, or a NACK in these words.
    fn answer(&mut self, kind: Kind, error: Option<&str>) -> String {
        let error = error.map(|text| Status { code: 3, message: text.into(), details: Vec::new() });
        let request = DeltaDiscoveryRequest {
            type_url: kind.type_url().into(),
            response_nonce: self.nonces.of(kind),
            error_detail: error,
            ..Default::default()
        };
        self.send(request).expect("it is not refused")
    }

    fn tell(&mut self, routes: Option<Arc<Routes>>) -> String {
        let output = self.session.told([(service("s"), routes)]);
        self.nonces.see(&output);
        lines(&output)
    }
}

/// The version of endpoints of `s.write` with this primary.
fn version(name: &str, epoch: u64) -> String {
    let routes = primary(name, epoch).expect("it is there");
    let made = crate::resources::endpoints(&routes, crate::names::Side::Write, &Client::default());
    made.resource.expect("it is known").version
}

#[test]
fn names_come_and_go_and_only_changes_are_sent() {
    let mut peer = Peer::default();
    assert_eq!(peer.ask(EDS, &["+s.write", "+s.write"]), "follow s");
    assert_eq!(peer.tell(primary("a", 7)), "eds: s.write=a");
    assert_eq!(peer.answer(EDS, None), "applied eds s.write@1.7");
    assert_eq!(peer.answer(EDS, None), "", "the same ACK again");
    assert_eq!(peer.tell(primary("a", 7)), "");
    assert_eq!(peer.ask(EDS, &["+s.read"]), "eds: s.read=a");
    assert_eq!(peer.ask(EDS, &["-s.write", "-s.read"]), "unfollow s");
    assert_eq!(peer.tell(primary("b", 8)), "");
}

#[test]
fn a_refusal_is_noted_and_the_same_is_not_sent_again() {
    let mut peer = Peer::default();
    peer.ask(CDS, &["+s.write"]);
    assert_eq!(peer.tell(primary("a", 7)), "cds: s.write");
    assert_eq!(peer.answer(CDS, Some("no good")), "refused cds: no good; has none");
    assert_eq!(peer.tell(primary("b", 8)), "", "of clusters nothing changed");
}

#[test]
fn a_subscription_counts_whatever_its_nonce() {
    let mut peer = Peer::default();
    peer.ask(EDS, &["+s.write"]);
    peer.tell(primary("a", 7));
    let request = DeltaDiscoveryRequest {
        type_url: EDS.type_url().into(),
        response_nonce: "long ago".into(),
        resource_names_subscribe: strings(&["s.read"]),
        ..Default::default()
    };
    assert_eq!(peer.send(request).as_deref(), Ok("eds: s.read=a"));
}

#[test]
fn what_is_asked_for_again_is_sent_again() {
    let mut peer = Peer::default();
    peer.ask(EDS, &["+s.write"]);
    peer.tell(primary("a", 7));
    peer.answer(EDS, None);
    assert_eq!(peer.ask(EDS, &["+s.write"]), "eds: s.write=a");
}

#[test]
fn what_the_client_has_is_not_sent_and_what_is_gone_is_taken_back() {
    let had = |version: String| vec![("s.write".to_owned(), version)];
    let mut peer = Peer { had: had(version("a", 7)), ..Peer::default() };
    peer.ask(EDS, &["+s.write"]);
    assert_eq!(peer.tell(primary("a", 7)), "");
    assert_eq!(peer.tell(primary("b", 8)), "eds: s.write=b");

    let mut peer = Peer { had: had(version("a", 7)), ..Peer::default() };
    peer.ask(EDS, &["+s.write"]);
    assert_eq!(peer.tell(nobody(HOLDS, 7)), "", "it is not taken back either");
    assert_eq!(peer.tell(primary("a", 7)), "");

    let mut peer = Peer { had: had(version("a", 6)), ..Peer::default() };
    peer.ask(EDS, &["+s.write"]);
    assert_eq!(peer.tell(primary("a", 7)), "eds: s.write=a");

    let mut peer = Peer { had: had(version("a", 7)), ..Peer::default() };
    peer.ask(EDS, &["+s.write"]);
    assert_eq!(peer.tell(None), "eds: -s.write");
    assert_eq!(peer.tell(None), "");
}

#[test]
fn an_envoy_that_comes_back_with_less_to_listen_for_is_told_to_drop_the_rest() {
    let mut peer = Peer::envoy(&["s.write"]);
    peer.had = vec![("t.write".into(), "1".into()), ("s.write".into(), "1".into())];
    assert_eq!(peer.ask(CDS, &[]), "cds: -t.write\nfollow s");
    assert_eq!(peer.tell(primary("a", 7)), "cds: s.write");
}

#[test]
fn all_is_answered_once_it_is_known_even_if_it_is_nothing() {
    let mut peer = Peer::envoy(&["s.write"]);
    assert_eq!(peer.ask(CDS, &[]), "follow s");
    assert_eq!(peer.tell(None), "cds:");
    assert_eq!(peer.tell(primary("a", 7)), "cds: s.write");
    assert_eq!(peer.tell(None), "cds: -s.write");
    assert_eq!(peer.ask(LDS, &["+*"]), "lds:");
    assert_eq!(peer.ask(LDS, &["-*"]), "");
    assert_eq!(peer.ask(CDS, &["-*"]), "unfollow s");
}

#[test]
fn a_name_that_is_given_up_while_all_is_wanted_is_sent_as_part_of_all() {
    let mut peer = Peer::envoy(&["s.write"]);
    peer.ask(CDS, &["+*", "+s.write"]);
    assert_eq!(peer.tell(primary("a", 7)), "cds: s.write");
    assert_eq!(peer.ask(CDS, &["-s.write"]), "cds: s.write");
}

#[test]
fn what_does_not_exist_is_said_at_once_and_each_time_it_is_asked() {
    let mut peer = Peer::default();
    assert_eq!(peer.ask(LDS, &["+nonsense", "+s.write"]), "lds: -nonsense\nfollow s");
    assert_eq!(peer.tell(None), "lds: -s.write");
    assert_eq!(peer.ask(LDS, &["+nonsense"]), "lds: -nonsense");
    assert_eq!(peer.tell(primary("a", 7)), "lds: s.write");
}

#[test]
fn endpoints_are_said_again_after_each_answer_with_their_cluster() {
    let mut peer = Peer { had: vec![("s.write".into(), version("a", 7))], ..Peer::default() };
    peer.ask(EDS, &["+s.write"]);
    assert_eq!(peer.tell(primary("a", 7)), "");
    assert_eq!(peer.ask(CDS, &["+s.write"]), "cds: s.write\neds: s.write=a");
    assert_eq!(peer.tell(None), "cds: -s.write\neds: -s.write");
    assert_eq!(peer.tell(primary("a", 7)), "cds: s.write\neds: s.write=a");
}

#[test]
fn names_are_bounded_over_all_requests_of_a_stream() {
    let mut peer = Peer::default();
    let names = |from: usize, count: usize| {
        let names = (from..from + count).map(|at| format!("s{at}.write")).collect();
        let type_url = EDS.type_url().into();
        DeltaDiscoveryRequest { type_url, resource_names_subscribe: names, ..Default::default() }
    };
    assert!(peer.send(names(0, MAX_NAMES)).is_ok());
    assert_eq!(peer.send(names(MAX_NAMES, 1)), Err(Refusal::TooMany { have: MAX_NAMES + 1 }));
}
