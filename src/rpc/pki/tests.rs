//! The authority: round trips, no key overwritten, the steps of a rotation.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::testing::{Pki, TRUST};
use crate::tls::Tls;

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn what_is_issued_can_be_loaded_and_says_who_it_is() {
    let pki = Pki::new();
    let mut request = Request::new(Role::Agent, "orders/pg1");
    request.names = vec!["pg1.example".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let issued = issue(pki.dir(), &request).unwrap();
    assert_eq!(issued.spiffe, format!("spiffe://{TRUST}/agent/orders/pg1"));
    assert_eq!(mode(&issued.key), 0o600);
    assert_eq!(mode(&pki.dir().join("ca.key")), 0o600);
    assert_eq!(mode(pki.dir()), 0o700);
    let mut files = pki.files(Role::Agent, "orders/pg1");
    files.trust = None;
    let tls = Tls::load(files).unwrap();
    assert_eq!(tls.trust(), TRUST);
    assert_eq!(tls.principal(), Principal::new(Role::Agent, "orders/pg1"));
    let left = tls.expires_in();
    assert!(left.leaf > days_long(LEAF_DAYS - 1) && left.leaf <= days_long(LEAF_DAYS));
    assert!(left.ca > days_long(CA_DAYS - 1));
}

#[test]
fn a_leaf_never_outlives_its_ca() {
    let pki = Pki::empty();
    init(pki.dir(), TRUST, 10, false).unwrap();
    let issued = issue(pki.dir(), &Request::new(Role::Node, "1")).unwrap();
    assert!(issued.valid_for <= days_long(10));
}

#[test]
fn no_key_is_replaced_unless_asked_to() {
    let pki = Pki::new();
    let ca_key = std::fs::read(pki.dir().join("ca.key")).unwrap();
    let again = init(pki.dir(), TRUST, CA_DAYS, false);
    assert!(matches!(again, Err(PkiError::Exists { .. })), "{again:?}");
    assert_eq!(std::fs::read(pki.dir().join("ca.key")).unwrap(), ca_key);

    let mut request = Request::new(Role::Node, "1");
    let first = issue(pki.dir(), &request).unwrap();
    let key = std::fs::read(&first.key).unwrap();
    assert!(matches!(issue(pki.dir(), &request), Err(PkiError::Exists { .. })));
    assert_eq!(std::fs::read(&first.key).unwrap(), key);
    request.force = true;
    issue(pki.dir(), &request).unwrap();
    assert_ne!(std::fs::read(&first.key).unwrap(), key);
    // Nothing half-written is left behind.
    let left: Vec<_> = std::fs::read_dir(pki.dir())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".tmp"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_name_that_would_leave_the_directory_or_the_uri_is_refused() {
    let pki = Pki::new();
    for name in ["", "../x", "a b", "a?b", "a\nb", "-x"] {
        let got = issue(pki.dir(), &Request::new(Role::Client, name));
        assert!(matches!(got, Err(PkiError::Request(_))), "{name:?}: {got:?}");
    }
    let got = init(pki.dir(), "Bad Domain", 1, true);
    assert!(matches!(got, Err(PkiError::Request(_))), "{got:?}");
}

#[test]
fn names_that_differ_have_files_that_differ() {
    let pki = Pki::new();
    let a = issue(pki.dir(), &Request::new(Role::Agent, "a/b")).unwrap();
    let b = issue(pki.dir(), &Request::new(Role::Agent, "a_b")).unwrap();
    assert_ne!(a.key, b.key);
}

#[test]
fn a_rotation_goes_step_by_step_and_no_step_runs_out_of_order() {
    let pki = Pki::new();
    let files = pki.files(Role::Node, "1");
    let order = |step| matches!(rotate(pki.dir(), step), Err(PkiError::Order(_)));
    assert!(order(Step::Switch));
    let old = std::fs::read(pki.dir().join("ca.crt")).unwrap();

    rotate(pki.dir(), Step::Begin).unwrap();
    rotate(pki.dir(), Step::Begin).unwrap();
    let tls = Tls::load(files.clone()).unwrap();
    assert!(order(Step::Finish));

    let leaf = std::fs::read(&files.cert).unwrap();
    rotate(pki.dir(), Step::Switch).unwrap();
    assert_ne!(std::fs::read(&files.cert).unwrap(), leaf);
    assert_ne!(std::fs::read(pki.dir().join("ca.crt")).unwrap(), old);
    assert!(tls.reload().unwrap());
    assert_eq!(tls.principal(), Principal::new(Role::Node, "1"));
    assert!(order(Step::Begin));

    rotate(pki.dir(), Step::Finish).unwrap();
    let bundle = std::fs::read(pki.dir().join("bundle.crt")).unwrap();
    assert_eq!(bundle, std::fs::read(pki.dir().join("ca.crt")).unwrap());
    assert!(tls.reload().unwrap());
    // The next rotation can begin.
    rotate(pki.dir(), Step::Begin).unwrap();
}

#[test]
fn a_switch_that_was_interrupted_between_its_renames_goes_on() {
    let pki = Pki::new();
    pki.files(Role::Node, "1");
    rotate(pki.dir(), Step::Begin).unwrap();
    std::fs::rename(pki.dir().join("next.key"), pki.dir().join("ca.key")).unwrap();
    let problem = issue(pki.dir(), &Request::new(Role::Node, "2")).unwrap_err();
    assert!(problem.to_string().contains("interrupted"), "{problem}");
    assert!(matches!(rotate(pki.dir(), Step::Begin), Err(PkiError::Order(_))));
    rotate(pki.dir(), Step::Switch).unwrap();
    issue(pki.dir(), &Request::new(Role::Node, "2")).unwrap();
}
