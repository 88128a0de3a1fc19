//! HAProxy in front of the databases, as a lab has it: the application knows the write port alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use regent_core::spec::Mode;
use regent_lab::databases::signal_host;
use regent_lab::process::Fault;
use regent_lab::writer::{Access, Pace};
use tokio::task::JoinHandle;

use super::load::Load;
use super::rig::Rig;
use crate::cluster::until;

/// Fresh connections to the write port, one after the other: which instances they reached.
struct Visitor {
    stop: Arc<AtomicBool>,
    /// Whether anybody was reached yet.
    reached: Arc<AtomicBool>,
    task: JoinHandle<Vec<usize>>,
}

impl Visitor {
    fn start(access: Access) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let any = Arc::new(AtomicBool::new(false));
        let reached_any = Arc::clone(&any);
        let task = tokio::spawn(async move {
            let mut reached = Vec::new();
            while !told.load(Ordering::Relaxed) {
                if let Ok((_, at)) = access.writable(Pace::PROBE, 0).await {
                    reached.push(at);
                    reached_any.store(true, Ordering::Relaxed);
                }
                tokio::time::sleep(Pace::PROBE.every).await;
            }
            reached
        });
        Self { stop, reached: any, task }
    }

    /// The instances in the order in which they were reached, each stretch once.
    async fn ended(self) -> Vec<usize> {
        self.stop.store(true, Ordering::Relaxed);
        let mut reached = self.task.await.unwrap();
        reached.dedup();
        reached
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_write_port_follows_each_failover_cuts_old_sessions_and_loses_no_row() {
    let mut rig = Rig::up_behind_haproxy("proxy", Mode::Quorum).await;
    let databases = rig.cluster.lab.databases.clone().unwrap();
    rig.access = databases.through_haproxy().expect("it is required");
    let first = rig.redundant().await;
    let load = Load::start(&rig).await;
    let visitor = Visitor::start(rig.access.clone());
    let reached = Arc::clone(&visitor.reached);
    until("the visitor's first session", async || reached.load(Ordering::Relaxed)).await;

    // A frozen host ends no session by itself: that is HAProxy's part.
    let (idle, at) = rig.access.writable(Pace::STEADY, 0).await.unwrap();
    assert_eq!(at, first);
    let fault = Instant::now();
    assert!(signal_host(&rig.cluster.lab, &rig.instances()[first], Fault::Freeze).unwrap() > 0);
    until("the end of the old session", async || idle.client().is_closed()).await;
    assert!(fault.elapsed() < Duration::from_secs(5), "{:?}", fault.elapsed());
    let second = load.resumed(fault, Some(first)).await.host;
    load.progress(100).await;
    assert_eq!(rig.heal().await, second);

    // A host that is gone.
    let fault = Instant::now();
    rig.kill_host(second);
    let third = load.resumed(fault, Some(second)).await.host;
    load.progress(100).await;
    assert_eq!(rig.heal().await, third);
    load.progress(100).await;

    assert_eq!(visitor.ended().await, [first, second, third], "never two at once, never back");
    load.all_kept(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_haproxy_that_died_is_shown_dead_and_is_healed_with_the_lab() {
    let mut rig = Rig::up_behind_haproxy("proxy-death", Mode::Quorum).await;
    let proxy = rig.cluster.lab.databases.clone().unwrap().haproxy.expect("it is required");
    let process = proxy.process.expect("it was started");
    assert!(process.signal(Fault::Kill).unwrap());
    assert!(process.wait_gone(Duration::from_secs(5)).await);
    assert_eq!(rig.view().await.haproxy.expect("the lab has one").pid, None);

    let primary = rig.heal().await;
    let healed = rig.cluster.lab.databases.clone().unwrap();
    assert_ne!(healed.haproxy.as_ref().unwrap().process, Some(process));
    let access = healed.through_haproxy().unwrap();
    let (_, at) = access.writable_within(Pace::STEADY, 0, Duration::from_secs(5)).await.unwrap();
    assert_eq!(at, primary);
}
