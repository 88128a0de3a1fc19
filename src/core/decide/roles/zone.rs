//! Whether a silent host is alone with that: when all of a zone or region is silent, that is said, so
//! that a hundred failovers of one night are read as the one incident that they are.
//!
//! It never decides whether to fail over; it only names.

use std::collections::BTreeMap;

use super::candidates::home;
use super::verdict::{Finding, Verdict as Named, is_fresh};
use super::{Look, View};
use crate::id::Locality;

/// Instances that were heard of since this leader began, and that were not.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    heard: usize,
    silent: usize,
}

/// What is silent, by region and zone.
#[derive(Clone, Debug, Default)]
pub struct Dark {
    zones: BTreeMap<String, BTreeMap<String, Count>>,
}

impl Dark {
    /// Counts all declared instances whose agents have ever started.
    pub fn of(view: &View<'_>) -> Self {
        let mut dark = Self::default();
        for (name, role) in view.state.roles() {
            let Some(service) = view.state.services().get(name) else { continue };
            for one in &service.spec.instances {
                if !role.instances.contains_key(&one.name) {
                    continue;
                }
                let fact = view.facts.of(name, &one.name);
                let heard = fact.is_some_and(|fact| is_fresh(fact, view.now));
                let region = dark.zones.entry(one.locality.region.clone()).or_default();
                let count = region.entry(one.locality.zone.clone()).or_default();
                *(if heard { &mut count.heard } else { &mut count.silent }) += 1;
            }
        }
        dark
    }

    /// What of the surroundings of a silent host is silent with it. One host is no zone, and one zone
    /// no region.
    fn around(&self, at: &Locality) -> Option<(Named, String)> {
        let region = self.zones.get(&at.region)?;
        if region.len() > 1 && region.values().all(|zone| zone.heard == 0) {
            let all: usize = region.values().map(|zone| zone.silent).sum();
            let (zones, name) = (region.len(), &at.region);
            let text = format!("all {all} instances in {zones} zones of {name} are silent");
            return Some((Named::RegionDown, text));
        }
        let zone = region.get(&at.zone).filter(|zone| zone.heard == 0 && zone.silent > 1)?;
        let text = format!("all {} instances in {}/{} are silent", zone.silent, at.region, at.zone);
        Some((Named::ZoneDown, text))
    }
}

impl Look<'_> {
    /// A silent host in a silent zone is called by the greater thing.
    pub(super) fn surroundings(&self, finding: Finding) -> Finding {
        let home = home(self.spec, self.role);
        let (true, Some(home)) = (finding.verdict == Named::PrimaryHostSilent, home) else {
            return finding;
        };
        let dark = self.dark.get_or_init(|| Dark::of(self.view));
        match dark.around(&home.locality) {
            Some((verdict, text)) => Finding::new(verdict, format!("{text}; {}", finding.why)),
            None => finding,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(region: &str, zone: &str) -> Locality {
        Locality { region: region.into(), zone: zone.into(), host: String::new() }
    }

    #[test]
    fn one_silent_host_is_no_zone_and_one_silent_zone_no_region() {
        let count = |heard, silent| Count { heard, silent };
        let zones = |all: [(&str, Count); 3]| {
            all.into_iter().map(|(zone, count)| (zone.to_owned(), count)).collect()
        };
        let mut dark = Dark::default();
        dark.zones.insert(
            "eu".into(),
            zones([("a", count(0, 2)), ("b", count(0, 1)), ("c", count(1, 5))]),
        );
        dark.zones.insert(
            "us".into(),
            zones([("a", count(0, 1)), ("b", count(0, 1)), ("c", count(0, 1))]),
        );
        dark.zones.insert("lone".into(), [("a".to_owned(), count(0, 1))].into());
        let found = |region, zone| dark.around(&at(region, zone)).map(|(verdict, _)| verdict);
        assert_eq!(found("eu", "a"), Some(Named::ZoneDown));
        assert_eq!(found("eu", "b"), None);
        assert_eq!(found("eu", "c"), None, "somebody is heard there");
        assert_eq!(found("us", "a"), Some(Named::RegionDown));
        assert_eq!(found("lone", "a"), None);
        assert_eq!(found("eu", "d"), None);
    }
}
