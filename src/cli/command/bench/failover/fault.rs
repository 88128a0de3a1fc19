//! What is done to a lab, by pid or on its switch, and how long it lasts.

use std::time::Duration;

use regent_lab::Lab;
use regent_lab::databases::{DatabaseError, LabInstance, owned, signal_host};
use regent_lab::network::{CLIENT_NAME, Cut, NetworkError};
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
    /// SIGSTOP to PostgreSQL's first process alone: open sessions go on, nobody new gets in
    FreezePostmaster,
    /// The primary's host and the leader of the nodes at once
    LeaderAndHost,
    /// SIGKILL to all nodes; they are started again later
    Coordinators,
    /// All packets of the primary's machine are dropped, then everything on it is killed: a host
    /// that is gone says no goodbye (a lab of --network)
    Drop,
    /// The primary's machine is cut off from everybody, but for clients on it (--network)
    Cut,
    /// The same, but for one standby, which it still reaches (--network)
    CutOne,
}

impl Fault {
    /// As on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Postmaster => "postmaster",
            Self::Host => "host",
            Self::Switchover => "switchover",
            Self::Freeze => "freeze",
            Self::FreezePostmaster => "freeze-postmaster",
            Self::LeaderAndHost => "leader-and-host",
            Self::Coordinators => "coordinators",
            Self::Drop => "drop",
            Self::Cut => "cut",
            Self::CutOne => "cut-one",
        }
    }

    /// Whether another instance must become primary.
    pub const fn moves(self) -> bool {
        !matches!(self, Self::Postmaster | Self::Coordinators)
    }

    /// Whether packets are dropped.
    const fn is_silent(self) -> bool {
        self.is_cut() || matches!(self, Self::Drop)
    }

    /// Whether a client with a session is no measure: its own deadlines would be what is measured, or its
    /// session goes on while nobody new gets in.
    pub const fn wants_prober(self) -> bool {
        self.is_silent() || matches!(self, Self::FreezePostmaster)
    }

    /// Whether the old primary lives on, with clients on its side.
    pub const fn is_cut(self) -> bool {
        matches!(self, Self::Cut | Self::CutOne)
    }

    /// How long it stays before it is taken back.
    pub fn lasts(self, hold: Duration) -> Duration {
        match self {
            Self::Freeze
            | Self::FreezePostmaster
            | Self::Coordinators
            | Self::Cut
            | Self::CutOne => hold,
            _ => Duration::ZERO,
        }
    }

    /// Whether this lab can take it.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn check(self, lab: &Lab, instances: usize) -> Outcome {
        if self.is_silent() && lab.network.is_none() {
            let error = from_lab("cannot drop the primary's packets", NetworkError::None.into());
            return Err(error);
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
            Self::Postmaster => postmaster(lab, primary, Signal::Kill).await,
            Self::FreezePostmaster => postmaster(lab, primary, Signal::Freeze).await,
            Self::Host => host(lab, primary, Signal::Kill),
            Self::Freeze => host(lab, primary, Signal::Freeze),
            Self::LeaderAndHost => {
                let leader = regent_lab::view_nodes(lab, &connect(lab)?).await.leader;
                node(lab, leader)?;
                host(lab, primary, Signal::Kill)
            }
            Self::Coordinators => lab.nodes.iter().try_for_each(|one| node(lab, one.id)),
            Self::Switchover => Operator::of(lab)?.switchover("bench failover").await,
            Self::Drop => {
                cut(lab, primary, &[])?;
                host(lab, primary, Signal::Kill)
            }
            Self::Cut => cut(lab, primary, &[]),
            Self::CutOne => {
                let others = lab.databases.iter().flat_map(|all| &all.instances);
                let kept = others.map(|one| &one.id).find(|id| **id != primary.id);
                cut(lab, primary, kept.as_slice())
            }
        }
    }
}

fn failed(error: DatabaseError) -> CliError {
    from_lab("cannot do that to the primary", error.into())
}

/// Cuts the primary's machine off from everybody but `kept`.
fn cut(lab: &Lab, primary: &LabInstance, kept: &[&String]) -> Outcome {
    let what = "cannot drop the primary's packets";
    let failed = |error: NetworkError| from_lab(what, error.into());
    let network = lab.network.as_ref().ok_or(NetworkError::None).map_err(failed)?;
    let others = network.machines.iter().map(|machine| &machine.name);
    let from = others
        .filter(|name| **name != primary.id && !kept.contains(name))
        .cloned()
        .chain([CLIENT_NAME.to_owned()])
        .collect();
    let cut = Cut { who: primary.id.clone(), from, one_way: false };
    network.cut(&[cut]).map(|_| ()).map_err(failed)
}

fn host(lab: &Lab, primary: &LabInstance, signal: Signal) -> Outcome {
    match signal_host(lab, primary, signal).map_err(failed)? {
        0 => Err(CliError::internal(format!("no process of {} was there", primary.id))),
        _ => Ok(()),
    }
}

async fn postmaster(lab: &Lab, primary: &LabInstance, signal: Signal) -> Outcome {
    let seen = regent_lab::databases::view(lab).await;
    let seen = seen.iter().flat_map(|view| &view.instances).find(|one| one.id == primary.id);
    let gone = || {
        CliError::internal(format!("the postmaster of {} is not known", primary.id))
            .hint("its agent writes it into agent/status.json; look at the agent's log")
    };
    let pid = seen.and_then(|one| one.postmaster_pid).ok_or_else(gone)?;
    let process = owned::if_of(lab, primary, pid).ok_or_else(gone)?;
    let signalled = process.signal(signal);
    signalled.or_internal(|| format!("cannot signal process {pid}")).map(|_| ())
}

fn node(lab: &Lab, id: u64) -> Outcome {
    let Some(node) = lab.node(id) else {
        return Err(CliError::internal("nobody leads the nodes").hint("try `regent lab heal`"));
    };
    regent_lab::signal(node, Signal::Kill)
        .map_err(|error| from_lab("cannot kill a node", error))
        .map(|_| ())
}
