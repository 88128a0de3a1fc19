//! What the tests share: a fencer below a temporary directory, programs that try to get away, and a
//! look at who is left. Dropping a [`Rig`] ends whatever its test left.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use regent_core::id::{Epoch, Nonce, RenewalNumber, Revision};
use regent_core::time::{Micros, Reading};
use regent_fencer::client::{ClientError, Fencer, LaunchOptions};
use regent_fencer::receipt::{Proof, Receipt};
use regent_fencer::wire::{Arm, Bound, Protection, StartCommand, Status};
use regent_fencer::{AgentId, Options, clock};

pub const LONG: Duration = Duration::from_secs(20);

pub struct Rig {
    pub dir: PathBuf,
    pub options: Options,
    /// What holds the fencer.
    pub program: PathBuf,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Rig {
    pub fn new(name: &str) -> Self {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir()
            .join(format!("regent-fencer-{name}-{}-{count}", std::process::id()));
        std::fs::create_dir_all(dir.join("work")).unwrap();
        let dir = dir.canonicalize().unwrap();
        Self {
            options: Options::launch(dir.join("state")),
            program: env!("CARGO_BIN_EXE_regent-fencer").into(),
            dir,
        }
    }

    pub fn agent(boot_count: u64) -> AgentId {
        AgentId { boot_count, nonce: Nonce(1000 + boot_count) }
    }

    pub fn try_launch(&self) -> Result<Fencer, ClientError> {
        let launch = LaunchOptions {
            program: self.program.clone(),
            options: self.options.clone(),
            agent: Self::agent(1),
        };
        let mut fencer = Fencer::launch(&launch)?;
        // The machine of the tests is shared and slow.
        fencer.set_answer_within(Duration::from_secs(5));
        if let Protection::Weak { reason } = fencer.status()?.protection {
            eprintln!("armed=weak: {reason}");
        }
        Ok(fencer)
    }

    pub fn launch(&self) -> Fencer {
        self.try_launch().unwrap()
    }

    pub fn attach(&self, boot_count: u64) -> Fencer {
        let mut fencer = Fencer::attach(&self.options.state_dir, Self::agent(boot_count)).unwrap();
        fencer.set_answer_within(Duration::from_secs(5));
        fencer
    }

    /// `script` for the shell, in the work directory, by which its processes are found.
    pub fn script(&self, script: &str, bound: Bound) -> StartCommand {
        StartCommand {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: vec![("PATH".into(), "/usr/bin:/bin".into())],
            dir: self.dir.join("work").into(),
            log: self.dir.join("work/log").into(),
            bound,
            acknowledges: 0,
        }
    }

    /// Processes that work below this rig, seen by their directory; zombies have none.
    pub fn left(&self) -> Vec<i32> {
        let mut left = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            if std::fs::read_link(entry.path().join("cwd"))
                .is_ok_and(|cwd| cwd.starts_with(&self.dir))
            {
                left.push(pid);
            }
        }
        left
    }

    pub fn wait_left(&self, enough: impl Fn(usize) -> bool) -> Vec<i32> {
        let mut left = Vec::new();
        wait(|| {
            left = self.left();
            enough(left.len())
        });
        left
    }

    pub fn last_receipt(&self) -> Option<Receipt> {
        regent_fencer::last_receipt(&self.options.state_dir).unwrap()
    }

    pub fn wait_receipt(&self, sequence: u64) -> Receipt {
        wait(|| self.last_receipt().is_some_and(|receipt| receipt.sequence >= sequence));
        self.last_receipt().unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Ok(mut fencer) = Fencer::attach(&self.options.state_dir, Self::agent(9999)) {
            let _ = fencer.kill_namespace(Duration::from_secs(10));
        }
        for pid in self.left() {
            signal("KILL", pid);
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A program whose descendants ignore signals, leave its session and its parentage.
pub const RUNAWAYS: &str = r#"
    trap "" TERM INT HUP QUIT USR1
    (trap "" TERM INT HUP QUIT; sleep 1000) &
    setsid sh -c 'trap "" TERM INT HUP; sleep 1001; sleep 1002' &
    (setsid sh -c '(sleep 1003 &) ; exec setsid sleep 1004' &)
    while :; do sleep 0.05; done
"#;
/// Processes of [`RUNAWAYS`] once all are there, at the least.
pub const RUNAWAY_COUNT: usize = 6;

pub fn epoch(revision: u64) -> Epoch {
    Epoch { incarnation: 1, revision: Revision(revision) }
}

pub fn arm(e: u64, number: u64, until: Reading) -> Arm {
    Arm { epoch: epoch(e), number: RenewalNumber(number), until }
}

pub fn in_ms(ms: u64) -> Reading {
    clock::now().plus(Micros::from_ms(ms))
}

pub fn proof_of(status: &Status) -> Proof {
    match status.protection {
        Protection::Namespace => Proof::Namespace,
        Protection::Weak { .. } => Proof::Weak,
    }
}

pub fn wait(mut until: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !until() {
        assert!(Instant::now() < end, "it did not come true within {LONG:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn signal(name: &str, pid: i32) {
    let _ = Command::new("/bin/kill")
        .args(["-s", name, "--", &pid.to_string()])
        .stderr(Stdio::null())
        .status();
}

/// Milliseconds from the deadline to the proof that nobody is left.
pub fn late_ms(receipt: &Receipt, until: Reading) -> f64 {
    assert!(receipt.killed_at.boottime_us >= until.boottime_us, "fired too early");
    let late_us = receipt.ended_at.boottime_us - until.boottime_us;
    f64::from(u32::try_from(late_us).unwrap()) / 1000.0
}

pub fn exists(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}/cwd")).read_link().is_ok()
}
