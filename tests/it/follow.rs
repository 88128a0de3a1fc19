//! A verb that does not end by itself: what it prints is read line by line as it comes.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};

use regent_lab::process::{Fault, Process};

use crate::cluster::{Cluster, PATIENCE, REGENT, until};

/// Killed when dropped.
pub struct Follow {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Follow {
    /// Starts a verb with the lab's admin identity, its output as JSON lines.
    pub fn start(cluster: &Cluster, args: &[&str]) -> Self {
        Self::spawn(cluster, &[], args, Stdio::inherit())
    }

    /// The same, talkative, with what it says to people in the file `log`.
    pub fn logged(cluster: &Cluster, args: &[&str], log: &Path) -> Self {
        Self::spawn(cluster, &["-v"], args, std::fs::File::create(log).unwrap().into())
    }

    fn spawn(cluster: &Cluster, options: &[&str], args: &[&str], stderr: Stdio) -> Self {
        let mut child = Command::new(REGENT)
            .args(["lab", "exec", "--dir"])
            .arg(&cluster.lab.dir)
            .args(["-o", "json"])
            .args(options)
            .arg("--")
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let (say, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            out.lines().map_while(Result::ok).all(|line| say.send(line).is_ok());
        });
        Self { child, lines, seen: Vec::new() }
    }

    /// The next line that `wanted` says yes to.
    pub fn line(&mut self, wanted: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|e| panic!("{e} after {:?}", self.seen));
            let value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
            self.seen.push(line);
            if wanted(&value) {
                return value;
            }
        }
    }

    /// Asks it to end, as Ctrl-C or a service manager would.
    pub fn terminate(&self) {
        Process::identify(self.child.id()).unwrap().signal(Fault::Terminate).unwrap();
    }

    /// Waits until it has ended.
    pub async fn exit(&mut self) -> ExitStatus {
        let mut status = None;
        until("the end of the verb", async || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
