//! regent-engine: what an agent can do to a database; the trait, and PostgreSQL behind it.
