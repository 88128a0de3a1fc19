//! Logs to standard error (text or JSON) and, when an endpoint is configured, traces over OTLP.
//!
//! Logging must never be able to stop a node: lines go to standard error and nowhere else, traces
//! go through a bounded queue that drops when the collector is slow. Secrets have no business in a
//! log line: connection strings, keys and proclaimed values are never fields of an event.

pub mod filter;
pub mod request;

use std::io::IsTerminal;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider,
};
use tracing::Level;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use filter::{FilterError, LOG_ENV};

/// Spans waiting for the collector: a few seconds of a busy node; beyond that they are dropped.
const MAX_QUEUED_SPANS: usize = 4096;
/// Spans in one export.
const MAX_EXPORT_SPANS: usize = 512;
/// How long shutting down waits for a collector that does not answer.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one export may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// What is logged, how, and where traces go.
#[derive(Clone, Debug)]
pub struct TelemetryConfig {
    /// One JSON object a line instead of text.
    pub json: bool,
    /// Directives as in [`filter::parse`]; the environment's [`LOG_ENV`] goes before it.
    pub directives: String,
    /// `http://host:port` of an OTLP collector (gRPC); `None`: no traces.
    pub otlp_endpoint: Option<String>,
    /// Share of requests that are traced, 0.0 to 1.0.
    pub otlp_sample_ratio: f64,
    /// Node id or name, as a resource attribute.
    pub node: String,
    /// Cluster name, as a resource attribute.
    pub cluster: String,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            json: false,
            directives: "info".to_owned(),
            otlp_endpoint: None,
            otlp_sample_ratio: 1.0,
            node: String::new(),
            cluster: String::new(),
        }
    }
}

/// Logging cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The directives cannot be read.
    #[error("the log filter cannot be read")]
    Filter(#[from] FilterError),
    /// The endpoint is not one that this build can reach.
    #[error(
        "the OTLP endpoint {0:?} must begin with http://: put a local collector in front for TLS"
    )]
    Endpoint(String),
    /// The exporter refused its configuration.
    #[error("the OTLP exporter cannot be built")]
    Exporter(#[source] opentelemetry_otlp::ExporterBuildError),
    /// Something else set up logging before.
    #[error("logging is set up already")]
    Already,
}

/// Keeps the exporter alive; flushes it when shut down.
#[derive(Debug, Default)]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Sends what is queued and stops. Blocks for at most two seconds: call it last, outside async
    /// code (`spawn_blocking`).
    pub fn shutdown(self) {
        if let Some(provider) = self.provider
            && let Err(error) = provider.shutdown_with_timeout(FLUSH_TIMEOUT)
        {
            eprintln!("the last traces could not be delivered: {error}");
        }
    }
}

/// Sets up logging for the process. Inside a tokio runtime when `otlp_endpoint` is set.
///
/// # Errors
/// [`TelemetryError`] names what is wrong with the configuration.
pub fn init(config: &TelemetryConfig) -> Result<Telemetry, TelemetryError> {
    let (targets, said) = filter::from_environment(&config.directives)?;
    let terminal = std::io::stderr().is_terminal();
    let format = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let format = if config.json {
        format.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
    } else {
        format.with_ansi(terminal).boxed()
    };
    let provider = config.otlp_endpoint.as_deref().map(|to| tracer(to, config)).transpose()?;
    let traces = provider.as_ref().map(|provider| {
        let tracer = provider.tracer("regent");
        tracing_opentelemetry::layer().with_tracer(tracer).with_filter(traced())
    });
    tracing_subscriber::registry()
        .with(format.with_filter(targets))
        .with(traces)
        .try_init()
        .map_err(|_| TelemetryError::Already)?;
    if let Some(problem) = said {
        tracing::warn!(%problem, "{LOG_ENV} is ignored");
    }
    Ok(Telemetry { provider })
}

/// What is exported as traces: Regent's own spans only, those of every call among them. The exporter
/// speaks gRPC itself, and tracing its calls would feed it for ever.
fn traced() -> Targets {
    Targets::new()
        .with_target("regent", Level::INFO)
        .with_target(request::REQUEST_TARGET, Level::DEBUG)
}

fn tracer(endpoint: &str, config: &TelemetryConfig) -> Result<SdkTracerProvider, TelemetryError> {
    if !endpoint.starts_with("http://") {
        return Err(TelemetryError::Endpoint(endpoint.to_owned()));
    }
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(TelemetryError::Exporter)?;
    let batch = BatchConfigBuilder::default()
        .with_max_queue_size(MAX_QUEUED_SPANS)
        .with_max_export_batch_size(MAX_EXPORT_SPANS)
        .with_scheduled_delay(Duration::from_secs(1))
        .build();
    let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batch).build();
    let resource = Resource::builder()
        .with_service_name("regent")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", config.node.clone()))
        .with_attribute(KeyValue::new("regent.cluster", config.cluster.clone()))
        .build();
    let ratio = config.otlp_sample_ratio.clamp(0.0, 1.0);
    Ok(SdkTracerProvider::builder()
        .with_span_processor(processor)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio))))
        .with_resource(resource)
        .build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_this_build_cannot_reach_is_refused_and_named() {
        let refused = tracer("https://collector:4317", &TelemetryConfig::default());
        let text = refused.expect_err("no TLS in the exporter").to_string();
        assert!(text.contains("https://collector:4317"), "{text}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_collector_that_is_not_there_holds_nothing_up() {
        // Port 9 (discard) of loopback: nothing listens there.
        let provider = tracer("http://127.0.0.1:9", &TelemetryConfig::default()).expect("builds");
        let tracer = provider.tracer("regent");
        let before = std::time::Instant::now();
        for _ in 0..20_000 {
            drop(opentelemetry::trace::Tracer::start(&tracer, "span"));
        }
        assert!(before.elapsed() < Duration::from_secs(5), "spans wait for the collector");
        let telemetry = Telemetry { provider: Some(provider) };
        tokio::task::spawn_blocking(move || telemetry.shutdown()).await.expect("returns");
        assert!(before.elapsed() < Duration::from_secs(10), "shutdown waits for the collector");
    }
}
