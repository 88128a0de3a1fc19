//! The nodes a client knows, and which one to ask next.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tonic::transport::Channel;

use super::OpenError;
use crate::calls::Calls;
use crate::channel::{ChannelOptions, connect_lazy};
use crate::tls::{ExpectPeer, Tls};

/// Nodes remembered at most: hints of a cluster that replaces its members again and again must not
/// grow a client for ever.
const MAX_NODES: usize = 64;

/// No place in the list.
const NOBODY: usize = usize::MAX;

#[derive(Debug)]
pub(super) struct Node {
    pub address: String,
    pub calls: Calls,
}

#[derive(Debug)]
pub(super) struct Nodes {
    list: RwLock<Vec<Arc<Node>>>,
    /// The node that answered last.
    current: AtomicUsize,
    /// The node through which a renewal was committed last; [`NOBODY`] before the first.
    renewing: AtomicUsize,
    tls: Arc<Tls>,
    options: ChannelOptions,
}

impl Nodes {
    pub fn new(
        endpoints: &[String],
        tls: Arc<Tls>,
        options: ChannelOptions,
    ) -> Result<Self, OpenError> {
        let make = |address: &String| -> Result<_, OpenError> {
            let channel = connect_lazy(address, Arc::clone(&tls), ExpectPeer::AnyNode, options)?;
            Ok(Arc::new(Node { address: address.clone(), calls: Calls::new(channel) }))
        };
        let list = endpoints.iter().map(make).collect::<Result<Vec<_>, _>>()?;
        if list.is_empty() {
            return Err(OpenError::NoEndpoint);
        }
        // Clients begin at different nodes, so that not all of them hang on the first one.
        let current = AtomicUsize::new(rand::random_range(0..list.len()));
        let renewing = AtomicUsize::new(NOBODY);
        Ok(Self { list: RwLock::new(list), current, renewing, tls, options })
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Vec<Arc<Node>>> {
        self.list.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn all(&self) -> Vec<Arc<Node>> {
        self.read().clone()
    }

    pub fn addresses(&self) -> Vec<String> {
        self.read().iter().map(|node| node.address.clone()).collect()
    }

    pub fn channels(&self) -> Vec<(String, Channel)> {
        self.read().iter().map(|node| (node.address.clone(), node.calls.channel())).collect()
    }

    /// The node to ask now, and its place for [`Nodes::leave`].
    pub fn current(&self) -> (usize, Arc<Node>) {
        let list = self.read();
        let at = self.current.load(Ordering::Relaxed) % list.len();
        (at, Arc::clone(&list[at]))
    }

    /// The node at `at` gave no answer: the next call goes to the next one. Many calls may say so
    /// at once and must move on by one node, not by many.
    pub fn leave(&self, at: usize) {
        let next = (at + 1) % self.read().len();
        let _ = self.current.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// A renewal was committed through the node at `address`: it reaches a majority.
    pub fn renewed(&self, address: &str) {
        if let Some(at) = self.read().iter().position(|node| node.address == address) {
            self.renewing.store(at, Ordering::Relaxed);
        }
    }

    /// Whether renewals are committed through another node than the one at `at`.
    pub fn renews_elsewhere(&self, at: usize) -> bool {
        ![at, NOBODY].contains(&self.renewing.load(Ordering::Relaxed))
    }

    /// Asks the node through which renewals are committed from now on.
    pub fn go_where_renewed(&self) {
        let at = self.renewing.load(Ordering::Relaxed);
        if at != NOBODY {
            self.current.store(at, Ordering::Relaxed);
        }
    }

    /// Asks the node at `address` from now on. Only a node whose certificate was verified names
    /// another, and whoever answers there must show a node's certificate itself.
    pub fn follow(&self, address: &str) {
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        let at = match list.iter().position(|node| node.address == address) {
            Some(at) => at,
            None if list.len() < MAX_NODES => {
                let tls = Arc::clone(&self.tls);
                match connect_lazy(address, tls, ExpectPeer::AnyNode, self.options) {
                    Ok(channel) => {
                        let calls = Calls::new(channel);
                        list.push(Arc::new(Node { address: address.to_owned(), calls }));
                        list.len() - 1
                    }
                    Err(_) => return,
                }
            }
            None => return,
        };
        self.current.store(at, Ordering::Relaxed);
    }
}
