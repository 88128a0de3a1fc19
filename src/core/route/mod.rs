//! Where clients are sent: what is derived from a service and its instances for those who route.
//!
//! Nothing here is a proof. A router that errs meets an instance that refuses: what keeps one
//! primary is the role change (`state/role`), never a proxy's configuration.
//!
//! - [`haproxy`]: a configuration of HAProxy.

pub mod haproxy;
