//! regent-node
