//! C6: the shortest ttl that a lease survives a change of leader with, given the Raft profile.
//!
//! `2·renew_interval + commit_tick + T_elect + T_reconnect + fence_budget + rho·ttl <= ttl`
//! (PROTOCOL.md C6). All nodes judge by the same replicated [`Timing`], so a node with other flags
//! cannot let a shorter one in; and a node whose own profile is slower than the replicated one does
//! not run ([`Timing::slower_than`]), since what was let in would not survive it.

use serde::{Deserialize, Serialize};

use crate::limits::{MAX_PROFILE_MS, MAX_TTL_MS, RHO_PPM};

/// What the cluster promises about its own speed; part of the replicated state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Heartbeat of the Raft leader.
    pub heartbeat_ms: u64,
    /// Shortest random election timeout.
    pub election_min_ms: u64,
    /// Longest random election timeout; also how long followers wait for a silent leader.
    pub election_max_ms: u64,
    /// Renewals are committed together once per tick.
    pub commit_tick_ms: u64,
    /// One round trip and flush among a majority.
    pub round_ms: u64,
    /// Dialing another node and its TLS handshake.
    pub dial_ms: u64,
}

impl Timing {
    /// Zones of one region (the default): round trips up to 2 ms.
    pub const LAN: Self = Self {
        heartbeat_ms: 50,
        election_min_ms: 150,
        election_max_ms: 300,
        commit_tick_ms: 20,
        round_ms: 20,
        dial_ms: 50,
    };
    /// One building, no stalls: fastest failover of the coordinators themselves.
    pub const FAST: Self = Self {
        heartbeat_ms: 20,
        election_min_ms: 60,
        election_max_ms: 120,
        commit_tick_ms: 10,
        round_ms: 10,
        dial_ms: 30,
    };
    /// Regions: round trips up to 80 ms on the majority path.
    pub const WAN: Self = Self {
        heartbeat_ms: 150,
        election_min_ms: 500,
        election_max_ms: 1_000,
        commit_tick_ms: 50,
        round_ms: 160,
        dial_ms: 300,
    };

    /// Checks the profile in itself.
    ///
    /// # Errors
    /// Names the field, what is wrong with it and what would be right.
    pub fn check(&self) -> Result<(), TimingError> {
        let err = |field, problem: String, fix| Err(TimingError { field, problem, fix });
        for (field, ms) in [
            ("heartbeat_ms", self.heartbeat_ms),
            ("election_min_ms", self.election_min_ms),
            ("election_max_ms", self.election_max_ms),
            ("commit_tick_ms", self.commit_tick_ms),
            ("round_ms", self.round_ms),
            ("dial_ms", self.dial_ms),
        ] {
            if ms > MAX_PROFILE_MS {
                let problem = format!("{ms} is above {MAX_PROFILE_MS}");
                return err(field, problem, "ten minutes are the most");
            }
        }
        if self.heartbeat_ms == 0 {
            return err("heartbeat_ms", "it is 0".into(), "use at least 1");
        }
        if self.election_min_ms < 3 * self.heartbeat_ms {
            return err(
                "election_min_ms",
                format!(
                    "{} is below three heartbeats of {} ms",
                    self.election_min_ms, self.heartbeat_ms
                ),
                "raise it or send heartbeats more often",
            );
        }
        if self.election_max_ms <= self.election_min_ms {
            return err(
                "election_max_ms",
                format!(
                    "{} is not above election_min_ms {}",
                    self.election_max_ms, self.election_min_ms
                ),
                "twice election_min_ms is usual",
            );
        }
        if self.election_min_ms < 3 * self.round_ms {
            return err(
                "election_min_ms",
                format!("{} is below three rounds of {} ms", self.election_min_ms, self.round_ms),
                "use the wan profile, or lower round_ms if the network really is faster",
            );
        }
        if self.commit_tick_ms == 0 || self.commit_tick_ms > self.election_max_ms {
            return err(
                "commit_tick_ms",
                format!("{} is not between 1 and election_max_ms", self.commit_tick_ms),
                "10 to 50 is usual",
            );
        }
        Ok(())
    }

    /// C6 holds in a cluster that promised `promised` only if no node is slower than that. `None`:
    /// a node with this profile is not; else the first figure that is too slow. Each term of the
    /// sum by itself, because the slow terms of several nodes add up.
    pub fn slower_than(&self, promised: &Self) -> Option<TooSlow> {
        let elect = match self.elect_ms() > promised.elect_ms() {
            false => ("election_max_ms", 0, 0),
            true if self.election_max_ms > promised.election_max_ms => {
                ("election_max_ms", self.election_max_ms, promised.election_max_ms)
            }
            true => ("round_ms", self.round_ms, promised.round_ms),
        };
        [
            elect,
            ("commit_tick_ms", self.commit_tick_ms, promised.commit_tick_ms),
            ("dial_ms", self.dial_ms, promised.dial_ms),
        ]
        .into_iter()
        .find(|(_, own_ms, promised_ms)| own_ms > promised_ms)
        .map(|(field, own_ms, promised_ms)| TooSlow { field, own_ms, promised_ms })
    }

    /// Longest time without a leader after one was lost: followers wait out its vote lease
    /// (`election_max_ms`) plus a random draw (up to the same), then a round, then at worst one
    /// split vote (RELIABILITY 3.3).
    pub fn elect_ms(&self) -> u64 {
        self.election_max_ms.saturating_mul(3).saturating_add(self.round_ms)
    }

    /// The left side of C6 and what it is made of.
    pub fn need(&self, ask: &TtlAsk) -> Need {
        let silent_ms = (ask.ttl_ms / 8).min(300);
        let reconnect_ms = silent_ms.saturating_add(self.dial_ms);
        let rho_ms = (ask.ttl_ms.saturating_mul(RHO_PPM)).div_ceil(1_000_000);
        // Saturating: an ask comes from outside, and a sum that wraps in one build and panics in
        // another would make replicas differ.
        let total_ms =
            [self.commit_tick_ms, self.elect_ms(), reconnect_ms, ask.fence_budget_ms, rho_ms]
                .into_iter()
                .fold(ask.renew_interval_ms.saturating_mul(2), u64::saturating_add);
        Need { total_ms, reconnect_ms, rho_ms }
    }

    /// Whether C6 allows this ttl.
    pub fn allows(&self, ask: &TtlAsk) -> bool {
        ask.ttl_ms <= MAX_TTL_MS
            && ask.renew_interval_ms > 0
            && self.need(ask).total_ms <= ask.ttl_ms
    }

    /// The smallest ttl that C6 allows with the default renew interval, `min(500 ms, ttl/10)`;
    /// [`MAX_TTL_MS`] if there is none.
    pub fn least_ttl_ms(&self, fence_budget_ms: u64) -> u64 {
        Self::least(|ttl_ms| self.allows(&TtlAsk::with_default_interval(ttl_ms, fence_budget_ms)))
    }

    /// The smallest ttl that C6 allows with the interval and the budget of `ask`;
    /// [`MAX_TTL_MS`] if there is none.
    pub fn least_ttl_like(&self, ask: &TtlAsk) -> u64 {
        Self::least(|ttl_ms| self.allows(&TtlAsk { ttl_ms, ..*ask }))
    }

    /// The terms of C6 for people, in milliseconds: what a ttl must cover.
    pub fn terms(&self, ask: &TtlAsk) -> String {
        let need = self.need(ask);
        format!(
            "2x{} renewal + {} commit tick + {} election + {} reconnect + {} fence + {} clock drift \
             = {} ms",
            ask.renew_interval_ms,
            self.commit_tick_ms,
            self.elect_ms(),
            need.reconnect_ms,
            ask.fence_budget_ms,
            need.rho_ms,
            need.total_ms
        )
    }

    /// `ok` is monotone in ttl: its right side grows by 1, its left side by at most 0.34.
    fn least(ok: impl Fn(u64) -> bool) -> u64 {
        let (mut low, mut high) = (1, MAX_TTL_MS);
        while low < high {
            let mid = low + (high - low) / 2;
            if ok(mid) { high = mid } else { low = mid + 1 }
        }
        low
    }
}

/// What a session asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TtlAsk {
    /// How long a lease may go without a renewal.
    pub ttl_ms: u64,
    /// How often the client renews.
    pub renew_interval_ms: u64,
    /// How long the client needs to stop acting once its time is up.
    pub fence_budget_ms: u64,
}

impl TtlAsk {
    /// The default renew interval for a ttl: `min(500 ms, ttl/10)`, at least 1 ms.
    pub fn default_interval_ms(ttl_ms: u64) -> u64 {
        (ttl_ms / 10).clamp(1, 500)
    }

    /// An ask with that interval.
    pub fn with_default_interval(ttl_ms: u64, fence_budget_ms: u64) -> Self {
        Self { ttl_ms, renew_interval_ms: Self::default_interval_ms(ttl_ms), fence_budget_ms }
    }
}

/// What C6 adds up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// The sum; must not be above the ttl.
    pub total_ms: u64,
    /// T_reconnect.
    pub reconnect_ms: u64,
    /// rho·ttl.
    pub rho_ms: u64,
}

/// A node's profile is slower than the cluster promised its leases (C6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {own_ms} ms here, but the cluster promised its leases {promised_ms} ms")]
pub struct TooSlow {
    /// Which figure.
    pub field: &'static str,
    /// The node's.
    pub own_ms: u64,
    /// The cluster's.
    pub promised_ms: u64,
}

/// A profile that contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}; {fix}")]
pub struct TimingError {
    /// Which field.
    pub field: &'static str,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub fix: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_profiles_are_consistent() {
        for profile in [Timing::LAN, Timing::FAST, Timing::WAN] {
            profile.check().expect("a shipped profile");
        }
    }

    #[test]
    fn the_least_ttl_is_allowed_and_one_below_is_not() {
        for profile in [Timing::LAN, Timing::FAST, Timing::WAN] {
            let least = profile.least_ttl_ms(250);
            assert!(profile.allows(&TtlAsk::with_default_interval(least, 250)));
            assert!(!profile.allows(&TtlAsk::with_default_interval(least - 1, 250)));
        }
    }

    #[test]
    fn a_profile_is_too_slow_for_a_promise_exactly_if_one_of_its_terms_is() {
        for (own, promised, field) in [
            (Timing::WAN, Timing::LAN, Some("election_max_ms")),
            (Timing::LAN, Timing::FAST, Some("election_max_ms")),
            (Timing::LAN, Timing::LAN, None),
            (Timing::FAST, Timing::WAN, None),
            (Timing { heartbeat_ms: 10, ..Timing::LAN }, Timing::LAN, None),
            (Timing { round_ms: 21, ..Timing::LAN }, Timing::LAN, Some("round_ms")),
            (Timing { commit_tick_ms: 21, ..Timing::LAN }, Timing::LAN, Some("commit_tick_ms")),
            // A fast election does not pay for a slow dial: another node may be the slow candidate.
            (Timing { dial_ms: 51, ..Timing::FAST }, Timing::LAN, Some("dial_ms")),
            // Both are parts of one term.
            (Timing { round_ms: 25, election_max_ms: 298, ..Timing::LAN }, Timing::LAN, None),
        ] {
            let found = own.slower_than(&promised).map(|slow| slow.field);
            assert_eq!(found, field, "{own:?} under {promised:?}");
        }
    }

    #[test]
    fn an_ask_of_enormous_numbers_is_refused_and_nothing_overflows() {
        let ask =
            TtlAsk { ttl_ms: u64::MAX, renew_interval_ms: u64::MAX, fence_budget_ms: u64::MAX };
        for profile in [Timing::LAN, Timing::FAST, Timing::WAN] {
            assert!(!profile.allows(&ask));
            assert_eq!(profile.least_ttl_like(&ask), MAX_TTL_MS);
            assert!(!profile.terms(&ask).is_empty());
        }
        let huge = Timing { election_min_ms: u64::MAX, ..Timing::LAN };
        assert_eq!(huge.check().expect_err("too long").field, "election_min_ms");
    }

    #[test]
    fn a_profile_that_contradicts_itself_names_the_field() {
        let bad = Timing { election_min_ms: 100, ..Timing::LAN };
        assert_eq!(bad.check().expect_err("too short").field, "election_min_ms");
    }
}
