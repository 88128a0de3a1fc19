//! Client lanes: what each lane's last command was answered with, so that a command sent again is
//! answered again and not run again.
//!
//! A lane that was idle longest is forgotten when there are too many; a retry that comes after that
//! runs anew. With 65,536 lanes that takes tens of thousands of other clients between a command and
//! its retry, and every command but a campaign is harmless twice or guarded by a compare-and-set.

use std::collections::BTreeMap;

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
    /// Lanes by last use; one entry uses at most one lane, so revisions are unique. Derived.
    #[serde(skip)]
    by_use: BTreeMap<Revision, ClientId>,
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
            self.by_use.remove(&lane.used);
            lane.serial = serial;
            lane.reply = reply.clone();
            lane.used = used;
        } else {
            while self.rows.len() >= MAX_CLIENT_LANES
                && let Some((_, idle)) = self.by_use.pop_first()
            {
                self.rows.remove(&idle);
            }
            let lane = Lane { owner: by.clone(), serial, reply: reply.clone(), used };
            self.rows.insert(client, lane);
        }
        self.by_use.insert(used, client);
    }

    /// How many lanes are remembered.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Makes the derived part anew, after a snapshot was read.
    pub fn rebuild(&mut self) {
        self.by_use = self.rows.iter().map(|(client, lane)| (lane.used, *client)).collect();
    }
}

/// Whether a command's reply is worth remembering. Batches of the leader name what they saw, so
/// running them twice is harmless, and their replies are large.
pub(super) fn is_kept(command: &Command) -> bool {
    !matches!(
        command,
        Command::RenewSessions { .. }
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
}
