//! What the leader says of instances, on its way to every node.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt as _, stream};
use regent_core::route::fitness::Fitness;
use regent_rpc::convert::Invalid;
use regent_rpc::convert::common::{instance_name, service_name};
use regent_rpc::convert::observe::check;
use regent_rpc::convert::status;
use regent_rpc::pb::raft::{FitnessRequest, FitnessResponse, InstanceFitness};
use tonic::Status;

use super::fits::Row;
use crate::refuse;
use crate::shell::Shell;

/// Rows in one message: some tens of KiB.
const MAX_ROWS: usize = 512;
/// Between two tries to reach the leader.
const AGAIN_AFTER: Duration = Duration::from_millis(200);
/// Longest wait for the leader to begin.
const DIAL_TIMEOUT: Duration = Duration::from_secs(1);

fn row_out((service, instance, fit): Row) -> InstanceFitness {
    InstanceFitness {
        service: service.to_string(),
        instance: instance.to_string(),
        reads: fit.reads,
        lag_bytes: fit.lag_bytes,
        check: fit.check,
    }
}

fn row_in(row: InstanceFitness) -> Result<Row, Invalid> {
    let fitness = Fitness { reads: row.reads, lag_bytes: row.lag_bytes, check: check(row.check)? };
    let (service, instance) = (&row.service, &row.instance);
    Ok((service_name("service", service)?, instance_name("instance", instance)?, fitness))
}

/// Serves another node: everything that is said, then what changes, until this node leads no more.
pub fn serve(
    shell: &Arc<Shell>,
) -> Result<BoxStream<'static, Result<FitnessResponse, Status>>, Status> {
    let moved = || status::not_leader(shell.leadership.now(), refuse::RETRY_AFTER);
    if !shell.leadership.is_here() {
        return Err(moved());
    }
    let (said, shell) = (shell.routes.said(), shell.clone());
    let rows = stream::unfold((said, shell, 0), |(mut said, shell, after)| async move {
        loop {
            let (rows, at) = shell.routes.since(after, MAX_ROWS);
            if !rows.is_empty() {
                let rows = rows.into_iter().map(row_out).collect();
                return Some((Ok(FitnessResponse { rows }), (said, shell, at)));
            }
            tokio::select! {
                changed = said.changed() => changed.ok()?,
                () = shell.leadership.moved_from(shell.node) => return None,
            }
        }
    });
    Ok(rows.boxed())
}

impl Shell {
    /// Hears what the leader says of instances, until the node stops.
    pub async fn hear_fitness_forever(self: Arc<Self>) {
        loop {
            if let Err(status) = self.hear_fitness().await {
                tracing::debug!(%status, "the leader says nothing of standbys");
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    async fn hear_fitness(&self) -> Result<(), Status> {
        if self.leadership.is_here() {
            self.routes.listens();
            self.leadership.moved_from(self.node).await;
        }
        let Some(leader) = self.leadership.now().filter(|leader| leader.node != self.node) else {
            return Ok(());
        };
        let peer = self.peers.peer(leader.node, &leader.address);
        let mut client = peer.map_err(|bad| Status::unavailable(bad.to_string()))?;
        let request = self.peers.stream_request(FitnessRequest {});
        let dialled = tokio::time::timeout(DIAL_TIMEOUT, client.fitness(request)).await;
        let dialled = dialled.map_err(|_| Status::deadline_exceeded("no answer"))?;
        let mut rows = dialled?.into_inner();
        self.routes.listens();
        loop {
            let next = tokio::select! {
                next = rows.message() => next?,
                () = self.leadership.moved_from(leader.node) => return Ok(()),
            };
            let Some(next) = next else { return Ok(()) };
            let readable = next.rows.into_iter().filter_map(|row| match row_in(row) {
                Ok(row) => Some(row),
                // Of a newer leader, perhaps; the others must not suffer for it.
                Err(invalid) => {
                    tracing::debug!(leader = %leader.node, %invalid, "a row cannot be read");
                    None
                }
            });
            let readable: Vec<Row> = readable.collect();
            self.routes.told(&self.state.read(), readable);
        }
    }
}
