//! How long the machine itself stood still during a test: without it, nobody can tell a deadline that
//! was missed from one that could not be kept.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_millis(50);

/// The longest of one kind, and how long ago it began.
#[derive(Clone, Copy)]
struct Longest {
    took: Duration,
    begun: Instant,
}

impl Longest {
    fn rise(&mut self, begun: Instant) {
        let took = begun.elapsed();
        if took > self.took {
            *self = Self { took, begun };
        }
    }
}

/// Sleeps and syncs over and over.
pub struct Pulse {
    longest: Arc<Mutex<[Longest; 2]>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pulse {
    /// Begins; syncs a file of its own in `dir`.
    pub fn of(dir: &Path) -> Self {
        let none = Longest { took: Duration::ZERO, begun: Instant::now() };
        let longest = Arc::new(Mutex::new([none; 2]));
        let over = Arc::new(AtomicBool::new(false));
        let (kept, ends, path) = (longest.clone(), over.clone(), dir.join("pulse"));
        let beat = move || -> std::io::Result<()> {
            let mut file = File::create(path)?;
            while !ends.load(Ordering::Relaxed) {
                let begun = Instant::now();
                std::thread::sleep(EVERY);
                kept.lock().unwrap()[0].rise(begun);
                let begun = Instant::now();
                file.write_all(b".")?;
                file.sync_data()?;
                kept.lock().unwrap()[1].rise(begun);
            }
            Ok(())
        };
        let thread = std::thread::spawn(move || {
            if let Err(error) = beat() {
                eprintln!("no pulse: {error}");
            }
        });
        Self { longest, over, thread: Some(thread) }
    }

    /// What it found so far, for people.
    pub fn told(&self) -> String {
        let [slept, synced] = *self.longest.lock().unwrap();
        let of = |one: Longest| format!("{:?}, begun {:?} ago", one.took, one.begun.elapsed());
        format!("longest sleep of {EVERY:?}: {}; longest sync: {}", of(slept), of(synced))
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
