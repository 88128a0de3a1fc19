//! A node that a test starts itself, beside the lab's or in the place of one: its exit code can be
//! seen, and it can be wrapped into something.

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use regent_lab::LabNode;
use regent_lab::process::Process;

use crate::cluster::{Cluster, REGENT, until};

/// Ended when dropped.
pub struct Own {
    child: Child,
}

impl Own {
    /// Starts node `id`, which must be dead, with the configuration that the lab made for it.
    pub fn instead(cluster: &mut Cluster, id: u64) -> Self {
        let config = cluster.lab.node(id).unwrap().config.clone();
        let mut command = Command::new(REGENT);
        command.args(["server", "--config"]).arg(config);
        Self::run(cluster, id, command)
    }

    /// The same with a command that becomes the node's process.
    pub fn run(cluster: &mut Cluster, id: u64, mut command: Command) -> Self {
        let node = cluster.lab.nodes.iter_mut().find(|node| node.id == id).unwrap();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&node.log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        // From now on the lab sees and signals this process.
        node.process = Some(Process::identify(child.id()).unwrap());
        Self { child }
    }

    /// Waits until it has ended.
    pub async fn exit(&mut self) -> ExitStatus {
        let mut status = None;
        until("the end of the node's process", async || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Everything a node has said since its first start.
pub fn said(node: &LabNode) -> String {
    std::fs::read_to_string(&node.log).unwrap_or_default()
}

/// Changes a node's configuration as text; it must change something.
pub fn edit(config: &Path, change: impl FnOnce(String) -> String) {
    let before = std::fs::read_to_string(config).unwrap();
    let after = change(before.clone());
    assert_ne!(before, after, "the edit found nothing to change");
    std::fs::write(config, after).unwrap();
}
