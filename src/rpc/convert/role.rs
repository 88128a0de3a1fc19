//! The words of a role change: positions, sync sets, directives, receipts, starts.

use std::collections::BTreeSet;

use regent_core::id::{Epoch, InstanceName, Nonce, Revision, SessionId};
use regent_core::limits::MAX_INSTANCES;
use regent_core::role::{
    AgentStart, Armed, DataIdentity, Directive, DirectiveNumber, Lsn, Order, Position, Proof,
    Receipt, SyncSet,
};

use super::Invalid;
use super::common::{epoch, epoch_in, epoch_out, instance_name, positive};
use crate::pb::v1;

/// What is not set means "none yet".
pub(super) fn epoch_or_none(epoch: Option<v1::Epoch>) -> Epoch {
    epoch.map_or(Epoch::NONE, epoch_in)
}

/// Refuses a list that is longer than `most`.
pub(super) fn bounded(field: &str, count: usize, most: usize) -> Result<(), Invalid> {
    if count > most {
        let problem = format!("it has {count} entries, the most is {most}");
        return Err(Invalid::new(field, problem, "say less"));
    }
    Ok(())
}

/// A position for the wire.
pub fn position_out(position: &Position) -> v1::Position {
    v1::Position {
        epoch: Some(epoch_out(position.epoch)),
        end: position.end.0,
        timeline: position.timeline,
    }
}

/// A position of the wire.
pub fn position_in(position: v1::Position) -> Position {
    Position {
        epoch: epoch_or_none(position.epoch),
        end: Lsn(position.end),
        timeline: position.timeline,
    }
}

/// A directive's number for the wire.
pub fn number_out(number: DirectiveNumber) -> v1::DirectiveNumber {
    v1::DirectiveNumber { epoch: Some(epoch_out(number.epoch)), revision: number.revision.0 }
}

/// A directive's number; not set: none yet.
pub fn number_in(number: Option<v1::DirectiveNumber>) -> DirectiveNumber {
    let Some(number) = number else { return DirectiveNumber::default() };
    DirectiveNumber { epoch: epoch_or_none(number.epoch), revision: Revision(number.revision) }
}

/// A sync set for the wire.
pub fn set_out(set: &SyncSet) -> v1::SyncSet {
    v1::SyncSet {
        epoch: Some(epoch_out(set.epoch)),
        revision: set.revision.0,
        members: set.members.iter().map(ToString::to_string).collect(),
        k: set.k,
    }
}

/// A sync set of the wire.
///
/// # Errors
/// [`Invalid`] names the field.
pub fn set_in(field: &str, set: v1::SyncSet) -> Result<SyncSet, Invalid> {
    bounded(&format!("{field}.members"), set.members.len(), MAX_INSTANCES)?;
    let members = set.members.iter().enumerate();
    let members: BTreeSet<InstanceName> = members
        .map(|(at, name)| instance_name(&format!("{field}.members[{at}]"), name))
        .collect::<Result<_, _>>()?;
    let (epoch, revision) = (epoch_or_none(set.epoch), Revision(set.revision));
    Ok(SyncSet { epoch, revision, members, k: set.k })
}

/// A directive for the wire.
pub fn directive_out(directive: &Directive) -> v1::Directive {
    use v1::directive::Order as O;
    let order = match &directive.order {
        Order::Wait => O::Wait(v1::Wait {}),
        Order::Lead { set } => O::Lead(v1::Lead { set: Some(set_out(set)) }),
        Order::Follow { upstream } => O::Follow(v1::Follow { upstream: upstream.to_string() }),
        Order::Detach { fence } => O::Detach(v1::Detach { fence: fence.0 }),
        Order::Fetch { fence, from, upto } => O::Fetch(v1::Fetch {
            fence: fence.0,
            from: from.to_string(),
            upto: Some(position_out(upto)),
        }),
        Order::Stop { fence } => O::Stop(v1::Stop { fence: fence.0 }),
        Order::Resign { fence } => O::Resign(v1::ResignOrder { fence: fence.0 }),
        Order::Quarantined => O::Quarantined(v1::Quarantined {}),
    };
    v1::Directive { number: Some(number_out(directive.number())), order: Some(order) }
}

/// A directive of the wire.
///
/// # Errors
/// [`Invalid`] for an order that this version does not know: an agent must not guess.
pub fn directive_in(field: &str, directive: v1::Directive) -> Result<Directive, Invalid> {
    use v1::directive::Order as O;
    let at = |part: &str| format!("{field}.{part}");
    let DirectiveNumber { epoch, revision } = number_in(directive.number);
    let order = match directive.order {
        None => {
            let fix = "run a version that knows it";
            return Err(Invalid::new(at("order"), "it is not set or not known", fix));
        }
        Some(O::Wait(_)) => Order::Wait,
        Some(O::Lead(v1::Lead { set: Some(set) })) => {
            Order::Lead { set: set_in(&at("lead.set"), set)? }
        }
        Some(O::Lead(v1::Lead { set: None })) => {
            return Err(Invalid::new(at("lead.set"), "it is not set", "name the sync set"));
        }
        Some(O::Follow(v1::Follow { upstream })) => {
            Order::Follow { upstream: instance_name(&at("follow.upstream"), &upstream)? }
        }
        Some(O::Detach(v1::Detach { fence })) => Order::Detach { fence: Revision(fence) },
        Some(O::Fetch(v1::Fetch { upto: None, .. })) => {
            return Err(Invalid::new(at("fetch.upto"), "it is not set", "say how far to fetch"));
        }
        Some(O::Fetch(v1::Fetch { fence, from, upto: Some(upto) })) => Order::Fetch {
            fence: Revision(fence),
            from: instance_name(&at("fetch.from"), &from)?,
            upto: position_in(upto),
        },
        Some(O::Stop(v1::Stop { fence })) => Order::Stop { fence: Revision(fence) },
        Some(O::Resign(v1::ResignOrder { fence })) => Order::Resign { fence: Revision(fence) },
        Some(O::Quarantined(_)) => Order::Quarantined,
    };
    Ok(Directive { epoch, revision, order })
}

/// What a receipt proves, for the wire.
pub const fn proof_out(proof: Proof) -> v1::receipt::Proof {
    match proof {
        Proof::Detached => v1::receipt::Proof::Detached,
        Proof::Recruited => v1::receipt::Proof::Recruited,
        Proof::Stopped => v1::receipt::Proof::Stopped,
        Proof::Resigned => v1::receipt::Proof::Resigned,
    }
}

/// What a receipt proves; `None` when it is not set or not known.
pub fn proof_in(proof: i32) -> Option<Proof> {
    use v1::receipt::Proof as P;
    match P::try_from(proof).ok()? {
        P::Unspecified => None,
        P::Detached => Some(Proof::Detached),
        P::Recruited => Some(Proof::Recruited),
        P::Stopped => Some(Proof::Stopped),
        P::Resigned => Some(Proof::Resigned),
    }
}

/// A receipt for the wire. Whose it is the stream says.
pub fn receipt_out(receipt: &Receipt) -> v1::Receipt {
    v1::Receipt {
        fence: receipt.fence.0,
        proof: proof_out(receipt.proof).into(),
        position: receipt.position.as_ref().map(position_out),
        boot: receipt.boot,
        nonce: receipt.nonce.0,
        generation: receipt.generation,
        is_proven: receipt.is_proven,
        stopped: None,
    }
}

/// A receipt of `instance`.
///
/// # Errors
/// [`Invalid`] names the field.
pub fn receipt_in(
    field: &str,
    instance: &InstanceName,
    receipt: v1::Receipt,
) -> Result<Receipt, Invalid> {
    let proof = proof_in(receipt.proof).ok_or_else(|| {
        Invalid::new(format!("{field}.proof"), "it is not set or not known", "say what it proves")
    })?;
    Ok(Receipt {
        instance: instance.clone(),
        fence: Revision(positive(&format!("{field}.fence"), receipt.fence)?),
        proof,
        position: receipt.position.map(position_in),
        boot: positive(&format!("{field}.boot"), receipt.boot)?,
        nonce: Nonce(positive(&format!("{field}.nonce"), receipt.nonce)?),
        generation: receipt.generation,
        is_proven: receipt.is_proven,
    })
}

/// What a data directory is, for the wire.
pub fn data_out(data: &DataIdentity) -> v1::DataIdentity {
    v1::DataIdentity {
        system: data.system,
        generation: data.generation,
        epoch: Some(epoch_out(data.epoch)),
        position: data.position.as_ref().map(position_out),
        out_of_recovery: data.out_of_recovery,
    }
}

/// What a data directory is.
pub fn data_in(data: v1::DataIdentity) -> DataIdentity {
    DataIdentity {
        system: data.system,
        generation: data.generation,
        epoch: epoch_or_none(data.epoch),
        position: data.position.map(position_in),
        out_of_recovery: data.out_of_recovery,
    }
}

/// A start for the wire.
pub fn start_out(start: &AgentStart) -> v1::AgentStart {
    v1::AgentStart {
        session: start.session.0,
        nonce: start.nonce.0,
        boot: start.boot,
        disk: start.disk,
        seen: Some(number_out(start.seen)),
        data: start.data.as_ref().map(data_out),
        armed: start.fencer == Armed::Armed,
        run: start.run.0,
    }
}

/// A start of the wire.
///
/// # Errors
/// [`Invalid`] names the field.
pub fn start_in(field: &str, start: Option<v1::AgentStart>) -> Result<AgentStart, Invalid> {
    let Some(start) = start else {
        return Err(Invalid::new(field, "it is not set", "say which start of the agent it is"));
    };
    let data = start.data.map(data_in);
    Ok(AgentStart {
        session: SessionId(positive(&format!("{field}.session"), start.session)?),
        nonce: Nonce(positive(&format!("{field}.nonce"), start.nonce)?),
        boot: start.boot,
        disk: positive(&format!("{field}.disk"), start.disk)?,
        seen: number_in(start.seen),
        data,
        fencer: if start.armed { Armed::Armed } else { Armed::Weak },
        run: Nonce(start.run),
    })
}

/// The epoch and set of a `Covered`.
///
/// # Errors
/// [`Invalid`] names the field.
pub fn covered_in(field: &str, covered: v1::Covered) -> Result<(Epoch, Revision), Invalid> {
    let epoch = epoch(&format!("{field}.epoch"), covered.epoch)?;
    Ok((epoch, Revision(positive(&format!("{field}.set"), covered.set)?)))
}

/// Epoch, timeline and switch position of a `Promoted`.
///
/// # Errors
/// [`Invalid`] names the field.
pub fn promoted_in(field: &str, promoted: v1::Promoted) -> Result<(Epoch, u32, Lsn), Invalid> {
    let epoch = epoch(&format!("{field}.epoch"), promoted.epoch)?;
    Ok((epoch, promoted.timeline, Lsn(promoted.switch)))
}
