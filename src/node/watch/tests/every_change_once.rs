//! S12 under random orders: publishing, subscribing, reading a little, leaving, coming back.

use super::*;
use proptest::prelude::*;
use tonic::Code;

#[derive(Clone, Debug)]
enum Step {
    Open,
    Campaign(usize, usize),
    Resign(usize, usize),
    Proclaim(usize, usize, u8),
    Close(usize),
    Subscribe(usize),
    Read(usize, usize),
    Leave(usize),
    Pump,
}

const ELECTIONS: [&str; 4] = ["a/1", "a/2", "b/1", "a"];
const FILTERS: [fn() -> v1::ObserveRequest; 5] =
    [|| one("a/1"), || one("a"), || prefix("a/"), || prefix("b"), all];

fn covers(filter: usize, name: &str) -> bool {
    match filter {
        0 => name == "a/1",
        1 => name == "a",
        2 => name.starts_with("a/"),
        3 => name.starts_with('b'),
        _ => true,
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => Just(Step::Open),
        4 => (0..4_usize, 0..4_usize).prop_map(|(e, s)| Step::Campaign(e, s)),
        2 => (0..4_usize, 0..4_usize).prop_map(|(e, s)| Step::Resign(e, s)),
        4 => (0..4_usize, 0..4_usize, any::<u8>()).prop_map(|(e, s, v)| Step::Proclaim(e, s, v)),
        1 => (0..4_usize).prop_map(Step::Close),
        2 => (0..FILTERS.len()).prop_map(Step::Subscribe),
        4 => (0..4_usize, 0..6_usize).prop_map(|(c, n)| Step::Read(c, n)),
        1 => (0..4_usize).prop_map(Step::Leave),
        3 => Just(Step::Pump),
    ]
}

/// One row's change as the state machine made it: revision and name.
type Made = (u64, String);

fn made(history: &[Applied]) -> Vec<Made> {
    let mut made = Vec::new();
    for applied in history {
        for change in &applied.changes {
            if let regent_core::effect::Change::Election(name, _) = change {
                made.push((applied.revision.0, name.to_string()));
            }
        }
    }
    made
}

/// A client that comes back whenever it has to.
struct Client {
    filter: usize,
    observer: Option<Observer>,
    /// Where it may go on; `None`: with a snapshot.
    cursor: Option<u64>,
    /// Where this watch began, and what it has seen since, exactly.
    began: u64,
    seen: Vec<Made>,
    bookmark: u64,
}

impl Client {
    fn join(&mut self, world: &World) {
        let request = FILTERS[self.filter]();
        let request = match self.cursor {
            Some(revision) => after(request, revision),
            None => request,
        };
        self.seen.clear();
        self.bookmark = 0;
        match world.observe(request) {
            Ok(observer) => {
                self.observer = Some(observer);
                self.began = self.cursor.unwrap_or(u64::MAX);
            }
            Err(status) => {
                assert_eq!(status.code(), Code::OutOfRange, "{status}");
                self.cursor = None;
            }
        }
    }

    /// Reads up to `count` events and checks each against what was made.
    fn read(&mut self, count: usize, world: &World) {
        if self.observer.is_none() {
            self.join(world);
        }
        for _ in 0..count {
            let Some(observer) = &mut self.observer else { return };
            match observer.ready() {
                None => return,
                Some(None) => self.observer = None,
                Some(Some(Ok(event))) => self.take(event, world),
                Some(Some(Err(status))) => {
                    let code = status.code();
                    let told = [Code::OutOfRange, Code::ResourceExhausted];
                    assert!(told.contains(&code), "{status}");
                    if code == Code::OutOfRange {
                        self.cursor = None;
                    }
                    self.observer = None;
                }
            }
        }
    }

    fn take(&mut self, event: Event, world: &World) {
        match event {
            Event::SnapshotEnd(stamp) => {
                self.began = stamp.revision;
                self.cursor = Some(stamp.revision);
                self.bookmark = stamp.revision;
            }
            Event::Bookmark(stamp) => {
                assert!(Some(stamp.revision) >= self.cursor, "a bookmark goes back");
                self.cursor = Some(stamp.revision);
                self.bookmark = stamp.revision;
                self.check(world);
            }
            Event::Change(change) if change.revision == 0 => {
                assert_eq!(self.began, u64::MAX, "a row of a snapshot after its end");
            }
            Event::Change(change) => {
                let changed = change.election.as_ref().map_or(change.revision, |row| row.changed);
                assert!(Some(change.revision) >= self.cursor, "a change goes back");
                self.cursor = Some(change.revision);
                // What it knew before it came back may be told again, for belief's sake.
                if changed > self.began {
                    self.seen.push((changed, change.name));
                }
                self.check(world);
            }
        }
    }

    /// Everything seen is everything made, each once, in order, as far as it was seen; and nothing
    /// up to the place where it may go on is missing.
    fn check(&self, world: &World) {
        let made: Vec<Made> = made(&world.history)
            .into_iter()
            .filter(|(revision, name)| *revision > self.began && covers(self.filter, name))
            .collect();
        assert!(made.starts_with(&self.seen), "seen {:?}\nmade {made:?}", self.seen);
        let cursor = self.cursor.unwrap_or(0);
        let due = made.iter().filter(|(revision, _)| *revision <= cursor).count();
        assert!(
            self.seen.len() >= due,
            "going on at {cursor} would miss: {:?} {made:?}",
            self.seen
        );
    }
}

async fn run(steps: Vec<Step>, config: HubConfig) {
    let mut world = World::new(config);
    let mut sessions = vec![world.open()];
    let mut clients: Vec<Client> = Vec::new();
    for step in steps {
        let session = |at: usize| sessions[at % sessions.len()];
        match step {
            Step::Open => {
                let opened = world.open();
                sessions.push(opened);
            }
            Step::Campaign(e, s) => drop(world.campaign(ELECTIONS[e], session(s))),
            Step::Resign(e, s) => drop(world.resign(ELECTIONS[e], session(s))),
            Step::Proclaim(e, s, v) => {
                if world.state.read().elections().contains_key(&name(ELECTIONS[e])) {
                    world.proclaim(ELECTIONS[e], session(s), &[v]);
                }
            }
            Step::Close(s) => drop(world.close(session(s))),
            Step::Subscribe(filter) => {
                let mut client = Client {
                    filter,
                    observer: None,
                    cursor: None,
                    began: u64::MAX,
                    seen: Vec::new(),
                    bookmark: 0,
                };
                client.join(&world);
                clients.push(client);
            }
            Step::Read(c, n) if !clients.is_empty() => {
                let at = c % clients.len();
                clients[at].read(n, &world);
            }
            Step::Leave(c) if !clients.is_empty() => {
                let at = c % clients.len();
                clients[at].observer = None;
            }
            Step::Pump => tokio::task::yield_now().await,
            Step::Read(..) | Step::Leave(_) => {}
        }
    }
    // In the end everybody has seen everything, or was told to begin anew and has done so.
    let last = world.revision().0;
    for mut client in clients {
        let until = tokio::time::Instant::now() + Duration::from_secs(10);
        while client.bookmark < last {
            world.hub.bookmark_now();
            tokio::task::yield_now().await;
            client.read(64, &world);
            assert!(tokio::time::Instant::now() < until, "a client never gets to the end");
        }
        client.check(&world);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_watcher_sees_each_change_once_in_order_or_is_told(
        steps in proptest::collection::vec(step(), 1..120),
        ring_events in prop_oneof![Just(3_usize), Just(10), Just(65_536)],
        mailbox_messages in prop_oneof![Just(2_usize), Just(8), Just(4_096)],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let config = HubConfig { ring_events, mailbox_messages, ..quick(1) };
        runtime.block_on(run(steps, config));
    }
}

#[test]
fn watchers_that_join_while_others_publish_on_other_threads_miss_nothing() {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(quick(1));
        let session = world.open();
        world.campaign("a", session);
        let (state, hub) = (world.state.clone(), world.hub.clone());
        let joining = tokio::task::spawn_blocking(move || {
            let mut joined = Vec::new();
            for _ in 0..200 {
                let stream = hub.observe(&state, &one("a")).unwrap();
                joined.push(Observer { stream: Box::pin(stream.elections()) });
            }
            joined
        });
        let mut last = world.revision().0;
        let mut rounds = 0;
        while !joining.is_finished() || rounds < 200 {
            world.proclaim("a", session, &[1]);
            last = world.revision().0;
            rounds += 1;
            if rounds % 50 == 0 {
                tokio::task::yield_now().await;
            }
            if rounds > 3_000 {
                break;
            }
        }
        for mut observer in joining.await.unwrap() {
            let (_, stamp) = observer.snapshot().await;
            for revision in stamp.revision + 1..=last {
                assert_eq!(observer.change().await.revision, revision);
            }
        }
    });
}
