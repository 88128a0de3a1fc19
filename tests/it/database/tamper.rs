//! Somebody lowers what commits wait for (RELIABILITY.md 6.3): it is told, and where it is Regent's own
//! setting, put back.

use std::process::Command;
use std::time::Instant;

use regent_core::spec::Mode;
use regent_lab::databases::SERVICE;

use super::load::Load;
use super::rig::Rig;
use crate::cluster::{PATIENCE, until};

fn explained(rig: &Rig) -> String {
    let out = rig.cluster.verb(&["explain", SERVICE]);
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Hole 2, for good: a role's own default.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_with_lowered_synchronous_commit_is_told_of_until_it_is_reset() {
    let rig = Rig::up("lowered", Mode::Quorum).await;
    let primary = rig.redundant().await;
    let load = Load::start(&rig).await;
    let session = rig.access.writable_host(primary, PATIENCE).await.unwrap();
    let role = session.client().query_one("SELECT quote_ident(current_user)", &[]).await.unwrap();
    let role: String = role.get(0);
    let lower = format!("ALTER ROLE {role} SET synchronous_commit = local");
    session.batch(&lower, PATIENCE).await.unwrap();
    until("the word of it", async || {
        let told = explained(&rig);
        told.contains("SyncSetTampered") && told.contains("synchronous_commit = local")
    })
    .await;
    let reset = format!("ALTER ROLE {role} RESET synchronous_commit");
    session.batch(&reset, PATIENCE).await.unwrap();
    until("the end of it", async || {
        let seen = rig.cluster.json(&["explain", SERVICE])["instances"].to_string();
        seen.contains("tampered") && !seen.contains("synchronous_commit")
    })
    .await;
    assert_eq!(rig.redundant().await, primary);
    load.progress(100).await;
    load.all_kept(&rig).await;
}

/// Hole 5: the names themselves, as `ALTER SYSTEM` leaves them.
#[tokio::test(flavor = "multi_thread")]
async fn names_changed_by_hand_are_put_back_and_no_promised_row_is_lost_afterwards() {
    let mut rig = Rig::up("names", Mode::Quorum).await;
    let old = rig.redundant().await;
    let load = Load::start(&rig).await;
    let auto = rig.instances()[old].data_dir().join("postgresql.auto.conf");
    let text = std::fs::read_to_string(&auto).unwrap_or_default();
    std::fs::write(&auto, format!("{text}synchronous_standby_names = ''\n")).unwrap();
    let postmaster = rig.postmaster(old).await;
    let told = Command::new("kill").args(["-HUP", &postmaster.pid.to_string()]).status();
    assert!(told.unwrap().success());

    until("the names to be put back", async || rig.log(old).contains("put back")).await;
    until("the file to be clean", async || {
        !std::fs::read_to_string(&auto).unwrap().contains("synchronous_standby_names")
    })
    .await;
    assert_eq!(rig.redundant().await, old);
    load.progress(100).await;

    let fault = Instant::now();
    rig.kill_host(old);
    let first = load.resumed(fault, Some(old)).await;
    assert_eq!(rig.heal().await, first.host);
    load.progress(100).await;
    load.all_kept(&rig).await;
}
