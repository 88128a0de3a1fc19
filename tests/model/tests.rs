//! The models on trial: with all rules nothing breaks and everything happens; without any one of
//! them, something does.

use std::fmt::Debug;
use std::hash::Hash;

use stateright::{Checker, HasDiscoveries, Model};

use crate::certificate::{self, Certificate};
use crate::lease::{self, Lease};
use crate::role_change::{self, Bounds, RoleChange, S1, S2};

/// Checks every reachable state: no invariant breaks, and whatever must be possible is. Returns how
/// many states there are, so that a model that lost most of its behaviour does not pass.
fn holds<M>(model: M, bounds: &dyn Debug) -> usize
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + Debug + PartialEq,
{
    let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).spawn_dfs().join();
    checker.assert_properties();
    let states = checker.unique_state_count();
    println!("{states} states: {bounds:?}");
    states
}

/// Looks for a way to break an invariant; the path is shown by `--nocapture`.
fn breaks<M>(model: M, without: &dyn Debug, property: &'static str)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + Debug + PartialEq,
{
    let wanted = HasDiscoveries::AnyOf([property].into());
    let checker = model.checker().finish_when(wanted).spawn_dfs().join();
    let states = checker.unique_state_count();
    let Some(path) = checker.discovery(property) else {
        panic!("without {without:?} nothing breaks in {states} states: {property}");
    };
    println!("without {without:?}, in {states} states, broken: {property}");
    for action in path.into_actions() {
        println!("  {action:?}");
    }
}

#[test]
fn leases_do_not_overlap_and_nobody_names_a_holder_too_long() {
    let rules = lease::Rules::default();
    let states = lease::LAW.iter().map(|bounds| holds(Lease { rules, bounds: *bounds }, bounds));
    assert!(states.sum::<usize>() > 1_400_000);
}

#[test]
fn each_rule_of_leases_is_needed() {
    for switch in &lease::Rule::ALL {
        let rules = lease::Rules { off: Some(switch.rule) };
        breaks(Lease { rules, bounds: switch.bounds }, &switch.rule, switch.breaks);
    }
}

#[test]
fn what_a_certificate_holds_open_closes_in_time() {
    let model = Certificate::default();
    assert!(holds(model, &model) > 10_000);
}

#[test]
fn each_rule_of_certificates_is_needed() {
    for (rule, property) in certificate::Rule::ALL {
        breaks(Certificate { off: Some(rule) }, &rule, property);
    }
}

fn role_changes_hold(bounds: &[Bounds]) -> usize {
    let rules = role_change::Rules::default();
    bounds.iter().map(|bounds| holds(RoleChange { rules, bounds: *bounds }, bounds)).sum()
}

#[test]
fn one_role_change_keeps_what_was_acknowledged_through_crashes_and_old_disks() {
    assert!(role_changes_hold(&role_change::ONCE) > 1_200_000);
}

#[test]
fn two_role_changes_in_a_row_keep_what_was_acknowledged() {
    assert!(role_changes_hold(&role_change::TWICE) > 3_500_000);
}

#[test]
fn each_rule_of_role_changes_is_needed() {
    for switch in &role_change::Rule::ALL {
        let rules = role_change::Rules { off: Some(switch.rule) };
        let model = RoleChange { rules, bounds: switch.bounds };
        breaks(model, &switch.rule, switch.breaks);
    }
}

/// What the boot counter cannot see: writes that only this instance had are lost (A2). Even so
/// there are never two primaries.
#[test]
fn a_disk_that_goes_back_within_one_boot_may_lose_writes_but_makes_no_second_primary() {
    let rules = role_change::Rules::default();
    let model = RoleChange { rules, bounds: Bounds::SAME_BOOT };
    breaks(model, &"an image of an earlier boot", S2);
    let wanted = HasDiscoveries::AnyOf([S1].into());
    let checker = model.checker().finish_when(wanted).spawn_dfs().join();
    checker.assert_no_discovery(S1);
    assert!(checker.unique_state_count() > 50_000);
}
