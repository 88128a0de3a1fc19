//! The sessions table. A session is what renews; the leases it holds live and end with it.

use serde::{Deserialize, Serialize};

use crate::authz::Principal;
use crate::id::{Nonce, RenewalNumber, Revision};

/// One open session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Who opened it; only the same principal may use it.
    pub owner: Principal,
    /// Which start of the client.
    pub nonce: Nonce,
    /// Free text for people (host, program).
    pub label: String,
    /// How long it may go without a renewal, in milliseconds.
    pub ttl_ms: u64,
    /// How often it means to renew, in milliseconds.
    pub renew_interval_ms: u64,
    /// How long its client needs to stop acting, in milliseconds.
    pub fence_budget_ms: u64,
    /// Newest renewal applied.
    pub renewed: RenewalNumber,
    /// Newest acknowledgement the client has named.
    pub acked: RenewalNumber,
    /// Highest grant the client has named (C8); grants above it are not confirmed.
    pub known_grant: Revision,
    /// Highest grant given to it.
    pub grant: Revision,
    /// How many elections it leads or waits in; it must be 0 to vanish without a search.
    pub places: u32,
}
