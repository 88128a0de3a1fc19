//! Ending the databases: agents, then fencers, then whatever is left of PostgreSQL.

use std::time::{Duration, Instant};

use super::{DatabaseError, LabInstance, owned, proxy, system};
use crate::layout::Lab;
use crate::process::{Fault, Process};

/// How long an agent may take to end once it is told.
const GRACE: Duration = Duration::from_secs(5);
/// How long an immediate shutdown may take.
const QUIT: Duration = Duration::from_millis(1_500);
/// How long killed processes may take to be gone.
const GONE: Duration = Duration::from_secs(10);

/// Ends proxies and everything of all instances; says how many agents and proxies there were.
/// Nothing is removed.
///
/// # Errors
/// A process could not be ended.
pub async fn end(lab: &Lab) -> Result<usize, DatabaseError> {
    let Some(databases) = &lab.databases else { return Ok(0) };
    let agents = databases.instances.iter().map(end_agent);
    // Before the databases: it would tell its log of each.
    let mut count = proxy::end(databases).await?;
    for ended in futures::future::join_all(agents).await {
        count += usize::from(ended?);
    }
    futures::future::join_all(databases.instances.iter().map(|it| quit(lab, it))).await;
    for instance in &databases.instances {
        sweep(lab, instance).await?;
    }
    Ok(count)
}

/// Waits for those that were told to quit; whoever does not in time is killed all the same.
async fn quit(lab: &Lab, instance: &LabInstance) {
    let servers = owned::quit(lab, instance);
    let deadline = Instant::now() + QUIT;
    while servers.iter().any(Process::is_alive) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn end_agent(instance: &LabInstance) -> Result<bool, DatabaseError> {
    let Some(agent) = instance.process.as_ref().filter(|agent| agent.is_alive()) else {
        return Ok(false);
    };
    let what = format!("end the agent of {}", instance.id);
    agent.end(GRACE).await.map_err(system(what))?;
    Ok(true)
}

/// Kills what an agent leaves behind on purpose: its fencer, and with it PostgreSQL. Until nothing
/// is left: without a PID namespace the fencer's end is not that of what it started.
async fn sweep(lab: &Lab, instance: &LabInstance) -> Result<(), DatabaseError> {
    let deadline = Instant::now() + GONE;
    loop {
        let left: Vec<Process> = owned::by(lab, instance);
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let (instance, count) = (instance.id.clone(), left.len());
            return Err(DatabaseError::Survived { instance, count });
        }
        for process in left {
            let what = || format!("kill process {} of {}", process.pid, instance.id);
            process.signal(Fault::Kill).map_err(system(what()))?;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
