//! Runs the scripts of `testdata`: each block is commands, `----`, and what came of them.
//! `UPDATE=1 cargo test -p regent-core` writes the outcome into the files; read the diff.
//!
//! A command is a verb, then words in its order, then `key=value` options; `lane=3:1` makes any
//! command the first of lane 3, `by=agent/orders/pg1` lets another principal send it. `!` in front
//! wants success and shows nothing; `@fence` and the like stand for what is in force. Revisions
//! count up from 1. The verbs of roles are in `role_words.rs`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use super::{role_words, *};
use crate::authz::Verb;
use crate::command::{Lapsed, Refusal, Renewal, UnusedGrant};
use crate::effect::Change;
use crate::id::{Epoch, NodeId, RenewalNumber};
use crate::limits::{MAX_QUEUE_BYTES, MAX_VALUE_BYTES};

#[test]
fn the_scripts_of_testdata_come_out_as_written() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut files: Vec<_> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "txt"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no scripts in {}", dir.display());
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let got = play(&text);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &got).unwrap();
        } else {
            assert_eq!(got, text, "{}: UPDATE=1 rewrites it", path.display());
        }
    }
}

/// Plays a script; gives the script with what really came.
fn play(text: &str) -> String {
    let mut bench = Bench::empty();
    let mut out = String::new();
    let mut skipping = false;
    let mut block: Vec<&str> = Vec::new();
    for line in text.lines() {
        if skipping {
            if line.is_empty() {
                skipping = false;
                out.push('\n');
            }
        } else if line == "----" {
            out.push_str("----\n");
            for command in block.drain(..) {
                for line in step(&mut bench, command).lines() {
                    out.push_str(line);
                    out.push('\n');
                }
            }
            skipping = true;
        } else {
            if !line.is_empty() && !line.starts_with('#') {
                block.push(line);
            }
            out.push_str(line);
            out.push('\n');
        }
    }
    assert!(block.is_empty(), "commands without ----: {block:?}");
    out
}

pub(super) struct Words<'a> {
    plain: std::vec::IntoIter<&'a str>,
    options: BTreeMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    pub(super) fn next(&mut self) -> &'a str {
        self.plain.next().expect("a word is missing")
    }
    fn number(&mut self) -> u64 {
        self.next().parse().expect("a number")
    }
    pub(super) fn option(&self, key: &str) -> &'a str {
        self.options.get(key).copied().unwrap_or_default()
    }
    pub(super) fn option_number(&self, key: &str, default: u64) -> u64 {
        self.options.get(key).map_or(default, |text| text.parse().expect("a number"))
    }
    fn expect(&self) -> Expect {
        match self.option("expect") {
            "" => Expect::Any,
            "absent" => Expect::Absent,
            revision => Expect::Revision(Revision(revision.parse().expect("a revision"))),
        }
    }
}

pub(super) fn epoch(text: &str) -> Epoch {
    let (incarnation, revision) = text.split_once('.').expect("incarnation.revision");
    Epoch {
        incarnation: incarnation.parse().unwrap(),
        revision: Revision(revision.parse().unwrap()),
    }
}

fn locality(text: &str) -> Locality {
    let mut parts = text.split('/').map(str::to_owned);
    let mut part = || parts.next().unwrap_or_default();
    Locality { region: part(), zone: part(), host: part() }
}

fn value(text: &str) -> Vec<u8> {
    match text {
        "HUGE" => vec![0; MAX_VALUE_BYTES + 1],
        "FULL" => vec![0; MAX_VALUE_BYTES.min(MAX_QUEUE_BYTES)],
        text => text.as_bytes().to_vec(),
    }
}

pub(super) fn list(text: &str) -> Vec<&str> {
    text.split(',').filter(|part| !part.is_empty() && *part != "-").collect()
}

fn timing(text: &str) -> Timing {
    match text {
        "lan" => Timing::LAN,
        "fast" => Timing::FAST,
        "wan" => Timing::WAN,
        "broken" => Timing { heartbeat_ms: 0, ..Timing::LAN },
        other => panic!("no timing {other}"),
    }
}

fn step(bench: &mut Bench, line: &str) -> String {
    if let Some(line) = line.strip_prefix("! ") {
        let out = step(bench, line);
        let is_done = ["done", "session", "granted", "start", "[Extended", "expired 1"];
        let said = out.split_once(": ").map_or("", |(_, said)| said);
        let is_done = is_done.iter().any(|done| said.starts_with(done));
        return if is_done { String::new() } else { format!("NOT DONE {line}\n{out}") };
    }
    let line = &role_words::resolve(&bench.state, line);
    let (mut plain, mut options) = (Vec::new(), BTreeMap::new());
    for word in line.split_whitespace().skip(1) {
        match word.split_once('=') {
            Some((key, value)) => drop(options.insert(key, value)),
            None => plain.push(word),
        }
    }
    let mut words = Words { plain: plain.into_iter(), options };
    let verb = line.split_whitespace().next().unwrap();
    let revision = bench.state.revision().next();
    let nodes = |text: &str| -> Vec<NodeId> {
        list(text).iter().map(|node| NodeId(node.parse().unwrap())).collect()
    };
    let applied = match verb {
        "as" => {
            let (role, name) = words.next().split_once('/').unwrap();
            bench.by = Principal::new(role.parse().unwrap(), name);
            return String::new();
        }
        "show" => return show(&bench.state),
        "said" => return role_words::said(&bench.state),
        "snapshot" => {
            let bytes = bench.state.encode_snapshot();
            bench.state = State::decode_snapshot(&bytes).unwrap();
            assert_eq!(bench.state.encode_snapshot(), bytes);
            return String::new();
        }
        "blank" => bench.state.apply_blank(revision),
        "members" => {
            let (voters, learners) = (nodes(words.next()), nodes(words.next()));
            bench.state.apply_membership(revision, &voters, &learners)
        }
        "garbage" => bench.raw(&[1, 2, 3]),
        "future" => {
            let mut entry = Entry::new(WallMs(0), bench.by.clone(), None, &open_session(1, 1));
            entry.version = 9;
            bench.raw(&entry.encode())
        }
        "corrupt" => {
            let spec = service(words.next(), &["a"], &[]);
            let by = bench.by.clone();
            let mut entry = Entry::new(WallMs(0), by, None, &put_service(spec));
            entry.body.pop();
            bench.raw(&entry.encode())
        }
        _ => {
            let mut command =
                role_words::command(verb, &mut words).unwrap_or_else(|| command(verb, &mut words));
            let lane = words.options.get("lane").map(|lane| {
                let (client, serial) = lane.split_once(':').unwrap();
                (client.parse().unwrap(), serial.parse().unwrap())
            });
            let by = words.option("by").split_once('/');
            let by = by.map(|(role, name)| Principal::new(role.parse().unwrap(), name));
            let usual = bench.by.clone();
            let by = by.or_else(|| role_words::sender(&command));
            bench.by = by.unwrap_or_else(|| usual.clone());
            role_words::on_newest(&bench.state, &bench.by, &mut command);
            let applied = bench.run_as(lane, command);
            bench.by = usual;
            applied
        }
    };
    bench.state.check().unwrap();
    render(&applied)
}

fn command(verb: &str, words: &mut Words<'_>) -> Command {
    let session = |words: &mut Words<'_>| SessionId(words.number());
    let nonce = |words: &mut Words<'_>| Nonce(words.number());
    match verb {
        "bootstrap" => Command::Bootstrap {
            incarnation: Incarnation { counter: words.number(), id: words.number() },
            cluster: words.next().to_owned(),
            timing: timing(words.next()),
        },
        "incarnation" => Command::BeginIncarnation {
            incarnation: Incarnation { counter: words.number(), id: words.number() },
            reason: "restored".into(),
            hold_ms: match words.option("hold") {
                "known" => None,
                _ => Some(words.option_number("hold", 0)),
            },
        },
        "open-grants" => Command::OpenGrants {
            incarnation: Incarnation { counter: words.number(), id: words.number() },
        },
        "timing" => Command::SetTiming { timing: timing(words.next()) },
        "level" => Command::RaiseFeatureLevel { to: words.number() as u32 },
        "boot" => Command::RecordBoot {
            node: NodeId(words.number()),
            disk: words.number(),
            boot: words.number(),
            nonce: nonce(words),
        },
        "allocate" => Command::AllocateNode { label: words.next().to_owned() },
        "act" => Command::RecordAct {
            verb: Verb::Backup,
            resource: words.next().to_owned(),
            outcome: "done".into(),
            reason: words.option("reason").to_owned(),
        },
        "refused" => Command::RecordRefusals {
            refusals: vec![Refusal {
                by: words.next().to_owned(),
                verb: Verb::MembersWrite,
                resource: words.next().to_owned(),
                reason: "no right".into(),
                count: words.number() as u32,
            }],
        },
        "service" => {
            let (name, instances) = (words.next(), list(words.next()));
            let mut spec = service(name, &instances, &list(words.option("partitions")));
            spec.description = words.option("about").to_owned();
            role_words::policy(&mut spec, words);
            spec.policy.ttl_ms = words.option_number("ttl", spec.policy.ttl_ms);
            Command::PutService { spec: Box::new(spec), expect: words.expect() }
        }
        "delete-service" => Command::DeleteService {
            service: words.next().parse().unwrap(),
            expect: words.expect(),
        },
        "release" => Command::ReleaseQuarantine {
            service: words.next().parse().unwrap(),
            reason: words.option("reason").to_owned(),
        },
        "assign" => Command::AssignPartition {
            service: words.next().parse().unwrap(),
            partition: words.next().parse().unwrap(),
            to: list(words.next()).first().map(|to| to.parse().unwrap()),
            seen: epoch(words.next()),
        },
        "open" => Command::OpenSession {
            ttl_ms: words.number(),
            renew_interval_ms: words.option_number("every", 300),
            fence_budget_ms: words.option_number("fence", 250),
            nonce: Nonce(words.option_number("nonce", 1)),
            label: words.option("label").to_owned(),
        },
        "renew" => Command::RenewSessions { renewals: words.plain.by_ref().map(renewal).collect() },
        "report" => Command::RenewHolders {
            renewals: vec![renewal(words.next())],
            reports: vec![(0, role_words::report(words))],
        },
        "close" => Command::CloseSession { session: session(words), nonce: nonce(words) },
        "expire" => Command::ExpireSessions {
            lapsed: words
                .plain
                .by_ref()
                .map(|word| {
                    let (session, seen) = word.split_once(':').unwrap();
                    Lapsed {
                        session: SessionId(session.parse().unwrap()),
                        seen: RenewalNumber(seen.parse().unwrap()),
                    }
                })
                .collect(),
        },
        "expire-grants" => Command::ExpireGrants {
            unused: words
                .plain
                .by_ref()
                .map(|word| {
                    let (election, at) = word.split_once('@').unwrap();
                    UnusedGrant { election: election.parse().unwrap(), epoch: epoch(at) }
                })
                .collect(),
        },
        "campaign" => Command::Campaign {
            election: words.next().parse().unwrap(),
            session: session(words),
            nonce: Nonce(words.option_number("nonce", 1)),
            priority: words.option("priority").parse().unwrap_or(0),
            locality: locality(words.option("at")),
            value: value(words.option("value")),
        },
        "resign" => Command::Resign {
            election: words.next().parse().unwrap(),
            session: session(words),
            nonce: Nonce(words.option_number("nonce", 1)),
        },
        "resign_epoch" => Command::ResignEpoch {
            election: words.next().parse().unwrap(),
            session: session(words),
            epoch: epoch(words.next()),
            nonce: Nonce(words.option_number("nonce", 1)),
        },
        "proclaim" => Command::Proclaim {
            election: words.next().parse().unwrap(),
            session: session(words),
            epoch: epoch(words.next()),
            value: value(words.next()),
        },
        "election" => Command::PutElection {
            election: words.next().parse().unwrap(),
            preferred: locality(words.option("at")),
            expect: words.expect(),
        },
        "delete-election" => Command::DeleteElection {
            election: words.next().parse().unwrap(),
            expect: words.expect(),
        },
        other => panic!("no verb {other}"),
    }
}

/// `session:nonce:number[:acked[:known_grant]]`
fn renewal(word: &str) -> Renewal {
    let mut parts = word.split(':').map(|part| part.parse::<u64>().expect("a number"));
    let mut part = || parts.next().unwrap_or(0);
    Renewal {
        session: SessionId(part()),
        nonce: Nonce(part()),
        number: RenewalNumber(part()),
        acked: RenewalNumber(part()),
        known_grant: Revision(part()),
    }
}

fn render(applied: &Applied) -> String {
    let mut out = format!("{}: ", applied.revision);
    match &applied.reply {
        Reply::Done { revision } => write!(out, "done at {revision}"),
        Reply::Unchanged { revision } => write!(out, "unchanged since {revision}"),
        Reply::SessionOpened { session, .. } => write!(out, "session {session}"),
        Reply::Renewed { outcomes, .. } => write!(out, "{outcomes:?}"),
        Reply::Granted { epoch, .. } => write!(out, "granted {epoch}"),
        Reply::Queued { ahead, .. } => write!(out, "queued behind {ahead}"),
        Reply::NodeAllocated { node, .. } => write!(out, "node {node}"),
        Reply::Expired { count, .. } => write!(out, "expired {count}"),
        Reply::StartAccepted { boot, mark, .. } => write!(out, "start {boot} mark {mark}"),
        Reply::StartQuarantined { why, .. } => write!(out, "quarantined: {why}"),
        Reply::Rejected(rejection) => write!(out, "{}: {rejection}", rejection.rule()),
    }
    .unwrap();
    out.push('\n');
    for change in &applied.changes {
        match change {
            Change::Service(name, Some(row)) => {
                let quarantined = if row.quarantine.is_some() { " quarantined" } else { "" };
                writeln!(out, "  service {name} {:?}{quarantined}", row.life)
            }
            Change::Election(name, Some(row)) => writeln!(out, "  election {name} {}", places(row)),
            Change::Partition(name, part, Some(row)) => {
                let owner = row.owner.as_ref().map_or("nobody", |owner| owner.as_str());
                writeln!(out, "  partition {name}/{part} {owner} {}", row.epoch)
            }
            Change::Service(name, None) => writeln!(out, "  service {name} gone"),
            Change::Election(name, None) => writeln!(out, "  election {name} gone"),
            Change::Partition(name, part, None) => writeln!(out, "  partition {name}/{part} gone"),
            Change::Role(name, row) => write!(out, "{}", role_words::role(name, row.as_deref())),
            Change::Operation(name, id, row) => {
                write!(out, "{}", role_words::operation(name, *id, row.as_deref()))
            }
            Change::Cluster => writeln!(out, "  cluster"),
            Change::Incarnation => writeln!(out, "  incarnation"),
        }
        .unwrap();
    }
    for clock in &applied.clocks {
        writeln!(out, "  clock {clock:?}").unwrap();
    }
    for record in &applied.audit {
        let why = if record.why.is_empty() { String::new() } else { format!(" ({})", record.why) };
        writeln!(
            out,
            "  audit {} {} {} {}{why}: {}",
            record.number, record.who, record.what, record.resource, record.outcome
        )
        .unwrap();
    }
    out
}

fn places(row: &crate::state::election::Election) -> String {
    let mut out = format!("{}", row.epoch);
    match &row.holder {
        Some(holder) => {
            let value = String::from_utf8_lossy(&holder.value[..holder.value.len().min(20)]);
            write!(out, " held by {} ({value:?})", holder.session).unwrap();
        }
        None => out.push_str(" free"),
    }
    for waiting in &row.queue {
        write!(out, " <- {}", waiting.session).unwrap();
    }
    out
}

fn show(state: &State) -> String {
    let mut out = String::new();
    let cluster = state.cluster();
    writeln!(
        out,
        "  cluster {:?} incarnation {} level {} boots {:?} highest node {}",
        cluster.name,
        cluster.incarnation,
        cluster.feature_level,
        cluster.boots.keys().map(|node| node.0).collect::<Vec<_>>(),
        cluster.highest_node
    )
    .unwrap();
    if cluster.grants_held_ms > 0 {
        writeln!(out, "  grants wait for leases of {} ms", cluster.grants_held_ms).unwrap();
    }
    for (id, row) in state.sessions() {
        writeln!(
            out,
            "  session {id} of {} renewed {} acked {} knows {} granted {} places {}",
            row.owner, row.renewed, row.acked, row.known_grant, row.grant, row.places
        )
        .unwrap();
    }
    for (name, row) in state.elections() {
        writeln!(out, "  election {name} {}", places(row)).unwrap();
    }
    for name in state.unconfirmed() {
        writeln!(out, "  unconfirmed {name}").unwrap();
    }
    for (name, row) in state.services() {
        writeln!(out, "  service {name} {:?} changed {}", row.life, row.changed).unwrap();
    }
    for (name, row) in state.roles() {
        out.push_str(&role_words::role(name, Some(row)));
    }
    for ((name, id), row) in state.operations() {
        out.push_str(&role_words::operation(name, *id, Some(row)));
    }
    for ((name, part), row) in state.partitions() {
        writeln!(out, "  partition {name}/{part} {:?} {}", row.owner, row.epoch).unwrap();
    }
    out
}
