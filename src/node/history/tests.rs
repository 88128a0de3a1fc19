//! Tests of the history as a whole.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use proptest::prelude::*;
use regent_core::id::Revision;
use regent_core::state::audit::{Anchor, AuditRecord, verify};
use regent_core::time::WallMs;

use super::gaps::Ranges;
use super::*;
use crate::http::metrics::Metrics;
use crate::testing::TempDir;

const FLUSH: Duration = Duration::from_secs(20);

/// A chain of `count` records; `life` makes another content under the same numbers.
fn chain(count: u64, life: &str) -> Vec<Arc<AuditRecord>> {
    extend(Vec::new(), count, life)
}

fn extend(mut records: Vec<Arc<AuditRecord>>, count: u64, life: &str) -> Vec<Arc<AuditRecord>> {
    for number in records.len() as u64 + 1..=count {
        let before = records.last().map_or([0; 32], |record| record.hash);
        let mut record = AuditRecord {
            number,
            revision: Revision(number * 3),
            incarnation: 1,
            at: WallMs(number),
            who: "operator/ann".into(),
            what: "services.write".into(),
            resource: format!("service {number}"),
            why: life.into(),
            outcome: "done".into(),
            before,
            hash: [0; 32],
        };
        record.hash = record.computed_hash();
        records.push(Arc::new(record));
    }
    records
}

/// Has all of a chain, or its newest part only.
struct Source {
    window: Vec<Arc<AuditRecord>>,
    peer: Vec<Arc<AuditRecord>>,
    asked_peer: Mutex<usize>,
}

fn part(of: &[Arc<AuditRecord>], missing: Missing) -> Vec<Arc<AuditRecord>> {
    let within = |r: &&Arc<AuditRecord>| (missing.first..=missing.last).contains(&r.number);
    of.iter().filter(within).cloned().collect()
}

impl RecordSource for Source {
    fn window_records(&self, missing: Missing) -> Vec<Arc<AuditRecord>> {
        part(&self.window, missing)
    }
    fn peer_records(&self, missing: Missing) -> BoxFuture<'static, Vec<AuditRecord>> {
        *self.asked_peer.lock() += 1;
        let records = part(&self.peer, missing).iter().map(|r| (**r).clone()).collect();
        async move { records }.boxed()
    }
}

struct Opened {
    history: History,
    metrics: Arc<Metrics>,
}

fn open(dir: &TempDir, keep_records: Option<u64>) -> Opened {
    let metrics = Arc::new(Metrics::new());
    let config = HistoryConfig { dir: dir.path().join("history"), keep_records };
    let history = History::open(config, metrics.clone());
    assert!(history.flush(FLUSH), "the history opens");
    Opened { history, metrics }
}

async fn fill(history: &History, source: &Source) {
    let until = Instant::now() + Duration::from_secs(20);
    while !history.missing().is_empty() {
        history.fill_once(source).await;
        assert!(history.flush(FLUSH));
        assert!(Instant::now() < until, "gaps stay: {:?}", history.missing());
    }
}

fn assert_whole(history: &History, chain: &[Arc<AuditRecord>]) {
    let page = history.list(0, chain.len() + 10);
    assert_eq!(page.missing, None);
    assert_eq!(page.records, chain);
    verify(page.records.iter().map(Arc::as_ref), Anchor::default()).expect("the chain verifies");
}

fn close(opened: Opened, dir: &TempDir) -> PathBuf {
    drop(opened);
    // The thread lets go of sled's lock a moment later; whoever opens meanwhile would be refused.
    let path = dir.path().join("history");
    let until = Instant::now() + Duration::from_secs(20);
    while let Err(error) = sled::open(&path) {
        assert!(Instant::now() < until, "{error}");
        std::thread::sleep(Duration::from_millis(5));
    }
    path
}

#[test]
fn records_are_there_after_a_restart_and_the_chain_verifies() {
    let dir = TempDir::new("history-restart");
    let records = chain(3_000, "");
    let opened = open(&dir, None);
    for batch in records.chunks(7) {
        opened.history.record(batch);
    }
    assert!(opened.history.flush(FLUSH));
    assert_whole(&opened.history, &records);
    close(opened, &dir);
    let again = open(&dir, None);
    assert_whole(&again.history, &records);
    let status = again.history.status();
    assert_eq!((status.oldest, status.newest, status.head), (Some(1), Some(3_000), 3_000));
    assert_eq!(status.problem, "");
    let page = again.history.list(2_990, 5);
    assert_eq!(page.records, records[2_989..2_994]);
}

#[tokio::test]
async fn a_destroyed_store_is_set_aside_and_rebuilt_window_records_and_peer() {
    let dir = TempDir::new("history-destroyed");
    let records = chain(2_500, "");
    let opened = open(&dir, None);
    opened.history.record(&records);
    assert!(opened.history.flush(FLUSH));
    let path = close(opened, &dir);
    // Not torn: overwritten with nonsense, from the middle to the end of every file.
    let mut files: Vec<PathBuf> = vec![path.clone()];
    let mut damaged = 0;
    while let Some(at) = files.pop() {
        if at.is_dir() {
            files.extend(std::fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            let length = std::fs::metadata(&at).unwrap().len() as usize;
            std::fs::write(&at, vec![0xA5; length.max(64)]).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0);
    let again = open(&dir, None);
    assert_eq!(again.history.status().problem, "", "it goes on with a fresh store");
    assert!(dir.path().join("history.set-aside").exists());
    assert_eq!(again.metrics.audit_rebuilt.get(), 1);
    again.history.set_head(2_500);
    let source =
        Source { window: records[1_500..].to_vec(), peer: records.clone(), asked_peer: 0.into() };
    fill(&again.history, &source).await;
    assert_whole(&again.history, &records);
    assert!(*source.asked_peer.lock() > 0, "what left the window came from a peer");
}

#[tokio::test]
async fn a_lost_store_is_filled_again() {
    let dir = TempDir::new("history-lost");
    let records = chain(300, "");
    let opened = open(&dir, None);
    opened.history.record(&records);
    assert!(opened.history.flush(FLUSH));
    let path = close(opened, &dir);
    std::fs::remove_dir_all(&path).unwrap();
    let again = open(&dir, None);
    assert_eq!(again.history.oldest(), None);
    again.history.record(&extend(records.clone(), 301, "")[300..]);
    let records = extend(records, 301, "");
    let source = Source { window: records.clone(), peer: Vec::new(), asked_peer: 0.into() };
    fill(&again.history, &source).await;
    assert_whole(&again.history, &records);
}

#[tokio::test]
async fn a_changed_record_is_noticed_and_fetched_again() {
    let dir = TempDir::new("history-changed");
    let records = chain(50, "");
    let opened = open(&dir, None);
    opened.history.record(&records);
    assert!(opened.history.flush(FLUSH));
    let path = close(opened, &dir);
    {
        let db = sled::open(&path).unwrap();
        let tree = db.open_tree("records").unwrap();
        let mut forged = (*records[20]).clone();
        forged.who = "operator/eve".into();
        let bytes = postcard::to_stdvec(&forged).unwrap();
        tree.insert(21_u64.to_be_bytes(), bytes).unwrap();
        tree.insert(31_u64.to_be_bytes(), b"no record").unwrap();
        db.flush().unwrap();
    }
    let until = Instant::now() + Duration::from_secs(20);
    while let Err(error) = sled::open(&path) {
        assert!(Instant::now() < until, "{error}");
    }
    let again = open(&dir, None);
    let missing = again.history.missing();
    assert!(missing.contains(&Missing { first: 21, last: 21 }), "{missing:?}");
    assert!(missing.contains(&Missing { first: 31, last: 31 }), "{missing:?}");
    let page = again.history.list(15, 100);
    assert_eq!(page.records.len(), 6, "a page ends where the chain does");
    assert_eq!(page.missing, Some(Missing { first: 21, last: 21 }));
    let source = Source { window: Vec::new(), peer: records.clone(), asked_peer: 0.into() };
    fill(&again.history, &source).await;
    assert_whole(&again.history, &records);
}

#[tokio::test]
async fn what_the_queue_had_no_room_for_is_a_gap_and_is_filled() {
    let dir = TempDir::new("history-gap");
    let opened = open(&dir, None);
    let records = chain(500, "");
    opened.history.record(&records[..100]);
    // 101 to 400 were lost on the way; only later ones arrive.
    opened.history.record(&records[400..]);
    assert!(opened.history.flush(FLUSH));
    assert_eq!(opened.history.missing(), [Missing { first: 101, last: 400 }]);
    let page = opened.history.list(0, 1_000);
    assert_eq!(page.records.len(), 100);
    assert_eq!(page.missing, Some(Missing { first: 101, last: 400 }));
    assert_eq!(opened.metrics.audit_gaps.get(), 300);
    let source = Source { window: records.clone(), peer: Vec::new(), asked_peer: 0.into() };
    fill(&opened.history, &source).await;
    assert_whole(&opened.history, &records);
    assert_eq!(*source.asked_peer.lock(), 0, "the window sufficed");
}

#[tokio::test]
async fn a_source_that_offers_forged_records_is_not_believed() {
    let dir = TempDir::new("history-forged");
    let opened = open(&dir, None);
    let records = chain(20, "");
    opened.history.record(&records[10..]);
    assert!(opened.history.flush(FLUSH));
    let mut forged = records[..10].to_vec();
    let mut bad = (*forged[4]).clone();
    bad.outcome = "refused".into();
    forged[4] = Arc::new(bad);
    let source = Source { window: Vec::new(), peer: forged, asked_peer: 0.into() };
    opened.history.fill_once(&source).await;
    assert!(opened.history.flush(FLUSH));
    assert_eq!(opened.history.missing(), [Missing { first: 5, last: 5 }]);
    let source = Source { window: Vec::new(), peer: records.clone(), asked_peer: 0.into() };
    fill(&opened.history, &source).await;
    assert_whole(&opened.history, &records);
}

#[tokio::test]
async fn after_a_restore_the_records_of_the_former_life_make_room() {
    let dir = TempDir::new("history-restored");
    let opened = open(&dir, None);
    let former = chain(400, "former life");
    opened.history.record(&former);
    assert!(opened.history.flush(FLUSH));
    // The backup was made at record 250; the new life writes 251 and on again.
    let records = extend(former[..250].to_vec(), 300, "new life");
    opened.history.record(&records[250..]);
    assert!(opened.history.flush(FLUSH));
    opened.history.set_head(300);
    let source = Source { window: records.clone(), peer: Vec::new(), asked_peer: 0.into() };
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        opened.history.fill_once(&source).await;
        assert!(opened.history.flush(FLUSH));
        let page = opened.history.list(0, 1_000);
        if page.records == records {
            break;
        }
        assert!(Instant::now() < until, "{:?}", opened.history.missing());
    }
}

#[test]
fn only_the_newest_are_kept_when_so_configured() {
    let dir = TempDir::new("history-kept");
    let opened = open(&dir, Some(100));
    let records = chain(1_000, "");
    for batch in records.chunks(50) {
        opened.history.record(batch);
    }
    assert!(opened.history.flush(FLUSH));
    assert_eq!(opened.history.oldest(), Some(901));
    assert_eq!(opened.history.missing(), []);
    assert_eq!(opened.history.list(0, 1_000).records, records[900..]);
}

#[test]
fn a_directory_that_cannot_be_used_leaves_the_node_without_a_history_and_says_so() {
    let dir = TempDir::new("history-blocked");
    let file = dir.path().join("file");
    std::fs::write(&file, b"not a directory").unwrap();
    let config = HistoryConfig { dir: file.join("history"), keep_records: None };
    let history = History::open(config, Arc::new(Metrics::new()));
    history.record(&chain(5, ""));
    assert!(history.flush(FLUSH));
    assert_ne!(history.status().problem, "");
    assert_eq!(history.list(0, 10).records, []);
    assert_eq!(history.missing(), [Missing { first: 1, last: 5 }]);
}

proptest! {
    #[test]
    fn ranges_know_exactly_which_numbers_are_stored(
        steps in proptest::collection::vec((any::<bool>(), 1_u64..40, 0_u64..8), 0..60),
    ) {
        let mut ranges = Ranges::default();
        let mut model = std::collections::BTreeSet::new();
        for (insert, number, more) in steps {
            if insert {
                ranges.insert(number);
                model.insert(number);
            } else {
                ranges.remove(number, number + more);
                model.retain(|stored| !(number..=number + more).contains(stored));
            }
        }
        let missing = ranges.missing(1, 60);
        for number in 1..=60 {
            let is_missing = missing.iter().any(|m| (m.first..=m.last).contains(&number));
            prop_assert_eq!(is_missing, !model.contains(&number));
        }
        prop_assert_eq!(ranges.oldest(), model.first().copied());
        prop_assert_eq!(ranges.newest(), model.last().copied());
    }
}
