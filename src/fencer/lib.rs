//! regent-fencer: the small process that PostgreSQL cannot outlive (PROTOCOL.md E1, E2).
