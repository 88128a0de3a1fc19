//! Flap control: how often the cluster fails over by itself before it leaves that to people.
//!
//! A service: not again within its cooldown. A zone: so many incidents that take primaries from it within
//! an hour, and no more; what begins within a minute is one incident, since a zone that dies takes many
//! primaries at once. Wall time, because it must outlive leaders: nothing of S1 to S7 rests on it.

use super::Look;
use super::candidates::home;
use crate::id::Locality;
use crate::role::FenceKind;
use crate::time::WallMs;

/// Incidents of a zone within [`WINDOW_MS`] that are answered without people.
const INCIDENTS_PER_ZONE: usize = 5;
/// How far the budget of a zone looks back.
const WINDOW_MS: u64 = 3_600_000;
/// What begins within this long of an incident's first failover is part of it.
const STORM_MS: u64 = 60_000;

impl Look<'_> {
    /// Why no failover may begin by itself now. No cooldown: no flap control, and this service's failovers
    /// count for no zone.
    pub(super) fn flaps(&self) -> Option<String> {
        if self.spec.policy.failover_cooldown_ms == 0 {
            return None;
        }
        self.cooling_down().or_else(|| self.over_budget())
    }

    fn cooling_down(&self) -> Option<String> {
        let last = self.role.failovers.last()?;
        let ready = last.0.saturating_add(self.spec.policy.failover_cooldown_ms);
        let wait = ready.checked_sub(self.view.wall.0).filter(|wait| *wait > 0)?;
        Some(format!("no failover for {wait} ms: the last is too fresh"))
    }

    fn over_budget(&self) -> Option<String> {
        let home = home(self.spec, self.role)?;
        let Locality { region, zone, .. } = &home.locality;
        let wait = until_allowed(self.failovers_from(&home.locality), self.view.wall)?;
        Some(format!(
            "no failover for {wait} ms: {INCIDENTS_PER_ZONE} incidents within an hour took primaries from \
             {region}/{zone}"
        ))
    }

    /// When failovers began that nobody had asked for, and that took the primary from this zone.
    fn failovers_from(&self, home: &Locality) -> Vec<WallMs> {
        let state = self.view.state;
        let began = state.operations().iter().filter_map(|((service, _), operation)| {
            let spec = &state.services().get(service)?.spec;
            let from =
                spec.instances.iter().find(|one| Some(&one.name) == operation.from.as_ref())?;
            let at = (&from.locality.region, &from.locality.zone);
            let counts = spec.policy.failover_cooldown_ms > 0
                && matches!(operation.kind, FenceKind::Failover { .. })
                && operation.is_automatic()
                && operation.epoch.is_some()
                && at == (&home.region, &home.zone);
            counts.then(|| operation.history.first().map(|(_, _, at)| *at))?
        });
        began.collect()
    }
}

/// How long until one more is allowed, in milliseconds, if it is not allowed now.
fn until_allowed(mut failovers: Vec<WallMs>, now: WallMs) -> Option<u64> {
    failovers.sort();
    let mut incidents: Vec<u64> = Vec::new();
    for WallMs(at) in failovers {
        if incidents.last().is_none_or(|first| at.saturating_sub(*first) >= STORM_MS) {
            incidents.push(at);
        }
    }
    let ends = |first: &u64| first.saturating_add(WINDOW_MS);
    incidents.retain(|first| ends(first) > now.0);
    let goes_on = incidents.last().is_some_and(|first| now.0.saturating_sub(*first) < STORM_MS);
    let counts = incidents.len().checked_sub(INCIDENTS_PER_ZONE).filter(|_| !goes_on)?;
    incidents.get(counts).map(|first| ends(first) - now.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000;

    fn allowed(minutes: &[u64], now: u64) -> Option<u64> {
        let at = |minute: &u64| WallMs(minute * MINUTE);
        until_allowed(minutes.iter().map(at).collect(), WallMs(now * MINUTE)).map(|ms| ms / MINUTE)
    }

    #[test]
    fn a_zone_has_five_incidents_in_an_hour_and_a_storm_is_one() {
        assert_eq!(allowed(&[], 100), None);
        assert_eq!(allowed(&[10, 20, 30, 40], 50), None);
        assert_eq!(allowed(&[10, 20, 30, 40, 50], 55), Some(15), "until the first is an hour old");
        assert_eq!(
            allowed(&[50, 10, 40, 20, 30], 55),
            Some(15),
            "in whatever order they are found"
        );
        assert_eq!(allowed(&[10, 20, 30, 40, 50], 70), None);
        assert_eq!(allowed(&[10, 20, 30, 40, 50, 60], 65), Some(15), "people began one more");
        assert_eq!(allowed(&[40; 30], 55), None, "many at once are one");
        assert_eq!(allowed(&[10, 20, 30, 40, 50, 50], 50), None, "the fifth goes on");
    }

    #[test]
    fn a_clock_that_went_back_ends_no_budget() {
        assert_eq!(allowed(&[110, 120, 130, 140, 150], 100), None, "as if the last went on");
        assert_eq!(allowed(&[10, 20, 30, 40, 150], 45), None);
    }
}
