//! What the renewals of a session say of the role it holds (C4), and which of it is known to be in the
//! log: the last word of a holder is what others go by when it falls silent.

use std::collections::VecDeque;

use crate::id::RenewalNumber;
use crate::role::{HolderInstant, HolderReport};
use crate::time::Reading;

/// Reports of renewals without an answer that are remembered; a holder clock remembers as many.
const MAX_SENT: usize = 64;

/// The reports of one session.
#[derive(Debug, Default)]
pub struct Reports {
    carries: Option<HolderReport>,
    sent: VecDeque<(RenewalNumber, HolderReport)>,
    committed: Option<HolderReport>,
}

impl Reports {
    /// Renewals say this from now on; `sent` is filled in with each.
    pub fn carry(&mut self, report: Option<HolderReport>) {
        self.carries = report;
    }

    /// Renewal `number` is about to leave: what it is to say.
    pub fn sent(&mut self, number: RenewalNumber, now: Reading) -> Option<HolderReport> {
        let report = HolderReport { sent: HolderInstant(now.boottime_us), ..self.carries? };
        if self.sent.len() == MAX_SENT {
            self.sent.pop_front();
        }
        self.sent.push_back((number, report));
        Some(report)
    }

    /// Renewal `number` is in the log, and so none before it can come there any more.
    pub fn committed(&mut self, number: RenewalNumber) {
        let known = self.sent.partition_point(|(of, _)| *of <= number);
        for (of, report) in self.sent.drain(..known) {
            if of == number {
                self.committed = Some(report);
            }
        }
    }

    /// What the newest renewal said that is known to be in the log.
    pub fn last_committed(&self) -> Option<HolderReport> {
        self.committed
    }
}

#[cfg(test)]
mod tests {
    use crate::id::Revision;
    use crate::role::{Armed, MachineBoot};

    use super::*;

    fn report(pause: Option<u64>) -> HolderReport {
        HolderReport {
            armed: Armed::Armed,
            boot: MachineBoot(1),
            sent: HolderInstant(0),
            watermark: None,
            pause: pause.map(Revision),
            policy: Revision(1),
            set: None,
        }
    }

    #[test]
    fn what_is_committed_is_what_exactly_the_answered_renewal_said() {
        let mut reports = Reports::default();
        let at = |us| Reading { boottime_us: us, raw_us: 0 };
        assert_eq!(reports.sent(RenewalNumber(1), at(5)), None);
        reports.carry(Some(report(None)));
        assert_eq!(reports.sent(RenewalNumber(2), at(7)).map(|it| it.sent), Some(HolderInstant(7)));
        reports.carry(Some(report(Some(9))));
        reports.sent(RenewalNumber(3), at(8));
        reports.committed(RenewalNumber(1));
        assert_eq!(reports.last_committed(), None);
        reports.committed(RenewalNumber(2));
        assert_eq!(reports.last_committed().and_then(|it| it.pause), None);
        reports.committed(RenewalNumber(3));
        assert_eq!(reports.last_committed().and_then(|it| it.pause), Some(Revision(9)));
        // An answer that was delayed on its way changes nothing.
        reports.committed(RenewalNumber(2));
        assert_eq!(reports.last_committed().and_then(|it| it.pause), Some(Revision(9)));
    }
}
