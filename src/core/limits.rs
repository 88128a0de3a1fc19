//! Every bound of the core in one place, each with its reason. A bound that is hit is a rejection
//! that names it, never a panic and never a silent drop.

/// A name: long enough for `<team>/<service>-<site>`, short enough for a metric label.
pub const MAX_NAME_BYTES: usize = 128;
/// A proclaimed value: an address and a few hints, not a document; it is replicated on every
/// change.
pub const MAX_VALUE_BYTES: usize = 16 * 1024;
/// One encoded command. A renewal batch of 10,000 sessions takes about 300 KiB.
pub const MAX_ENTRY_BYTES: usize = 1024 * 1024;
/// Renewals in one entry: bounds the time one apply can take.
pub const MAX_RENEWALS_PER_ENTRY: usize = 10_000;
/// Sessions in a cluster: ten times what the lease benchmark holds.
pub const MAX_SESSIONS: usize = 1_000_000;
/// Sessions of one client or agent: more than twice the lease benchmark from one certificate, and
/// few enough that no single one takes the cluster's sessions from all others.
pub const MAX_SESSIONS_PER_OWNER: usize = 250_000;
/// Services in a cluster (routing is sized for 10,000).
pub const MAX_SERVICES: usize = 20_000;
/// Instances of one service.
pub const MAX_INSTANCES: usize = 64;
/// Partitions of one active-active service.
pub const MAX_PARTITIONS: usize = 4_096;
/// Elections in a cluster.
pub const MAX_ELECTIONS: usize = 200_000;
/// Candidates waiting in one election.
pub const MAX_CANDIDATES: usize = 1_024;
/// Client lanes whose last reply is remembered; of the principal with the most lanes the one idle
/// longest is forgotten first.
pub const MAX_CLIENT_LANES: usize = 65_536;
/// Audit records kept in memory and snapshots; older ones live in the node's history store.
pub const AUDIT_WINDOW: usize = 10_000;
/// Refused attempts in one entry; more of one second are counted, not listed.
pub const MAX_REFUSALS_PER_ENTRY: usize = 64;
/// Free text of people (reasons, comments).
pub const MAX_TEXT_BYTES: usize = 1_024;
/// Highest clock-rate difference between two machines that leases survive (rho, PROTOCOL.md A1),
/// in parts per million: 1 %.
pub const RHO_PPM: u64 = 10_000;
/// A clock difference above this is alarmed (0.2 %), long before [`RHO_PPM`] is reached.
pub const RHO_ALARM_PPM: u64 = 2_000;
/// How long a host's clock may stop while its peers' run (PROTOCOL.md A1), in milliseconds.
pub const PAUSE_MARGIN_MS: u64 = 250;
/// After this long without a renewal that names it, a granted lease is given to the next (C8).
pub const GRANT_TIMEOUT_MS: u64 = 2_000;
/// Elections granted in one entry when a new life opens its grants: applies in a few milliseconds.
pub const MAX_GRANTS_PER_ENTRY: usize = 1_000;
/// How long a ttl a new life of the cluster waits out at least before it grants anything: the usual
/// one, and half as much again, for sessions that the state it begins with knows nothing of.
pub const LEAST_HOLD_MS: u64 = 15_000;
/// Longest ttl a session may ask for: one day.
pub const MAX_TTL_MS: u64 = 86_400_000;
/// Bytes of values that the candidates of one election may queue together: each change of an
/// election copies and hashes its row.
pub const MAX_QUEUE_BYTES: usize = 256 * 1024;
/// Elections that one session may lead or wait in: bounds what the end of one session costs.
pub const MAX_PLACES_PER_SESSION: usize = 4_096;
/// Nodes whose starts are remembered: far above any membership; ids are never reused, so rows of
/// nodes long gone stay.
pub const MAX_NODES: usize = 1_024;
/// Operations of a service that are remembered: what people ask about after a bad week.
pub const MAX_OPERATIONS_PER_SERVICE: usize = 32;
/// Phases in an operation's history; an operation that asks people again and again ends here.
pub const MAX_PHASES: usize = 64;
/// Sync sets of a service that are not covered yet: each change adds one until the primary covers.
pub const MAX_UNCOVERED_SETS: usize = 64;
/// Watermarks remembered of a primary: at two renewals a second some fifteen seconds of writes, five
/// times the usual ttl. A candidate that is further behind lacks more than anybody allows unasked.
pub const MAX_WATERMARKS: usize = 32;
/// Policies of a service that its holder has not taken up; more are merged into one as careful.
pub const MAX_FORMER_POLICIES: usize = 8;
/// Automatic failovers of a service that flap control looks back at.
pub const MAX_FAILOVERS_KEPT: usize = 16;
/// No time of a Raft profile is longer: ten minutes. Keeps every sum of C6 far from overflow.
pub const MAX_PROFILE_MS: u64 = 600_000;
/// Kinds of refused attempts remembered, so that the same one repeated is counted, not listed.
pub const MAX_REFUSAL_KINDS: usize = 128;
/// Kinds of refused attempts of one principal listed before they are only counted.
pub const MAX_REFUSAL_KINDS_PER_PRINCIPAL: usize = 32;
/// A refused attempt repeated within so many entries is counted, not listed: some seconds of a busy
/// cluster.
pub const REFUSAL_REPEAT_ENTRIES: u64 = 10_000;
