//! The receipt: what the fencer leaves on disk about an end, so that a later agent can read it
//! though the fencer is gone (PROTOCOL.md E2). Written whole and fsynced before anybody is told.

use std::path::Path;

use regent_core::id::{Epoch, Nonce, RenewalNumber};
use regent_core::mutant::{Mutant, leaves_out};
use regent_core::time::Reading;
use serde::{Deserialize, Serialize};

use crate::twofold;
use crate::wire::{Protection, StopMode};

/// Name of the file in the state directory.
pub const RECEIPT_FILE: &str = "receipt";

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It ended by itself, with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// Why everything was ended. When several apply, the deadline wins, since it latches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// The deadline was reached.
    Deadline,
    /// The agent asked.
    Stop(StopMode),
    /// The program ended by itself.
    PostmasterExit,
    /// The agent ended the namespace through the init's pidfd, and wrote this itself.
    NamespaceKilled,
}

/// What "nothing runs" rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proof {
    /// Seen by pid 1: nobody is left in its PID namespace; or the end of that pid 1 was seen.
    Namespace,
    /// No child and no descendant was found, but a namespace would have been sure.
    Weak,
    /// Somebody could not be killed in time, so the init ended itself: it is true once the end of
    /// that init has been seen ([`crate::client::await_end`]).
    EndOfInit,
}

/// One end of everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Rises by one with each receipt of this state directory; starts at one.
    pub sequence: u64,
    /// Boot of the machine the instants belong to.
    pub boot_id: String,
    /// The run of the fencer.
    pub fencer: Nonce,
    /// Highest epoch it was armed with.
    pub epoch: Epoch,
    /// Highest number in it.
    pub number: RenewalNumber,
    /// Why.
    pub reason: Reason,
    /// How the program ended; `None` if none ran, or nobody could see it.
    pub exit: Option<ExitStatus>,
    /// What the fencer's own end was worth.
    pub protection: Protection,
    /// What this receipt rests on.
    pub proof: Proof,
    /// When the program was started; `None` if none ran.
    pub started_at: Option<Reading>,
    /// When the killing began.
    pub killed_at: Reading,
    /// When nothing was left.
    pub ended_at: Reading,
}

impl Receipt {
    /// Whether it proves that nothing is left, to an agent on the machine whose boot this is. What was
    /// seen in another boot is of another run than the last, or of another machine whose disk this is an
    /// image of, and that one may run on.
    pub fn proves_end(&self, boot_id: &str) -> bool {
        let here = self.boot_id == boot_id || leaves_out(Mutant::ProofOfThisBoot);
        self.proof == Proof::Namespace && here
    }
}

/// Why a receipt could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReceiptError {
    /// The file is there but cannot be read.
    #[error("the receipt cannot be read")]
    Read(#[source] std::io::Error),
    /// It is not a receipt.
    #[error("the receipt is damaged")]
    Damaged(#[source] serde_json::Error),
}

/// The last receipt below `state_dir`; `None` if there never was one.
///
/// # Errors
/// [`ReceiptError`]: a receipt is there and says nothing, so nothing is known.
pub fn last_receipt(state_dir: &Path) -> Result<Option<Receipt>, ReceiptError> {
    let found = twofold::read(state_dir, RECEIPT_FILE).map_err(ReceiptError::Read)?;
    found.map(|bytes| serde_json::from_slice(&bytes).map_err(ReceiptError::Damaged)).transpose()
}

/// Puts `receipt` on disk.
pub(crate) fn write(state_dir: &Path, receipt: &Receipt) -> std::io::Result<()> {
    twofold::write(state_dir, RECEIPT_FILE, &crate::wire::line(receipt))
}
