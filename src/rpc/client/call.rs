//! One call: attempts, pauses, deadline.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tonic::{Code, ConnectError, Request, Response, Status};

use super::{CallError, CallErrorKind, Client};
use crate::calls::Calls;
use crate::convert::status::{Refused, rule};
use crate::pb::v1;

/// First pause between attempts; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// Longest pause: a new leader is there within a second, and a call should notice.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Leader hints followed without a pause. Two nodes that point at each other during an election
/// must not make a client spin.
const MAX_HINTS_AT_ONCE: u32 = 2;

/// What an attempt without an answer allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Safety {
    /// It changes nothing: repeating it does no harm.
    Read,
    /// It carries a request id: repeating it does no harm, but an attempt may have taken effect.
    Write,
    /// Repeat it only after an answer that says it was not done.
    Once,
}

/// What to do after a failed attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    GiveUp,
    Follow(String),
    /// Here or at the next node, after a pause of at least this.
    Again {
        elsewhere: bool,
        at_least: Duration,
    },
}

/// A request with its deadline on the wire, so that the node does not work for nobody.
pub(super) fn request<M>(message: M, left: Duration) -> Request<M> {
    let mut request = Request::new(message);
    request.set_timeout(left);
    request
}

impl Client {
    /// A read: any node, repeated at will.
    pub(super) async fn read<T, F, A>(&self, attempt: F) -> Result<T, CallError>
    where
        F: Fn(Calls, Duration) -> A,
        A: Future<Output = Result<Response<T>, Status>>,
    {
        self.call(Safety::Read, attempt).await
    }

    /// A write: every attempt carries the same request id.
    pub(super) async fn write<T, F, A>(&self, attempt: F) -> Result<T, CallError>
    where
        F: Fn(Calls, Duration, v1::RequestId) -> A,
        A: Future<Output = Result<Response<T>, Status>>,
    {
        let lane = self.inner.lanes.take();
        let id = crate::convert::common::request_out(lane.request());
        self.call(Safety::Write, |calls, left| attempt(calls, left, id)).await
    }

    /// The loop behind every call.
    pub(super) async fn call<T, F, A>(&self, safety: Safety, attempt: F) -> Result<T, CallError>
    where
        F: Fn(Calls, Duration) -> A,
        A: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = Instant::now() + self.options.timeout;
        let nodes = &self.inner.nodes;
        let (mut pause, mut patience) = (FIRST_PAUSE, self.options.attempt);
        let (mut attempts, mut hints) = (0, 0);
        // The first attempt of a write that may have taken effect.
        let mut lost: Option<CallError> = None;
        loop {
            let (at, node) = nodes.current();
            let left = deadline.saturating_duration_since(Instant::now());
            let given = match safety {
                Safety::Read | Safety::Write => patience.min(left),
                Safety::Once => left,
            };
            attempts += 1;
            let call = attempt(node.calls.clone(), given);
            let status = match timeout_at(Instant::now() + given, call).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => {
                    Status::deadline_exceeded(format!("no answer within {} ms", given.as_millis()))
                }
            };
            let refused = Refused::from_status(&status);
            let next = judge(&status, refused.as_ref(), safety);
            let wait = match &next {
                Next::GiveUp => None,
                Next::Follow(address) if hints < MAX_HINTS_AT_ONCE => {
                    hints += 1;
                    nodes.follow(address);
                    Some(Duration::ZERO)
                }
                Next::Follow(address) => {
                    nodes.follow(address);
                    Some(jittered(&mut pause))
                }
                Next::Again { elsewhere, at_least } => {
                    if *elsewhere {
                        nodes.leave(at);
                    }
                    if refused.is_none() {
                        patience *= 2;
                    }
                    Some(jittered(&mut pause).max(*at_least))
                }
            };
            match wait {
                Some(wait) if Instant::now() + wait < deadline => tokio::time::sleep(wait).await,
                _ => {
                    let endpoint = node.address.clone();
                    let last = CallError { status, refused, endpoint, attempts };
                    return Err(match lost {
                        // That nobody did the last attempt says nothing of the one before.
                        Some(lost) if last.kind() == CallErrorKind::Unreachable => {
                            CallError { attempts, ..lost }
                        }
                        _ => last,
                    });
                }
            }
            if safety == Safety::Write && lost.is_none() && may_have_arrived(&status, &refused) {
                let endpoint = node.address.clone();
                lost = Some(CallError { status, refused, endpoint, attempts });
            }
        }
    }
}

/// Whether a failed attempt may have been carried out all the same.
fn may_have_arrived(status: &Status, refused: &Option<Refused>) -> bool {
    match refused {
        Some(refused) => refused.rule == rule::OUTCOME_UNKNOWN,
        None => !never_connected(status),
    }
}

fn never_connected(status: &Status) -> bool {
    let first = std::error::Error::source(status);
    std::iter::successors(first, |error| error.source()).any(|error| error.is::<ConnectError>())
}

/// Full jitter: clients that failed together do not come back together.
fn jittered(pause: &mut Duration) -> Duration {
    let wait = pause.mul_f64(rand::random_range(0.0..1.0));
    *pause = (*pause * 2).min(LONGEST_PAUSE);
    wait
}

fn judge(status: &Status, refused: Option<&Refused>, safety: Safety) -> Next {
    let advice = refused.and_then(|refused| refused.retry_after);
    let at_least = advice.unwrap_or(Duration::ZERO);
    match (status.code(), refused) {
        (Code::Unavailable, Some(refused)) => match &refused.leader {
            Some(leader) => Next::Follow(leader.address.clone()),
            None => Next::Again { elsewhere: true, at_least },
        },
        // Too much is under way there; another node would only pass it on to the same leader.
        (Code::ResourceExhausted, Some(refused)) if refused.rule == rule::OVERLOADED => {
            Next::Again { elsewhere: false, at_least }
        }
        // No answer, or none that says whether it was done. `Unknown` is how a connection arrives
        // that broke, or that the server refused after its handshake. `Internal` without details is
        // how a reset stream does.
        (Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown, _)
        | (Code::Internal, None)
            if safety != Safety::Once =>
        {
            Next::Again { elsewhere: true, at_least }
        }
        _ => Next::GiveUp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::status::{Leader, not_leader, outcome_unknown, overloaded, refused};
    use regent_core::id::NodeId;

    fn judged(status: &Status, safety: Safety) -> Next {
        judge(status, Refused::from_status(status).as_ref(), safety)
    }

    #[test]
    fn an_act_without_a_request_id_is_repeated_only_when_it_was_surely_not_done() {
        let lost = Status::unknown("transport error");
        assert_eq!(judged(&lost, Safety::Once), Next::GiveUp);
        assert_eq!(judged(&outcome_unknown("late"), Safety::Once), Next::GiveUp);
        assert!(matches!(judged(&lost, Safety::Write), Next::Again { .. }));
        let later = not_leader(None, Duration::from_millis(40));
        let again = Next::Again { elsewhere: true, at_least: Duration::from_millis(40) };
        assert_eq!(judged(&later, Safety::Once), again);
    }

    #[test]
    fn a_leader_hint_is_followed_and_a_refusal_by_rule_is_final() {
        let leader = Leader { node: NodeId(2), address: "b:1".to_owned() };
        let hint = not_leader(Some(leader), Duration::ZERO);
        assert_eq!(judged(&hint, Safety::Once), Next::Follow("b:1".to_owned()));
        let no = refused("not_holder", "no", "");
        assert_eq!(judged(&no, Safety::Write), Next::GiveUp);
        let busy = overloaded("busy", Duration::from_millis(5));
        let again = Next::Again { elsewhere: false, at_least: Duration::from_millis(5) };
        assert_eq!(judged(&busy, Safety::Once), again);
    }
}
