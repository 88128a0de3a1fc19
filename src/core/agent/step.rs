//! The next step of an instance (PROTOCOL.md D, E): one function, one `match` per order.

use super::notebook::{Notebook, Pledge};
use super::world::{Data, OnDisk, World};
use crate::id::{Epoch, InstanceName, Revision};
use crate::mutant::{Mutant, leaves_out};
use crate::role::observe::Run;
use crate::role::{Order, Position, Proof, SyncSet};

/// What to do next. Each is idempotent, and ends with a look at the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: wait for news.
    Rest,
    /// Nothing, because of this.
    Stuck(&'static str),
    /// End every process of the data directory, at once.
    Kill,
    /// Checkpoint, then stop in order.
    ShutDown,
    /// Make the disk come up as a standby of nobody, whoever starts it (E3); fsynced.
    CloseOnDisk,
    /// Find out where the WAL of a database that is down ends.
    FindEnd,
    /// Write the promise down, then send it.
    Pledge(Pledge),
    /// Send what is pledged: the log does not have it.
    SendReceipt,
    /// Erase the upstream on disk and end the walreceiver.
    Detach,
    /// Replay to the end of the WAL.
    Replay,
    /// Start as a standby of this instance, or of nobody.
    StartStandby(Option<InstanceName>),
    /// Stream from another instance, without a restart.
    Follow(InstanceName),
    /// Find out whether the WAL left the upstream's history.
    Compare(InstanceName),
    /// Keep aside what the upstream does not have, then rewind.
    Rewind(InstanceName),
    /// Clone anew.
    Clone(InstanceName),
    /// Write down that this instance leads `epoch` from here on.
    NoteLead(Epoch),
    /// Have a slot for each other instance, so that WAL waits for them.
    EnsureSlots,
    /// Put the names of a set on disk and load them.
    SetNames(SyncSet),
    /// Start as a primary, closed to clients (E4).
    StartPrimary,
    /// End recovery, and begin this timeline or a later one.
    Promote(u32),
    /// The first transaction of the epoch.
    WriteEpoch(Epoch),
    /// See that the names are in force, by a transaction begun after that.
    ConfirmSet(Revision),
    /// Say that the set is covered.
    ReportCovered(Revision),
    /// Say that the promotion is verified.
    ReportPromoted(Epoch),
    /// Let clients in.
    Open,
    /// Shut clients out, end their sessions.
    Close,
    /// Refuse the roles and databases whose commits would wait for less than the set, and end the
    /// sessions whose commits do.
    ShutOut,
    /// Standby: the same before a promotion; where readers do not go in time, end everything, and it
    /// comes up closed.
    ShutReaders,
}

/// What comes next in this world.
pub fn next(notebook: &Notebook, world: &World) -> Step {
    if !world.accepted && !world.is_running() {
        // B: nothing of an instance starts before its counter was judged in this boot.
        return Step::Rest;
    }
    if matches!(world.run, Run::Rebuilding) {
        return Step::Rest;
    }
    let Some(directive) = &notebook.directive else { return Step::Rest };
    match &directive.order {
        // The first grant compares all copies: one that is down says how far it reaches, too.
        Order::Wait => match (&world.data, world.run) {
            (Data::Present(_), Run::Down) if world.position.is_none() => Step::FindEnd,
            _ => Step::Rest,
        },
        Order::Lead { set } => lead(notebook, world, directive.epoch, set),
        Order::Follow { upstream } => follow(world, directive.epoch, upstream),
        Order::Detach { fence } => detach(notebook, world, *fence),
        Order::Fetch { fence, from, upto } => fetch(notebook, world, *fence, from, upto),
        Order::Stop { fence } => stop(notebook, world, *fence, false),
        Order::Resign { fence } => stop(notebook, world, *fence, true),
        Order::Quarantined if world.is_running() => Step::Kill,
        Order::Quarantined => Step::Stuck("quarantined: it is to be cloned anew"),
    }
}

/// D, candidate; E4.
fn lead(notebook: &Notebook, world: &World, epoch: Epoch, set: &SyncSet) -> Step {
    let leads = notebook.led == epoch;
    match (&world.data, world.run) {
        (Data::Empty, _) => Step::Stuck("told to lead, and there is no database"),
        (Data::Broken, _) => Step::Stuck("told to lead, and the database is broken"),
        (_, Run::Starting | Run::Stopping | Run::Rebuilding) => Step::Rest,
        (_, Run::Primary) if !leads => match world.holds_lease {
            true => Step::NoteLead(epoch),
            false => Step::Kill,
        },
        (_, Run::Primary) => serve(world, epoch, set),
        (_, Run::Standby) if !world.answers => Step::Rest,
        // A session that reads would write once recovery is over, before the epoch does. Neither this
        // nor the names need the lease: they go on while its confirmation is on its way.
        (_, Run::Standby) if !world.shut => Step::ShutReaders,
        (_, Run::Standby)
            if lacks_names(world, set) && !leaves_out(Mutant::NamesBeforePromotion) =>
        {
            Step::SetNames(set.clone())
        }
        // C8: nothing before the renewal of this very grant was acknowledged.
        _ if !world.holds_lease => Step::Stuck("the lease is not confirmed yet"),
        _ if !leads => Step::NoteLead(epoch),
        (Data::Present(OnDisk::Primary), Run::Down) if lacks_names(world, set) => {
            Step::SetNames(set.clone())
        }
        (Data::Present(OnDisk::Primary), Run::Down) => Step::StartPrimary,
        (Data::Present(OnDisk::Standby(_)), Run::Down) => Step::StartStandby(None),
        (_, Run::Standby) if world.timeline == 0 => Step::Stuck("no timeline was set aside for it"),
        (_, Run::Standby) => Step::Promote(world.timeline),
    }
}

/// The names of the set are not in place yet: before anything is acknowledged under them they are.
fn lacks_names(world: &World, set: &SyncSet) -> bool {
    world.names != Some(set.revision)
}

/// A primary under its epoch.
fn serve(world: &World, epoch: Epoch, set: &SyncSet) -> Step {
    if world.open && (!world.may_serve || world.strange) {
        return Step::Close;
    }
    if !world.answers {
        return Step::Rest;
    }
    // A standby that finds no slot does not stream, and then nothing is acknowledged.
    if !world.has_slots {
        return Step::EnsureSlots;
    }
    if lacks_names(world, set) {
        return Step::SetNames(set.clone());
    }
    if world.written < epoch {
        return Step::WriteEpoch(epoch);
    }
    if world.in_force != Some(set.revision) {
        return Step::ConfirmSet(set.revision);
    }
    // The epoch is written and a commit has returned under the set: nobody has to wait for the log
    // to hear of it.
    if !world.open && world.may_serve && !world.strange {
        return Step::Open;
    }
    if world.open && world.lowered {
        return Step::ShutOut;
    }
    if world.promoted < epoch || world.unrouted {
        return Step::ReportPromoted(epoch);
    }
    if world.covered != Some(set.revision) && !set.is_degraded() {
        return Step::ReportCovered(set.revision);
    }
    Step::Rest
}

fn follow(world: &World, epoch: Epoch, upstream: &InstanceName) -> Step {
    if *upstream == world.me {
        return Step::Stuck("told to follow itself");
    }
    match (&world.data, world.run) {
        (_, Run::Primary) => Step::Kill,
        // What starts as a standby of nobody may wait for WAL that only an upstream has.
        (Data::Present(OnDisk::Standby(None)), Run::Starting) => Step::Kill,
        (_, Run::Starting | Run::Stopping | Run::Rebuilding) => Step::Rest,
        (Data::Empty | Data::Broken, Run::Standby) => Step::Kill,
        (Data::Empty | Data::Broken, Run::Down) => Step::Clone(upstream.clone()),
        (Data::Present(OnDisk::Primary), Run::Down) => Step::CloseOnDisk,
        (Data::Present(_), Run::Down) => match world.diverged {
            None => Step::Compare(upstream.clone()),
            Some(true) => Step::Rewind(upstream.clone()),
            Some(false) => Step::StartStandby(Some(upstream.clone())),
        },
        (Data::Present(_), Run::Standby) => {
            if world.diverged == Some(true) {
                return Step::Kill;
            }
            if !world.answers {
                return Step::Rest;
            }
            let set = world.upstream().is_some_and(|on_disk| on_disk.as_ref() == Some(upstream));
            if !set {
                return Step::Follow(upstream.clone());
            }
            if !world.has_slots {
                return Step::EnsureSlots;
            }
            // Its history may be another one, which can only be told when it is down.
            if world.starved && world.diverged.is_none() {
                return Step::Kill;
            }
            // A switchover that waits for its primary to stop: what comes before a promotion is done.
            if world.expected {
                return if world.shut { Step::Rest } else { Step::ShutReaders };
            }
            // Readers. They stay until it is to be promoted, also while it has nobody to follow. They come
            // in when it streams from a primary: before that its WAL may reach further than the epoch's.
            let reads = world.streams && world.promoted >= epoch;
            if !world.open && reads { Step::Open } else { Step::Rest }
        }
    }
}

/// D, detach: first the receipt that it acknowledges nothing any more, then how far it got.
fn detach(notebook: &Notebook, world: &World, fence: Revision) -> Step {
    let pledged = notebook.pledge.as_ref().filter(|pledge| pledge.fence == fence);
    if world.run == Run::Primary {
        return Step::Kill;
    }
    let detached = !world.has_receiver
        && match &world.data {
            Data::Present(on_disk) => *on_disk == OnDisk::Standby(None),
            // What is not a database acknowledges nothing.
            Data::Empty | Data::Broken => !world.is_running(),
        };
    if !detached {
        return match world.run {
            Run::Down => Step::CloseOnDisk,
            Run::Standby if world.answers => Step::Detach,
            // It answers nobody, so it cannot be asked: what does not run has no walreceiver.
            Run::Standby | Run::Starting => Step::Kill,
            Run::Primary | Run::Stopping | Run::Rebuilding => Step::Rest,
        };
    }
    match pledged {
        None => {
            // It has replayed everything by now: one receipt says both.
            let is_recruit = world.run == Run::Standby && world.answers && world.replayed;
            let (proof, position) = match world.position.filter(|_| is_recruit) {
                Some(end) => (Proof::Recruited, Some(end)),
                None => (Proof::Detached, None),
            };
            Step::Pledge(Pledge { fence, proof, position, is_proven: true })
        }
        Some(pledge) if pledge.proof == Proof::Detached => match world.run {
            Run::Down if matches!(world.data, Data::Present(_)) => Step::StartStandby(None),
            Run::Standby if world.answers && world.replayed => {
                let (proof, position) = (Proof::Recruited, world.position);
                Step::Pledge(Pledge { fence, proof, position, is_proven: true })
            }
            Run::Standby if world.answers => Step::Replay,
            _ => send_if_missing(world, pledge, Step::Rest),
        },
        Some(pledge) => match world.run {
            Run::Down => send_if_missing(world, pledge, Step::StartStandby(None)),
            // It was sent when it was written; what comes before a promotion does not wait for its answer.
            Run::Standby if world.answers && world.expected && !world.shut => Step::ShutReaders,
            _ => send_if_missing(world, pledge, Step::Rest),
        },
    }
}

/// D, fetch: stream from a recruit that is ahead, then detach once more and say how far it reaches; a
/// receipt may only rise.
fn fetch(
    notebook: &Notebook,
    world: &World,
    fence: Revision,
    from: &InstanceName,
    upto: &Position,
) -> Step {
    let Some(pledge) = notebook.pledge.as_ref().filter(|pledge| pledge.fence == fence) else {
        return Step::Stuck("told to fetch under a fence it is not pledged to");
    };
    if pledge.position.is_some_and(|own| own.covers(upto)) {
        return send_if_missing(world, pledge, Step::Rest);
    }
    let is_here = world.received.is_some_and(|at| at.covers(upto));
    match (world.run, world.upstream()) {
        (Run::Standby, _) if !world.answers => Step::Rest,
        (Run::Standby, Some(Some(at))) if at == from && is_here => Step::Detach,
        (Run::Standby, Some(Some(at))) if at == from => Step::Rest,
        (Run::Standby, Some(None)) if world.replayed && world.position > pledge.position => {
            let (proof, position) = (Proof::Recruited, world.position);
            Step::Pledge(Pledge { fence, proof, position, is_proven: true })
        }
        (Run::Standby, Some(None)) if is_here && !world.replayed => Step::Replay,
        (Run::Standby, _) => Step::Follow(from.clone()),
        (Run::Down, _) => Step::StartStandby(Some(from.clone())),
        (Run::Primary, _) => Step::Kill,
        (Run::Starting | Run::Stopping | Run::Rebuilding, _) => Step::Rest,
    }
}

/// D, stop and resign: no process, closed on disk, then the receipt.
fn stop(notebook: &Notebook, world: &World, fence: Revision, in_order: bool) -> Step {
    let pledged = notebook.pledge.as_ref().filter(|pledge| pledge.fence == fence);
    match world.run {
        Run::Down => {}
        Run::Stopping if in_order => return Step::Rest,
        Run::Primary if in_order && world.answers => return Step::ShutDown,
        _ => return Step::Kill,
    }
    let closed = match &world.data {
        Data::Present(on_disk) => *on_disk == OnDisk::Standby(None),
        Data::Empty | Data::Broken => true,
    };
    if !closed {
        return Step::CloseOnDisk;
    }
    match pledged {
        // Where its WAL ends is found out later: the old primary's end must not wait for that.
        Some(pledge) if world.position > pledge.position && pledge.proof == Proof::Stopped => {
            let (proof, position) = (Proof::Stopped, world.position);
            Step::Pledge(Pledge { fence, proof, position, is_proven: pledge.is_proven })
        }
        Some(pledge) => {
            let unknown = world.position.is_none() && matches!(world.data, Data::Present(_));
            let then = if unknown { Step::FindEnd } else { Step::Rest };
            send_if_missing(world, pledge, then)
        }
        None => {
            let resigns = in_order && world.shut_down && world.position.is_some();
            let proof = if resigns { Proof::Resigned } else { Proof::Stopped };
            let position = world.position;
            Step::Pledge(Pledge { fence, proof, position, is_proven: world.proven })
        }
    }
}

/// The receipt again, while the log does not have it.
fn send_if_missing(world: &World, pledge: &Pledge, otherwise: Step) -> Step {
    let has = world.committed.is_some_and(|(fence, proof, position)| {
        fence == pledge.fence && (proof, position) >= (pledge.proof, pledge.position)
    });
    if has { otherwise } else { Step::SendReceipt }
}
