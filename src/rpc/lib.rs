//! regent-rpc
