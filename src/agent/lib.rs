//! regent-agent: the sidecar of one instance. Its decisions are `regent_core::agent`.
