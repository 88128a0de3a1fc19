//! What commands are called in the audit chain, and the checks of plain fields they share.

use crate::command::{Command, Expect, Scope};
use crate::id::{Locality, Revision};
use crate::limits::MAX_NAME_BYTES;
use crate::reply::Rejection;

/// The name of an attempt, as in the audit record of a refused one.
pub(super) fn attempt(command: &Command) -> &'static str {
    match command {
        Command::Bootstrap { .. } => "cluster.bootstrap",
        Command::BeginIncarnation { .. } => "cluster.incarnation",
        Command::OpenGrants { .. } => "cluster.grants",
        Command::SetTiming { .. } => "cluster.timing",
        Command::RaiseFeatureLevel { .. } => "cluster.feature_level",
        Command::RecordBoot { .. } => "node.boot",
        Command::AllocateNode { .. } => "node.allocate",
        Command::RecordAct { .. } => "act.record",
        Command::RecordRefusals { .. } => "refusals.record",
        Command::PutService { .. } => "service.put",
        Command::DeleteService { .. } => "service.delete",
        Command::ReleaseQuarantine { .. } => "service.release",
        Command::AssignPartition { .. } => "partition.assign",
        Command::OpenSession { .. } => "session.open",
        Command::RenewSessions { .. } | Command::RenewHolders { .. } => "session.renew",
        Command::CloseSession { .. } => "session.close",
        Command::ExpireSessions { .. } => "session.expire",
        Command::ExpireGrants { .. } => "grant.expire",
        Command::Campaign { .. } => "election.campaign",
        Command::Resign { .. } | Command::ResignEpoch { .. } => "election.resign",
        Command::Proclaim { .. } => "election.proclaim",
        Command::PutElection { .. } => "election.put",
        Command::DeleteElection { .. } => "election.delete",
        Command::AcceptStart { .. } => "agent.start",
        Command::GrantFirst { .. } => "role.first",
        Command::OpenFence { .. } => "role.fence",
        Command::PlanSwitchover { .. } => "role.plan",
        Command::CloseRoutes { .. } => "role.drain",
        Command::CutStandbys { .. } => "role.cut",
        Command::TakeOverFence { .. } => "role.take_over",
        Command::RecordReceipt { .. } | Command::RecordStop { .. } => "role.receipt",
        Command::OrderFetch { .. } => "role.fetch",
        Command::GrantRole { .. } => "role.grant",
        Command::CloseFence { .. } => "role.close",
        Command::ChangeSet { .. } => "role.set",
        Command::ConfirmCovered { .. } => "role.covered",
        Command::RecordPromotion { .. } => "role.promoted",
        Command::AdvanceOperation { .. } => "operation.advance",
        Command::OpenApproval { .. } => "approval.open",
        Command::AnswerApproval { .. } => "approval.answer",
        Command::SetPause { .. } => "service.pause",
    }
}

/// What an attempt was about.
pub(super) fn resource(command: &Command) -> String {
    match command {
        Command::AssignPartition { service, partition, .. } => format!("{service}/{partition}"),
        Command::RecordBoot { node, .. } => format!("node {node}"),
        Command::RecordAct { resource, .. } => clip(resource, MAX_NAME_BYTES).to_owned(),
        Command::CloseSession { session, .. } => format!("session {session}"),
        other => scope(&other.scope()),
    }
}

/// A scope for people.
pub(super) fn scope(scope: &Scope) -> String {
    match scope {
        Scope::Cluster => "cluster".to_owned(),
        Scope::Sessions => "sessions".to_owned(),
        Scope::Service(name) => name.to_string(),
        Scope::Election(name) => name.to_string(),
    }
}

/// `text`, cut at a character so that it has at most `most` bytes.
pub(super) fn clip(text: &str, most: usize) -> &str {
    if text.len() <= most {
        return text;
    }
    let mut end = most;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Refuses text that is too long to be kept in every replica.
pub(super) fn check_text(field: &str, text: &str, most: usize) -> Result<(), Rejection> {
    if text.len() <= most {
        return Ok(());
    }
    Err(Rejection::Invalid {
        field: field.to_owned(),
        problem: format!("it has {} bytes", text.len()),
        fix: format!("use at most {most}"),
    })
}

/// Each part of a locality is a short text.
pub(super) fn check_locality(field: &str, locality: &Locality) -> Result<(), Rejection> {
    let Locality { region, zone, host } = locality;
    for (part, text) in [("region", region), ("zone", zone), ("host", host)] {
        check_text(&format!("{field}.{part}"), text, MAX_NAME_BYTES)?;
    }
    Ok(())
}

/// Compare-and-set: whether the row, last changed at `found`, is as the command expects it.
pub(super) fn check_expect(
    what: &str,
    name: &str,
    found: Option<Revision>,
    expect: Expect,
) -> Result<(), Rejection> {
    let (what, name) = (what.to_owned(), name.to_owned());
    match (expect, found) {
        (Expect::Any, _) | (Expect::Absent, None) => Ok(()),
        (Expect::Absent, Some(revision)) => Err(Rejection::AlreadyExists { what, name, revision }),
        (Expect::Revision(_), None) => Err(Rejection::NotFound { what, name }),
        (Expect::Revision(expected), Some(found)) if expected == found => Ok(()),
        (Expect::Revision(expected), Some(found)) => {
            Err(Rejection::Conflict { what, name, expected, found })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_between_characters_never_inside_one() {
        assert_eq!(clip("abc", 3), "abc");
        assert_eq!(clip("äöü", 3), "ä");
        assert_eq!(clip("äöü", 1), "");
    }
}
