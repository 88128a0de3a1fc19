//! Random streams: whatever a client asks for, in whatever order answers and news cross, it ends up
//! with what is true of all that it wants, and then it is quiet.

use super::*;
use crate::names::Name;
use crate::resources::{endpoints, lasting};
use crate::testing::{envoy_node, one};
use envoy_types::pb::envoy::service::discovery::v3 as ads;
use proptest::prelude::*;
use std::collections::VecDeque;

const SERVICES: [&str; 3] = ["s", "t", "u"];
const NAMES: [&str; 5] = ["s.write", "s.read", "t.write", "t.read", "nonsense"];
/// What the Envoy lists.
const LISTED: [&str; 3] = ["s.write", "t.read", "u.write"];

#[derive(Clone, Debug)]
enum Op {
    /// The client wants these of a kind from now on; the last flag: and all there is.
    Want(Kind, Vec<bool>, bool),
    /// A service changes.
    Change(usize, Fate),
    /// The client reads one response and answers it: with a refusal if so flagged.
    Read(bool),
    /// The stream breaks, and the client opens another one.
    Reconnect,
}

#[derive(Clone, Debug)]
enum Fate {
    Gone,
    /// This one is primary, in a new epoch if so flagged.
    Primary(u8, bool),
    Fenced,
    Held,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let kind = prop::sample::select(Kind::MAKE.to_vec());
    let fate = prop_oneof![
        Just(Fate::Gone),
        Just(Fate::Fenced),
        Just(Fate::Held),
        (0_u8..3, any::<bool>()).prop_map(|(who, new)| Fate::Primary(who, new)),
    ];
    let wants = prop::collection::vec(any::<bool>(), NAMES.len());
    let want = (kind, wants, prop::bool::weighted(0.3));
    let op = prop_oneof![
        4 => want.prop_map(|(kind, names, all)| Op::Want(kind, names, all)),
        4 => (0..SERVICES.len(), fate).prop_map(|(service, fate)| Op::Change(service, fate)),
        6 => prop::bool::weighted(0.2).prop_map(Op::Read),
        1 => Just(Op::Reconnect),
    ];
    prop::collection::vec(op, 0..60)
}

/// What a client of either form keeps.
#[derive(Default)]
struct Kept {
    asked: bool,
    names: BTreeSet<String>,
    all: bool,
    /// Nothing was named yet, on this stream.
    nameless: bool,
    nonce: String,
    /// Name to version and bytes.
    cache: BTreeMap<String, (String, Vec<u8>)>,
}

impl Kept {
    fn wants(&self, kind: Kind, name: &str, listed: &Client) -> bool {
        let lists = |name: &str| Name::parse(name).is_some_and(|n| listed.listens.contains_key(&n));
        self.names.contains(name) || kind.is_whole() && self.all && lists(name)
    }
}

type Cache = BTreeMap<Kind, Kept>;

/// A form of the protocol from the client's side.
trait Form: Protocol {
    /// The client's wish changes to these names, and all there is if `all`.
    fn want(kind: Kind, kept: &mut Kept, names: BTreeSet<String>, all: bool) -> Self::Ask;
    /// The first request of a kind on a new stream, for what it wanted before.
    fn again(kind: Kind, kept: &mut Kept) -> Self::Ask;
    /// Applies a response, and answers it.
    fn read(kept: &mut Cache, listed: &Client, answer: Self::Answer, refuse: bool) -> Self::Ask;
    /// Drops what it does not want any more.
    fn drop_unwanted(kind: Kind, kept: &mut Kept, listed: &Client);
    /// The last answer to a kind once more.
    fn repeat(kind: Kind, kept: &Kept) -> Self::Ask;
    fn with_node(ask: Self::Ask, node: Node) -> Self::Ask;
}

fn name_of(any: &Any) -> String {
    named(any).split('=').next().expect("the first part").to_owned()
}

fn no(refuse: bool) -> Option<Status> {
    refuse.then(|| Status { code: 3, message: "no".into(), details: Vec::new() })
}

impl Form for super::super::sotw::StateOfTheWorld {
    /// Nothing: the server need not have seen that it was not wanted for a while.
    fn drop_unwanted(_: Kind, _: &mut Kept, _: &Client) {}

    fn want(kind: Kind, kept: &mut Kept, names: BTreeSet<String>, all: bool) -> Self::Ask {
        let nothing = names.is_empty() && !all;
        kept.nameless = (kept.nameless || !kept.asked) && nothing;
        (kept.names, kept.all, kept.asked) = (names, all || kept.nameless, true);
        Self::repeat(kind, kept)
    }

    fn again(kind: Kind, kept: &mut Kept) -> Self::Ask {
        kept.nonce.clear();
        kept.asked = false;
        let all = kept.all && !kept.nameless;
        Self::want(kind, kept, kept.names.clone(), all)
    }

    fn read(kept: &mut Cache, _: &Client, answer: Self::Answer, refuse: bool) -> Self::Ask {
        let kind = Kind::of(&answer.type_url).expect("a known kind");
        let kept = kept.get_mut(&kind).expect("it was asked for");
        kept.nonce = answer.nonce;
        if kind.is_whole() {
            kept.cache.clear();
        }
        for any in &answer.resources {
            kept.cache.insert(name_of(any), (String::new(), any.value.clone()));
        }
        for error in answer.resource_errors {
            kept.cache.remove(&error.resource_name.expect("it says of what").name);
        }
        ads::DiscoveryRequest { error_detail: no(refuse), ..Self::repeat(kind, kept) }
    }

    fn repeat(kind: Kind, kept: &Kept) -> Self::Ask {
        let mut resource_names: Vec<_> = kept.names.iter().cloned().collect();
        if kept.all && !kept.nameless {
            resource_names.push("*".into());
        }
        ads::DiscoveryRequest {
            type_url: kind.type_url().into(),
            response_nonce: kept.nonce.clone(),
            resource_names,
            ..Default::default()
        }
    }

    fn with_node(ask: Self::Ask, node: Node) -> Self::Ask {
        Self::Ask { node: Some(node), ..ask }
    }
}

impl Form for super::super::delta::Incremental {
    fn drop_unwanted(kind: Kind, kept: &mut Kept, listed: &Client) {
        let mut cache = std::mem::take(&mut kept.cache);
        cache.retain(|name, _| kept.wants(kind, name, listed));
        kept.cache = cache;
    }

    fn want(kind: Kind, kept: &mut Kept, names: BTreeSet<String>, all: bool) -> Self::Ask {
        let mut add: Vec<_> = names.difference(&kept.names).cloned().collect();
        let mut drop: Vec<_> = kept.names.difference(&names).cloned().collect();
        if all && !kept.all {
            add.push("*".into());
        }
        if kept.all && !all {
            drop.push("*".into());
        }
        let nameless = !kept.asked && add.is_empty();
        (kept.names, kept.all, kept.asked) = (names, all || nameless, true);
        ads::DeltaDiscoveryRequest {
            type_url: kind.type_url().into(),
            resource_names_subscribe: add,
            resource_names_unsubscribe: drop,
            ..Default::default()
        }
    }

    fn again(kind: Kind, kept: &mut Kept) -> Self::Ask {
        let (names, all) = (std::mem::take(&mut kept.names), std::mem::take(&mut kept.all));
        kept.nonce.clear();
        kept.asked = false;
        let had = kept.cache.iter().map(|(name, (version, _))| (name.clone(), version.clone()));
        let initial_resource_versions = had.collect();
        ads::DeltaDiscoveryRequest {
            initial_resource_versions,
            ..Self::want(kind, kept, names, all)
        }
    }

    fn read(kept: &mut Cache, listed: &Client, answer: Self::Answer, refuse: bool) -> Self::Ask {
        let kind = Kind::of(&answer.type_url).expect("a known kind");
        let kept = kept.get_mut(&kind).expect("it was asked for");
        kept.nonce = answer.nonce;
        for one in answer.resources {
            let body = one.resource.expect("it is there").value;
            if kept.wants(kind, &one.name, listed) {
                kept.cache.insert(one.name, (one.version, body));
            }
        }
        for name in answer.removed_resources {
            kept.cache.remove(&name);
        }
        ads::DeltaDiscoveryRequest { error_detail: no(refuse), ..Self::repeat(kind, kept) }
    }

    fn repeat(kind: Kind, kept: &Kept) -> Self::Ask {
        let (type_url, response_nonce) = (kind.type_url().into(), kept.nonce.clone());
        ads::DeltaDiscoveryRequest { type_url, response_nonce, ..Default::default() }
    }

    fn with_node(ask: Self::Ask, node: Node) -> Self::Ask {
        Self::Ask { node: Some(node), ..ask }
    }
}

/// A client, its stream, and what is true.
struct World<P: Form> {
    session: Session<P>,
    client: Client,
    kept: Cache,
    inbox: VecDeque<P::Answer>,
    followed: BTreeSet<ServiceName>,
    truth: BTreeMap<ServiceName, Option<Arc<Routes>>>,
    epoch: u64,
}

impl<P: Form> World<P> {
    fn new() -> Self {
        let truth = SERVICES.iter().map(|name| (service(name), None)).collect();
        Self {
            session: Session::default(),
            client: Client::of(&envoy_node(&LISTED)).expect("it is readable"),
            kept: Cache::default(),
            inbox: VecDeque::new(),
            followed: BTreeSet::new(),
            truth,
            epoch: 1,
        }
    }

    fn ask(&mut self, ask: P::Ask) -> usize {
        let output = self.session.asked(P::with_node(ask, envoy_node(&LISTED)));
        let output = output.expect("it is not refused");
        for one in &output.unfollow {
            assert!(self.followed.remove(one), "{one} was not followed");
        }
        let first = output.follow.iter().map(|one| (one.clone(), self.truth[one].clone()));
        let first: Vec<_> = first.collect();
        for one in output.follow {
            assert!(self.followed.insert(one), "it was followed already");
        }
        let told = self.session.told(first);
        let count = output.responses.len() + told.responses.len();
        self.inbox.extend(output.responses);
        self.inbox.extend(told.responses);
        count
    }

    fn change(&mut self, at: usize, fate: &Fate) {
        let name = SERVICES[at];
        if let Fate::Primary(_, true) = fate {
            self.epoch += 1;
        }
        let write = match fate {
            Fate::Gone => None,
            Fate::Primary(who, _) => Some(to(&format!("i{who}"), *who)),
            Fate::Fenced => Some(Write::Nobody(Closed::Fenced { kind: "failover" })),
            Fate::Held => Some(Write::Nobody(HOLDS)),
        };
        let all = (0..3).map(|who| one(&format!("i{who}"), who, Default::default()));
        let all: Vec<_> = all.collect();
        let routes = write.map(|write| Routes { all, ..routes(name, self.epoch, write) });
        let routes = routes.map(Arc::new);
        self.truth.insert(service(name), routes.clone());
        let output = self.session.told([(service(name), routes)]);
        if !self.followed.contains(&service(name)) {
            assert!(output.responses.is_empty(), "{name} is not followed");
        }
        self.inbox.extend(output.responses);
    }

    fn read(&mut self, refuse: bool) {
        if let Some(answer) = self.inbox.pop_front() {
            let ask = P::read(&mut self.kept, &self.client, answer, refuse);
            self.ask(ask);
        }
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Want(kind, names, all) => {
                let names = NAMES.iter().zip(names).filter(|(_, want)| **want);
                let names = names.map(|(name, _)| (*name).to_owned()).collect();
                let kept = self.kept.entry(*kind).or_default();
                let ask = P::want(*kind, kept, names, *all);
                P::drop_unwanted(*kind, kept, &self.client);
                self.ask(ask);
            }
            Op::Change(at, fate) => self.change(*at, fate),
            Op::Read(refuse) => self.read(*refuse),
            Op::Reconnect => {
                self.session = Session::default();
                self.inbox.clear();
                self.followed.clear();
                for kind in Kind::MAKE {
                    if let Some(kept) = self.kept.get_mut(&kind) {
                        let ask = P::again(kind, kept);
                        self.ask(ask);
                    }
                }
            }
        }
    }

    /// Lets everything arrive, then looks.
    fn settle(&mut self) {
        for (at, name) in SERVICES.iter().enumerate() {
            let held = self.truth[&service(name)].as_ref().map(|routes| routes.write.clone());
            if held == Some(Write::Nobody(HOLDS)) {
                self.change(at, &Fate::Primary(1, false));
            }
        }
        for _ in 0..500 {
            self.read(false);
        }
        assert!(self.inbox.is_empty(), "it never ends");
        for (kind, kept) in &self.kept {
            let listed = LISTED.iter().filter(|_| kept.all && kind.is_whole());
            for name in kept.names.iter().map(String::as_str).chain(listed.copied()) {
                let have = kept.cache.get(name).map(|(_, body)| body);
                let same = have == self.truly(*kind, name).as_ref();
                assert!(same, "{} {name}: {have:?}", kind.as_str());
            }
        }
        for kind in Kind::MAKE {
            if let Some(kept) = self.kept.get(&kind) {
                let ask = P::repeat(kind, kept);
                assert_eq!(self.ask(ask), 0, "an ACK of {} was answered", kind.as_str());
            }
        }
    }

    fn truly(&self, kind: Kind, name: &str) -> Option<Vec<u8>> {
        let name = Name::parse(name)?;
        let routes = self.truth[&name.service].as_ref()?;
        let resource = match kind {
            Kind::Endpoints => endpoints(routes, name.side, &self.client).resource,
            _ => lasting(kind, &name, &self.client),
        };
        resource.map(|resource| resource.body.value)
    }
}

fn run<P: Form>(ops: &[Op]) {
    let mut world = World::<P>::new();
    for op in ops {
        world.step(op);
    }
    world.settle();
}

/// A request of a client that keeps no rule: kind, names, to drop, nonce, whether it is an error.
type Hostile = (usize, Vec<usize>, Vec<usize>, u8, bool);

fn hostile() -> impl Strategy<Value = Vec<Result<Hostile, (usize, bool)>>> {
    let names = || prop::collection::vec(0..NAMES.len() + 2, 0..4);
    let ask = (0..5_usize, names(), names(), any::<u8>(), any::<bool>());
    let event = prop_oneof![
        3 => ask.prop_map(Ok),
        1 => (0..SERVICES.len(), any::<bool>()).prop_map(Err)
    ];
    prop::collection::vec(event, 0..80)
}

fn url(kind: usize) -> String {
    Kind::MAKE.get(kind).map_or("x/Other", |kind| kind.type_url()).to_owned()
}

fn names_of(picks: &[usize]) -> Vec<String> {
    let pick = |pick: &usize| NAMES.get(*pick).copied().unwrap_or(["*", ""][*pick % 2]).to_owned();
    picks.iter().map(pick).collect()
}

fn attack<P: Form>(events: &[Result<Hostile, (usize, bool)>], ask: impl Fn(&Hostile) -> P::Ask) {
    let mut world = World::<P>::new();
    for event in events {
        match event {
            Ok(hostile) => {
                world.ask(ask(hostile));
            }
            Err((at, there)) => {
                world.change(*at, if *there { &Fate::Primary(0, true) } else { &Fate::Gone });
            }
        }
        world.inbox.clear();
    }
}

fn nonce(number: u8) -> String {
    if number.is_multiple_of(4) { String::new() } else { number.to_string() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn a_client_of_the_whole_form_ends_up_with_what_is_true(ops in ops()) {
        run::<super::super::sotw::StateOfTheWorld>(&ops);
    }

    #[test]
    fn a_client_of_the_incremental_form_ends_up_with_what_is_true(ops in ops()) {
        run::<super::super::delta::Incremental>(&ops);
    }

    #[test]
    fn a_client_that_keeps_no_rule_breaks_nothing(events in hostile()) {
        attack::<super::super::sotw::StateOfTheWorld>(&events, |(kind, names, _, number, bad)| {
            ads::DiscoveryRequest {
                type_url: url(*kind),
                resource_names: names_of(names),
                response_nonce: nonce(*number),
                error_detail: no(*bad),
                ..Default::default()
            }
        });
        attack::<super::super::delta::Incremental>(&events, |(kind, names, gone, number, bad)| {
            let had = names_of(gone).into_iter().map(|name| (name, nonce(*number)));
            ads::DeltaDiscoveryRequest {
                type_url: url(*kind),
                resource_names_subscribe: names_of(names),
                resource_names_unsubscribe: names_of(gone),
                initial_resource_versions: had.collect(),
                response_nonce: nonce(*number),
                error_detail: no(*bad),
                ..Default::default()
            }
        });
    }
}
