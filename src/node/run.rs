//! Starting and stopping a node, in the order that safety asks for.
//!
//! ```text
//! identity (boot counter fsynced) → consensus, votes not allowed → ports → hello to the others
//!   → votes allowed → the first node begins the cluster → this start is in the log → ready
//! ```
//! A node that has not been admitted answers and replicates, but neither votes nor campaigns.
//! Stopping goes the other way: leadership is handed over while everything still works, then
//! nothing new is begun, what is under way is finished, and only then the log is closed.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use regent_core::decide::Expiry;
use regent_core::id::NodeId;
use regent_raft::store::real_disk::RealDisk;
use regent_raft::{Consensus, ConsensusConfig, StartError};
use regent_rpc::clock::{Clock, SystemClock};
use regent_rpc::pb::v1::NodeClock;
use regent_rpc::tls::{Tls, TlsError, TlsFiles, WATCH_INTERVAL};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::admission::{Admission, Standing};
use crate::agents::{Board, Desk, Relay, Reports};
use crate::audit::{Exports, Window};
use crate::clocks::{NodeBelief, NodeClocks};
use crate::compare::Comparison;
use crate::config::{ConfigError, NodeConfig};
use crate::duties::Duties;
use crate::history::{History, HistoryConfig};
use crate::http::process::watch_process;
use crate::http::server::{Plaintext, PlaintextExposed, Verified, refuse_plaintext, serve};
use crate::http::{Health, Metrics};
use crate::identity::{Identity, IdentityError};
use crate::leadership::Leadership;
use crate::members::Additions;
use crate::peers::Peers;
use crate::propose::Proposer;
use crate::reads::Reads;
use crate::refusals::Refusals;
use crate::renewals::{RenewalEntries, RenewalRoute};
use crate::routes::RouteHub;
use crate::rpc::guard::Inflight;
use crate::sessions::{Keeper, KeeperConfig, KeeperParts, Merger, half_tick};
use crate::shell::Shell;
use crate::sink::FanOut;
use crate::start::Start;
use crate::transport::GrpcTransport;
use crate::watch::{Hub, HubConfig};

/// Longest time for handing leadership over when stopping.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time for requests under way to finish when stopping.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that stay open after that (streams of nodes and watchers) are cut.
const CUT_AFTER: Duration = Duration::from_millis(200);

/// Why a node did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// Certificates.
    #[error("certificates")]
    Tls(#[from] TlsError),
    /// The certificate is not this node's.
    #[error(
        "the certificate is of {found}, but this is node {node}: it needs \
         spiffe://{trust}/node/{node}; issue one with `regent pki issue node {node}`"
    )]
    WrongCertificate {
        /// Who the certificate names.
        found: String,
        /// Who this is.
        node: NodeId,
        /// The trust domain.
        trust: String,
    },
    /// The data directory.
    #[error("data directory")]
    Identity(#[from] IdentityError),
    /// A port.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The HTTP port would answer in plaintext to others than this machine.
    #[error(transparent)]
    Plaintext(#[from] PlaintextExposed),
    /// Consensus did not start.
    #[error("consensus did not start")]
    Consensus(#[from] StartError),
    /// The node found out that it must not go on.
    #[error("this node stopped: {0}")]
    Fatal(String),
}

/// A running node.
pub struct Node {
    shell: Arc<Shell>,
    grpc: SocketAddr,
    http: SocketAddr,
    dns: Option<SocketAddr>,
    stop: watch::Sender<bool>,
    fatal: watch::Receiver<Option<String>>,
    server: JoinHandle<()>,
    http_server: JoinHandle<()>,
    _identity: Identity,
}

/// Runs a node until `shutdown` completes, then drains it.
///
/// # Errors
/// [`RunError`] when it could not start, or had to stop by itself.
pub async fn run(config: NodeConfig, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    let mut node = Node::start(config).await?;
    tokio::select! {
        why = node.failed() => {
            node.kill().await;
            Err(RunError::Fatal(why))
        }
        () = shutdown => {
            node.drain().await;
            Ok(())
        }
    }
}

impl Node {
    /// Starts a node on the ports of its configuration. Returns once it serves; it may still be
    /// without a leader ([`Node::ready`] waits for that).
    ///
    /// # Errors
    /// [`RunError`] says what is missing.
    pub async fn start(config: NodeConfig) -> Result<Self, RunError> {
        config.check()?;
        let grpc = listen(&config.listen.grpc).await?;
        let http = listen(&config.listen.http).await?;
        Self::start_on(config, grpc, http).await
    }

    /// Starts a node on ports that are open already.
    ///
    /// # Errors
    /// [`RunError`] says what is missing.
    pub async fn start_on(
        config: NodeConfig,
        grpc: TcpListener,
        http: TcpListener,
    ) -> Result<Self, RunError> {
        refuse_plaintext(local(&http)?, config.listen.http_plaintext)?;
        let dns = crate::dns::open(&config).await?;
        let tls = load_tls(&config)?;
        let mut identity = Identity::open(&config.data_dir, config.node_id, &config.cluster)?;
        tracing::info!(
            node = %config.node_id, cluster = config.cluster, boot = identity.boot,
            disk = format!("{:016x}", identity.disk), "starting"
        );
        let quarantined = identity.quarantined()?;
        let shell = assemble(config, &identity, tls).await?;
        if let Some(why) = quarantined {
            shell.admission.quarantine_self(why);
        }
        // Votes are not allowed yet; see `come_up`.
        identity.note_log()?;
        let grpc_addr = local(&grpc)?;
        let http_addr = local(&http)?;
        let (stop, stopped) = watch::channel(false);
        begin(&shell);
        let dns_addr = dns.as_ref().map(|dns| dns.address);
        if let Some(dns) = dns {
            crate::dns::begin(&shell, dns);
        }
        let metrics = shell.metrics.clone();
        let health = shell.health.clone();
        let http_stop = stopped.clone();
        let plaintext = shell.config.listen.http_plaintext;
        let verified = Verified(shell.tls.clone());
        let http = tokio::spawn(async move {
            let served = if plaintext {
                serve(http, Plaintext, metrics, health, http_stop).await
            } else {
                serve(http, verified, metrics, health, http_stop).await
            };
            if let Err(error) = served {
                tracing::error!(%error, "the HTTP port is lost");
            }
        });
        let (reporter, grpc_health) = tonic_health::server::health_reporter();
        let duties = shell.duties.clone();
        let watched = shell.clone();
        duties.spawn("health", async move { watched.report_health(reporter).await });
        let served = crate::server::serve(shell.clone(), grpc_health, grpc, stopped);
        let lost = duties.clone();
        let server = tokio::spawn(duties.guarded("gRPC port", async move {
            if let Err(error) = served.await {
                lost.fail(format!("the gRPC port is lost: {error}"));
            }
        }));
        duties.spawn_once("coming up", crate::come_up::come_up(shell.clone()));
        let fatal = duties.fatal();
        Ok(Self {
            shell,
            grpc: grpc_addr,
            http: http_addr,
            dns: dns_addr,
            http_server: http,
            stop,
            fatal,
            server,
            _identity: identity,
        })
    }

    /// Where its gRPC port is.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc
    }

    /// Where its HTTP port is.
    pub fn http_addr(&self) -> SocketAddr {
        self.http
    }

    /// Where it answers DNS, if it was told to.
    pub fn dns_addr(&self) -> Option<SocketAddr> {
        self.dns
    }

    /// Its parts; for tests.
    pub fn shell(&self) -> &Arc<Shell> {
        &self.shell
    }

    /// Waits until the node is ready for requests; what stood against it otherwise.
    ///
    /// # Errors
    /// The reasons, one a line, when it was not ready within `patience`.
    pub async fn ready(&self, patience: Duration) -> Result<(), String> {
        let until = Instant::now() + patience;
        loop {
            let readiness = self.shell.health.get();
            if readiness.is_ready() {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(readiness.body());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the node finds that it must not go on, and says why.
    pub async fn failed(&mut self) -> String {
        match self.fatal.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => "its tasks have ended".into(),
        }
    }

    /// Stops in order: leadership first, then requests, then the log.
    pub async fn drain(self) {
        let shell = self.shell.clone();
        tracing::info!("stopping: handing over, then finishing what is under way");
        let others = shell.leadership.status().members.iter().filter(|(_, _, v)| *v).count() > 1;
        if shell.leadership.is_here() && others {
            let handed = shell.consensus.transfer_leader(None);
            match tokio::time::timeout(TRANSFER_TIMEOUT, handed).await {
                Ok(Ok(to)) => tracing::info!(%to, "leadership handed over"),
                Ok(Err(error)) => tracing::warn!(%error, "leadership could not be handed over"),
                Err(_) => tracing::warn!("leadership could not be handed over in time"),
            }
        }
        shell.stopping.store(true, Ordering::Relaxed);
        shell.health.set("stopping", Some("the node is stopping"));
        shell.hub.close();
        shell.board.close();
        shell.routes.close();
        let until = Instant::now() + FINISH_TIMEOUT;
        while shell.inflight.count() > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.end(CUT_AFTER).await;
        tracing::info!("stopped");
    }

    /// Stops at once, as far as the log allows; nothing is handed over.
    pub async fn kill(self) {
        self.end(Duration::ZERO).await;
    }

    async fn end(mut self, grace: Duration) {
        self.shell.duties.stop();
        self.stop.send_replace(true);
        // Streams of nodes and watchers never end by themselves.
        let _ = tokio::time::timeout(grace, &mut self.server).await;
        self.server.abort();
        // It closes its port itself; cut off, it would leave the listener to a task of its own.
        let _ = tokio::time::timeout(CUT_AFTER, &mut self.http_server).await;
        self.http_server.abort();
        self.shell.duties.abort();
        self.shell.consensus.shutdown().await;
        self.shell.peers.keep_only(|_| false);
    }
}

async fn listen(address: &str) -> Result<TcpListener, RunError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| RunError::Listen { address: address.to_owned(), source })
}

fn local(listener: &TcpListener) -> Result<SocketAddr, RunError> {
    listener
        .local_addr()
        .map_err(|source| RunError::Listen { address: "an open port".into(), source })
}

/// Reads the certificates and makes sure that they are this node's.
pub(crate) fn load_tls(config: &NodeConfig) -> Result<Arc<Tls>, RunError> {
    let tls = Tls::load(TlsFiles {
        cert: config.tls.cert.clone(),
        key: config.tls.key.clone(),
        ca: config.tls.ca.clone(),
        revoked: config.tls.revoked.clone(),
        trust: Some(config.tls.trust_domain.clone()),
    })?;
    let found = tls.principal().to_string();
    if found != format!("node/{}", config.node_id) {
        let trust = config.tls.trust_domain.clone();
        return Err(RunError::WrongCertificate { found, node: config.node_id, trust });
    }
    Ok(tls)
}

/// Builds the parts and starts consensus, votes not allowed.
async fn assemble(
    config: NodeConfig,
    identity: &Identity,
    tls: Arc<Tls>,
) -> Result<Arc<Shell>, RunError> {
    let node = config.node_id;
    let timing = config.timing();
    let duties = Duties::default();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let start = Start { disk: identity.disk, boot: identity.boot, nonce: identity.nonce };
    let metrics = Arc::new(Metrics::new());
    watch_process(&metrics);
    let health = Health::starting();
    let clocks = Arc::new(NodeClocks::new(clock.clone()));
    let belief = Arc::new(NodeBelief { clocks: clocks.clone(), age: Default::default() });
    let hub = Hub::start(HubConfig::for_node(node), belief.clone(), metrics.clone(), &duties);
    let history = History::open(
        HistoryConfig { dir: config.history_dir(), keep_records: None },
        metrics.clone(),
    );
    let comparison = Arc::new(Comparison::default());
    let expiry = Arc::new(Mutex::new(Expiry::new()));
    let peers = Arc::new(Peers::new(tls.clone(), start));
    let admission = Arc::new(Admission::new(node, start));
    let (board, desk) = (Arc::new(Board::default()), Arc::new(Desk::default()));
    let routes = Arc::new(RouteHub::new(belief.clone()));
    let sink = FanOut {
        routes: routes.clone(),
        board: board.clone(),
        desk: desk.clone(),
        clock: clock.clone(),
        clocks: clocks.clone(),
        expiry: expiry.clone(),
        comparison: comparison.clone(),
        hub: hub.clone(),
        history: history.clone(),
        peers: peers.clone(),
        admission: admission.clone(),
    };
    let mut settings = ConsensusConfig::new(node, config.raft_dir(), timing);
    settings.votes_allowed = false;
    settings.has_log = identity.has_log();
    let transport = GrpcTransport::new(peers.clone(), admission.clone());
    let consensus =
        Consensus::start(settings, Arc::new(transport), Arc::new(RealDisk), Arc::new(sink)).await?;
    peers.set_held(consensus.held_at_start());
    let state = consensus.state();

    let patience = Duration::from_millis(timing.elect_ms());
    let leadership = Leadership::new(node, consensus.status(), patience);
    let proposer = Proposer::new(
        consensus.clone(),
        leadership.clone(),
        peers.clone(),
        clock.clone(),
        comparison.disks.clone(),
    );
    let reads = Reads::start(
        consensus.clone(),
        leadership.clone(),
        peers.clone(),
        clock.clone(),
        clocks.clone(),
        metrics.clone(),
        &duties,
    );
    let aged = reads.clone();
    // Set once, here.
    let _ = belief.age.set(Box::new(move || aged.age_ms()));
    let entries =
        RenewalEntries { consensus: consensus.clone(), clock: clock.clone(), state: state.clone() };
    let window = half_tick(timing.commit_tick_ms);
    let merger = Merger::start(window, Arc::new(entries), metrics.clone(), &duties);
    let route = RenewalRoute {
        leadership: leadership.clone(),
        peers: peers.clone(),
        merger: merger.clone(),
    };
    let refusals = Arc::new(Refusals::default());
    let refused = refusals.clone();
    let (told, start) = (leadership.clone(), peers.start().nonce.0);
    let face = move || {
        let members = told.status().members;
        let voters = members.iter().filter(|(_, _, voter)| *voter).map(|(id, _, _)| id.0).collect();
        let node = node.0;
        NodeClock { node, nonce: start, voters, ..NodeClock::default() }
    };
    let keeper = Keeper::start(
        KeeperConfig::for_tick(timing.commit_tick_ms),
        KeeperParts {
            state: state.clone(),
            sink: Arc::new(route),
            clock: clock.clone(),
            refused: Arc::new(move |who, session| {
                let verb = regent_core::authz::Verb::Sessions;
                let resource = format!("session {session}");
                refused.note(&who.to_string(), verb, &resource, "it belongs to somebody else");
            }),
            face: Arc::new(face),
            metrics: metrics.clone(),
        },
        &duties,
    );
    let shell = Shell {
        node,
        boot: identity.boot,
        started: Instant::now(),
        clock,
        consensus,
        state,
        leadership,
        proposer,
        reads,
        clocks,
        peers,
        admission,
        tls,
        refusals,
        inflight: Arc::new(Inflight::new(config.limits.max_inflight as usize)),
        comparison,
        additions: Arc::new(Additions::default()),
        keeper,
        merger,
        hub,
        board,
        relay: Arc::new(Relay::default()),
        desk,
        routes,
        routers: Arc::default(),
        reports: Reports::default(),
        history,
        exports: Exports::default(),
        expiry,
        metrics,
        health,
        duties,
        stopping: AtomicBool::new(false),
        config,
    };
    let shell = Arc::new(shell);
    crate::figures::show(&shell);
    Ok(shell)
}

/// Starts everything that runs for as long as the node does.
fn begin(shell: &Arc<Shell>) {
    let duties = &shell.duties;
    duties.spawn("leader's work", shell.clone().lead_forever());
    duties.spawn("leader's slow work", shell.clone().lead_slowly_forever());
    duties.spawn("leader's work on roles", shell.clone().lead_roles_forever());
    duties.spawn("facts", shell.clone().relay_forever());
    duties.spawn("routers awaited", shell.clone().await_routers_forever());
    duties.spawn("routes", shell.routes.clone().sweep_forever());
    duties.spawn("fitness", shell.clone().hear_fitness_forever());
    duties.spawn("promises", shell.clone().remember_promises());
    duties.spawn("belief", shell.clone().believe_forever());
    duties.spawn("refusals", shell.clone().flush_refusals_forever());
    // A node that was removed has nothing more to notice.
    duties.spawn_once("removal", shell.clone().notice_removal());
    duties.spawn("leaders seen", crate::figures::watch_leaders(shell.clone()));
    duties.spawn("elections held", crate::figures::count_held(shell.clone()));
    duties.spawn("certificates", shell.tls.clone().watch_files(WATCH_INTERVAL));
    let window = Arc::new(Window(shell.state.clone()));
    duties.spawn("history", shell.history.clone().fill_forever(window));
    let compared = shell.clone();
    duties.spawn("comparison", async move {
        let why = compared.clone().compare_forever().await;
        tracing::error!(
            why,
            "STATE MISMATCH: this node stops; restore it from a snapshot of \
            the others: empty its data directory and add it under a new node id"
        );
        compared.consensus.set_votes_allowed(false);
        compared.metrics.state_hash_mismatch.set(1);
        compared.health.set_dead(&why);
        compared.duties.fail(why);
    });
    let watched = shell.clone();
    duties.spawn("consensus", async move {
        let why = watched.watch_consensus().await;
        watched.duties.fail(why);
    });
    let quarantined = shell.clone();
    duties.spawn("quarantine", async move {
        let why = quarantined.keep_quarantine().await;
        quarantined.duties.fail(why);
    });
}

impl Shell {
    /// Returns when this node must not go on, with the reason: consensus stopped for good, it is too
    /// slow for the cluster, or an entry is beyond it.
    async fn watch_consensus(&self) -> String {
        let mut status = self.leadership.watch();
        loop {
            let (stopped, problem) = {
                let status = status.borrow_and_update();
                (status.role == "stopped", status.storage_problem.clone())
            };
            if stopped && !self.is_stopping() {
                return format!("consensus stopped: {problem}");
            }
            let reason = (!problem.is_empty()).then_some(problem);
            self.health.set("storage", reason.as_deref());
            if let Some(why) = self.too_slow().or_else(|| self.misdescribed()) {
                self.consensus.set_votes_allowed(false);
                return why;
            }
            if let Some(barrier) = self.state.read().barrier() {
                return barrier.to_string();
            }
            if status.changed().await.is_err() {
                return "consensus has ended".into();
            }
        }
    }

    /// Keeps readiness and grpc.health.v1 current.
    async fn report_health(&self, reporter: tonic_health::server::HealthReporter) {
        let mut standing = self.admission.standing();
        let mut status = self.leadership.watch();
        let mut served = None;
        loop {
            let against = match &*standing.borrow_and_update() {
                Standing::Admitted => None,
                Standing::Asking => Some("waiting for a majority to admit this node".to_owned()),
                Standing::Quarantined { why, .. } => Some(format!("quarantined: {why}")),
            };
            self.metrics.quarantined.set(i64::from(against.is_some()));
            self.health.set("admission", against.as_deref());
            let leader = status.borrow_and_update().leader;
            self.health.set("leader", leader.is_none().then_some("no leader is known"));
            let ready = self.health.get().is_ready();
            if served != Some(ready) {
                served = Some(ready);
                let serving = match ready {
                    true => tonic_health::ServingStatus::Serving,
                    false => tonic_health::ServingStatus::NotServing,
                };
                for service in crate::server::SERVICES {
                    reporter.set_service_status(service, serving).await;
                }
            }
            tokio::select! {
                _ = standing.changed() => {}
                _ = status.changed() => {}
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
        }
    }
}
