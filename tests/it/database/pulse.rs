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

/// Processor time that other guests of the machine took since it was started, in hundredths of a second.
fn stolen() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    text.split_whitespace().nth(8).and_then(|word| word.parse().ok()).unwrap_or_default()
}

/// Sleeps and syncs over and over.
pub struct Pulse {
    longest: Arc<Mutex<[Longest; 2]>>,
    stolen: u64,
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
        Self { longest, stolen: stolen(), over, thread: Some(thread) }
    }

    /// What it found so far, for people.
    pub fn told(&self) -> String {
        let [slept, synced] = *self.longest.lock().unwrap();
        let of = |one: Longest| format!("{:?}, begun {:?} ago", one.took, one.begun.elapsed());
        let stolen = Duration::from_millis(10 * stolen().saturating_sub(self.stolen));
        let (slept, synced) = (of(slept), of(synced));
        format!(
            "longest sleep of {EVERY:?}: {slept}; longest sync: {synced}; taken by other guests: {stolen:?}"
        )
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
