//! A disk in memory with seeded faults and enumerable crash states.
