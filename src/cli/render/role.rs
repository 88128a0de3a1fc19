//! Roles, operations and facts, for programs and for people.

use regent_rpc::pb::v1;
use serde_json::{Value, json};

use super::json::{epoch, locality};
use super::table::Table;
use super::text;
use crate::duration;

/// A position in the WAL as PostgreSQL prints it.
fn lsn(end: u64) -> String {
    format!("{:X}/{:X}", end >> 32, end & 0xffff_ffff)
}

fn position(position: Option<&v1::Position>) -> Value {
    position.map_or(Value::Null, |position| {
        json!({
            "epoch": epoch(&position.epoch),
            "end": lsn(position.end),
            "timeline": position.timeline,
        })
    })
}

fn set(set: Option<&v1::SyncSet>) -> Value {
    set.map_or(
        Value::Null,
        |set| json!({ "revision": set.revision, "members": set.members, "k": set.k }),
    )
}

/// What an instance is to be, as one phrase.
fn order(directive: Option<&v1::Directive>) -> String {
    use v1::directive::Order as O;
    match directive.and_then(|directive| directive.order.as_ref()) {
        None => String::new(),
        Some(O::Wait(_)) => "wait".to_owned(),
        Some(O::Lead(lead)) => format!("lead with {}", set_text(lead.set.as_ref())),
        Some(O::Follow(follow)) => format!("follow {}", follow.upstream),
        Some(O::Detach(detach)) => format!("detach under fence {}", detach.fence),
        Some(O::Fetch(fetch)) => format!("fetch from {} under fence {}", fetch.from, fetch.fence),
        Some(O::Stop(stop)) => format!("stop under fence {}", stop.fence),
        Some(O::Resign(resign)) => format!("resign under fence {}", resign.fence),
        Some(O::Quarantined(_)) => "quarantined".to_owned(),
    }
}

fn set_text(set: Option<&v1::SyncSet>) -> String {
    match set {
        None => "none".to_owned(),
        Some(set) if set.k == 0 => "none (unprotected)".to_owned(),
        Some(set) => format!("{} of {}", set.k, set.members.join(", ")),
    }
}

fn proof(receipt: Option<&v1::Receipt>) -> String {
    receipt.map(|receipt| text::word(receipt.proof().as_str_name())).unwrap_or_default()
}

fn instance_row(row: &v1::RoleInstance) -> Value {
    json!({
        "instance": row.instance,
        "boot": row.boot,
        "armed": row.armed,
        "live": row.live,
        "directive": order(row.directive.as_ref()),
        "quarantined": row.quarantined,
        "position": position(row.data.as_ref().and_then(|data| data.position.as_ref())),
    })
}

/// A role for programs.
pub fn role(role: &v1::Role) -> Value {
    let fence = role.fence.as_ref().map(|fence| {
        let receipts = fence.receipts.iter().map(|row| {
            let at = row.receipt.as_ref().and_then(|receipt| receipt.position.as_ref());
            json!({
                "instance": row.instance,
                "proof": proof(row.receipt.as_ref()),
                "position": position(at),
            })
        });
        json!({
            "fence": fence.fence,
            "operation": fence.operation,
            "kind": fence.kind,
            "uncut": fence.uncut,
            "receipts": receipts.collect::<Vec<_>>(),
        })
    });
    let paused = role
        .paused
        .as_ref()
        .map(|pause| json!({ "since": pause.since, "by": pause.by, "reason": pause.reason }));
    json!({
        "service": role.service,
        "epoch": epoch(&role.epoch),
        "holder": role.holder,
        "holder_live": role.holder_live,
        "routes_open": role.routes_open,
        "set": set(role.set.as_ref()),
        "unprotected": role.unprotected,
        "covered": role.covered,
        "paused": paused,
        "fence": fence,
        "operation": role.operation,
        "phase": role.phase,
        "instances": role.instances.iter().map(instance_row).collect::<Vec<_>>(),
        "changed": role.changed,
    })
}

/// An operation for programs.
pub fn operation(row: &v1::Operation) -> Value {
    let loss = |loss: &Option<v1::Loss>| {
        let loss = loss.unwrap_or_default();
        json!({ "ms": loss.ms, "bytes": loss.bytes })
    };
    let approval = row.approval.as_ref().map(|approval| {
        let answer = approval.answer.as_ref().map(
            |answer| json!({ "granted": answer.granted, "by": answer.by, "reason": answer.reason }),
        );
        json!({
            "id": approval.id,
            "candidate": approval.candidate,
            "loss": loss(&approval.loss),
            "without_out": approval.without_out,
            "question": approval.question,
            "answer": answer,
        })
    });
    let history = row.history.iter().map(
        |began| json!({ "phase": began.phase, "revision": began.revision, "at_ms": began.at_ms }),
    );
    json!({
        "service": row.service,
        "id": row.id,
        "kind": row.kind,
        "verdict": row.verdict,
        "wanted": row.wanted,
        "by": row.by,
        "reason": row.reason,
        "from": row.from,
        "to": row.to,
        "epoch": epoch(&row.epoch),
        "out": row.out,
        "complete": row.complete,
        "loss": loss(&row.loss),
        "phase": row.phase,
        "over": row.over,
        "history": history.collect::<Vec<_>>(),
        "approval": approval,
    })
}

/// A declared instance with what is known of it, for programs.
pub fn instance(view: &v1::InstanceView) -> Value {
    let fact = view.fact.as_ref().map(|fact| {
        let seen = fact.observation.clone().unwrap_or_default();
        json!({
            "age_ms": fact.age_ms,
            "lost_ms": fact.lost_ms,
            "run": text::word(seen.run().as_str_name()),
            "position": position(seen.position.as_ref()),
            "replay_lag_bytes": seen.replay_lag_bytes,
            "serving": epoch(&seen.serving),
            "upstream": seen.receiver.as_ref().map(|receiver| &receiver.from),
            "streams": seen.receiver.as_ref().is_some_and(|receiver| receiver.streams),
            "doing": seen.doing,
            "problem": seen.problem,
            "tampered": seen.tampered,
            "disk_free_bytes": seen.disk_free_bytes,
            "slowest_fence_ms": seen.slowest_fence_ms,
            "fence_budget_ms": seen.fence_budget_ms,
            "watchdog_ms": seen.watchdog_ms,
        })
    });
    json!({
        "instance": view.instance,
        "address": view.address,
        "locality": locality(&view.locality),
        "priority": view.priority,
        "row": view.row.as_ref().map(instance_row),
        "fact": fact,
    })
}

/// What one line says of a role's trouble; empty: none.
pub fn note(role: &v1::Role) -> String {
    let mut notes = Vec::new();
    if !role.holder.is_empty() && !role.holder_live {
        // PROTOCOL.md F: unfenced, and with standbys to acknowledge, it goes on by certificates.
        let standbys = role.set.as_ref().filter(|set| set.k > 0 && role.fence.is_none());
        notes.push(match standbys {
            Some(set) => format!(
                "HELD: no lease of it is known to live; it goes on while {} acknowledge",
                set_text(Some(set))
            ),
            None => "its lease is not known to live".to_owned(),
        });
    }
    if role.unprotected {
        notes.push("UNPROTECTED: commits wait for nobody".to_owned());
    }
    if let Some(pause) = &role.paused {
        notes.push(format!("paused by {}: {}", pause.by, pause.reason));
    }
    if let Some(fence) = &role.fence {
        notes.push(format!("{} {} is open", fence.kind, fence.operation));
    }
    notes.join("; ")
}

/// Roles of services for people.
pub fn roles(roles: &[v1::Role]) -> Table {
    let mut table = Table::new(["service", "primary", "epoch", "sync", "operation", "note"]);
    for role in roles {
        let operation = match role.operation {
            0 => String::new(),
            id => format!("{id} {}", role.phase),
        };
        table.row([
            role.service.clone(),
            role.holder.clone(),
            role.epoch.as_ref().map(text::epoch).unwrap_or_default(),
            set_text(role.set.as_ref()),
            operation,
            note(role),
        ]);
    }
    table
}

/// Operations for people.
pub fn operations(rows: &[v1::Operation]) -> Table {
    let mut table =
        Table::new(["service", "operation", "kind", "phase", "from", "to", "began", "by", "why"]);
    for row in rows {
        let began = row.history.first().map(|began| text::instant(began.at_ms));
        let why = if row.verdict.is_empty() { &row.reason } else { &row.verdict };
        table.row([
            row.service.clone(),
            row.id.to_string(),
            row.kind.clone(),
            row.phase.clone(),
            row.from.clone(),
            row.to.clone(),
            began.unwrap_or_default(),
            row.by.clone(),
            why.clone(),
        ]);
    }
    table
}

/// One operation for people.
pub fn operation_text(row: &v1::Operation) -> String {
    let mut head = Table::pairs();
    head.pair("operation", format!("{} of {}", row.id, row.service));
    head.pair("kind", &row.kind);
    head.pair("phase", &row.phase);
    head.pair("by", &row.by);
    head.pair("reason", &row.reason);
    head.pair("verdict", &row.verdict);
    if !row.wanted.is_empty() {
        head.pair("wanted", &row.wanted);
    }
    head.pair("primary", format!("{} -> {}", or_dash(&row.from), or_dash(&row.to)));
    head.pair("epoch", row.epoch.as_ref().map(text::epoch).unwrap_or_default());
    head.pair("old one is out", &row.out);
    head.pair("new one is complete", &row.complete);
    head.pair("loss at most", loss_text(row.loss.as_ref()));
    if let Some(approval) = &row.approval {
        head.pair("asked", format!("approval {}: {}", approval.id, approval.question));
        if let Some(answer) = &approval.answer {
            let said = if answer.granted { "granted" } else { "denied" };
            head.pair("answered", format!("{said} by {}: {}", answer.by, answer.reason));
        }
    }
    let mut history = Table::new(["phase", "revision", "at", "took"]);
    for (at, began) in row.history.iter().enumerate() {
        let next = row.history.get(at + 1);
        let took = next.map(|next| duration::human(next.at_ms.saturating_sub(began.at_ms)));
        history.row([
            began.phase.clone(),
            began.revision.to_string(),
            text::instant(began.at_ms),
            took.unwrap_or_default(),
        ]);
    }
    format!("{head}\n{history}")
}

fn or_dash(name: &str) -> &str {
    if name.is_empty() { "-" } else { name }
}

/// What a primary said last, for programs.
pub fn said(said: &v1::LastRenewal) -> Value {
    let report = said.report.unwrap_or_default();
    let mark = report.watermark.as_ref();
    json!({
        "instance": said.instance,
        "epoch": epoch(&said.epoch),
        "renewal": said.number,
        "armed": report.armed,
        "sent_us": report.sent_us,
        "watermark": mark.map(|mark| position(mark.at.as_ref())),
        "sampled_us": mark.map(|mark| mark.sampled_us),
        "pause": report.pause,
        "policy": report.policy,
        "set": report.set,
        "former_policies": said.former_policies,
    })
}

/// What a primary said last, for people.
pub fn said_text(said: &v1::LastRenewal) -> String {
    let report = said.report.unwrap_or_default();
    let mark = report.watermark.as_ref();
    let mut head = Table::pairs();
    head.pair("last renewal", format!("{} of {}", said.number, said.instance));
    head.pair("it is", if report.armed { "armed" } else { "weak: its lapse proves no end" });
    if let Some(at) = mark.and_then(|mark| mark.at.as_ref()) {
        let before_us = report.sent_us.saturating_sub(mark.map_or(0, |mark| mark.sampled_us));
        let before = duration::human(before_us / 1_000);
        head.pair("WAL flushed", format!("to {}, {before} before it was sent", lsn(at.end)));
    }
    if report.pause > 0 {
        head.pair("goes by", format!("pause {}: its lapse proves no end", report.pause));
    }
    if said.former_policies > 0 {
        let why = "it has not taken up the declared policy: the safer of both binds";
        head.pair("policy", why);
    }
    head.to_string()
}

/// What could be lost, as one phrase.
pub fn loss_text(loss: Option<&v1::Loss>) -> String {
    let loss = loss.copied().unwrap_or_default();
    let part = |what: Option<u64>, unit: &str| {
        what.map_or_else(|| format!("unknown {unit}"), |what| format!("{what} {unit}"))
    };
    format!("{}, {} (estimate)", part(loss.ms, "ms"), part(loss.bytes, "bytes"))
}

/// Instances with what is known of them, for people.
pub fn instances(views: &[v1::InstanceView]) -> Table {
    let mut table = Table::new([
        "instance", "where", "runs", "heard", "position", "lag", "told", "armed", "note",
    ]);
    for view in views {
        let seen = view.fact.as_ref().and_then(|fact| fact.observation.clone());
        let (row, fact) = (view.row.clone().unwrap_or_default(), view.fact.as_ref());
        let heard = fact.map(|fact| match fact.lost_ms {
            Some(lost) => format!("agent lost {}", duration::human(lost)),
            None => duration::human(fact.age_ms),
        });
        let at = seen.as_ref().and_then(|seen| seen.position);
        let problems = seen.as_ref().map(|seen| [&seen.problem, &seen.tampered, &seen.doing]);
        let slow = seen.as_ref().map(slow_fence).unwrap_or_default();
        let notes = problems.into_iter().flatten().chain([&row.quarantined, &slow]);
        let notes: Vec<&str> = notes.map(String::as_str).filter(|n| !n.is_empty()).collect();
        table.row([
            view.instance.clone(),
            text::locality(&view.locality),
            seen.as_ref().map(|seen| text::word(seen.run().as_str_name())).unwrap_or_default(),
            heard.unwrap_or_else(|| "never".to_owned()),
            at.map(|at| format!("{} tl {}", lsn(at.end), at.timeline)).unwrap_or_default(),
            seen.as_ref().map(|seen| seen.replay_lag_bytes.to_string()).unwrap_or_default(),
            order(row.directive.as_ref()),
            if view.row.is_none() { String::new() } else { armed(&row, seen.as_ref()) },
            notes.join("; "),
        ]);
    }
    table
}

fn armed(row: &v1::RoleInstance, seen: Option<&v1::Observation>) -> String {
    let armed = if row.armed { "yes" } else { "weak" };
    match seen.map_or(0, |seen| seen.watchdog_ms) {
        0 => armed.to_owned(),
        _ => format!("{armed}, watchdog"),
    }
}

/// What to do about a budget that the slowest end does not fit into twice (PROTOCOL.md C6).
fn slow_fence(seen: &v1::Observation) -> String {
    let (slowest_ms, budget_ms) = (seen.slowest_fence_ms, seen.fence_budget_ms);
    if slowest_ms.saturating_mul(2) <= budget_ms {
        return String::new();
    }
    let needed_ms = slowest_ms.saturating_mul(2);
    format!(
        "its slowest fence took {slowest_ms} ms: set fence_budget_ms to {needed_ms}, it is {budget_ms}"
    )
}

/// Receipts of the open fence, for people.
pub fn receipts(fence: &v1::RoleFence) -> Table {
    let mut table = Table::new(["receipt of", "proof", "position"]);
    for row in &fence.receipts {
        let at = row.receipt.as_ref().and_then(|receipt| receipt.position);
        table.row([
            row.instance.clone(),
            proof(row.receipt.as_ref()),
            at.map(|at| format!("{} tl {}", lsn(at.end), at.timeline)).unwrap_or_default(),
        ]);
    }
    table
}
