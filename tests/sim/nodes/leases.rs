//! S5 and C3, looked at when they could begin to be broken. A lease overlaps another one from the
//! moment a client begins to hold; a node names a stale holder from the moment it begins to believe,
//! or somebody else begins to hold. Nothing else starts either: holding and believing only run out.

use std::collections::BTreeMap;
use std::time::Duration;

use regent_core::id::{ElectionName, Epoch, SessionId};
use regent_core::state::State;
use regent_core::state::election::Holder;
use regent_raft::store::sim_disk::split_mix;

use super::node::Lease;
use super::options::Mutant;
use super::world::{Addr, World};

/// A write to a guarded resource may be this long on its way (S4).
const LATE_MS: u64 = 5_000;

type Holders = BTreeMap<ElectionName, Vec<(Addr, Epoch, SessionId)>>;

/// Who may act right now, by their own clocks.
fn holders(world: &World) -> Holders {
    let mut holders = Holders::new();
    for client in world.clients().iter().filter(|client| !client.life.is_dead()) {
        for (name, epoch, session) in client.held() {
            holders.entry(name).or_default().push((client.addr, epoch, session));
        }
    }
    holders
}

/// A client may have begun to hold: looks at everybody.
pub fn look(world: &World) {
    if !world.within_a1() {
        return;
    }
    let holders = holders(world);
    for (name, who) in &holders {
        if who.len() > 1 {
            world.violation(format!("S5: {name} is held by {who:?} at once"));
        }
    }
    for node in world.nodes() {
        let state = node.consensus.state();
        misnamed(world, node.id, &state.read(), &node.lease.lock(), &holders);
    }
}

/// A node may have begun to believe: looks at what it names.
pub fn look_at(world: &World, node: u64, state: &State, lease: &Lease) {
    if world.within_a1() {
        misnamed(world, node, state, lease, &holders(world));
    }
}

fn misnamed(world: &World, node: u64, state: &State, lease: &Lease, holders: &Holders) {
    let now = world.reading(node);
    let always = world.options().mutant == Some(Mutant::BelieveForever);
    let believed = |h: &&Holder| always || lease.clock.believed_live(h.session, now);
    for (name, who) in holders {
        let row = state.elections().get(name);
        let Some(named) = row.and_then(|row| row.holder.as_ref()).filter(believed) else {
            continue;
        };
        let other = who.iter().find(|(_, epoch, _)| *epoch != named.epoch);
        if let Some(other) = other
            && world.checker().has_lapsed(name, named.epoch)
        {
            let epoch = named.epoch;
            world
                .violation(format!("C3: node {node} names {epoch} for {name}, {other:?} holds it"));
        }
    }
}

/// A holder writes to what the election guards; the write outlives its writer.
pub fn write(world: &World, election: &ElectionName, epoch: Epoch) {
    let (world, election) = (world.clone(), election.clone());
    // Its own chance: what writes do must not shift what everybody else meets.
    let mut random = world.elapsed().as_nanos() as u64 ^ epoch.revision.0;
    let late = split_mix(&mut random).is_multiple_of(10);
    let way = split_mix(&mut random) % if late { LATE_MS } else { 10 };
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(way)).await;
        let written = world.checker().written(&election, epoch);
        match written {
            Ok(effect) => world.trace(epoch.revision.0, u64::from(effect), 6, || {
                format!("write to {election} under {epoch}: {effect}")
            }),
            Err(text) => world.violation(text),
        }
    });
}
