//! A standby whose data directory is of no use any more comes back by itself, as a new copy.

use regent_core::spec::Mode;

use super::load::Load;
use super::rig::Rig;
use crate::cluster::{PATIENCE, until};

/// What an agent says when it has a new copy.
const COPIED: &str = "copied anew";

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_was_left_half_rewound_is_copied_anew() {
    let rig = Rig::up("half", Mode::Quorum).await;
    let primary = rig.redundant().await;
    let load = Load::start(&rig).await;
    let standby = (primary + 1) % 3;
    let copies = rig.log(standby).matches(COPIED).count();
    // As a rewind leaves it that was ended in the middle, and nobody has noticed yet.
    let engine = rig.instances()[standby].state_dir().join("engine");
    std::fs::create_dir_all(&engine).unwrap();
    let mark = engine.join("regent.incomplete");
    std::fs::write(&mark, "rewind\n").unwrap();
    rig.kill_postmaster(standby).await;

    until("a new copy", async || rig.log(standby).matches(COPIED).count() > copies).await;
    assert_eq!(rig.redundant().await, primary);
    assert!(!mark.exists(), "the mark of the old directory is still there");
    load.progress(100).await;
    load.all_kept(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_whose_wal_is_gone_from_the_primary_is_copied_anew() {
    let mut rig = Rig::up("gone", Mode::Quorum).await;
    let primary = rig.redundant().await;
    let load = Load::start(&rig).await;
    let standby = (primary + 1) % 3;
    let copies = rig.log(standby).matches(COPIED).count();
    rig.kill_host(standby);
    rig.host_gone(standby).await;

    // More WAL than two segments hold; then what is before the newest is removed.
    let session = rig.access.writable_host(primary, PATIENCE).await.unwrap();
    let fill = "CREATE TABLE fill AS SELECT repeat(n::text, 100) FROM generate_series(1, 100000) n";
    session.batch(fill, PATIENCE).await.unwrap();
    let newest = session.client().query_one("SELECT pg_walfile_name(pg_current_wal_lsn())", &[]);
    let newest: String = newest.await.unwrap().get(0);
    let wal = rig.instances()[primary].data_dir().join("pg_wal");
    let mut removed = 0;
    for entry in std::fs::read_dir(&wal).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name.len() == newest.len() && name < newest {
            std::fs::remove_file(entry.path()).unwrap();
            removed += 1;
        }
    }
    assert!(removed > 0, "nothing was gone");
    load.progress(100).await;

    assert_eq!(rig.heal().await, primary);
    let log = rig.log(standby);
    assert!(log.contains("has no WAL from") && log.matches(COPIED).count() > copies);
    load.progress(100).await;
    load.all_kept(&rig).await;
}
