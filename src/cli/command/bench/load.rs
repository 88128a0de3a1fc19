//! Closed-loop load: each client does one thing after the other, as fast as it is answered.

use std::future::Future;
use std::time::{Duration, Instant};

use tonic::{Response, Status};

use super::report::{Latencies, latencies, note};
use crate::render::{Output, progress};

/// Before measuring: connections, caches and the allocator settle.
pub const WARM_UP: Duration = Duration::from_secs(1);
/// After an error: a client that cannot do anything must not burn the machine it measures.
const PAUSE: Duration = Duration::from_millis(5);
/// Longest wait for one answer; then it is an error.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Whether `call` was answered, and in time.
pub async fn answered<A>(
    call: impl Future<Output = Result<Response<A>, Status>>,
    patience: Duration,
) -> Result<(), Status> {
    match tokio::time::timeout(patience, call).await {
        Ok(answer) => answer.map(drop),
        Err(_) => Err(Status::deadline_exceeded("no answer")),
    }
}

/// What all clients did together.
pub struct Totals {
    /// Latencies of what was done in the measured time.
    pub latencies: Latencies,
    /// What failed in it.
    pub errors: u64,
    /// One of the failures.
    pub sample_error: Option<String>,
    /// How long was measured.
    pub elapsed: Duration,
}

/// Runs every client until the measured time is over. `begin` is called when measuring begins.
pub async fn drive<C, F, Done>(
    out: Output,
    clients: Vec<C>,
    measured: Duration,
    begin: impl FnOnce() + Send,
    act: F,
) -> Totals
where
    C: Send + 'static,
    F: Fn(C) -> Done + Clone + Send + Sync + 'static,
    Done: Future<Output = (C, Result<(), Status>)> + Send,
{
    let _bar = progress::seconds(out, "seconds", WARM_UP + measured);
    let start = Instant::now() + WARM_UP;
    let end = start + measured;
    let mut tasks = tokio::task::JoinSet::new();
    for mut client in clients {
        let act = act.clone();
        tasks.spawn(async move {
            let mut own = (latencies(), 0u64, None);
            loop {
                let sent = Instant::now();
                if sent >= end {
                    return own;
                }
                let (back, result) = act(client).await;
                client = back;
                let done = Instant::now();
                if done < start || done >= end {
                    continue;
                }
                match result {
                    Ok(()) => {
                        note(&mut own.0, done - sent);
                    }
                    Err(status) => {
                        own.1 += 1;
                        own.2.get_or_insert_with(|| {
                            format!("{:?}: {}", status.code(), status.message())
                        });
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        });
    }
    tokio::time::sleep_until(start.into()).await;
    begin();
    let mut totals =
        Totals { latencies: latencies(), errors: 0, sample_error: None, elapsed: measured };
    while let Some(done) = tasks.join_next().await {
        let (own, errors, sample) = match done {
            Ok(own) => own,
            Err(error) => (latencies(), 1, Some(error.to_string())),
        };
        totals.latencies.add(&own).expect("both histograms grow as needed");
        totals.errors += errors;
        totals.sample_error = totals.sample_error.or(sample);
    }
    totals
}
