//! Somebody lowers what commits wait for (RELIABILITY.md 6.3): it is told, and where it is Regent's own
//! setting, put back.

use std::process::Command;
use std::time::Instant;

use regent_core::spec::{LoweredSync, Mode, Policy};
use regent_lab::databases::SERVICE;
use regent_lab::writer::access::Session;

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

/// A session's own setting, which PostgreSQL shows to nobody else; and what a strict policy does.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_session_lowers_is_told_and_under_a_strict_policy_it_is_shut_out() {
    let mut rig = Rig::up("strict-sync", Mode::Quorum).await;
    let old = rig.redundant().await;
    let load = Load::start(&rig).await;
    let lowered = async || {
        let session = rig.access.writable_host(old, PATIENCE).await.unwrap();
        session.batch("SET synchronous_commit = off", PATIENCE).await.unwrap();
        session.batch("SELECT 1", PATIENCE).await.unwrap();
        session
    };
    let ends = async |session: &Session| {
        until("the end of the session", async || {
            session.batch("SELECT 1", PATIENCE).await.is_err()
        })
        .await;
    };
    let quiet = async || {
        until("nothing more to be told", async || {
            let seen = rig.cluster.json(&["explain", SERVICE])["instances"].to_string();
            seen.contains("tampered") && !seen.contains("synchronous_")
        })
        .await;
    };
    let session = lowered().await;
    until("the word of it", async || {
        let told = explained(&rig);
        told.contains("SyncSetTampered")
            && told.contains("synchronous_commit is off in the session")
    })
    .await;
    session.batch("RESET synchronous_commit", PATIENCE).await.unwrap();
    quiet().await;
    session.batch("SET synchronous_commit = local", PATIENCE).await.unwrap();

    let is = |what| move |policy: &mut Policy| policy.on_lowered_sync = what;
    rig.declare(is(LoweredSync::Strict)).await;
    ends(&session).await;
    ends(&lowered().await).await;
    assert!(rig.log(old).contains("ended: the session lowers synchronous_commit"));
    quiet().await;
    load.progress(100).await;

    // A role's own default: its sessions are ended, and it is not let in until the policy says less.
    let session = rig.access.writable_host(old, PATIENCE).await.unwrap();
    let role = session.client().query_one("SELECT quote_ident(current_user)", &[]).await.unwrap();
    let role: String = role.get(0);
    let lower = format!("ALTER ROLE {role} SET synchronous_commit = local");
    session.batch(&lower, PATIENCE).await.unwrap();
    ends(&session).await;
    until("the role to be refused", async || {
        let said = rig.access.host(old, PATIENCE).await.err().map(|why| why.to_string());
        said.is_some_and(|why| why.contains("pg_hba.conf rejects"))
    })
    .await;
    until("the word of it", async || explained(&rig).contains("(refused)")).await;
    rig.declare(is(LoweredSync::Report)).await;
    let mut session = None;
    until("the role to be let in", async || {
        session = rig.access.writable_host(old, PATIENCE).await.ok();
        session.is_some()
    })
    .await;
    let reset = format!("ALTER ROLE {role} RESET synchronous_commit");
    session.unwrap().batch(&reset, PATIENCE).await.unwrap();
    // Those who came in meanwhile have it still.
    rig.declare(is(LoweredSync::Strict)).await;
    quiet().await;

    // The names: nobody is let in until they are the set's again.
    change_names(&rig, old).await;
    until("clients to be shut out", async || rig.log(old).contains("step=Close")).await;
    let shut = Instant::now();
    until("the names to be put back", async || rig.log(old).contains("put back")).await;
    load.resumed(shut, None).await;
    quiet().await;
    assert_eq!(rig.redundant().await, old);
    load.progress(100).await;

    let fault = Instant::now();
    rig.kill_host(old);
    let first = load.resumed(fault, Some(old)).await;
    assert_eq!(rig.heal().await, first.host);
    load.all_kept(&rig).await;
}

/// As `ALTER SYSTEM` by a superuser does it.
async fn change_names(rig: &Rig, at: usize) {
    let auto = rig.instances()[at].data_dir().join("postgresql.auto.conf");
    let text = std::fs::read_to_string(&auto).unwrap_or_default();
    std::fs::write(&auto, format!("{text}synchronous_standby_names = ''\n")).unwrap();
    let postmaster = rig.postmaster(at).await;
    let told = Command::new("kill").args(["-HUP", &postmaster.pid.to_string()]).status();
    assert!(told.unwrap().success());
}

/// Hole 5: the names themselves, as `ALTER SYSTEM` leaves them.
#[tokio::test(flavor = "multi_thread")]
async fn names_changed_by_hand_are_put_back_and_no_promised_row_is_lost_afterwards() {
    let mut rig = Rig::up("names", Mode::Quorum).await;
    let old = rig.redundant().await;
    let load = Load::start(&rig).await;
    let auto = rig.instances()[old].data_dir().join("postgresql.auto.conf");
    change_names(&rig, old).await;

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
