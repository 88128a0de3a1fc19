//! What is done to a lab, by pid, and how long it lasts.

use std::time::Duration;

use regent_lab::Lab;
use regent_lab::databases::{DatabaseError, LabInstance, owned, signal_host};
use regent_lab::process::Fault as Signal;

use crate::command::lab::{Operator, connect, from_lab};
use crate::error::{CliError, Context as _, Outcome};

/// What is done to the primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// SIGKILL to PostgreSQL's first process alone
    Postmaster,
    /// SIGKILL to PostgreSQL, fencer and agent at once
    #[default]
    Host,
    /// An operator asks for another primary
    Switchover,
    /// SIGSTOP to PostgreSQL, fencer and agent; SIGCONT later
    Freeze,
    /// The primary's host and the leader of the nodes at once
    LeaderAndHost,
    /// SIGKILL to all nodes; they are started again later
    Coordinators,
    /// The primary's packets are dropped
    Cut,
}

impl Fault {
    /// As on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Postmaster => "postmaster",
            Self::Host => "host",
            Self::Switchover => "switchover",
            Self::Freeze => "freeze",
            Self::LeaderAndHost => "leader-and-host",
            Self::Coordinators => "coordinators",
            Self::Cut => "cut",
        }
    }

    /// Whether another instance must become primary.
    pub const fn moves(self) -> bool {
        matches!(self, Self::Host | Self::Switchover | Self::Freeze | Self::LeaderAndHost)
    }

    /// How long it stays before it is taken back.
    pub fn lasts(self, hold: Duration) -> Duration {
        match self {
            Self::Freeze | Self::Coordinators => hold,
            _ => Duration::ZERO,
        }
    }

    /// Whether this lab can take it.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn check(self, lab: &Lab, instances: usize) -> Outcome {
        if self == Self::Cut {
            return Err(CliError::usage("cannot drop the primary's packets")
                .because("a lab's processes share one network; each would need a namespace")
                .hint(
                    "--fault freeze comes nearest: the host is silent and connections stay open",
                ));
        }
        if instances < 2 && self.moves() {
            return Err(CliError::usage("cannot take the only instance away")
                .hint("make a lab of 2 instances or more"));
        }
        if lab.nodes.len() < 3 && self == Self::LeaderAndHost {
            return Err(CliError::usage("cannot take a node away from this lab")
                .because("what is left would be no majority")
                .hint("make a lab of 3 or 5 nodes"));
        }
        Ok(())
    }

    /// Does it to `primary`.
    ///
    /// # Errors
    /// It could not be done.
    pub async fn inject(self, lab: &Lab, primary: &LabInstance) -> Outcome {
        match self {
            Self::Postmaster => postmaster(lab, primary).await,
            Self::Host => host(lab, primary, Signal::Kill),
            Self::Freeze => host(lab, primary, Signal::Freeze),
            Self::LeaderAndHost => {
                let leader = regent_lab::view_nodes(lab, &connect(lab)?).await.leader;
                node(lab, leader)?;
                host(lab, primary, Signal::Kill)
            }
            Self::Coordinators => lab.nodes.iter().try_for_each(|one| node(lab, one.id)),
            Self::Switchover => Operator::of(lab)?.switchover("bench failover").await,
            Self::Cut => self.check(lab, usize::MAX),
        }
    }
}

fn failed(error: DatabaseError) -> CliError {
    from_lab("cannot do that to the primary", error.into())
}

fn host(lab: &Lab, primary: &LabInstance, signal: Signal) -> Outcome {
    match signal_host(lab, primary, signal).map_err(failed)? {
        0 => Err(CliError::internal(format!("no process of {} was there", primary.id))),
        _ => Ok(()),
    }
}

async fn postmaster(lab: &Lab, primary: &LabInstance) -> Outcome {
    let seen = regent_lab::databases::view(lab).await;
    let seen = seen.iter().flat_map(|view| &view.instances).find(|one| one.id == primary.id);
    let gone = || {
        CliError::internal(format!("the postmaster of {} is not known", primary.id))
            .hint("its agent writes it into agent/status.json; look at the agent's log")
    };
    let pid = seen.and_then(|one| one.postmaster_pid).ok_or_else(gone)?;
    let process = owned::if_of(lab, primary, pid).ok_or_else(gone)?;
    let signalled = process.signal(Signal::Kill);
    signalled.or_internal(|| format!("cannot kill process {pid}")).map(|_| ())
}

fn node(lab: &Lab, id: u64) -> Outcome {
    let Some(node) = lab.node(id) else {
        return Err(CliError::internal("nobody leads the nodes").hint("try `regent lab heal`"));
    };
    regent_lab::signal(node, Signal::Kill)
        .map_err(|error| from_lab("cannot kill a node", error))
        .map(|_| ())
}
