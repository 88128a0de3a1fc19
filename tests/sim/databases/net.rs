//! Who reaches whom. Coordinators and instances are ends; a cut has a direction.

use std::collections::BTreeSet;

/// An end of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Node(usize),
    Instance(usize),
}

/// The network.
#[derive(Debug, Default)]
pub struct Net {
    cut: BTreeSet<(End, End)>,
}

impl Net {
    /// Whether packets go from `from` to `to`.
    pub fn passes(&self, from: End, to: End) -> bool {
        from == to || !self.cut.contains(&(from, to))
    }

    /// Whether a connection between the two works.
    pub fn joins(&self, one: End, other: End) -> bool {
        self.passes(one, other) && self.passes(other, one)
    }

    /// No packet goes from `from` to `to` any more.
    pub fn cut(&mut self, from: End, to: End) {
        self.cut.insert((from, to));
    }

    /// All of these go again.
    pub fn heal(&mut self, cuts: &[(End, End)]) {
        for cut in cuts {
            self.cut.remove(cut);
        }
    }
}
