//! From flags, environment and `client.toml` to answers: settings, channels, and one way to ask.
//!
//! [`Cluster::ask`] tries the nodes in turn until one answers or the time is up. A write carries a
//! request id, so asking a second node after a lost answer cannot do a thing twice.

use std::error::Error as _;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::RngExt as _;
use regent_rpc::calls::REQUEST_ID;
use regent_rpc::channel::{ChannelOptions, connect_lazy};
use regent_rpc::client::{CallError, Client, ClientOptions};
use regent_rpc::convert::status::{Refused, rule};
use regent_rpc::pb::v1;
use regent_rpc::tls::{ExpectPeer, Tls, TlsFiles, Watching};
use tonic::transport::Channel;
use tonic::{Code, ConnectError, Response, Status};

use crate::args::Globals;
use crate::config::ClientFile;
use crate::error::{CliError, Context as _, Outcome};

/// First pause before the nodes are asked again; doubled each round, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// An election takes a few hundred milliseconds; waiting longer between tries helps nobody.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Everything needed to reach a cluster, from all sources together.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `host:port` of nodes.
    pub endpoints: Vec<String>,
    /// Certificate chain.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// Certificate authorities of the nodes.
    pub ca: PathBuf,
    /// Trust domain of the cluster; `None`: the one of the certificate.
    pub trust_domain: Option<String>,
    /// How long one request may take.
    pub timeout: Duration,
}

impl Settings {
    /// Puts flags and environment over the file.
    ///
    /// # Errors
    /// Names everything that is missing at once, and how to give it.
    pub fn resolve(globals: &Globals) -> Outcome<Self> {
        let file = match &globals.config {
            Some(path) => ClientFile::read(path)?,
            None => ClientFile::default(),
        };
        let endpoints =
            if globals.endpoints.is_empty() { file.endpoints } else { globals.endpoints.clone() };
        let cert = globals.cert.clone().or(file.cert);
        let key = globals.key.clone().or(file.key);
        let ca = globals.ca.clone().or(file.ca);
        let trust_domain = globals.trust_domain.clone().or(file.trust_domain);
        match (cert, key, ca) {
            (Some(cert), Some(key), Some(ca)) if !endpoints.is_empty() => {
                Ok(Self { endpoints, cert, key, ca, trust_domain, timeout: globals.timeout })
            }
            (cert, key, ca) => {
                let missing = [
                    (endpoints.is_empty(), "--endpoints (REGENT_ENDPOINTS): which nodes to ask"),
                    (cert.is_none(), "--cert (REGENT_CERT): the certificate that says who you are"),
                    (key.is_none(), "--key (REGENT_KEY): its private key"),
                    (ca.is_none(), "--ca (REGENT_CA): the authority that signed the nodes"),
                ];
                let error = CliError::usage("not enough is known to reach a cluster").hint(
                    "put them into a file and give it as --config (REGENT_CONFIG); for a lab use \
                     `regent lab exec --dir D -- <verb>`",
                );
                Err(missing
                    .into_iter()
                    .filter(|(absent, _)| *absent)
                    .fold(error, |error, (_, name)| error.because(format!("missing {name}"))))
            }
        }
    }
}

/// The nodes of a cluster, ready to be asked.
#[derive(Debug)]
pub struct Cluster {
    settings: Settings,
    nodes: Vec<(String, Channel)>,
    /// For nodes that only a hint names.
    dialer: Dialer,
    /// Verbs that run for long (watches, followers) outlive certificates.
    _fresh: Arc<Watching>,
    /// Which node to ask first: the one that answered last.
    first: AtomicUsize,
    lane: u64,
    serial: AtomicU64,
}

impl Cluster {
    /// Makes channels to all endpoints; nothing is dialled yet.
    ///
    /// # Errors
    /// Settings are missing, or a certificate cannot be used.
    pub fn open(globals: &Globals) -> Outcome<Self> {
        Self::with(Settings::resolve(globals)?)
    }

    /// The same from settings.
    ///
    /// # Errors
    /// A certificate cannot be used, or an endpoint is no `host:port`.
    pub fn with(settings: Settings) -> Outcome<Self> {
        let dialer = Dialer::new(&settings)?;
        let nodes = settings
            .endpoints
            .iter()
            .map(|endpoint| Ok((endpoint.clone(), dialer.channel(endpoint)?)))
            .collect::<Outcome<Vec<_>>>()?;
        // A random lane: two runs of this program must never share one.
        let lane = rand::rng().random();
        let (first, serial) = (AtomicUsize::new(0), AtomicU64::new(0));
        let fresh = dialer.tls.keep_fresh();
        Ok(Self { settings, nodes, dialer, _fresh: fresh, first, lane, serial })
    }

    /// The node at this address, whether it was given or only named by another one.
    ///
    /// # Errors
    /// It is no `host:port`.
    pub fn node_at(&self, address: &str) -> Outcome<(String, Channel)> {
        match self.nodes.iter().find(|(endpoint, _)| endpoint == address) {
            Some(known) => Ok(known.clone()),
            None => Ok((address.to_owned(), self.dialer.channel(address)?)),
        }
    }

    /// A connection of its own to one node.
    ///
    /// # Errors
    /// It is no `host:port`.
    pub fn connect(&self, endpoint: &str) -> Outcome<Channel> {
        self.dialer.channel(endpoint)
    }

    /// The client library's handle on the same cluster, for leases.
    ///
    /// # Errors
    /// A certificate cannot be used, or an endpoint is no `host:port`.
    pub fn client(&self) -> Outcome<Client> {
        let tls = Arc::clone(&self.dialer.tls);
        let options = ClientOptions { timeout: self.settings.timeout, ..ClientOptions::default() };
        Client::new(&self.settings.endpoints, tls, options)
            .or_usage(|| "cannot use these endpoints".to_owned())
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// All nodes with their channels, for verbs that ask each of them.
    pub fn nodes(&self) -> &[(String, Channel)] {
        &self.nodes
    }

    /// The id of the next write: sent with every attempt of it.
    pub fn request(&self) -> Option<v1::RequestId> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed) + 1;
        Some(v1::RequestId { client: self.lane, serial })
    }

    /// Begins the next question at another node than the last one.
    pub fn prefer_next(&self) {
        self.first.fetch_add(1, Ordering::Relaxed);
    }

    /// Asks the nodes in turn until one answers, within the timeout of the settings. `what` says
    /// what is being done, as in "list services". Only for reads, and for writes with a request id.
    ///
    /// # Errors
    /// The first answer that is a refusal, or the last reason why nobody answered.
    pub async fn ask<T, F, Answer>(&self, what: &str, call: F) -> Outcome<T>
    where
        F: Fn(Channel) -> Answer,
        Answer: Future<Output = Result<Response<T>, Status>>,
    {
        self.until_answered(what, call, is_worth_another_try).await
    }

    /// The same for an act that carries no request id: asked again only after an answer that says
    /// that nothing was done.
    ///
    /// # Errors
    /// As [`Self::ask`]; an unknown outcome is an error too.
    pub async fn act<T, F, Answer>(&self, what: &str, call: F) -> Outcome<T>
    where
        F: Fn(Channel) -> Answer,
        Answer: Future<Output = Result<Response<T>, Status>>,
    {
        self.until_answered(what, call, was_not_done).await
    }

    async fn until_answered<T, F, Answer>(
        &self,
        what: &str,
        call: F,
        again: fn(&Status) -> bool,
    ) -> Outcome<T>
    where
        F: Fn(Channel) -> Answer,
        Answer: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = Instant::now() + self.settings.timeout;
        let mut pause = FIRST_PAUSE;
        let mut last: Option<(String, Status)> = None;
        loop {
            for _ in 0..self.nodes.len() {
                let at = self.first.load(Ordering::Relaxed) % self.nodes.len();
                let mut asked = Some(self.nodes[at].clone());
                // A hint is followed once: it may be as old as what its giver knows.
                let mut hinted = false;
                while let Some((endpoint, channel)) = asked.take() {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(self.nobody_answered(what, last));
                    }
                    let answer = tokio::time::timeout(left, call(channel)).await;
                    let status = match answer {
                        Ok(Ok(response)) => return Ok(response.into_inner()),
                        Ok(Err(status)) => status,
                        Err(_) => Status::deadline_exceeded("no answer in time"),
                    };
                    if !again(&status) {
                        return Err(from_status(what, &endpoint, &status));
                    }
                    if !std::mem::replace(&mut hinted, true) {
                        asked = self.leader_named_by(&status);
                    }
                    last = Some((endpoint, status));
                }
                self.first.store(at + 1, Ordering::Relaxed);
            }
            let jitter = rand::rng().random_range(0.5..1.0);
            tokio::time::sleep(pause.mul_f64(jitter)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Where the leader is, if an answer says so: a node that was added later may be in no list of
    /// endpoints.
    fn leader_named_by(&self, status: &Status) -> Option<(String, Channel)> {
        let leader = Refused::from_status(status)?.leader?;
        self.node_at(&leader.address).ok()
    }

    fn nobody_answered(&self, what: &str, last: Option<(String, Status)>) -> CliError {
        match last {
            Some((endpoint, status)) => {
                let mut error = from_status(what, &endpoint, &status);
                error.kind = crate::error::Kind::Unreachable;
                error
            }
            None => CliError::unreachable(format!("cannot {what}"))
                .because(format!("{:?} is too short a --timeout", self.settings.timeout)),
        }
    }
}

/// Makes channels with one identity.
#[derive(Debug)]
pub struct Dialer {
    tls: Arc<Tls>,
    options: ChannelOptions,
}

impl Dialer {
    /// Reads the certificates.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn new(settings: &Settings) -> Outcome<Self> {
        let files = TlsFiles {
            cert: settings.cert.clone(),
            key: settings.key.clone(),
            ca: settings.ca.clone(),
            revoked: None,
            trust: settings.trust_domain.clone(),
        };
        let tls = Tls::load(files).map_err(|error| {
            CliError::usage("cannot use these certificates")
                .caused_by(error)
                .hint("check --cert, --key and --ca; `regent pki show FILE` says what a file holds")
        })?;
        Ok(Self { tls, options: ChannelOptions::default() })
    }

    /// Trust domain of the cluster.
    pub fn trust(&self) -> String {
        self.tls.trust()
    }

    /// A new connection to one node, dialled when it is first used.
    ///
    /// # Errors
    /// The endpoint is no `host:port`.
    pub fn channel(&self, endpoint: &str) -> Outcome<Channel> {
        connect_lazy(endpoint, Arc::clone(&self.tls), ExpectPeer::AnyNode, self.options)
            .or_usage(|| format!("{endpoint:?} is no endpoint"))
    }
}

/// Whether another node, or the same one a little later, may answer. `Unknown` is how a connection
/// that was refused after the TLS handshake (TLS 1.3 rejects a client late) or broke in mid-call
/// arrives. An unknown outcome is asked for again: the request id makes that harmless.
fn is_worth_another_try(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => true,
        Code::ResourceExhausted => {
            Refused::from_status(status).is_some_and(|refused| refused.rule == rule::OVERLOADED)
        }
        _ => false,
    }
}

/// Whether nothing was done, for sure: a node of ours refused, with its details, or nobody was
/// reached. A member is often removed because it is dead, and it may be the first one asked.
fn was_not_done(status: &Status) -> bool {
    let refused = || Refused::from_status(status).is_some();
    status.code() == Code::Unavailable && (never_connected(status) || refused())
}

/// Whether there was no connection on which anything could have been sent.
fn never_connected(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// What a failed call of the client library means to a person.
pub fn from_call(what: &str, error: &CallError) -> CliError {
    from_status(what, &error.endpoint, &error.status)
}

/// What a status means to a person.
pub fn from_status(what: &str, endpoint: &str, status: &Status) -> CliError {
    let what = format!("cannot {what}");
    let message = status.message();
    let error = match status.code() {
        Code::Unavailable | Code::Cancelled => CliError::unreachable(what)
            .because(format!("{endpoint}: {message}"))
            .hint("see `regent status`; a cluster without a majority answers nobody"),
        Code::DeadlineExceeded => {
            CliError::unreachable(what).because(format!("{endpoint}: {message}")).hint(
                "the outcome of a write is unknown: look before you repeat it, or raise --timeout",
            )
        }
        Code::Unknown => {
            CliError::unreachable(what).because(format!("{endpoint}: {message}")).hint(
                "the node may have refused your certificate: check --cert, --ca and --trust-domain \
             against the node's log",
            )
        }
        Code::InvalidArgument => CliError::usage(what).because(message),
        Code::PermissionDenied | Code::Unauthenticated => CliError::refused(what)
            .because(message)
            .hint("use the certificate of a role that has this right; the attempt was recorded"),
        Code::NotFound => CliError::refused(what).because(message),
        Code::Aborted | Code::AlreadyExists => CliError::refused(what)
            .because(message)
            .hint("somebody changed it meanwhile: read it again, then decide again"),
        Code::FailedPrecondition | Code::ResourceExhausted | Code::OutOfRange => {
            CliError::refused(what).because(message)
        }
        Code::Unimplemented => CliError::internal(what)
            .because(format!("{endpoint} does not know this request"))
            .hint("it runs another version of Regent, or is no Regent node"),
        code => CliError::internal(what).because(format!("{endpoint}: {code:?}: {message}")),
    };
    with_details(error, status)
}

/// Adds what the node put into the status's details: the rule, the field, the hint.
fn with_details(mut error: CliError, status: &Status) -> CliError {
    error.code = Some(status.code());
    let id = status.metadata().get(REQUEST_ID).and_then(|id| id.to_str().ok());
    error.request = id.map(Box::from);
    let Some(refused) = Refused::from_status(status) else { return error };
    if !refused.rule.is_empty() {
        error.rule = Some(refused.rule);
    }
    // What the node advises is more precise than what the code alone suggests.
    if !refused.hint.is_empty() {
        error.hint = Some(refused.hint);
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_missing_is_named_at_once_with_a_hint() {
        let globals = Globals {
            endpoints: vec!["db1:7400".into()],
            cert: None,
            key: None,
            ca: None,
            trust_domain: None,
            config: None,
            output: crate::render::Destination::Format(crate::render::Format::Table),
            timeout: Duration::from_secs(1),
            verbose: 0,
        };
        let error = Settings::resolve(&globals).expect_err("too little");
        assert_eq!(error.kind.exit_code(), 2);
        let text = error.to_string();
        for name in ["--cert", "--key", "--ca", "hint: "] {
            assert!(text.contains(name), "{name} is missing in {text}");
        }
        assert!(!text.contains("--endpoints"), "that one was given: {text}");
    }

    #[test]
    fn each_answer_of_a_node_has_the_documented_exit_code() {
        let codes = [
            (Code::Unavailable, 3),
            (Code::DeadlineExceeded, 3),
            (Code::Unknown, 3),
            (Code::FailedPrecondition, 1),
            (Code::Aborted, 1),
            (Code::NotFound, 1),
            (Code::PermissionDenied, 1),
            (Code::ResourceExhausted, 1),
            (Code::OutOfRange, 1),
            (Code::InvalidArgument, 2),
            (Code::Internal, 4),
            (Code::DataLoss, 4),
            (Code::Unimplemented, 4),
        ];
        for (code, exit) in codes {
            let error = from_status("do it", "db1:7400", &Status::new(code, "because"));
            assert_eq!(error.kind.exit_code(), exit, "{code:?}");
        }
    }

    #[test]
    fn the_rule_and_the_hint_of_the_node_reach_the_person() {
        let refused = Refused { hint: "ask for 1900 ms".into(), ..Refused::of("c6_ttl_too_short") };
        let status = refused.into_status(Code::InvalidArgument, "a ttl of 5 ms is too short");
        let error = from_status("open a session", "db1:7400", &status);
        assert_eq!(
            error.to_string(),
            "error: cannot open a session\n  because: a ttl of 5 ms is too short\n\
             hint: ask for 1900 ms"
        );
        assert_eq!(error.to_json()["error"]["rule"], "c6_ttl_too_short");
    }

    #[test]
    fn the_id_under_which_the_nodes_log_has_a_request_reaches_the_person() {
        let mut status = Status::failed_precondition("somebody else leads");
        status.metadata_mut().insert(REQUEST_ID, "00c0ffee".parse().expect("plain"));
        let error = from_status("proclaim", "db1:7400", &status);
        let text = "error: cannot proclaim\n  because: somebody else leads\n  request 00c0ffee";
        assert_eq!(error.to_string(), text);
        assert_eq!(error.to_json()["error"]["request"], "00c0ffee");
    }

    #[test]
    fn an_act_without_a_request_id_is_not_repeated_after_an_unknown_outcome() {
        assert!(!was_not_done(&Status::unavailable("the connection broke")));
        assert!(!was_not_done(&Status::deadline_exceeded("no answer")));
        let refused = Refused::of(rule::NOT_LEADER).into_status(Code::Unavailable, "not leader");
        assert!(was_not_done(&refused));
        let unreached = ConnectError("connection refused".into());
        assert!(was_not_done(&Status::from_error(Box::new(unreached))));
    }
}
