//! Tests of what a client is taken for.

use super::*;
use envoy_types::pb::envoy::config::core::v3::Locality as Place;

fn text(text: &str) -> Value {
    Value { kind: Some(Is::StringValue(text.into())) }
}

fn map(fields: &[(&str, Value)]) -> Value {
    let fields = fields.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    Value { kind: Some(Is::StructValue(Struct { fields })) }
}

fn envoy(regent: Value) -> Node {
    Node {
        id: "web-17".into(),
        user_agent_name: "envoy".into(),
        locality: Some(Place { region: "eu".into(), zone: "a".into(), sub_zone: "h".into() }),
        metadata: Some(Struct { fields: [("regent".to_owned(), regent)].into() }),
        ..Node::default()
    }
}

#[test]
fn an_envoy_says_where_it_is_and_where_it_listens() {
    let orders = map(&[("write", text("127.0.0.1:6432")), ("read", text("[::1]:6433"))]);
    let stock = map(&[("read", text("127.0.0.1:6434"))]);
    let node = envoy(map(&[("services", map(&[("orders", orders), ("stock", stock)]))]));
    let client = Client::of(&node).expect("it is readable");
    assert_eq!(client.flavour, Flavour::Envoy);
    assert_eq!(client.locality.to_string(), "eu/a/h");
    let listens: Vec<_> = client.listens.iter().map(|(name, at)| format!("{name} {at}")).collect();
    let wanted =
        ["orders.write 127.0.0.1:6432", "orders.read [::1]:6433", "stock.read 127.0.0.1:6434"];
    assert_eq!(listens, wanted);
}

#[test]
fn whoever_is_no_envoy_is_taken_for_grpc_and_its_metadata_is_not_read() {
    for agent in ["gRPC Go", "gRPC C-core", "", "somebody"] {
        let mut node = envoy(text("no map"));
        node.user_agent_name = agent.into();
        node.client_features = vec!["envoy.lb.does_not_support_overprovisioning".into()];
        let client = Client::of(&node).expect("it is readable");
        assert_eq!((client.flavour, client.listens.len()), (Flavour::Grpc, 0), "{agent:?}");
    }
    assert_eq!(Client::of(&Node::default()), Ok(Client::default()));
}

#[test]
fn what_a_client_calls_itself_commands_no_terminal() {
    let node = Node { id: "a\u{1b}[2Jb\n".into(), ..Node::default() };
    assert_eq!(Client::of(&node).map(|client| client.id).as_deref(), Ok("a [2Jb "));
}

#[test]
fn an_envoy_that_wants_nothing_is_fine() {
    let without = Node { metadata: None, ..envoy(text("")) };
    for node in [without, envoy(map(&[])), envoy(map(&[("services", map(&[]))]))] {
        assert_eq!(Client::of(&node).map(|client| client.listens.len()), Ok(0));
    }
}

#[test]
fn what_cannot_be_read_is_refused_with_its_path() {
    let service = |name: &str, sides: Value| map(&[("services", map(&[(name, sides)]))]);
    let twice = map(&[("write", text("127.0.0.1:1")), ("read", text("127.0.0.1:1"))]);
    let cases = [
        (text("x"), "node.metadata.regent: it must be a map"),
        (map(&[("service", map(&[]))]), "node.metadata.regent.service: unknown field"),
        (map(&[("services", text("x"))]), "node.metadata.regent.services: it must be a map"),
        (service("-", map(&[])), "node.metadata.regent.services.-: it has '-'"),
        (service("a", text("x")), "node.metadata.regent.services.a: it must be a map"),
        (service("a", map(&[("wrte", text("x"))])), "….services.a.wrte: unknown field"),
        (service("a", map(&[("read", map(&[]))])), "….services.a.read: it must be a string"),
        (service("a", map(&[("read", text("db:1"))])), "….a.read: \"db:1\" is not an IP address"),
        (service("a", twice), "….a.read: a.write listens on 127.0.0.1:1 already"),
    ];
    for (regent, wanted) in cases {
        let error = Client::of(&envoy(regent)).expect_err(wanted).to_string();
        assert!(error.contains(wanted.trim_start_matches('…')), "{error} is not {wanted}");
    }
}
