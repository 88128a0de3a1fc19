//! What an election guards: a file, a queue, a device. Holders write to it under their epoch, and
//! their writes may be long on the way: a buffer, a retransmission, a frozen process. Both depths
//! use it; it needs no clock, so it holds beyond A1 as well.

use regent_core::id::Epoch;
use regent_core::lease::EpochGuard;

/// A resource with its guard, and what really had an effect on it.
#[derive(Default)]
pub struct Resource {
    guard: EpochGuard,
    effective: Epoch,
}

impl Resource {
    /// A write under `epoch` arrives when `newest` is the newest epoch that was granted. True when it
    /// had an effect. A resource that is not `guarded` takes whatever comes: for a mutant.
    ///
    /// # Errors
    /// How S4 was broken.
    pub fn write(&mut self, epoch: Epoch, newest: Epoch, guarded: bool) -> Result<bool, String> {
        let admitted = self.guard.admit(epoch).is_ok();
        if !admitted && guarded {
            // Epochs rise with grants (S3), so the newest holder is never refused.
            return if epoch < newest { Ok(false) } else { Err(format!("{epoch} is refused")) };
        }
        if epoch < self.effective {
            return Err(format!("it is written under {epoch} after {}", self.effective));
        }
        self.effective = epoch;
        Ok(true)
    }
}
