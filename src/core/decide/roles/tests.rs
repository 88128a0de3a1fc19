//! The verdicts, and what the leader proposes in each case, against a real state.
#![allow(clippy::unwrap_used)]

mod bench;
mod fences;
mod lives;
mod plans;
mod routers;
mod verdicts;
mod watching;

use super::*;

#[test]
fn a_line_that_differs_in_numbers_alone_has_the_same_shape() {
    let same = [
        ("the loss could be 6198 ms", "the loss could be 6398 ms"),
        ("silent for 12 ms (x)", "silent for 1 ms (x)"),
        ("at 0/3000148, ask", "at 1/A0, ask"),
    ];
    for (one, two) in same {
        assert_eq!(shape(one), shape(two));
    }
    let other = [
        ("seen by [db1]", "seen by [db2]"),
        ("seen by [pg-1], not by []", "seen by [], not by [pg-1]"),
        ("the loss could be unknown ms", "the loss could be 6398 ms"),
    ];
    for (one, two) in other {
        assert_ne!(shape(one), shape(two));
    }
}
