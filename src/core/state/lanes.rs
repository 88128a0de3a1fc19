//! Client lanes: what each lane's last command was answered with, so that a command sent again is
//! answered again and not run again.
//!
//! When there are too many, a lane of the principal with the most lanes is forgotten, the one idle
//! longest; a retry that comes after that runs anew. So whoever opens lanes without end forgets its
//! own, and among principals with few lanes it takes tens of thousands of others between a command
//! and its retry. Every command but a campaign is harmless twice or guarded by a compare-and-set.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::authz::Principal;
use crate::command::{Command, Request};
use crate::id::{ClientId, Revision, Serial};
use crate::limits::MAX_CLIENT_LANES;
use crate::reply::{Rejection, Reply};

/// One lane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Lane {
    owner: Principal,
    serial: Serial,
    reply: Reply,
    used: Revision,
}

/// All lanes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lanes {
    rows: BTreeMap<ClientId, Lane>,
    #[serde(skip)]
    by_owner: ByOwner,
}

/// Which lane to forget first. Derived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ByOwner {
    /// Each principal's lanes by last use; one entry uses at most one lane, so revisions are unique.
    lanes: BTreeMap<Principal, BTreeMap<Revision, ClientId>>,
    /// Last stands who has the most lanes; of several, whose is idle longest.
    order: BTreeSet<(usize, Reverse<Revision>, Principal)>,
}

impl ByOwner {
    /// Lets `change` at the lanes of one principal and keeps the order.
    fn change<T>(
        &mut self,
        owner: &Principal,
        change: impl FnOnce(&mut BTreeMap<Revision, ClientId>) -> T,
    ) -> T {
        let place = |lanes: &BTreeMap<Revision, ClientId>| {
            let (oldest, _) = lanes.first_key_value()?;
            Some((lanes.len(), Reverse(*oldest), owner.clone()))
        };
        let lanes = self.lanes.entry(owner.clone()).or_default();
        let before = place(lanes);
        let out = change(lanes);
        let after = place(lanes);
        if lanes.is_empty() {
            self.lanes.remove(owner);
        }
        if before != after {
            if let Some(before) = before {
                self.order.remove(&before);
            }
            self.order.extend(after);
        }
        out
    }

    /// Takes out the lane to forget.
    fn pop(&mut self) -> Option<ClientId> {
        let owner = self.order.last()?.2.clone();
        self.change(&owner, BTreeMap::pop_first).map(|(_, idle)| idle)
    }
}

/// What the lane says about a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is new: run it, then [`Lanes::keep`].
    Run,
    /// It was run: this was the reply.
    Again(Reply),
    /// It may not run, and the lane stays as it is.
    Refused(Rejection),
}

impl Lanes {
    pub fn judge(&self, request: Request, by: &Principal) -> Verdict {
        let Some(lane) = self.rows.get(&request.client) else { return Verdict::Run };
        if lane.owner != *by {
            return Verdict::Refused(Rejection::Invalid {
                field: "request.client".to_owned(),
                problem: "this command lane belongs to another principal".to_owned(),
                fix: "draw a random client id of your own".to_owned(),
            });
        }
        match request.serial.cmp(&lane.serial) {
            std::cmp::Ordering::Less => {
                Verdict::Refused(Rejection::SerialStale { last: lane.serial.0 })
            }
            std::cmp::Ordering::Equal => Verdict::Again(lane.reply.clone()),
            std::cmp::Ordering::Greater => Verdict::Run,
        }
    }

    /// Remembers a reply.
    pub fn keep(&mut self, request: Request, by: &Principal, reply: &Reply, used: Revision) {
        let Request { client, serial } = request;
        if let Some(lane) = self.rows.get_mut(&client) {
            let last = std::mem::replace(&mut lane.used, used);
            lane.serial = serial;
            lane.reply = reply.clone();
            self.by_owner.change(&lane.owner, |lanes| {
                lanes.remove(&last);
                lanes.insert(used, client);
            });
        } else {
            while self.rows.len() >= MAX_CLIENT_LANES
                && let Some(idle) = self.by_owner.pop()
            {
                self.rows.remove(&idle);
            }
            let lane = Lane { owner: by.clone(), serial, reply: reply.clone(), used };
            self.rows.insert(client, lane);
            self.by_owner.change(by, |lanes| lanes.insert(used, client));
        }
    }

    /// How many lanes are remembered.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Makes the derived part anew, after a snapshot was read.
    pub fn rebuild(&mut self) {
        let mut by_owner = ByOwner::default();
        for (client, lane) in &self.rows {
            by_owner.lanes.entry(lane.owner.clone()).or_default().insert(lane.used, *client);
        }
        for (owner, lanes) in &by_owner.lanes {
            let oldest = lanes.first_key_value().map(|(used, _)| *used);
            let place = oldest.map(|used| (lanes.len(), Reverse(used), owner.clone()));
            by_owner.order.extend(place);
        }
        self.by_owner = by_owner;
    }
}

/// Whether a command's reply is worth remembering. Batches of the leader name what they saw, so
/// running them twice is harmless, and their replies are large.
pub(super) fn is_kept(command: &Command) -> bool {
    !matches!(
        command,
        Command::RenewSessions { .. }
            | Command::RenewHolders { .. }
            | Command::ExpireSessions { .. }
            | Command::ExpireGrants { .. }
            | Command::RecordRefusals { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::Role;

    fn ask(client: u64, serial: u64) -> Request {
        Request { client: ClientId(client), serial: Serial(serial) }
    }

    #[test]
    fn the_lane_idle_longest_is_forgotten_first() {
        let ann = Principal::new(Role::Client, "ann");
        let mut lanes = Lanes::default();
        let most = MAX_CLIENT_LANES as u64;
        for n in 1..=most {
            lanes.keep(ask(n, 1), &ann, &Reply::Done { revision: Revision(n) }, Revision(n));
        }
        // Lane 1 is used again, so lane 2 is the one idle longest.
        let reply = Reply::Done { revision: Revision(most + 1) };
        lanes.keep(ask(1, 2), &ann, &reply, Revision(most + 1));
        lanes.keep(ask(most + 9, 1), &ann, &reply, Revision(most + 2));
        assert_eq!(lanes.len(), MAX_CLIENT_LANES);
        assert_eq!(lanes.judge(ask(1, 2), &ann), Verdict::Again(reply));
        assert_eq!(lanes.judge(ask(2, 1), &ann), Verdict::Run);
        assert!(matches!(lanes.judge(ask(3, 1), &ann), Verdict::Again(_)));
        let mut rebuilt = lanes.clone();
        rebuilt.rebuild();
        assert_eq!(rebuilt, lanes);
    }

    #[test]
    fn who_opens_lanes_without_end_forgets_its_own_and_nobody_elses() {
        let (ann, bob) = (Principal::new(Role::Client, "ann"), Principal::new(Role::Client, "bob"));
        let mut lanes = Lanes::default();
        let done = |n| Reply::Done { revision: Revision(n) };
        lanes.keep(ask(1, 1), &ann, &done(1), Revision(1));
        lanes.keep(ask(2, 1), &bob, &done(2), Revision(2));
        let most = MAX_CLIENT_LANES as u64;
        for n in 3..3 + 2 * most {
            lanes.keep(ask(n, 1), &bob, &done(n), Revision(n));
        }
        assert_eq!(lanes.len(), MAX_CLIENT_LANES);
        assert_eq!(lanes.judge(ask(1, 1), &ann), Verdict::Again(done(1)));
        assert_eq!(lanes.judge(ask(2, 1), &bob), Verdict::Run);
        let mut rebuilt = lanes.clone();
        rebuilt.rebuild();
        assert_eq!(rebuilt, lanes);
    }

    #[test]
    fn among_principals_with_as_many_lanes_the_one_idle_longest_is_forgotten() {
        let who = |n: u64| Principal::new(Role::Client, format!("c{n}"));
        let mut lanes = Lanes::default();
        let most = MAX_CLIENT_LANES as u64;
        let done = Reply::Done { revision: Revision(1) };
        for n in 1..=most {
            lanes.keep(ask(n, 1), &who(n), &done, Revision(n));
        }
        lanes.keep(ask(1, 2), &who(1), &done, Revision(most + 1));
        lanes.keep(ask(most + 1, 1), &who(most + 1), &done, Revision(most + 2));
        assert_eq!(lanes.judge(ask(1, 2), &who(1)), Verdict::Again(done.clone()));
        assert_eq!(lanes.judge(ask(2, 1), &who(2)), Verdict::Run);
        assert_eq!(lanes.judge(ask(3, 1), &who(3)), Verdict::Again(done));
    }
}
