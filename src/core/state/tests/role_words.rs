//! The verbs of role changes in scripts, and how roles are shown.

use std::fmt::Write as _;

use super::script::{Words, epoch, list};
use crate::authz::{Principal, Role};
use crate::command::Command;
use crate::id::{Epoch, InstanceName, Nonce, Revision, ServiceName, SessionId};
use crate::role::{
    AgentStart, Armed, DataIdentity, DirectiveNumber, FenceKind, HolderInstant, HolderReport, Loss,
    Lsn, MachineBoot, Phase, Position, Proof, Receipt, StopInstant, Watermark,
};
use crate::spec::{AwaitRouters, LossBound, Mode, OnViolation, Policy, ServiceSpec, TooFewSync};
use crate::state::State;
use crate::state::role::row::{Operation, ServiceRole};

fn revision(text: &str) -> Revision {
    Revision(text.parse().expect("a revision"))
}

fn lsn(text: &str) -> Lsn {
    if text.is_empty() { Lsn(0) } else { text.parse().expect("a position") }
}

fn option_epoch(words: &Words<'_>, key: &str) -> Epoch {
    match words.option(key) {
        "" => Epoch::NONE,
        text => epoch(text),
    }
}

fn position(words: &Words<'_>) -> Position {
    let timeline = words.option_number("timeline", 1) as u32;
    Position { epoch: option_epoch(words, "epoch"), end: lsn(words.option("end")), timeline }
}

/// `loss=ms:bytes`; without it nothing is known.
fn loss(words: &Words<'_>) -> Loss {
    let Some((ms, bytes)) = words.option("loss").split_once(':') else { return Loss::default() };
    Loss { ms: ms.parse().ok(), bytes: bytes.parse().ok() }
}

fn start(words: &Words<'_>, instance: &InstanceName) -> AgentStart {
    let number = |text: &str| match text.split_once('/') {
        Some((at, revision)) => {
            DirectiveNumber { epoch: epoch(at), revision: self::revision(revision) }
        }
        None => DirectiveNumber::default(),
    };
    let disk = u64::from(instance.as_str().as_bytes()[instance.as_str().len() - 1]);
    let data = DataIdentity {
        system: words.option_number("system", 77),
        generation: words.option_number("gen", 1),
        epoch: option_epoch(words, "epoch"),
        position: (words.option("end") != "unknown").then(|| position(words)),
        out_of_recovery: words.option("runs") == "primary",
    };
    AgentStart {
        session: SessionId(words.option_number("session", 0)),
        nonce: Nonce(words.option_number("nonce", 1)),
        boot: words.option_number("boot", 0),
        disk: words.option_number("disk", disk),
        seen: number(words.option("seen")),
        data: (words.option("data") != "none").then_some(data),
        fencer: if words.option("fencer") == "weak" { Armed::Weak } else { Armed::Armed },
        run: Nonce(words.option_number("run", 0)),
    }
}

fn receipt(words: &mut Words<'_>) -> Receipt {
    let instance = words.next().parse().unwrap();
    let proof = match words.next() {
        "detached" => Proof::Detached,
        "recruited" => Proof::Recruited,
        "stopped" => Proof::Stopped,
        "resigned" => Proof::Resigned,
        other => panic!("no proof {other}"),
    };
    Receipt {
        instance,
        fence: revision(words.next()),
        proof,
        position: (!words.option("end").is_empty()).then(|| position(words)),
        boot: words.option_number("boot", 1),
        nonce: Nonce(words.option_number("nonce", 1)),
        generation: words.option_number("gen", 1),
        is_proven: words.option("proven") != "no",
    }
}

fn instant(words: &Words<'_>, key: &str) -> HolderInstant {
    HolderInstant(words.option_number(key, 0) * 1_000)
}

fn boot_of_machine(words: &Words<'_>) -> MachineBoot {
    MachineBoot(words.option_number("machine", 1))
}

/// What a renewal says: `sent=ms sampled=ms end=0/10 policy=3 set=8`, and `armed=no pause=7 machine=2`.
pub(super) fn report(words: &Words<'_>) -> HolderReport {
    let mark = Watermark { at: position(words), sampled: instant(words, "sampled") };
    HolderReport {
        armed: if words.option("armed") == "no" { Armed::Weak } else { Armed::Armed },
        boot: boot_of_machine(words),
        sent: instant(words, "sent"),
        watermark: (!words.option("end").is_empty()).then_some(mark),
        pause: words.option("pause").parse().ok().map(Revision),
        policy: Revision(words.option_number("policy", u64::MAX)),
        set: words.option("set").parse().ok().map(Revision),
    }
}

/// What holders said last, a line each.
pub(super) fn said(state: &State) -> String {
    let mut out = String::new();
    for (name, row) in state.holders() {
        match &row.renewal {
            None => writeln!(out, "  said {name}: nothing").unwrap(),
            Some(last) => {
                let marks: Vec<_> = last
                    .marks
                    .iter()
                    .map(|mark| format!("{} at {} ms", mark.at.end, mark.sampled.0 / 1_000))
                    .collect();
                let report = &last.report;
                write!(
                    out,
                    "  said {name}: {} {} renewal {} of {} for {} ms, {}, sent {} ms, [{}]",
                    last.instance,
                    last.epoch,
                    last.number,
                    last.session,
                    last.ttl_ms,
                    report.armed.as_str(),
                    report.sent.0 / 1_000,
                    marks.join(", "),
                )
                .unwrap();
                if let Some(pause) = report.pause {
                    write!(out, ", pause {pause}").unwrap();
                }
                if let Some(stopped) = last.stopped {
                    write!(out, ", stopped {} ms", stopped.at.0 / 1_000).unwrap();
                }
                if let Some(out_by) = last.out_by {
                    write!(out, ", out by {} ms", out_by.0 / 1_000).unwrap();
                }
                out.push('\n');
            }
        }
        for former in &row.former {
            let bound = former.policy.loss_bound.max_ms;
            writeln!(out, "    until {}: a loss of {bound} ms", former.until).unwrap();
        }
    }
    out
}

fn phase(text: &str) -> Phase {
    match text {
        "fence" => Phase::Fence,
        "promote" => Phase::Promote,
        "repair" => Phase::Repair,
        "done" => Phase::Done,
        "given-up" => Phase::GivenUp,
        other => panic!("no phase {other}"),
    }
}

/// Puts what stands in the role of the first service in the place of `@fence`, `@op`, `@epoch`,
/// `@set`, `@lease`, `@mark`, `@pause` and `@asked`.
pub(super) fn resolve(state: &State, line: &str) -> String {
    let Some((name, role)) = state.roles().iter().next() else { return line.to_owned() };
    let op = role.operation.unwrap_or_default();
    let row = state.operations().get(&(name.clone(), op));
    let asked = row.and_then(|row| row.approval.as_ref()).map_or(Revision(0), |asked| asked.id);
    let fence = role.fence.as_ref().map_or(Revision(0), |fence| fence.fence);
    let set = role.set.as_ref().map_or(Revision(0), |set| set.revision);
    let lease = role.lease.as_ref().map_or(SessionId(0), |lease| lease.session);
    let mark = role.lease.as_ref().map_or(Revision(0), |lease| lease.mark);
    let pause = role.paused.as_ref().map_or(Revision(0), |pause| pause.since);
    line.replace("@lease", &lease.to_string())
        .replace("@mark", &mark.to_string())
        .replace("@pause", &pause.to_string())
        .replace("@fence", &fence.to_string())
        .replace("@op", &op.to_string())
        .replace("@epoch", &role.epoch.to_string())
        .replace("@set", &set.to_string())
        .replace("@asked", &asked.to_string())
}

/// Whose agent sends a command, if it is one that agents send for their own instance.
pub(super) fn sender(command: &Command) -> Option<Principal> {
    let agent = |service: &ServiceName, instance: &InstanceName| {
        Some(Principal::new(Role::Agent, format!("{service}/{instance}")))
    };
    match command {
        Command::AcceptStart { service, instance, .. } => agent(service, instance),
        Command::RecordReceipt { service, receipt }
        | Command::RecordStop { service, receipt, .. } => agent(service, &receipt.instance),
        _ => None,
    }
}

/// A start that names no session comes over the newest one of its agent.
pub(super) fn on_newest(state: &State, by: &Principal, command: &mut Command) {
    if let Command::AcceptStart { start, .. } = command
        && start.session == SessionId(0)
    {
        let own = state.sessions().iter().filter(|(_, row)| row.owner == *by);
        start.session = own.map(|(id, _)| *id).max().unwrap_or_default();
    }
}

/// The command of a verb about roles.
pub(super) fn command(verb: &str, words: &mut Words<'_>) -> Option<Command> {
    const VERBS: [&str; 18] = [
        "start",
        "first",
        "fence",
        "cut",
        "take-over",
        "receipt",
        "fetch",
        "grant",
        "close-fence",
        "plan",
        "drain",
        "set",
        "covered",
        "promoted",
        "advance",
        "ask",
        "answer",
        "pause",
    ];
    if !VERBS.contains(&verb) {
        return None;
    }
    let service: ServiceName = words.next().parse().unwrap();
    let reason = words.option("reason").to_owned();
    Some(match verb {
        "start" => {
            let instance: InstanceName = words.next().parse().unwrap();
            let start = Box::new(start(words, &instance));
            Command::AcceptStart { service, instance, start }
        }
        "first" => Command::GrantFirst { service, candidate: words.next().parse().unwrap() },
        "fence" => {
            let kind = match words.next() {
                "failover" => FenceKind::Failover {
                    verdict: "primary_gone".into(),
                    to: words.option("to").parse().ok(),
                },
                _ => FenceKind::Switchover { to: words.option("to").parse().ok() },
            };
            Command::OpenFence { service, kind, seen: epoch(words.next()), reason }
        }
        "plan" => {
            let (to, seen) = (words.option("to").parse().ok(), epoch(words.next()));
            Command::PlanSwitchover { service, to, seen, reason }
        }
        "drain" => Command::CloseRoutes { service, operation: revision(words.next()) },
        "cut" => Command::CutStandbys { service, fence: revision(words.next()) },
        "take-over" => {
            let (fence, verdict) = (revision(words.next()), "primary_gone".to_owned());
            Command::TakeOverFence { service, fence, verdict, reason }
        }
        "receipt" => {
            let receipt = Box::new(receipt(words));
            let stopped =
                StopInstant { boot: boot_of_machine(words), at: instant(words, "stopped") };
            match words.option("stopped") {
                "" => Command::RecordReceipt { service, receipt },
                _ => Command::RecordStop { service, receipt, stopped },
            }
        }
        "fetch" => Command::OrderFetch {
            service,
            fence: revision(words.next()),
            to: words.next().parse().unwrap(),
            from: words.next().parse().unwrap(),
        },
        "grant" => Command::GrantRole {
            service,
            fence: revision(words.next()),
            candidate: words.next().parse().unwrap(),
            loss: loss(words),
            approval: words.option("approval").parse().ok().map(Revision),
        },
        "close-fence" => Command::CloseFence { service, fence: revision(words.next()), reason },
        "set" => Command::ChangeSet {
            service,
            seen: revision(words.next()),
            members: list(words.next()).iter().map(|name| name.parse().unwrap()).collect(),
            k: words.option_number("k", 1) as u32,
        },
        "covered" => Command::ConfirmCovered {
            service,
            epoch: epoch(words.next()),
            set: revision(words.next()),
        },
        "promoted" => Command::RecordPromotion {
            service,
            epoch: epoch(words.next()),
            timeline: words.option_number("timeline", 2) as u32,
            switch: lsn(words.option("switch")),
        },
        "advance" => Command::AdvanceOperation {
            service,
            operation: revision(words.next()),
            phase: phase(words.next()),
        },
        "ask" => Command::OpenApproval {
            service,
            fence: revision(words.next()),
            candidate: words.next().parse().unwrap(),
            loss: loss(words),
            without_out: words.option("without-out") == "yes",
            question: "may it?".into(),
        },
        "answer" => Command::AnswerApproval {
            service,
            approval: revision(words.next()),
            granted: words.next() == "yes",
            reason,
        },
        _ => Command::SetPause { service, paused: words.next() == "on", reason },
    })
}

/// Options of `service` that roles need: `mode=quorum k=1 kmin=1 few=degrade violation=accept
/// zero=pg3 await=100 most=1000` (the last a loss in milliseconds, with any bytes).
pub(super) fn policy(spec: &mut ServiceSpec, words: &Words<'_>) {
    if words.option("mode") == "quorum" {
        spec.policy = Policy { ttl_ms: spec.policy.ttl_ms, ..Policy::default_for(Mode::Quorum) };
        spec.policy.sync_standbys = words.option_number("k", 1) as u32;
        spec.policy.min_sync_standbys = words.option_number("kmin", 1) as u32;
    }
    if words.option("few") == "degrade" {
        spec.policy.on_too_few_sync = TooFewSync::Degrade;
    }
    match words.option("violation") {
        "accept" => spec.policy.loss_bound.on_violation = OnViolation::Accept,
        "refuse" => spec.policy.loss_bound.on_violation = OnViolation::Refuse,
        _ => {}
    }
    if let Ok(most) = words.option("most").parse() {
        (spec.policy.loss_bound.max_ms, spec.policy.loss_bound.max_bytes) =
            (most, LossBound::ANY_BYTES);
    }
    if let percent @ 1.. = words.option_number("await", 0) as u32 {
        spec.policy.await_routers = AwaitRouters { percent, within_ms: 300 };
    }
    for instance in &mut spec.instances {
        if instance.name.as_str() == words.option("zero") {
            instance.priority = 0;
        }
    }
}

/// A role on a few lines.
pub(super) fn role(name: &ServiceName, row: Option<&ServiceRole>) -> String {
    let Some(row) = row else { return format!("  role {name} gone\n") };
    let mut out = format!("  role {name} {}", row.epoch);
    match &row.holder {
        Some(holder) => write!(out, " {holder}").unwrap(),
        None => out.push_str(" nobody"),
    }
    if let Some(lease) = &row.lease {
        write!(out, " lease {}@{}", lease.session, lease.mark).unwrap();
    }
    if let Some(lapsed) = row.lapsed {
        write!(out, " lapsed {}", lapsed.as_str()).unwrap();
    }
    if row.confirmed {
        out.push_str(" confirmed");
    }
    if row.routes_open {
        out.push_str(" routes");
    }
    if row.paused.is_some() {
        out.push_str(" paused");
    }
    out.push('\n');
    for (what, sets) in [("A", &row.a), ("C", &row.c)] {
        if !sets.is_empty() && (what == "C" || row.a != row.c) {
            let sets: Vec<_> = sets.iter().map(|set| format!("{}={set}", set.revision)).collect();
            let what = if row.a == row.c { "A=C" } else { what };
            writeln!(out, "    {what} {}", sets.join(" + ")).unwrap();
        }
    }
    if let Some(fence) = &row.fence {
        let uncut = if fence.uncut { " uncut" } else { "" };
        write!(out, "    fence {} {}{uncut}", fence.fence, fence.kind.name()).unwrap();
        for (who, receipt) in &fence.receipts {
            let end = receipt.position.map_or(String::new(), |at| format!(" {}", at.end));
            write!(out, ", {who} {}{end}", receipt.proof).unwrap();
        }
        out.push('\n');
    }
    for (who, row) in &row.instances {
        writeln!(out, "    {who} start {}: {}", row.boot, row.directive).unwrap();
    }
    out
}

/// An operation on a line.
pub(super) fn operation(name: &ServiceName, id: Revision, row: Option<&Operation>) -> String {
    let Some(row) = row else { return format!("  operation {name} {id} gone\n") };
    let mut out = format!("  operation {name} {id} {} {}", row.kind.name(), row.phase);
    if let (Some(out_by), Some(complete), Some(to)) = (row.out, row.complete, &row.to) {
        write!(out, " to {to}: {out_by}; {complete}").unwrap();
    }
    if let Some(asked) = &row.approval {
        let said = asked
            .answer
            .as_ref()
            .map_or("asked", |answer| if answer.granted { "granted" } else { "denied" });
        write!(out, ", approval {} {said}", asked.id).unwrap();
    }
    out.push('\n');
    out
}
