//! Every metric of a node, declared once: the struct that is written to, the registry that is
//! scraped and the table that documentation is checked against come from the same lines.
//!
//! Names are `regent_<subsystem>_<name>_<unit>` (counters get `_total` behind that, as OpenMetrics
//! wants). A metric that nothing feeds does not belong here: a figure that stays at zero is a lie, and
//! a test of whole nodes finds it.

use std::fmt::Write as _;

use parking_lot::RwLock;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};

use regent_dns::Outcome as Named;

use super::types::{
    Answered, Build, Counter, Declared, FlushHistogram, Gauge, GaugeF, Histogram, Kind, Outcomes,
    Proposed, Refused, RenewalHistogram,
};

/// One line of [`metric_table`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricRow {
    /// Full name as scraped, without the suffixes that OpenMetrics adds to counters (`_total`) and
    /// histograms (`_bucket`, `_sum`, `_count`).
    pub name: &'static str,
    /// `gauge`, `counter` or `histogram`.
    pub kind: &'static str,
    /// Last part of the name.
    pub unit: &'static str,
    /// What it says.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($field:ident: $kind:ty = $stem:literal, $unit:literal, $help:literal;)*) => {
        /// The metrics themselves; cheap to write to from anywhere.
        pub struct Metrics {
            $(#[doc = $help] pub $field: $kind,)*
            registry: Registry,
            #[allow(clippy::type_complexity)]
            before_scrape: RwLock<Vec<Box<dyn Fn(&Metrics) + Send + Sync>>>,
        }

        static TABLE: &[MetricRow] = &[$(MetricRow {
            name: concat!("regent_", $stem, "_", $unit),
            kind: <$kind as Declared>::KIND,
            unit: $unit,
            help: $help,
        },)*];

        impl Metrics {
            /// All metrics at zero, registered.
            pub fn new() -> Self {
                let mut registry = Registry::with_prefix("regent");
                $(
                    let $field = <$kind as Declared>::declared();
                    registry.register_with_unit(
                        $stem,
                        $help,
                        Unit::Other($unit.to_owned()),
                        $field.clone(),
                    );
                )*
                let metrics = Self { $($field,)* registry, before_scrape: RwLock::default() };
                metrics.begin();
                metrics
            }
        }
    };
}

metrics! {
    build: Family<Build, Gauge> = "process_build", "info",
        "Always 1; the labels name the build";
    process_resident: Gauge = "process_resident_memory", "bytes",
        "Resident memory of the process";
    process_cpu: GaugeF = "process_cpu", "seconds",
        "Processor time the process has used since it started, user and system";
    process_uptime: GaugeF = "process_uptime", "seconds",
        "Time since the process started";
    process_open_files: Gauge = "process_open_files", "count",
        "Open file descriptors";

    raft_term: Gauge = "raft_term", "number", "Raft term of this node";
    raft_leader: Gauge = "raft_leader", "number",
        "Node id of the leader this node knows; 0 is none";
    raft_is_leader: Gauge = "raft_is_leader", "flag",
        "1 while this node believes to lead; an isolated one still does, so decide nothing by it";
    raft_last_log: Gauge = "raft_last_log", "index", "Last entry in the log";
    raft_applied: Gauge = "raft_applied", "index", "Last entry applied";
    raft_snapshot: Gauge = "raft_snapshot", "index", "Last entry in the newest snapshot";
    raft_apply_lag: Gauge = "raft_apply_lag", "entries",
        "Entries in the log that are not applied yet";
    raft_member_lag: Gauge = "raft_slowest_member_lag", "entries",
        "On the leader: entries that the member furthest behind still lacks";
    raft_quorum_age: GaugeF = "raft_quorum_ack_age", "seconds",
        "On the leader: time since a quorum last acknowledged it";
    raft_voters: Gauge = "raft_voters", "count", "Voting members";
    raft_learners: Gauge = "raft_learners", "count", "Members without a vote";
    raft_leader_changes: Counter = "raft_leader_changes", "count",
        "Leaderships this node has seen begin: another leader, or the same one in a new term";
    proposals: Outcomes<Proposed> = "raft_proposals", "count",
        "Entries proposed for clients and duties of this node by outcome: done, rejected, no_leader, \
        unknown, overloaded, storage, failed; merged renewals are not among them";
    proposal_seconds: Histogram = "raft_proposal_latency", "seconds",
        "From one of these proposals to its applied answer, forwarding included";
    read_index_rounds: Counter = "raft_read_index_rounds", "count",
        "Rounds in which this node learned a read index; concurrent reads share one";
    read_index_reads: Counter = "raft_read_index_reads", "count",
        "Linearizable reads served, those that the node's own clocks need among them";
    read_index_seconds: Histogram = "raft_read_index_latency", "seconds",
        "From such a read's begin to the index it needs having been applied";
    state_hash_mismatch: Gauge = "raft_state_hash_mismatch", "flag",
        "1 if this node's state differs from a peer's at the same index: it stops";
    quarantined: Gauge = "raft_node_quarantined", "flag",
        "1 while this node may not vote because its disk went back in time or is not cleared yet";

    wal_appends: Counter = "wal_appends", "count",
        "Requests to the log that were made durable; those of one group share a flush";
    wal_bytes: Counter = "wal_written", "bytes", "Bytes written to the log and flushed";
    wal_fsync_seconds: FlushHistogram = "wal_fsync_latency", "seconds", "Duration of one flush of the log";
    storage_problem: Gauge = "storage_problem", "flag",
        "1 while the disk refuses writes (full or failing): nothing is acknowledged";

    sessions: Gauge = "lease_sessions", "count", "Open sessions";
    elections: Gauge = "lease_elections", "count", "Elections, held or not";
    elections_held: Gauge = "lease_elections_held", "count",
        "Elections with a holder this node believes live, as counted last: 10,000 elections a second";
    renewals: Family<Kind, Counter> = "lease_renewals", "count",
        "Renewals of clients of this node by outcome; whose session is somebody else's is refused, \
        and told that it is gone";
    renewals_per_tick: RenewalHistogram = "lease_renewals_per_tick", "count",
        "Renewals that left this node in one tick";
    renewals_per_entry: RenewalHistogram = "lease_renewals_per_entry", "count",
        "On the leader: renewals merged into one log entry";
    renewals_waiting: Gauge = "lease_renewals_waiting", "count",
        "Renewals taken from clients and not answered yet";
    keepalive_streams: Gauge = "lease_keepalive_streams", "count", "Open keep-alive streams";
    expiries: Family<Kind, Counter> = "lease_expiries", "count",
        "What lapsed and was ended by this node while leading: session, grant";

    services: Gauge = "topology_services", "count", "Declared services";
    services_quarantined: Gauge = "topology_services_quarantined", "count",
        "Services that stand still after a broken invariant or an unreadable entry";

    roles: Family<Kind, Gauge> = "role_services", "count",
        "Services whose agents were started, by what the log and this node's clocks say: with_primary, \
        without_primary, held (no lease is known to live, its standbys may acknowledge), fenced, paused, \
        unprotected";
    verdicts: Family<Kind, Gauge> = "role_verdicts", "count",
        "On the leader: services by what it sees of their primary; NoPrimary, or the verdict's name";
    agents: Family<Kind, Gauge> = "agent_instances", "count",
        "On the leader: instances whose agents were started: heard, silent, armed, weak, quarantined";
    agent_lag: Gauge = "agent_worst_replay_lag", "bytes",
        "On the leader: most WAL that a standby has received and not replayed";

    routes: Family<Kind, Gauge> = "route_services", "count",
        "Services whose routes somebody follows at this node, by who takes writes: open (somebody), \
        closed (nobody), held (this node cannot say, and takes nothing back)";
    routers: Family<Kind, Gauge> = "route_routers", "count",
        "Routers that follow routes at this node, one for each service it follows, by protocol: watch, ads";
    routers_behind: Family<Kind, Gauge> = "route_routers_behind", "count",
        "Of those, the ones that have not acknowledged the newest epoch of their service";
    route_pushes: Family<Kind, Counter> = "route_pushes", "count",
        "Messages with news of routes handed to connections, by protocol: watch, ads";
    route_push_seconds: Histogram = "route_push_latency", "seconds",
        "From a change of a table, as an entry is applied, to its news being handed to one connection";
    route_refusals: Family<Kind, Counter> = "route_refusals", "count",
        "Answers of xDS that a router refused, by kind: cds, eds, lds, rds";

    watchers: Family<Kind, Gauge> = "watch_watchers", "count",
        "Open watches: elections, services";
    watchers_cut_off: Family<Kind, Counter> = "watch_cut_off_watchers", "count",
        "Watches ended by this node: slow, compacted, incarnation, closing";
    watch_changes: Counter = "watch_changes", "count", "Changes handed to the watch hub";
    watch_deliveries: Counter = "watch_deliveries", "count", "Changes put into watchers' mailboxes";
    watch_ring: Gauge = "watch_ring", "bytes", "Size of the recent changes kept for resuming watches";

    audit_records: Gauge = "audit_records", "count", "Number of the newest audit record";
    audit_gaps: Gauge = "audit_missing_records", "count",
        "Records that this node's history lacks and has not fetched yet";
    audit_bytes: Gauge = "audit_history", "bytes", "Size of the history on disk";
    audit_rebuilt: Counter = "audit_history_rebuilt", "count",
        "How often the history could not be opened and was set aside";

    certificate_leaf: GaugeF = "tls_certificate_expiry", "seconds",
        "Time until this node's certificate expires; zero once it has";
    certificate_ca: GaugeF = "tls_ca_expiry", "seconds",
        "Time until the first of the trusted CA certificates expires; zero once it has";
    tls_reloads: Family<Kind, Counter> = "tls_reloads", "count",
        "Reloads of certificates by outcome: done, failed (each look at files that are not usable)";
    tls_handshakes_failed: Family<Kind, Counter> = "tls_failed_handshakes", "count",
        "Handshakes that did not end in a verified identity, by port: grpc, http";
    authz_refusals: Family<Refused, Counter> = "authz_refusals", "count",
        "Calls refused because the caller's role lacks the right";
    connections: Family<Kind, Gauge> = "rpc_connections", "count", "Open connections: grpc, http";
    requests: Outcomes<Answered> = "rpc_requests", "count",
        "Calls of clients by outcome: ok, refused, error, abandoned; a stream counts when it begins";
    dns_questions: Outcomes<Named> = "dns_questions", "count",
        "Messages on the port for DNS by what became of them: answered, no_data, no_name, not_here, \
        refused, malformed, not_implemented, bad_version, dropped";
    clock_skew: GaugeF = "clock_rate_difference", "ppm",
        "Largest difference of clock rates to a peer measured lately; alarm above 2000, abstain above 10000";
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Metrics({} families)", TABLE.len())
    }
}

impl Metrics {
    /// Shows every known label at zero: a rate over a counter that appears with its first event
    /// misses that event.
    fn begin(&self) {
        let version = env!("CARGO_PKG_VERSION");
        self.build.get_or_create(&Build { version }).set(1);
        let counters: [(&Family<Kind, Counter>, &[&'static str]); 7] = [
            (
                &self.renewals,
                &["extended", "session_gone", "nonce_stale", "number_stale", "resend", "refused"],
            ),
            (&self.expiries, &["session", "grant"]),
            (&self.watchers_cut_off, &["slow", "compacted", "incarnation", "closing"]),
            (&self.tls_reloads, &["done", "failed"]),
            (&self.route_pushes, &["watch", "ads"]),
            (&self.route_refusals, &["cds", "eds", "lds", "rds"]),
            (&self.tls_handshakes_failed, &["grpc", "http"]),
        ];
        for (family, kinds) in counters {
            for kind in kinds {
                drop(family.get_or_create(&Kind { kind }));
            }
        }
        let gauges: [(&Family<Kind, Gauge>, &[&'static str]); 2] =
            [(&self.watchers, &["elections", "services"]), (&self.connections, &["grpc", "http"])];
        for (family, kinds) in gauges {
            for kind in kinds {
                drop(family.get_or_create(&Kind { kind }));
            }
        }
    }

    /// Runs `fill` before each scrape, for values that are read rather than counted.
    pub fn before_scrape(&self, fill: impl Fn(&Self) + Send + Sync + 'static) {
        self.before_scrape.write().push(Box::new(fill));
    }

    /// The OpenMetrics text.
    pub fn render(&self) -> String {
        for fill in self.before_scrape.read().iter() {
            fill(self);
        }
        let mut text = String::with_capacity(16 * 1024);
        if encode(&mut text, &self.registry).is_err() {
            // Writing into a String cannot fail; a collector that refuses must not take the page
            // down with it.
            text.clear();
            let _ = writeln!(text, "# EOF");
        }
        text
    }
}

/// Every metric a node has, in the order of the declaration.
pub fn metric_table() -> &'static [MetricRow] {
    TABLE
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_metric_is_named_regent_subsystem_name_unit_once_and_explained() {
        let mut seen = BTreeSet::new();
        for row in metric_table() {
            assert!(seen.insert(row.name), "{} is declared twice", row.name);
            let parts: Vec<&str> = row.name.split('_').collect();
            assert_eq!(parts[0], "regent");
            assert!(parts.len() >= 3, "{}", row.name);
            assert!(row.name.ends_with(&format!("_{}", row.unit)), "{}", row.name);
            let known =
                ["seconds", "bytes", "count", "number", "index", "entries", "flag", "ppm", "info"];
            assert!(known.contains(&row.unit), "{} has the unit {}", row.name, row.unit);
            assert!(row.name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{}", row.name);
            assert!(row.help.len() > 10 && !row.help.ends_with('.'), "{}", row.name);
        }
    }

    #[test]
    fn every_metric_of_the_table_is_scraped_under_its_name_and_nothing_else_is() {
        let metrics = Metrics::new();
        // Roles and verbs are too many to show them all at zero.
        metrics.authz_refusals.get_or_create(&Refused { role: "client", verb: "backup" }).inc();
        // What services and instances are like is shown once there are any.
        let [routes, routers, behind] =
            [&metrics.routes, &metrics.routers, &metrics.routers_behind];
        for family in [&metrics.roles, &metrics.verdicts, &metrics.agents, routes, routers, behind]
        {
            family.get_or_create(&Kind { kind: "any" }).set(0);
        }
        let text = metrics.render();
        let mut described: BTreeSet<&str> = BTreeSet::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                described.insert(rest.split(' ').next().expect("a name"));
            }
        }
        let declared: BTreeSet<&str> = metric_table().iter().map(|row| row.name).collect();
        assert_eq!(described, declared);
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn what_is_written_is_scraped() {
        let metrics = Metrics::new();
        metrics.raft_term.set(7);
        metrics.watchers_cut_off.get_or_create(&Kind { kind: "slow" }).inc();
        metrics.renewals_per_tick.observe(100);
        metrics.before_scrape(|m| {
            m.clock_skew.set(3.5);
        });
        let text = metrics.render();
        assert!(text.contains("regent_raft_term_number 7\n"), "{text}");
        assert!(text.contains("regent_watch_cut_off_watchers_count_total{kind=\"slow\"} 1\n"));
        assert!(text.contains("regent_lease_renewals_per_tick_count_sum 100.0\n"), "{text}");
        assert!(text.contains("regent_clock_rate_difference_ppm 3.5\n"));
    }
}
