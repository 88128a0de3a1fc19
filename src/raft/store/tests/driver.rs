//! Group commit, on a thread and inline.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::store::real_disk::RealDisk;
use crate::store::record::Record;
use crate::store::sim_disk::SimDisk;
use crate::store::tests::workload::{entry, open, options, purge, vote};
use crate::store::wal::{Wal, WalOptions};
use crate::store::writer::{Done, Pause, Writer};

type Log = Arc<Mutex<Vec<(u64, bool)>>>;

fn note(log: &Log, number: u64) -> Done {
    let log = log.clone();
    Box::new(move |outcome: io::Result<()>| log.lock().push((number, outcome.is_ok())))
}

/// Polls a task until it waits for something that is not there.
fn drive(task: &mut std::pin::Pin<Box<dyn Future<Output = ()> + Send>>) -> bool {
    let mut context = Context::from_waker(std::task::Waker::noop());
    matches!(task.as_mut().poll(&mut context), Poll::Ready(()))
}

/// A pause that lasts until the gate is opened.
fn gate(open: Arc<AtomicBool>) -> impl Future<Output = ()> + Send {
    std::future::poll_fn(move |_| match open.load(Ordering::SeqCst) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
}

#[test]
fn callbacks_run_in_order_and_only_after_the_sync() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk).unwrap();
    let synced = Arc::new(AtomicBool::new(false));
    let pass = synced.clone();
    let (writer, task) = Writer::task(wal, move |_| gate(pass.clone()));
    let mut task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(task);
    let log = Log::default();
    for number in 0..5 {
        writer.submit(vec![entry(number, 10)], note(&log, number));
    }
    assert!(!drive(&mut task));
    assert!(log.lock().is_empty(), "acknowledged before the sync");
    assert!(disk.pending_units() > 0, "the simulator finds unsynced writes here");
    assert_eq!(writer.queued(), 5);
    synced.store(true, Ordering::SeqCst);
    assert!(!drive(&mut task));
    assert_eq!(*log.lock(), (0..5).map(|n| (n, true)).collect::<Vec<_>>());
    assert_eq!(
        (writer.queued(), writer.figures().flush_count()),
        (0, 1),
        "five requests share one sync"
    );
}

#[test]
fn a_dropped_task_is_a_crash_and_acknowledges_nothing_more() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk).unwrap();
    let (writer, task) = Writer::task(wal, |_| std::future::pending());
    let mut task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(task);
    let log = Log::default();
    writer.submit(vec![vote(1)], note(&log, 1));
    assert!(!drive(&mut task));
    drop(task);
    disk.crash_keeping(|_| false);
    writer.submit(vec![vote(2)], note(&log, 2));
    assert_eq!(*log.lock(), [(2, false)]);
    let (_, found) = open(&disk).unwrap();
    assert_eq!(found.vote, None);
}

#[test]
fn a_full_disk_holds_the_batch_until_there_is_space_and_lets_a_purge_pass() {
    let disk = SimDisk::new();
    disk.set_capacity(Some(2 * options().segment_bytes));
    let (wal, _) = open(&disk).unwrap();
    let retry = Arc::new(AtomicBool::new(false));
    let pass = retry.clone();
    let (writer, task) = Writer::task(wal, move |pause| {
        let open = match pause {
            Pause::Sync => Arc::new(AtomicBool::new(true)),
            Pause::Retry => pass.clone(),
        };
        gate(open)
    });
    let mut task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(task);
    let log = Log::default();
    let mut index = 0;
    while writer.problem().is_empty() {
        writer.submit(vec![entry(index, 500)], note(&log, index));
        index += 1;
        assert!(!drive(&mut task));
        assert!(index < 100, "the disk never got full");
    }
    let held = index - 1;
    assert!(writer.problem().contains("space"), "{}", writer.problem());
    writer.submit(vec![entry(index, 500)], note(&log, index));
    // This one must wait: it names an entry that is not durable.
    writer.submit(vec![purge(held)], note(&log, 1000));
    assert!(!drive(&mut task));
    assert_eq!(log.lock().len() as u64, held, "nothing is acknowledged meanwhile");
    writer.submit(vec![purge(held - 1)], note(&log, 2000));
    retry.store(true, Ordering::SeqCst);
    assert!(!drive(&mut task));
    let tail: Vec<_> = log.lock()[held as usize..].to_vec();
    assert_eq!(tail, [(2000, true), (held, true), (index, true), (1000, true)]);
    assert_eq!(writer.problem(), "");
    writer.close();
    assert!(drive(&mut task));
}

#[test]
fn an_old_segment_that_cannot_be_removed_is_a_trouble_and_no_problem() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk).unwrap();
    let (writer, task) = Writer::task(wal, |_| std::future::ready(()));
    let mut task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(task);
    let log = Log::default();
    for number in 0..20 {
        writer.submit(vec![entry(number, 500)], note(&log, number));
    }
    assert!(!drive(&mut task));
    disk.fail_removes(1);
    writer.submit(vec![purge(15)], note(&log, 20));
    writer.submit(vec![entry(20, 10)], note(&log, 21));
    assert!(!drive(&mut task));
    assert_eq!(writer.problem(), "");
    assert!(writer.trouble().contains("cannot remove"), "{}", writer.trouble());
    // The next purge takes the file along.
    writer.submit(vec![purge(16)], note(&log, 22));
    assert!(!drive(&mut task));
    assert_eq!(writer.trouble(), "");
    assert_eq!(*log.lock(), (0..=22).map(|n| (n, true)).collect::<Vec<_>>());
}

#[test]
fn a_full_disk_that_held_only_purge_marks_is_no_problem_once_they_are_written() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk).unwrap();
    let (writer, task) = Writer::task(wal, |_| std::future::ready(()));
    let mut task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(task);
    let log = Log::default();
    writer.submit(vec![entry(0, 100)], note(&log, 0));
    assert!(!drive(&mut task));
    disk.cut_writes_short(1);
    writer.submit(vec![purge(0)], note(&log, 1));
    assert!(!drive(&mut task));
    assert_eq!(*log.lock(), [(0, true), (1, true)]);
    assert_eq!(writer.problem(), "");
}

#[test]
fn a_failed_disk_fails_everything_in_order_and_for_good() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk).unwrap();
    let (writer, task) = Writer::task(wal, |_| std::future::ready(()));
    let mut task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(task);
    let log = Log::default();
    disk.fail_syncs(1);
    for number in 0..3 {
        writer.submit(vec![vote(number)], note(&log, number));
    }
    assert!(!drive(&mut task));
    writer.submit(vec![vote(3)], note(&log, 3));
    assert!(!drive(&mut task));
    assert_eq!(*log.lock(), [(0, false), (1, false), (2, false), (3, false)]);
    assert!(writer.problem().contains("sync"), "{}", writer.problem());
}

/// A directory of this test alone, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("regent-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_thread_commits_over_many_segments_and_is_reopened_whole() {
    let scratch = Scratch::new("writer");
    let small = WalOptions { segment_bytes: 64 * 1024, salt: 42 };
    let dir = scratch.0.join("log");
    let (wal, _) = Wal::open(Arc::new(RealDisk), &dir, small.clone()).unwrap();
    let writer = Writer::spawn_thread(wal).unwrap();
    let log = Log::default();
    for number in 0..2000 {
        let group = vec![entry(number, 300), vote(number)];
        writer.submit(group, note(&log, number));
    }
    writer.submit(vec![purge(1500)], note(&log, 2000));
    writer.close();
    assert_eq!(*log.lock(), (0..=2000).map(|n| (n, true)).collect::<Vec<_>>());
    let (_, found) = Wal::open(Arc::new(RealDisk), &dir, small).unwrap();
    assert_eq!(found.entries.first().map(|e| e.0), Some(1501));
    assert_eq!(found.entries.last().map(|e| e.0), Some(1999));
    assert_eq!(found.vote.as_deref(), Some(b"term 1999".as_slice()));
}

#[test]
fn dropping_the_last_handle_ends_the_threads_and_frees_the_directory() {
    let scratch = Scratch::new("dropped");
    let (wal, _) = Wal::open(Arc::new(RealDisk), &scratch.0, options()).unwrap();
    let writer = Writer::spawn_thread(wal).unwrap();
    let (tell, told) = mpsc::channel();
    writer.submit(vec![Record::Vote("v".into())], Box::new(move |r| tell.send(r.is_ok()).unwrap()));
    drop(writer);
    assert!(told.recv().unwrap());
    let deadline = Instant::now() + Duration::from_secs(10);
    while Wal::open(Arc::new(RealDisk), &scratch.0, options()).is_err() {
        assert!(Instant::now() < deadline, "the directory is still locked");
        std::thread::yield_now();
    }
}
