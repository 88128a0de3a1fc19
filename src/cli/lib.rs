//! regent-cli
