//! What an agent and a node say to each other over their stream, as the core's types.

use regent_core::command::Request;
use regent_core::id::{Epoch, Incarnation, InstanceName, Revision, ServiceName};
use regent_core::role::observe::Observation;
use regent_core::role::{
    AgentStart, Directive, HolderInstant, Lsn, MachineBoot, Proof, Receipt, StopInstant, SyncSet,
};
use regent_core::spec::{InstanceSpec, ServiceSpec};
use tonic::{Code, Status};

use super::Invalid;
use super::common::{
    epoch_out, instance_name, positive, request, request_out, service_name, stamp_in,
};
use super::observe::{observation_in, observation_out};
use super::role::{
    covered_in, directive_in, directive_out, epoch_or_none, promoted_in, proof_in, proof_out,
    receipt_in, receipt_out, set_in, set_out, start_in, start_out,
};
use super::status::{Refused, rule};
use super::topology::{spec_in, spec_out};
use crate::pb::v1;

/// The number under which a `hello` is answered.
pub const HELLO: u64 = 0;

/// The first message of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// As in the certificate.
    pub service: ServiceName,
    /// As in the certificate.
    pub instance: InstanceName,
    /// Which start of the agent, over which session.
    pub start: AgentStart,
}

/// What an agent wants to have in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A new session of the same start.
    Start(Box<AgentStart>),
    /// What the instance has proved about itself, fsynced before; and, of one that has stopped, when
    /// nothing was left of it.
    Receipt(Box<Receipt>, Option<StopInstant>),
    /// A transaction begun after the names of `set` were in force returned under it.
    Covered {
        /// Of the holder.
        epoch: Epoch,
        /// The set's revision.
        set: Revision,
    },
    /// The promotion was verified by a canary.
    Promoted {
        /// Of the holder.
        epoch: Epoch,
        /// Its timeline.
        timeline: u32,
        /// Where it left the timeline before.
        switch: Lsn,
    },
}

/// One message of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromAgent {
    /// The first one.
    Hello(Box<Hello>, Option<Request>),
    /// Under this number.
    Ask(u64, Ask, Option<Request>),
    /// What it sees.
    Observation(Box<Observation>),
}

/// What became of an ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The start is in the log.
    Accepted {
        /// To be persisted before anything is done.
        boot: u64,
        /// The lease mark of its session; 0: it holds nothing.
        mark: Revision,
        /// The incarnation and revision of the answer.
        at: (Incarnation, Revision),
    },
    /// It is in the log; of a receipt, which.
    Committed {
        /// Of the entry.
        revision: Revision,
        /// The fence and proof of a receipt.
        receipt: Option<(Revision, Proof)>,
    },
    /// It is not, or nobody knows.
    Refused(RefusedAsk),
}

/// Why an ask is not in the log, as far as known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RefusedAsk {
    /// Name of the rule.
    pub rule: String,
    /// For people.
    pub why: String,
    /// It may have been done, or may yet be: ask again.
    pub unknown: bool,
    /// Nobody judged it: ask again, here or elsewhere.
    pub transient: bool,
}

/// What an instance is to be, and what its agent needs to know for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// The incarnation and revision of the state it was read from.
    pub at: (Incarnation, Revision),
    /// What to be.
    pub directive: Directive,
    /// Of the service's role.
    pub epoch: Epoch,
    /// Who was granted that epoch.
    pub holder: Option<InstanceName>,
    /// What the holder is to use.
    pub set: Option<SyncSet>,
    /// A and C are the present set only: nothing is left to be covered.
    pub covered: bool,
    /// The lease mark of this agent's session; 0: it holds nothing.
    pub mark: Revision,
    /// Since when people keep Regent's hands off.
    pub paused: Option<Revision>,
    /// The role change that is open.
    pub fence: Option<Revision>,
    /// The switchover that is announced, for which the primary is to checkpoint while it serves.
    pub prepare: Option<Revision>,
    /// It is likely to be the next primary: it may send readers away already. Nothing rests on it.
    pub expected: bool,
    /// The promotion under `epoch` is in the log.
    pub promoted: bool,
    /// Whether the write route is open.
    pub routes_open: bool,
    /// The first timeline that a promotion under `epoch` may begin.
    pub timeline: u32,
    /// The service as declared: addresses, localities, policy.
    pub spec: ServiceSpec,
    /// Revision of `spec`: what a holder names that acts by it (C7).
    pub policy: Revision,
}

/// One message of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromCoordinator {
    /// To the ask of this number.
    Answer(u64, Outcome),
    /// Whenever it changes: the whole of it.
    Instruction(Box<Instruction>),
}

impl Instruction {
    /// An instance as declared.
    pub fn declared(&self, name: &InstanceName) -> Option<&InstanceSpec> {
        self.spec.instances.iter().find(|instance| instance.name == *name)
    }

    /// Where the instance is that this one is to stream from, if it is to stream.
    pub fn upstream(&self) -> Option<&InstanceSpec> {
        use regent_core::role::Order;
        match &self.directive.order {
            Order::Follow { upstream: from } | Order::Fetch { from, .. } => self.declared(from),
            _ => None,
        }
    }
}

impl RefusedAsk {
    /// Of the status with which a proposal ended.
    pub fn of(status: &Status) -> Self {
        let rule = Refused::from_status(status).map(|refused| refused.rule).unwrap_or_default();
        let unknown = rule == rule::OUTCOME_UNKNOWN
            || (rule.is_empty() && status.code() == Code::DeadlineExceeded);
        let transient = match status.code() {
            Code::Unavailable => true,
            Code::ResourceExhausted => rule == rule::OVERLOADED,
            _ => unknown,
        };
        Self { rule, why: status.message().to_owned(), unknown, transient }
    }
}

/// A message of an agent for the wire.
pub fn agent_out(message: &FromAgent) -> v1::AgentMessage {
    use v1::agent_message::Message as M;
    use v1::ask::What;
    let message = match message {
        FromAgent::Hello(hello, request) => M::Hello(v1::Hello {
            service: hello.service.to_string(),
            instance: hello.instance.to_string(),
            start: Some(start_out(&hello.start)),
            request: request.map(request_out),
        }),
        FromAgent::Ask(number, ask, request) => {
            let what = match ask {
                Ask::Start(start) => What::Start(start_out(start)),
                Ask::Receipt(receipt, stopped) => What::Receipt(v1::Receipt {
                    stopped: stopped.map(stop_out),
                    ..receipt_out(receipt)
                }),
                Ask::Covered { epoch, set } => {
                    What::Covered(v1::Covered { epoch: Some(epoch_out(*epoch)), set: set.0 })
                }
                Ask::Promoted { epoch, timeline, switch } => What::Promoted(v1::Promoted {
                    epoch: Some(epoch_out(*epoch)),
                    timeline: *timeline,
                    switch: switch.0,
                }),
            };
            let request = request.map(request_out);
            M::Ask(v1::Ask { number: *number, request, what: Some(what) })
        }
        FromAgent::Observation(seen) => M::Observation(observation_out(seen)),
    };
    v1::AgentMessage { message: Some(message) }
}

/// A message of the agent of `instance`.
///
/// # Errors
/// [`Invalid`] names the field.
pub fn agent_in(instance: &InstanceName, message: v1::AgentMessage) -> Result<FromAgent, Invalid> {
    use v1::agent_message::Message as M;
    match message.message {
        None => Err(Invalid::new("message", "it is not set or not known", "say something")),
        Some(M::Hello(hello)) => {
            let id = request("hello.request", hello.request)?;
            let hello = Hello {
                service: service_name("hello.service", &hello.service)?,
                instance: instance_name("hello.instance", &hello.instance)?,
                start: start_in("hello.start", hello.start)?,
            };
            Ok(FromAgent::Hello(Box::new(hello), id))
        }
        Some(M::Ask(ask)) => {
            let number = positive("ask.number", ask.number)?;
            let id = request("ask.request", ask.request)?;
            Ok(FromAgent::Ask(number, ask_in(instance, ask.what)?, id))
        }
        Some(M::Observation(seen)) => {
            let seen = observation_in(seen).map_err(|invalid| invalid.within("observation"))?;
            Ok(FromAgent::Observation(Box::new(seen)))
        }
    }
}

fn ask_in(instance: &InstanceName, what: Option<v1::ask::What>) -> Result<Ask, Invalid> {
    use v1::ask::What;
    Ok(match what {
        None => {
            return Err(Invalid::new("ask.what", "it is not set or not known", "ask something"));
        }
        Some(What::Start(start)) => Ask::Start(Box::new(start_in("ask.start", Some(start))?)),
        Some(What::Receipt(receipt)) => {
            let stopped = receipt.stopped.map(stop_in);
            Ask::Receipt(Box::new(receipt_in("ask.receipt", instance, receipt)?), stopped)
        }
        Some(What::Covered(covered)) => {
            let (epoch, set) = covered_in("ask.covered", covered)?;
            Ask::Covered { epoch, set }
        }
        Some(What::Promoted(promoted)) => {
            let (epoch, timeline, switch) = promoted_in("ask.promoted", promoted)?;
            Ask::Promoted { epoch, timeline, switch }
        }
    })
}

fn stop_out(stopped: StopInstant) -> v1::StopInstant {
    v1::StopInstant { boot: stopped.boot.0, at_us: stopped.at.0 }
}

fn stop_in(stopped: v1::StopInstant) -> StopInstant {
    StopInstant { boot: MachineBoot(stopped.boot), at: HolderInstant(stopped.at_us) }
}

/// An answer for the wire; `stamp` is of the node that gives it.
pub fn answer_out(number: u64, outcome: &Outcome, node: u64) -> v1::CoordinatorMessage {
    use v1::ask_answer::Outcome as O;
    let outcome = match outcome {
        Outcome::Accepted { boot, mark, at } => O::Accepted(v1::Accepted {
            stamp: Some(stamp_of(*at, node)),
            boot: *boot,
            mark: mark.0,
        }),
        Outcome::Committed { revision, receipt } => O::Committed(v1::Committed {
            revision: revision.0,
            fence: receipt.map_or(0, |(fence, _)| fence.0),
            proof: receipt
                .map_or(v1::receipt::Proof::Unspecified, |(_, proof)| proof_out(proof))
                .into(),
        }),
        Outcome::Refused(refused) => O::Refused(v1::AskRefused {
            rule: refused.rule.clone(),
            why: refused.why.clone(),
            unknown: refused.unknown,
            transient: refused.transient,
        }),
    };
    let answer = v1::AskAnswer { number, outcome: Some(outcome) };
    v1::CoordinatorMessage { message: Some(v1::coordinator_message::Message::Answer(answer)) }
}

fn stamp_of((incarnation, revision): (Incarnation, Revision), node: u64) -> v1::Stamp {
    v1::Stamp {
        incarnation: incarnation.counter,
        incarnation_id: incarnation.id,
        revision: revision.0,
        node,
        age_ms: 0,
    }
}

/// An instruction for the wire, from node `node`.
pub fn instruction_out(told: &Instruction, node: u64) -> v1::CoordinatorMessage {
    let instruction = v1::Instruction {
        stamp: Some(stamp_of(told.at, node)),
        directive: Some(directive_out(&told.directive)),
        epoch: Some(epoch_out(told.epoch)),
        holder: told.holder.as_ref().map(ToString::to_string).unwrap_or_default(),
        set: told.set.as_ref().map(set_out),
        covered: told.covered,
        mark: told.mark.0,
        paused: told.paused.map_or(0, |revision| revision.0),
        fence: told.fence.map_or(0, |revision| revision.0),
        promoted: told.promoted,
        routes_open: told.routes_open,
        timeline: told.timeline,
        spec: Some(spec_out(&told.spec)),
        policy: told.policy.0,
        prepare: told.prepare.map_or(0, |operation| operation.0),
        expected: told.expected,
    };
    let message = v1::coordinator_message::Message::Instruction(instruction);
    v1::CoordinatorMessage { message: Some(message) }
}

/// A message of a node.
///
/// # Errors
/// [`Invalid`] for what this version does not understand: an agent must not guess.
pub fn coordinator_in(message: v1::CoordinatorMessage) -> Result<FromCoordinator, Invalid> {
    use v1::coordinator_message::Message as M;
    match message.message {
        None => Err(Invalid::new("message", "it is not set or not known", "run a newer agent")),
        Some(M::Answer(answer)) => {
            Ok(FromCoordinator::Answer(answer.number, outcome_in(answer.outcome)?))
        }
        Some(M::Instruction(told)) => {
            let told = instruction_in(told).map_err(|invalid| invalid.within("instruction"))?;
            Ok(FromCoordinator::Instruction(Box::new(told)))
        }
    }
}

fn outcome_in(outcome: Option<v1::ask_answer::Outcome>) -> Result<Outcome, Invalid> {
    use v1::ask_answer::Outcome as O;
    Ok(match outcome {
        None => {
            let fix = "run a newer agent";
            return Err(Invalid::new("answer.outcome", "it is not set or not known", fix));
        }
        Some(O::Accepted(accepted)) => Outcome::Accepted {
            boot: positive("answer.accepted.boot", accepted.boot)?,
            mark: Revision(accepted.mark),
            at: accepted.stamp.as_ref().map(stamp_in).unwrap_or_default(),
        },
        Some(O::Committed(committed)) => Outcome::Committed {
            revision: Revision(committed.revision),
            receipt: proof_in(committed.proof).map(|proof| (Revision(committed.fence), proof)),
        },
        Some(O::Refused(refused)) => Outcome::Refused(RefusedAsk {
            rule: refused.rule,
            why: refused.why,
            unknown: refused.unknown,
            transient: refused.transient,
        }),
    })
}

fn instruction_in(told: v1::Instruction) -> Result<Instruction, Invalid> {
    let not_set = |field: &str| Invalid::new(field, "it is not set", "run a newer agent");
    let revision = |number: u64| (number > 0).then_some(Revision(number));
    let holder = match told.holder.as_str() {
        "" => None,
        holder => Some(instance_name("holder", holder)?),
    };
    let spec = spec_in(told.spec.ok_or_else(|| not_set("spec"))?);
    Ok(Instruction {
        at: told.stamp.as_ref().map(stamp_in).unwrap_or_default(),
        directive: directive_in("directive", told.directive.ok_or_else(|| not_set("directive"))?)?,
        epoch: epoch_or_none(told.epoch),
        holder,
        set: told.set.map(|set| set_in("set", set)).transpose()?,
        covered: told.covered,
        mark: Revision(told.mark),
        paused: revision(told.paused),
        fence: revision(told.fence),
        promoted: told.promoted,
        routes_open: told.routes_open,
        timeline: told.timeline,
        spec: spec.map_err(|invalid| invalid.within("spec"))?,
        policy: Revision(told.policy),
        prepare: (told.prepare > 0).then_some(Revision(told.prepare)),
        expected: told.expected,
    })
}
