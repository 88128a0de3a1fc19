//! Puts the agent together and runs it until it is told to end.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use regent_core::agent::{Local, Naming, Right, Told, Wanted};
use regent_core::id::{Nonce, Revision};
use regent_engine::postgres::{Options, Postgres};
use regent_engine::{DiskError, Engine};
use regent_fencer::AgentId;
use regent_fencer::options::WatchdogOptions;
use regent_rpc::channel::ChannelOptions;
use regent_rpc::client::{Client, ClientOptions};
use tokio::sync::{Notify, mpsc, watch};

use crate::config::AgentConfig;
use crate::guard::{Guard, GuardError, GuardOptions};
use crate::http;
use crate::link::{self, Speaker};
use crate::local;
use crate::notes::Notes;
use crate::prepare;
use crate::run::Agent;
use crate::senses;
use crate::sights::Sights;
use crate::status::{Page, Status};
use crate::steady::Steady;
use crate::steps::Tools;
use crate::words::Refusals;

/// Messages from the coordinators that wait for the loop: a handful are ever under way.
const HEARD: usize = 64;
/// A node that says nothing for so long is asked for a sign of life, ...
const NODE_ASKED_AFTER: Duration = Duration::from_millis(300);
/// ... and left when it gives none for so long: a node whose packets are lost closes no connection,
/// and until its agents speak to another one they neither hear of a fence nor are heard as witnesses.
const NODE_SILENT_AFTER: Duration = Duration::from_millis(600);

/// Why the agent did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// PostgreSQL's programs or the data directory.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The fencer.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// The notebook: without it nobody knows what was promised.
    #[error("the state directory cannot be used")]
    Notes(#[source] std::io::Error),
    /// The certificates or the addresses of the nodes.
    #[error("{0}")]
    Client(String),
    /// The fencer ended, and what it guarded with it: start the agent again.
    #[error("the fencer is gone; a new start of the agent finds out what became of PostgreSQL")]
    FencerGone,
    /// Somebody else's server: nothing is done to the directory while it runs.
    #[error(
        "a PostgreSQL that Regent did not start runs here, as process {pid}: `regent agent adopt` \
         takes it over"
    )]
    Foreign {
        /// Its first process.
        pid: i32,
    },
    /// The port for health checks.
    #[error("cannot listen on {address}")]
    Http {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The engine's settings of a configuration.
pub(crate) fn engine_options(config: &AgentConfig) -> Options {
    let postgres = &config.postgres;
    let mut options = Options::new(&postgres.data_dir, postgres.port);
    options.state_dir = config.state_dir.join("engine");
    options.passfile.clone_from(&postgres.passfile);
    options.bin_dir.clone_from(&postgres.bin_dir);
    options.run_as.clone_from(&postgres.run_as);
    options.starter_changes_user = true;
    options.listen = vec![postgres.listen_host.clone()];
    options.peers.clone_from(&postgres.peers);
    options.client_hba.clone_from(&postgres.client_hba);
    options.tls = postgres.tls.as_ref().map(|it| regent_engine::postgres::TlsFiles {
        cert: it.cert.clone(),
        key: it.key.clone(),
        ca: it.ca.clone(),
    });
    options.socket_dir.clone_from(&postgres.socket_dir);
    options.restore_command.clone_from(&postgres.restore_command);
    options.wal_keep_mib = postgres.wal_keep_mib;
    options.slot_keep_mib = postgres.slot_keep_mib;
    options.logical_wal = postgres.wal_level == crate::config::WalLevel::Logical;
    options.max_senders = postgres.max_senders;
    options
}

/// How the fencer of a configuration is found or launched.
pub(crate) fn guard_options(
    config: &AgentConfig,
    program: std::path::PathBuf,
    agent: AgentId,
) -> GuardOptions {
    GuardOptions {
        program,
        state_dir: config.state_dir.join("fencer"),
        user: config.postgres.run_as.clone().filter(|_| rustix::process::getuid().is_root()),
        agent,
        answer_within: Duration::from_millis(config.fence_budget_ms),
        watchdog: config.watchdog.as_ref().map(|watchdog| WatchdogOptions {
            path: watchdog.device.clone(),
            timeout_ms: watchdog.timeout_ms,
        }),
    }
}

/// Runs the agent until `stop`. What runs then goes on under the fencer.
///
/// # Errors
/// [`StartError`].
pub async fn run(
    config: AgentConfig,
    program: std::path::PathBuf,
    tls: Arc<regent_rpc::tls::Tls>,
    stop: impl Future<Output = ()>,
) -> Result<(), StartError> {
    let mut notes = Notes::open(&config.state_dir).map_err(StartError::Notes)?;
    let fresh = Nonce(rand::random_range(1..=u64::MAX));
    let nonce = notes.change(|book| book.begin(fresh)).map_err(StartError::Notes)?;
    let (news_tx, news) = mpsc::unbounded_channel();
    let options = guard_options(&config, program, AgentId { boot_count: notes.book.starts, nonce });
    let opened = tokio::task::spawn_blocking(move || Guard::open(&options, news_tx)).await;
    let guard = opened.map_err(|error| StartError::Client(error.to_string()))??;
    let postgres = Postgres::new(engine_options(&config))?;
    if let Some(running) = postgres.running().await?.filter(|_| !guard.is_running()) {
        return Err(StartError::Foreign { pid: running.pid });
    }
    let engine: Arc<dyn Engine> = Arc::new(postgres);
    let mut known = Local::new(config.instance.clone());
    known.discovered(local::found(&engine.check().await?));
    adopt(&mut known, &guard, &notes, engine.as_ref()).await;
    let channel = ChannelOptions {
        keepalive_interval: NODE_ASKED_AFTER,
        keepalive_timeout: NODE_SILENT_AFTER,
        ..ChannelOptions::default()
    };
    let client_options = ClientOptions { channel, ..ClientOptions::default() };
    let client = Client::new(&config.nodes, tls, client_options)
        .map_err(|error| StartError::Client(error.to_string()))?;

    let (heard_tx, heard) = mpsc::channel(HEARD);
    let (reports, done) = mpsc::unbounded_channel();
    let (canary, wanted) = watch::channel(None);
    let (prepare, announced) = watch::channel(None);
    let (look, every) = (Arc::new(Notify::new()), Duration::from_millis(config.report_interval_ms));
    let page = Arc::new(Mutex::new(Page::default()));
    let speaker = Speaker {
        service: config.service.clone(),
        instance: config.instance.clone(),
        fence_budget: Duration::from_millis(config.fence_budget_ms),
        label: format!("agent of {}", config.instance),
    };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(link::run(client, speaker, heard_tx));
    tasks.spawn(senses::observe(Arc::clone(&engine), every, Arc::clone(&look), reports.clone()));
    tasks.spawn(senses::probe(
        Arc::clone(&engine),
        guard.clone(),
        every,
        wanted.clone(),
        reports.clone(),
    ));
    let sessions = senses::sessions(
        Arc::clone(&engine),
        guard.clone(),
        every,
        wanted.clone(),
        reports.clone(),
    );
    tasks.spawn(sessions);
    tasks.spawn(senses::certify(Arc::clone(&engine), wanted, reports.clone()));
    tasks.spawn(prepare::checkpoint(Arc::clone(&engine), announced, reports.clone()));
    let port = Arc::clone(&page);
    let address = config.http.address.clone();
    let listener = tokio::net::TcpListener::bind(&address)
        .await
        .map_err(|source| StartError::Http { address, source })?;
    tasks.spawn(async move {
        if let Err(error) = http::serve(listener, port).await {
            tracing::error!(%error, "health checks are not served any more");
        }
    });

    let postgres = &config.postgres;
    let agent = Agent {
        tools: Tools {
            engine,
            guard: guard.clone(),
            me: config.instance.clone(),
            led: notes.book.led,
            lowered: Wanted::default(),
            declared: Vec::new(),
            log: postgres.data_dir.with_extension("log"),
            dir: postgres.data_dir.parent().map(Into::into).unwrap_or_else(|| "/".into()),
            turn: Arc::default(),
            checkpointed: None,
        },
        arms: guard.status().lease.number.0,
        guard,
        notes,
        local: known,
        sights: Sights::default(),
        page,
        steady: Steady::default(),
        naming: Naming::Never,
        status: Status { path: config.state_dir.join("status.json") },
        report_every: every,
        check: config.http.told(),
        fence_budget_ms: config.fence_budget_ms,
        nonce,
        look,
        canary,
        prepare,
        reports,
        told: Told::default(),
        session: None,
        mark: Revision(0),
        instruction: None,
        sender: None,
        right: Right::default(),
        armed_until: None,
        disarmed: None,
        crashed_at: None,
        is_over: false,
        busy: None,
        inspects: false,
        failures: 0,
        said_end: true,
        refused: Refusals::default(),
        not_before: None,
        asked: std::collections::BTreeMap::new(),
        asks: 0,
        reported: None,
        last_said: String::new(),
    };
    tracing::info!(service = %config.service, instance = %config.instance, "the agent runs");
    let ended = agent.run(heard, news, done, stop).await;
    tasks.abort_all();
    ended
}

/// What a former start of the agent left running is taken over (E2): the fencer never stopped.
async fn adopt(known: &mut Local, guard: &Guard, notes: &Notes, engine: &dyn Engine) {
    if !guard.is_running() {
        // Without a receipt nobody has seen an end: what ran was started by somebody else.
        known.proven = crate::guard::is_proof(&guard.status());
        return;
    }
    known.started(0);
    known.shut = false;
    let asked = regent_fencer::clock::now();
    if let Ok(seen) = engine.observe(Duration::from_secs(1)).await {
        // Whether clients may connect is not asked: letting them in again does no harm, nor does
        // shutting them out once more before a promotion.
        known.observed(asked, local::seen(seen), regent_fencer::clock::now());
    }
    tracing::info!(led = %notes.book.led, "took over what runs under the fencer");
}
