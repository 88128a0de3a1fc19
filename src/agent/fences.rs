//! How long it took to end everything, each time, from the order to the proof (PROTOCOL.md C6): the
//! slowest is kept over restarts. A budget is worth nothing that no end keeps.
//!
//! Two clocks: what the agent waited, which is what a role change waits for, and what the fencer itself
//! needed, from its order or deadline on. Deadlines rest on the second one alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

const FILE: &str = "slowest-fences-ms";
/// A budget is at least so many times the slowest.
const TIMES: u32 = 2;

#[derive(Clone, Copy, Debug, Default)]
struct Slowest {
    /// By whatever clock.
    any: Duration,
    /// By the fencer's own.
    own: Duration,
}

/// What is known of them.
#[derive(Clone, Debug)]
pub struct Fences {
    path: PathBuf,
    budget: Duration,
    slowest: Arc<Mutex<Slowest>>,
    /// Held by whoever writes: each writes the newest, so that no older one comes last.
    writing: Arc<Mutex<()>>,
}

/// By whose clock an end was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The agent's: from its order to the proof in its hand.
    Agent,
    /// The fencer's: from the order or the deadline until nobody was left.
    Fencer,
}

impl Fences {
    /// With what was kept below `dir`. A file that is not there or says nothing is no fence.
    pub fn open(dir: &Path, budget: Duration) -> Self {
        let path = dir.join(FILE);
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let mut kept = text.split_whitespace().map(|ms| ms.parse().map(Duration::from_millis));
        let mut next = || kept.next().and_then(Result::ok).unwrap_or_default();
        let slowest = Slowest { any: next(), own: next() };
        Self { path, budget, slowest: Arc::new(Mutex::new(slowest)), writing: Arc::default() }
    }

    /// One more; `what` ended it.
    pub fn took(&self, took: Duration, by: By, what: &str) {
        let budget = self.budget;
        if took > budget {
            tracing::warn!(what, ?took, ?budget, ?by, "a fence took longer than its budget (C6)");
        } else if took * TIMES > budget {
            let fix = "raise fence_budget_ms (C6)";
            tracing::warn!(what, ?took, ?budget, ?by, fix, "a fence took half of its budget");
        } else {
            tracing::info!(what, ?took, ?by, "a fence took");
        }
        let mut slowest = self.slowest.lock();
        let before = *slowest;
        slowest.any = slowest.any.max(took);
        if by == By::Fencer {
            slowest.own = slowest.own.max(took);
        }
        if (before.any, before.own) == (slowest.any, slowest.own) {
            return;
        }
        drop(slowest);
        let fences = self.clone();
        // Beside the thread that has the proof: nobody waits for this.
        let write = move || {
            let _turn = fences.writing.lock();
            let now = *fences.slowest.lock();
            let text = format!("{} {}\n", now.any.as_millis(), now.own.as_millis());
            if let Err(error) = std::fs::write(&fences.path, text) {
                tracing::debug!(%error, "the slowest fence was not written down");
            }
        };
        drop(std::thread::Builder::new().name("fences".to_owned()).spawn(write));
    }

    /// The slowest of all, in milliseconds; 0: none was measured.
    pub fn slowest_ms(&self) -> u64 {
        u64::try_from(self.slowest.lock().any.as_millis()).unwrap_or(u64::MAX)
    }

    /// What is set aside for one, in milliseconds.
    pub fn budget_ms(&self) -> u64 {
        u64::try_from(self.budget.as_millis()).unwrap_or(u64::MAX)
    }

    /// C6: deadlines rest on a time that the fencer did not keep; a lapse proves no end then.
    pub fn are_slow(&self) -> bool {
        self.slowest.lock().own > self.budget
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_slowest_is_kept_over_restarts_and_judged_by_the_budget_of_today() {
        let name = format!("regent-fences-{}-{}", std::process::id(), rand::random::<u64>());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let budget = Duration::from_millis(250);
        let fences = Fences::open(&dir, budget);
        assert_eq!((fences.slowest_ms(), fences.are_slow()), (0, false));
        let ms = Duration::from_millis;
        fences.took(ms(20), By::Fencer, "a test");
        fences.took(ms(400), By::Agent, "a test");
        assert_eq!((fences.slowest_ms(), fences.are_slow()), (400, false), "no deadline's time");
        fences.took(ms(300), By::Fencer, "a test");
        fences.took(ms(30), By::Fencer, "a test");
        assert_eq!((fences.slowest_ms(), fences.are_slow()), (400, true));
        let kept = || std::fs::read_to_string(dir.join(FILE)).unwrap_or_default();
        while kept() != "400 300\n" {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(Fences::open(&dir, budget).are_slow());
        let raised = Fences::open(&dir, 3 * budget);
        assert_eq!((raised.slowest_ms(), raised.are_slow()), (400, false));
        // Whoever writes the same once more is not to find the directory half gone.
        while Arc::strong_count(&fences.writing) > 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
