//! Every constant that a router is told, and every bound of a stream, each with its reason.

use std::time::Duration;

use crate::names::Side;

/// How Envoy asks the agents of a cluster whether they still serve. It must be active checking: of
/// the sessions that are open when a primary goes, EDS alone cuts none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// Asked of the agent.
    pub path: &'static str,
    /// Between two checks of a host that is healthy, or changes its state.
    pub interval: Duration,
    /// Between two checks of a host that is not.
    pub unhealthy_interval: Duration,
    /// A check without an answer failed.
    pub timeout: Duration,
    /// So many checks without an answer take a host out; an answer that says no does at once.
    pub unhealthy_threshold: u32,
    /// So many good ones bring it back.
    pub healthy_threshold: u32,
}

impl Check {
    /// Of the cluster of a side.
    pub const fn of(side: Side) -> Self {
        match side {
            // Sessions to an old primary are cut after one interval: its agent says no at once. An
            // agent that is restarted within two looks cuts nothing, nor one that stands still for less
            // than half a second. A host that stands still for longer is fenced by then, or soon.
            Side::Write => Self {
                path: "/primary",
                interval: Duration::from_millis(100),
                unhealthy_interval: Duration::from_millis(50),
                timeout: Duration::from_millis(150),
                unhealthy_threshold: 3,
                healthy_threshold: 1,
            },
            // A read that goes astray does no harm: two checks in a row, so that a lost packet does
            // not cut a report that ran for an hour.
            Side::Read => Self {
                // Only whether it answers: whether it should take reads is what EDS says, with
                // hysteresis. In a failover no standby streams for a moment, and an answer that says
                // no would cut every report at once.
                path: "/health",
                interval: Duration::from_millis(500),
                unhealthy_interval: Duration::from_millis(500),
                timeout: Duration::from_millis(300),
                unhealthy_threshold: 2,
                healthy_threshold: 1,
            },
        }
    }
}

/// Envoy's panic threshold in percent. Writes: never to a host that is not healthy. Reads: when
/// fewer than half of a tier's hosts are healthy, it is more likely the checks that fail.
pub const fn panic_threshold(side: Side) -> f64 {
    match side {
        Side::Write => 0.0,
        Side::Read => 50.0,
    }
}

/// Envoy gives up connecting to an instance after this.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Envoy gathers what its checks find for so long before it acts on it; not at all. Its default of
/// a second would keep every new primary without sessions for that second.
pub const UPDATE_MERGE_WINDOW: Duration = Duration::ZERO;
/// Envoy closes a session without traffic after this: pools keep theirs over a quiet night.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
/// Sessions to a host that failed its checks are closed; drained they would never end.
pub const CLOSE_ON_FAILED_CHECK: bool = true;
/// A host that EDS leaves out is gone at once, not when its checks fail: one whose agent errs would
/// go on being sent sessions.
pub const IGNORE_HEALTH_ON_REMOVAL: bool = true;

/// The greatest weight of an endpoint, in percent of one that is up to date.
pub const MAX_WEIGHT: u32 = 100;

/// Resources that one stream may ask for per kind, and services in an Envoy's metadata: far above
/// what one router serves, and their answer is below half of gRPC's usual bound of 4 MiB.
pub const MAX_NAMES: usize = 1_000;
/// The longest name that is remembered; a valid one is below 140 bytes.
pub const MAX_NAME_BYTES: usize = 1_024;
/// Responses of one kind whose ACK is waited for; of a client that sends none the oldest is
/// forgotten.
pub const MAX_IN_FLIGHT: usize = 64;
/// Unknown kinds that are noted per stream; a client has a handful.
pub const MAX_UNKNOWN_NOTED: usize = 8;
/// The length of a client's text in a note.
pub const MAX_NOTED_BYTES: usize = 1_024;
/// The largest request, encoded: [`MAX_NAMES`] long names, each with the version that it has.
pub const MAX_REQUEST_BYTES: usize = 512 * 1024;
/// Responses that wait for a client to read them; more make the stream's task wait, and what
/// changes meanwhile is sent once, in its newest form.
pub const OUTBOX: usize = 16;
