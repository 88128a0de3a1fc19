//! Readers of the chain that do not read.
#![allow(clippy::unwrap_used)]

use futures::FutureExt as _;
use regent_core::id::Revision;
use regent_core::time::WallMs;
use tonic::Code;

use super::*;
use crate::history::HistoryConfig;
use crate::http::Metrics;
use crate::testing::TempDir;

/// A chain of `count` records.
fn chain(count: u64) -> Vec<Arc<Record>> {
    let mut records: Vec<Arc<Record>> = Vec::new();
    for number in 1..=count {
        let mut record = Record {
            number,
            revision: Revision(number),
            incarnation: 1,
            at: WallMs(number),
            who: "operator/ann".into(),
            what: "services.write".into(),
            resource: "orders".into(),
            why: String::new(),
            outcome: "done".into(),
            before: records.last().map_or([0; 32], |record| record.hash),
            hash: [0; 32],
        };
        record.hash = record.computed_hash();
        records.push(Arc::new(record));
    }
    records
}

/// A history of the records below `split`, and a window with the others.
fn split(dir: &TempDir, count: u64, split: usize) -> (History, Vec<Arc<Record>>) {
    let config = HistoryConfig { dir: dir.path().join("history"), keep_records: None };
    let history = History::open(config, Arc::new(Metrics::new()));
    let mut older = chain(count);
    let window = older.split_off(split);
    history.record(&older);
    assert!(history.flush(Duration::from_secs(20)));
    (history, window)
}

async fn numbers(stream: BoxStream<'static, Result<AuditRecord, Status>>) -> Vec<u64> {
    stream.map(|record| record.unwrap().number).collect().await
}

#[tokio::test]
async fn an_export_tells_the_history_and_then_the_window_once_and_in_order() {
    let dir = TempDir::new("export");
    let (history, window) = split(&dir, 2_500, 2_200);
    let told = |first, limit| {
        let stream = Exports::default().begin(history.clone(), window.clone(), first, limit);
        numbers(stream.unwrap())
    };
    assert_eq!(told(1, usize::MAX).await, (1..=2_500).collect::<Vec<_>>());
    assert_eq!(told(2_150, 100).await, (2_150..2_250).collect::<Vec<_>>());
    assert_eq!(told(2_400, usize::MAX).await, (2_400..=2_500).collect::<Vec<_>>());
    assert_eq!(told(7, 3).await, [7, 8, 9]);
    assert_eq!(told(9_000, 3).await, [0_u64; 0]);
}

#[test]
fn readers_that_do_not_read_hold_no_thread_that_apply_may_need() {
    let threads = 2;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(threads)
        .enable_all()
        .build()
        .unwrap();
    let dir = TempDir::new("export");
    let (history, window) = split(&dir, 3_000, 2_900);
    runtime.block_on(async {
        let exports = Exports::default();
        let mut stalled = Vec::new();
        for _ in 0..2 * threads {
            let stream = exports.begin(history.clone(), window.clone(), 1, usize::MAX).unwrap();
            let mut stream = Box::pin(stream.peekable());
            // It has begun, and more than a connection takes in is still to come.
            assert!(stream.as_mut().peek().await.is_some());
            stalled.push(stream);
        }
        let copied = tokio::task::spawn_blocking(|| "the state");
        let copied = tokio::time::timeout(Duration::from_secs(10), copied).await;
        assert_eq!(copied.expect("a thread is free").unwrap(), "the state");
    });
}

#[tokio::test]
async fn one_export_too_many_is_refused_until_another_has_ended() {
    let dir = TempDir::new("export");
    let (history, window) = split(&dir, 10, 0);
    let exports = Exports::default();
    let begin = || exports.begin(history.clone(), window.clone(), 1, usize::MAX);
    let mut under_way: Vec<_> = (0..MAX_EXPORTS).map(|_| begin().unwrap()).collect();
    let refused = begin().err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("exports of the audit chain"), "{refused}");
    // A reader that goes away leaves its place, and so does one that has everything.
    drop(under_way.pop());
    let last = begin().unwrap();
    assert!(begin().is_err());
    assert_eq!(numbers(last).await.len(), 10);
    assert!(begin().unwrap().next().now_or_never().is_some());
}
