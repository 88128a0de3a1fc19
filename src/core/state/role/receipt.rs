//! What instances have proved (PROTOCOL.md D). A receipt counts only for its own fence and in the
//! start that sent it; it may only rise.

use super::row::{Fence, InstanceRow};
use super::{at, fence, load, rule, save, speaks_for};
use crate::id::ServiceName;
use crate::reply::{Rejection, Reply, RoleRule};
use crate::role::{DirectiveNumber, Proof, Receipt};
use crate::state::journal::Draft;
use crate::state::version::PREPARE_LEVEL;

pub(super) fn record(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    receipt: Receipt,
) -> Result<Reply, Rejection> {
    let (_, mut role) = load(draft, name)?;
    let instance = receipt.instance.clone();
    speaks_for(draft.by, name, &instance)?;
    let Some(fence) = &mut role.fence else { return Err(void("no role change is open")) };
    let Some(row) = role.instances.get_mut(&instance) else {
        return Err(void("this instance has never started"));
    };
    if let Some(why) = row.quarantined.clone() {
        return Err(Rejection::InstanceQuarantined { instance: instance.to_string(), why });
    }
    counts(fence, row, &receipt, role.holder.as_ref() == Some(&instance))?;
    if receipt.position.is_some_and(|position| position.epoch > role.epoch) {
        return Err(void("its WAL carries an epoch that was never granted here"));
    }
    if let Some(was) = fence.receipts.get(&instance)
        && !rises(was, &receipt)?
    {
        return Ok(Reply::Unchanged { revision: role.changed });
    }
    // A lower bound of the directive that the receipt was for: before it, this instance had none as
    // high as the fence. The present directive can be a later one that the agent has not seen yet.
    let pledge = DirectiveNumber { epoch: role.epoch, revision: receipt.fence };
    row.pledged = row.pledged.max(pledge);
    if let Some(data) = &mut row.data {
        data.generation = receipt.generation;
        data.position = receipt.position.or(data.position);
        data.epoch = data.position.map_or(data.epoch, |position| data.epoch.max(position.epoch));
    }
    let end = receipt.position.map_or(String::new(), |position| format!(" at {position}"));
    let how = if receipt.is_proven { ", proven" } else { "" };
    let outcome = format!("{}{end}{how}, for fence {}", receipt.proof, receipt.fence);
    let resigned = receipt.proof == Proof::Resigned && fence.uncut;
    fence.receipts.insert(instance.clone(), receipt);
    if resigned && draft.rows().cluster().feature_level >= PREPARE_LEVEL {
        // The Cut of PROTOCOL.md D in the same entry: nothing could come between the two.
        fence::cut_now(&mut role, &instance, draft.revision);
    }
    save(draft, name, role);
    draft.note("role.receipt", &at(name, &instance), "", &outcome);
    Ok(Reply::Done { revision: draft.revision })
}

/// Whether a receipt is for this fence, of this start, and one that this instance can give.
fn counts(
    fence: &Fence,
    row: &InstanceRow,
    receipt: &Receipt,
    is_holder: bool,
) -> Result<(), Rejection> {
    let resigned = receipt.proof == Proof::Resigned;
    let of_this = receipt.fence == fence.fence && (!resigned || fence.kind.is_planned());
    let taken_over = resigned && Some(receipt.fence) == fence.taken_over;
    if !of_this && !taken_over {
        return Err(void(&format!("it is for fence {}, not {}", receipt.fence, fence.fence)));
    }
    if receipt.boot != row.boot || receipt.nonce != row.nonce {
        return Err(void(&format!("it is of start {}, not of {}", receipt.boot, row.boot)));
    }
    if row.directive.order.fence() != Some(fence.fence) {
        return Err(void("this instance was not asked for one"));
    }
    let fits = match receipt.proof {
        Proof::Detached | Proof::Recruited => !is_holder,
        Proof::Stopped | Proof::Resigned => is_holder,
    };
    if !fits {
        let who = if is_holder { "the primary" } else { "a standby" };
        return Err(void(&format!("{who} cannot be {}", receipt.proof)));
    }
    if matches!(receipt.proof, Proof::Recruited | Proof::Resigned) && receipt.position.is_none() {
        return Err(void("it does not say where its WAL ends"));
    }
    Ok(())
}

/// Whether a receipt says more than the one before.
fn rises(was: &Receipt, new: &Receipt) -> Result<bool, Rejection> {
    if was.generation != new.generation {
        return Err(void("its data was replaced under the pledge"));
    }
    if new.proof < was.proof {
        return Ok(false);
    }
    let back = match (new.position, was.position) {
        (Some(new), Some(was)) => !new.covers(&was),
        (None, Some(_)) => true,
        _ => false,
    };
    if back {
        // The same proof with less of it is one that was delayed on its way.
        return if new.proof == was.proof { Ok(false) } else { Err(void("its WAL went back")) };
    }
    Ok(new.proof > was.proof
        || new.position > was.position
        || new.is_proven && !was.is_proven
        || new.fence > was.fence)
}

fn void(why: &str) -> Rejection {
    rule(RoleRule::ReceiptVoid, why.to_owned())
}
