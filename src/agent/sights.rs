//! What this host sees of the other instances by trying to reach them: a connection to the
//! database's port, opened, answered and closed. Evidence for the verdict about a silent primary.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use regent_core::id::InstanceName;
use regent_core::role::observe::Sight;
use regent_engine::Engine;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// An address that does not answer within this is not there.
const ANSWER_WITHIN: Duration = Duration::from_millis(250);

#[derive(Clone, Debug)]
struct Seen {
    answered: Option<Instant>,
    refused: bool,
    tried: Instant,
}

impl Seen {
    /// Whether the newest attempt was answered, and whether it was refused.
    fn kind(&self) -> (bool, bool) {
        (self.answered.is_some_and(|at| at >= self.tried), self.refused)
    }
}

/// The neighbours, each tried by a task of its own.
#[derive(Debug, Default)]
pub struct Sights {
    seen: Arc<Mutex<BTreeMap<InstanceName, Seen>>>,
    tasks: BTreeMap<InstanceName, (String, JoinHandle<()>)>,
    hurry: Arc<Notify>,
    /// Some host began or ceased to answer, or to refuse connections.
    news: Arc<AtomicBool>,
}

impl Sights {
    /// Looks at these from now on, every `every`.
    pub fn aim(
        &mut self,
        engine: &Arc<dyn Engine>,
        neighbours: &BTreeMap<InstanceName, String>,
        every: Duration,
    ) {
        self.tasks.retain(|name, (address, task)| {
            let stays = neighbours.get(name) == Some(address);
            if !stays {
                task.abort();
                self.seen.lock().remove(name);
            }
            stays
        });
        for (name, address) in neighbours {
            if !self.tasks.contains_key(name) {
                let seen = Arc::clone(&self.seen);
                let (hurry, news) = (Arc::clone(&self.hurry), Arc::clone(&self.news));
                let look =
                    look(engine.clone(), seen, name.clone(), address.clone(), every, hurry, news);
                self.tasks.insert(name.clone(), (address.clone(), tokio::spawn(look)));
            }
        }
    }

    /// Looks at all of them at once: something has happened to one.
    pub fn hurry(&self) {
        self.hurry.notify_waiters();
    }

    /// Whether a host began or ceased to answer, or to refuse, since this was asked last: that is news
    /// for those who judge its silence.
    pub fn has_news(&self) -> bool {
        self.news.swap(false, Ordering::Relaxed)
    }

    /// What is seen now.
    pub fn now(&self) -> Vec<Sight> {
        let ms = |at: Instant| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
        let seen = self.seen.lock();
        seen.iter()
            .map(|(instance, seen)| Sight {
                instance: instance.clone(),
                answered_ms: seen.answered.map(ms),
                refused: seen.refused,
                tried_ms: ms(seen.tried),
            })
            .collect()
    }
}

impl Drop for Sights {
    fn drop(&mut self) {
        for (_, task) in self.tasks.values() {
            task.abort();
        }
    }
}

async fn look(
    engine: Arc<dyn Engine>,
    seen: Arc<Mutex<BTreeMap<InstanceName, Seen>>>,
    name: InstanceName,
    address: String,
    every: Duration,
    hurry: Arc<Notify>,
    news: Arc<AtomicBool>,
) {
    loop {
        let tried = Instant::now();
        let outcome = tokio::time::timeout(ANSWER_WITHIN, engine.knock(&address)).await;
        let last = seen.lock().get(&name).cloned();
        let before = last.as_ref().and_then(|last| last.answered);
        let (answered, refused) = match outcome {
            Ok(Ok(())) => (Some(Instant::now()), false),
            Ok(Err(error)) => (before, error.kind() == ErrorKind::ConnectionRefused),
            Err(_) => (before, false),
        };
        let found = Seen { answered, refused, tried };
        if last.is_some_and(|last| last.kind() != found.kind()) {
            news.store(true, Ordering::Relaxed);
        }
        seen.lock().insert(name.clone(), found);
        let pause = every.saturating_sub(tried.elapsed());
        let _ = tokio::time::timeout(pause, hurry.notified()).await;
    }
}
