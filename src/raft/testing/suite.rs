//! openraft's own tests of a log store, on ours.

use std::sync::Arc;

use openraft::StorageError;
use openraft::async_runtime::AsyncRuntime as _;
use openraft::impls::leader_id_adv::LeaderId;
use openraft::storage::RaftStateMachine as _;
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::vote::RaftLeaderId as _;
use parking_lot::{Mutex, RwLock};
use regent_core::id::Revision;
use regent_core::state::State;

use super::mesh::Heard;
use crate::log_store::LogStore;
use crate::machine::{Machine, Shared, Snapshots};
use crate::runtime::Rt;
use crate::store::sim_disk::SimDisk;
use crate::store::snapshot::SnapshotDir;
use crate::store::wal::{Wal, WalOptions};
use crate::store::writer::Writer;
use crate::types::{LogId, SnapshotMeta, Types};

struct Builder;

impl StoreBuilder<Types, LogStore, Machine> for Builder {
    async fn build(&self) -> Result<((), LogStore, Machine), StorageError<Types>> {
        let vfs = Arc::new(SimDisk::new());
        let options = WalOptions { segment_bytes: 64 * 1024, salt: 1 };
        let (wal, recovered) =
            Wal::open(vfs.clone(), "/data/log".as_ref(), options).expect("an empty log");
        let (writer, driver) = Writer::task(wal, |_| async {});
        tokio::spawn(driver);
        let log = LogStore::new(writer, recovered).expect("nothing to read");
        let snapshots = SnapshotDir::open(vfs, "/data/snapshots".as_ref()).expect("an empty disk");
        let shared = Shared {
            state: Arc::new(RwLock::new(State::default())),
            sink: Arc::new(Heard::default()),
            applied: tokio::sync::watch::Sender::new(Revision(0)),
            snapshots: Mutex::new(Snapshots { dir: snapshots, newest: None, fallback: None }),
            stopped: Mutex::default(),
            problem: Mutex::default(),
        };
        let machine =
            Machine { shared: Arc::new(shared), last: None, membership: Default::default() };
        Ok(((), log, machine))
    }
}

#[test]
fn the_log_store_passes_the_suite_of_its_engine() {
    Rt::run(Suite::test_all(Builder)).expect("the suite passes");
}

#[tokio::test]
async fn a_snapshot_that_is_ready_late_does_not_replace_a_newer_one() {
    let ((), _log, machine) = Builder.build().await.expect("an empty disk");
    let meta = |index| SnapshotMeta {
        last_log_id: Some(LogId::new(LeaderId::new(1, 1), index)),
        ..SnapshotMeta::default()
    };
    for (index, text) in [(10, "ten"), (7, "seven")] {
        let data = Arc::new(text.as_bytes().to_vec());
        machine.shared.save(&meta(index), data).await.expect("there is space");
    }
    let loaded = machine.shared.snapshots.lock().dir.load_newest().expect("readable");
    assert_eq!(loaded.newest.expect("one was saved").data, "ten");
}

#[tokio::test]
async fn a_damaged_snapshot_is_not_sent_and_a_new_one_takes_its_place() {
    let ((), _log, mut machine) = Builder.build().await.expect("an empty disk");
    let id = |index| Some(LogId::new(LeaderId::new(1, 1), index));
    for (index, text) in [(3, "three"), (7, "seven")] {
        let meta = SnapshotMeta { last_log_id: id(index), ..SnapshotMeta::default() };
        let data = Arc::new(text.as_bytes().to_vec());
        machine.shared.save(&meta, data).await.expect("there is space");
    }
    assert_eq!(machine.shared.snapshots.lock().fallback, id(3));
    machine.last = id(9);
    let current = machine.get_current_snapshot().await.expect("readable").expect("there is one");
    assert_eq!(current.meta.last_log_id, id(7));
    machine.shared.snapshots.lock().dir.damage_newest();
    let current = machine.get_current_snapshot().await.expect("readable").expect("a new one");
    assert_eq!(current.meta.last_log_id, id(9), "the state has everything");
    let kept = {
        let snapshots = machine.shared.snapshots.lock();
        (snapshots.newest, snapshots.fallback)
    };
    assert_eq!(kept, (id(9), id(3)));
}
