//! The clocks of leases: what a holder may believe (C1), what a node may take away (C2) or name
//! (C3), which renewals count (C5), and when a clock is not to be trusted (C9). And what needs no
//! clock at all: the guard that refuses what comes late (S4).
//!
//! Nothing here reads a clock: shells hand in [`Reading`]s. Nothing here
//! is replicated: these are the local halves of PROTOCOL.md C, and `apply` never sees them.
//!
//! ```text
//! holder   first transmission of n ──ttl·(1−rho)──┬─fence budget─┤       stops acting before here
//! node            applied n ───────────────ttl·(1+rho)──────────────┬─pause margin─┤ may expire
//! ```
//! The holder starts its count earlier and ends it sooner; the node starts later and ends later.
//! For clock rates within rho that leaves no instant at which both think the lease is theirs.

pub mod gate;
pub mod guard;
pub mod holder;
pub mod node_clock;
pub mod skew;

pub use gate::Gate;
pub use guard::EpochGuard;
pub use holder::HolderClock;
pub use node_clock::NodeClock;
pub use skew::Skew;

use crate::limits::{PAUSE_MARGIN_MS, RHO_PPM};
use crate::time::{Micros, Reading};

const MILLION: u64 = 1_000_000;

/// The margins of C1 to C3. The product uses [`Rules::LAW`] and nothing else; tests weaken it to
/// show that they would notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Highest difference of clock rates to reckon with, in parts per million (rho).
    pub rho_ppm: u64,
    /// How long a clock may stand still while others run, in milliseconds.
    pub pause_margin_ms: u64,
}

impl Rules {
    /// PROTOCOL.md A1 as it stands.
    pub const LAW: Self = Self { rho_ppm: RHO_PPM, pause_margin_ms: PAUSE_MARGIN_MS };

    /// `ttl·(1−rho)`, rounded down: how long the promise of a renewal may be believed (C1, C3).
    pub fn short(&self, ttl_ms: u64) -> Micros {
        let ttl = Micros::from_ms(ttl_ms);
        ttl.saturating_sub(Micros(part(ttl.0, self.rho_ppm)))
    }

    /// `(ttl + pause_margin)·(1+rho)`, rounded up: how long after a renewal nobody may take the
    /// right (C2).
    ///
    /// C2 says `ttl·(1+rho) + pause_margin`; the margin is stretched too, because a node whose
    /// clock runs fast by rho waits it out in less than `pause_margin` of real time [holder slow by
    /// rho and paused for 249 ms, node fast by rho: they overlapped by 1.5 ms].
    pub fn long(&self, ttl_ms: u64) -> Micros {
        let time = Micros::from_ms(ttl_ms.saturating_add(self.pause_margin_ms));
        time.saturating_add(Micros(part(time.0, self.rho_ppm)))
    }
}

/// `us · ppm / 1e6`, rounded up, so that both margins err on the careful side.
fn part(us: u64, ppm: u64) -> u64 {
    let exact = (u128::from(us) * u128::from(ppm)).div_ceil(u128::from(MILLION));
    u64::try_from(exact).unwrap_or(u64::MAX)
}

/// Time from `earlier` to `now` as the *shorter* of the two clocks saw it.
///
/// Whoever believes a lease takes the longer ([`Reading::since`]); whoever takes one away must take
/// the shorter: if one of its clocks runs away, it only waits longer.
fn since_shorter(now: Reading, earlier: Reading) -> Micros {
    let boot = now.boottime_us.saturating_sub(earlier.boottime_us);
    let raw = now.raw_us.saturating_sub(earlier.raw_us);
    Micros(boot.min(raw))
}

#[cfg(test)]
mod tests;
