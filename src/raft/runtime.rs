//! The runtime openraft runs on: tokio, with two hooks that a simulator needs and production never
//! uses.
//!
//! Inside a [`SimNode`] scope every spawned task inherits a seed (so that election timeouts are a
//! function of it) and a [`SimNode`] gate (so that one node of many on a thread can be frozen or
//! killed). Outside such a scope it is plain tokio with randomness from the operating system. The
//! types are the same either way, so the simulator runs the very code that ships. openraft's own
//! `DeterministicRng` panics without a scope, which is why it is not used.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use openraft::OptionalSend;
use openraft::async_runtime::AsyncRuntime;
use openraft::impls::TokioRuntime;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng};
use tokio::task::AbortHandle;

tokio::task_local! {
    static SCOPE: Scope;
}

/// What a task of a simulated node carries.
struct Scope {
    seed: Cell<u64>,
    node: SimNode,
}

/// One simulated node's life: all its tasks share it.
#[derive(Clone)]
pub struct SimNode(Arc<Mutex<Gate>>);

#[derive(Default)]
struct Gate {
    frozen: bool,
    dead: bool,
    /// Tasks that were polled while frozen.
    waiting: Vec<Waker>,
    tasks: Vec<AbortHandle>,
}

impl Default for SimNode {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SimNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gate = self.0.lock();
        write!(f, "SimNode(frozen: {}, dead: {})", gate.frozen, gate.dead)
    }
}

impl SimNode {
    /// A node that runs.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Gate::default())))
    }

    /// Runs `future` as a part of this node; what it spawns belongs to it too.
    pub fn scope<F: Future>(&self, seed: u64, future: F) -> impl Future<Output = F::Output> {
        SCOPE.scope(Scope { seed: Cell::new(seed), node: self.clone() }, future)
    }

    /// Spawns `future` as a task of this node: it stops while the node is frozen and ends when the
    /// node is killed.
    pub fn spawn<F>(&self, seed: u64, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let task = tokio::spawn(SCOPE.scope(
            Scope { seed: Cell::new(seed), node: self.clone() },
            Gated { node: self.clone(), future: Box::pin(future) },
        ));
        let mut gate = self.0.lock();
        gate.tasks.retain(|t| !t.is_finished());
        gate.tasks.push(task.abort_handle());
        task
    }

    /// Stops every task where it stands, as SIGSTOP would; timers run on and fire late.
    pub fn freeze(&self) {
        self.0.lock().frozen = true;
    }

    /// Lets the tasks go on.
    pub fn thaw(&self) {
        let waiting = {
            let mut gate = self.0.lock();
            gate.frozen = false;
            std::mem::take(&mut gate.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Whether the node is frozen.
    pub fn is_frozen(&self) -> bool {
        self.0.lock().frozen
    }

    /// Ends every task where it stands, as SIGKILL would: none runs another instruction.
    pub fn kill(&self) {
        let tasks = {
            let mut gate = self.0.lock();
            gate.dead = true;
            gate.waiting.clear();
            std::mem::take(&mut gate.tasks)
        };
        tasks.iter().for_each(AbortHandle::abort);
    }

    /// Whether the node was killed.
    pub fn is_dead(&self) -> bool {
        self.0.lock().dead
    }

    /// Returns when the node may run; `false` if it never will.
    fn may_run(&self, cx: &Context<'_>) -> bool {
        let mut gate = self.0.lock();
        if gate.frozen && !gate.dead {
            gate.waiting.push(cx.waker().clone());
        }
        !gate.frozen && !gate.dead
    }
}

/// A task that only runs while its node does.
struct Gated<T> {
    node: SimNode,
    future: Pin<Box<dyn Future<Output = T> + Send>>,
}

impl<T> Future for Gated<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        if self.node.may_run(cx) { self.future.as_mut().poll(cx) } else { Poll::Pending }
    }
}

/// SplitMix64: a bijection with good avalanche; two constants give two independent streams, so a
/// child's seeds never repeat its parent's.
fn mix(seed: u64, gamma: u64) -> u64 {
    let z = seed.wrapping_add(gamma);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The next seed of this task and its node, when it is simulated.
fn next_seed() -> Option<(u64, SimNode)> {
    SCOPE
        .try_with(|scope| {
            let seed = scope.seed.get();
            scope.seed.set(mix(seed, 0x6a09_e667_f3bc_c908));
            (seed, scope.node.clone())
        })
        .ok()
}

/// Tokio, with the hooks described above.
#[derive(Debug)]
pub struct Rt(TokioRuntime);

impl AsyncRuntime for Rt {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> =
        <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = SmallRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        match next_seed() {
            Some((seed, node)) => node.spawn(mix(seed, 0x9e37_79b9_7f4a_7c15), future),
            None => TokioRuntime::spawn(future),
        }
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        let seed = next_seed().map_or_else(|| rand::rng().next_u64(), |(seed, _)| seed);
        SmallRng::seed_from_u64(seed)
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }

    async fn spawn_blocking<F, T>(f: F) -> Result<T, io::Error>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        if SCOPE.try_with(|_| ()).is_ok() {
            return Ok(f());
        }
        tokio::task::spawn_blocking(f).await.map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(seed: u64) -> (u64, u64) {
        let rt = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        rt.block_on(SimNode::new().scope(seed, async {
            let child = Rt::spawn(async { Rt::thread_rng().next_u64() });
            (Rt::thread_rng().next_u64(), child.await.expect("not aborted"))
        }))
    }

    #[test]
    fn a_seed_decides_every_draw_of_a_task_and_of_what_it_spawns() {
        assert_eq!(draws(7), draws(7));
        assert_ne!(draws(7), draws(8));
        assert_ne!(draws(7).0, draws(7).1);
    }

    #[test]
    fn outside_a_scope_draws_come_from_the_operating_system() {
        let mut a = Rt::thread_rng();
        let mut b = Rt::thread_rng();
        assert_ne!(a.next_u64(), b.next_u64());
    }

    #[tokio::test(start_paused = true)]
    async fn a_frozen_node_runs_nothing_until_it_is_thawed_and_a_killed_one_never() {
        let node = SimNode::new();
        let (tx, mut rx) = tokio::sync::watch::channel(0);
        node.spawn(1, async move {
            loop {
                Rt::sleep(Duration::from_millis(10)).await;
                tx.send_modify(|n| *n += 1);
            }
        });
        tokio::time::sleep(Duration::from_millis(55)).await;
        assert_eq!(*rx.borrow_and_update(), 5);
        node.freeze();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(*rx.borrow_and_update(), 5);
        node.thaw();
        tokio::time::sleep(Duration::from_millis(25)).await;
        assert_eq!(*rx.borrow_and_update(), 8);
        node.kill();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(*rx.borrow_and_update(), 8);
        assert!(rx.changed().await.is_err());
    }
}
