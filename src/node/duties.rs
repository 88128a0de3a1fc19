//! The tasks that must run for as long as the node does: one that ends by itself stops the node.
//!
//! A node whose pump of watches, merger of renewals or round of reads has ended goes on looking well
//! from outside and does a part of its work no more. So every such task is started here, and nowhere
//! else: a panic in it, or its end, is the end of the node, with a message that names the task. The
//! supervisor of the process starts the node again from its log, which is always safe.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt as _;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// The lasting tasks of one node, and why it must not go on; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Duties {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    fatal: watch::Sender<Option<String>>,
    stopping: AtomicBool,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Default for Shared {
    fn default() -> Self {
        let fatal = watch::Sender::new(None);
        Self { fatal, stopping: AtomicBool::new(false), tasks: Mutex::default() }
    }
}

impl Duties {
    /// Starts `work`, which goes on until the node stops.
    pub fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.start(self.guarded(name, work));
    }

    /// Starts `work`, which may come to its end; only a panic in it stops the node.
    pub fn spawn_once(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let duties = self.clone();
        self.start(async move {
            if let Err(panic) = AssertUnwindSafe(work).catch_unwind().await {
                duties.fail(panicked(name, panic.as_ref()));
            }
        });
    }

    /// `work`, with the same consequences as [`Duties::spawn`], for whoever keeps its handle: it
    /// outlives [`Duties::abort`].
    pub fn guarded(
        &self,
        name: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let duties = self.clone();
        async move {
            let ended = AssertUnwindSafe(work).catch_unwind().await;
            duties.fail(match ended {
                Ok(()) => format!("the task {name:?} has ended"),
                Err(panic) => panicked(name, panic.as_ref()),
            });
        }
    }

    /// The node must not go on; the first reason counts. While it stops anyway nothing is said.
    pub fn fail(&self, why: String) {
        if self.shared.stopping.load(Ordering::Acquire) {
            return;
        }
        self.shared.fatal.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                tracing::error!(why, "this node must stop");
                *first = Some(why);
            }
            is_first
        });
    }

    /// Where the reason appears.
    pub fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.shared.fatal.subscribe()
    }

    /// From here on tasks end because the node does.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
    }

    /// Ends what was started here.
    pub fn abort(&self) {
        self.stop();
        for task in self.shared.tasks.lock().drain(..) {
            task.abort();
        }
    }

    fn start(&self, work: impl Future<Output = ()> + Send + 'static) {
        let task = tokio::spawn(work).abort_handle();
        self.shared.tasks.lock().push(task);
    }
}

fn panicked(name: &str, panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    format!("the task {name:?} has panicked: {text}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};
    use std::time::Duration;

    /// Why the node stops, once it does.
    async fn reason(duties: &Duties) -> String {
        let mut fatal = duties.fatal();
        let waited = tokio::time::timeout(Duration::from_secs(10), fatal.wait_for(Option::is_some));
        let seen = waited.await.expect("a reason in time").expect("duties live");
        seen.clone().unwrap_or_default()
    }

    #[tokio::test]
    async fn a_lasting_task_that_panics_or_ends_stops_the_node_and_is_named() {
        let duties = Duties::default();
        duties.spawn("sound", pending());
        duties.spawn("pump", async { panic!("row {} is odd", 7) });
        assert_eq!(reason(&duties).await, r#"the task "pump" has panicked: row 7 is odd"#);

        let duties = Duties::default();
        duties.spawn("merger", ready(()));
        assert_eq!(reason(&duties).await, r#"the task "merger" has ended"#);
    }

    #[tokio::test]
    async fn a_task_that_has_an_end_stops_the_node_only_by_a_panic() {
        let duties = Duties::default();
        let (told, ended) = tokio::sync::oneshot::channel();
        duties.spawn_once("come up", async move { told.send(()).expect("somebody waits") });
        ended.await.expect("it ran");
        tokio::task::yield_now().await;
        assert_eq!(*duties.fatal().borrow(), None);
        duties.spawn_once("come up", async { panic!("no") });
        assert_eq!(reason(&duties).await, r#"the task "come up" has panicked: no"#);
    }

    #[tokio::test]
    async fn nothing_that_ends_while_the_node_stops_is_a_reason_and_the_first_reason_stays() {
        let duties = Duties::default();
        duties.fail("first".into());
        duties.fail("second".into());
        assert_eq!(reason(&duties).await, "first");

        let duties = Duties::default();
        duties.stop();
        duties.guarded("server", ready(())).await;
        duties.spawn("pump", pending());
        duties.abort();
        tokio::task::yield_now().await;
        assert_eq!(*duties.fatal().borrow(), None);
    }
}
