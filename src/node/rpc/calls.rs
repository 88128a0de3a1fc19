//! In front of the services for clients: gives each call its request id, counts how it was
//! answered, and logs what was refused or failed, once, with the id that the caller sees too.
//!
//! Calls among nodes do not pass here: they are many, and belong to the calls of clients that cause
//! them. A stream is counted when it begins; how it ended is its own service's business.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::uri::PathAndQuery;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tower::Service;
use tracing::Instrument as _;
use tracing::instrument::Instrumented;

use crate::http::Metrics;
use crate::http::metrics::Answered;
use crate::telemetry::request::{Pace, REQUEST_ID, RequestId, at_once_on_behalf_of, span};

/// A service whose calls are counted, named and, when they fail, logged.
#[derive(Clone)]
pub struct Calls<S> {
    inner: S,
    pace: Pace,
    metrics: Arc<Metrics>,
}

impl<S> Calls<S> {
    /// In front of `inner`, whose calls come at `pace`.
    pub fn of(inner: S, pace: Pace, metrics: Arc<Metrics>) -> Self {
        Self { inner, pace, metrics }
    }
}

impl<S: NamedService> NamedService for Calls<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Calls<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Unpin,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Call<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let id = RequestId::of(request.headers());
        let span = span(self.pace, &id, &request);
        // Shares the request's own bytes.
        let method = request.uri().path_and_query().cloned();
        // Inside the span, because some services begin their work before they are polled.
        let inner = span.in_scope(|| self.inner.call(request)).instrument(span.clone());
        Call { inner, id, method, counted: Counted::begin(&self.metrics) }
    }
}

/// A call under way: counted once, by its answer, or as abandoned when it is dropped before.
pub struct Counted {
    metrics: Arc<Metrics>,
    answered: bool,
}

impl Counted {
    /// A call has begun.
    pub fn begin(metrics: &Arc<Metrics>) -> Self {
        Self { metrics: metrics.clone(), answered: false }
    }

    /// It was answered with `code`.
    pub fn answered(&mut self, code: Code) {
        self.answered = true;
        self.metrics.requests.inc(code.into());
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if !self.answered {
            self.metrics.requests.inc(Answered::Abandoned);
        }
    }
}

/// Logs what became of a call that did not go well. What happens to every caller while the cluster
/// elects, or is the caller's own doing, is not worth a line each unless asked for.
pub fn log(id: &RequestId, method: &str, status: &Status) {
    let (code, why) = (status.code(), status.message());
    match code {
        Code::Internal | Code::Unknown | Code::DataLoss => {
            tracing::error!(%id, method, ?code, why, "a call failed");
        }
        Code::PermissionDenied | Code::Unauthenticated => {
            tracing::warn!(%id, method, ?code, why, "a call was refused");
        }
        _ => tracing::debug!(%id, method, ?code, why, "a call was refused"),
    }
}

/// One call under way.
pub struct Call<F> {
    inner: Instrumented<F>,
    id: RequestId,
    method: Option<PathAndQuery>,
    counted: Counted,
}

impl<F> Future for Call<F>
where
    F: Future<Output = Result<http::Response<Body>, Infallible>> + Unpin,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { inner, id, .. } = &mut *self;
        let polled = at_once_on_behalf_of(id, || Pin::new(inner).poll(cx));
        let Ok(mut response) = ready!(polled);
        // A call that failed has its status in the head; one that went well has it behind the body.
        let failed = Status::from_header_map(response.headers()).filter(|s| s.code() != Code::Ok);
        self.counted.answered(failed.as_ref().map_or(Code::Ok, Status::code));
        if let Some(status) = &failed {
            let method = self.method.as_ref().map_or("", PathAndQuery::path);
            self.inner.span().in_scope(|| log(&self.id, method, status));
        }
        if failed.is_some() || matches!(self.id, RequestId::Theirs(_)) {
            response.headers_mut().insert(REQUEST_ID, self.id.to_header());
        }
        Poll::Ready(Ok(response))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::future::BoxFuture;

    /// Answers each call with the status of its `x-code`, or never.
    #[derive(Clone)]
    struct Told;

    impl Service<http::Request<Body>> for Told {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<Body>) -> Self::Future {
            let code = request.headers().get("x-code").and_then(|c| c.to_str().ok()?.parse().ok());
            Box::pin(async move {
                tracing::info!("at work");
                match code {
                    None => std::future::pending().await,
                    Some(0) => Ok(http::Response::new(Body::empty())),
                    Some(code) => Ok(Status::new(Code::from_i32(code), "told so").into_http()),
                }
            })
        }
    }

    fn ask(code: Option<i32>, id: Option<&str>) -> http::Request<Body> {
        let request = http::Request::builder().uri("/regent.v1.Any/Call");
        let request = code.iter().fold(request, |r, code| r.header("x-code", *code));
        let request = id.iter().fold(request, |r, id| r.header(REQUEST_ID, *id));
        request.body(Body::empty()).expect("a request")
    }

    #[tokio::test]
    async fn every_call_is_counted_once_by_how_it_was_answered() {
        let metrics = Arc::new(Metrics::new());
        let mut calls = Calls::of(Told, Pace::Frequent, metrics.clone());
        for code in [Code::Ok, Code::NotFound, Code::NotFound, Code::Unavailable] {
            let answered = calls.call(ask(Some(code as i32), None)).await;
            assert!(answered.is_ok());
        }
        drop(calls.call(ask(None, None)));
        let text = metrics.render();
        for (kind, count) in [("ok", 1), ("refused", 2), ("error", 1), ("abandoned", 1)] {
            let line = format!("regent_rpc_requests_count_total{{kind=\"{kind}\"}} {count}\n");
            assert!(text.contains(&line), "{kind}: {text}");
        }
    }

    /// What is logged at `info` and above.
    #[derive(Clone, Default)]
    struct Lines(Arc<parking_lot::Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// The lines that one call leaves behind.
    async fn logged(pace: Pace, code: Code) -> Vec<String> {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        // While there is but one subscriber, whether a line is wanted at all is asked of the thread
        // that comes by first, and remembered for all: a test on another thread has none, and says no.
        let _second = tracing::Dispatch::new(tracing_subscriber::registry());
        let _guard = tracing::subscriber::set_default(subscriber);
        let mut calls = Calls::of(Told, pace, Arc::new(Metrics::new()));
        assert!(calls.call(ask(Some(code as i32), Some("deploy-42"))).await.is_ok());
        let text = String::from_utf8(lines.0.lock().clone()).expect("text");
        text.lines().map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn a_rare_call_shows_its_id_in_every_line_and_a_frequent_one_where_it_fails() {
        let rare = logged(Pace::Rare, Code::Ok).await;
        assert!(rare.len() == 1 && rare[0].contains("id=deploy-42"), "{rare:?}");
        let fine = logged(Pace::Frequent, Code::Ok).await;
        assert!(fine.len() == 1 && !fine[0].contains("deploy-42"), "{fine:?}");
        for (code, level) in [(Code::Internal, "ERROR"), (Code::PermissionDenied, "WARN")] {
            let failed = logged(Pace::Frequent, code).await;
            assert_eq!(failed.len(), 2, "{failed:?}");
            assert!(failed[1].contains(level) && failed[1].contains("id=deploy-42"), "{failed:?}");
        }
        // An election makes thousands of these a second.
        assert_eq!(logged(Pace::Frequent, Code::Unavailable).await.len(), 1);
    }

    #[tokio::test]
    async fn an_answer_that_says_no_carries_the_id_and_a_good_one_the_id_that_was_sent() {
        let mut calls = Calls::of(Told, Pace::Rare, Arc::new(Metrics::new()));
        for (code, sent, carried) in [
            (Code::Ok, None, false),
            (Code::Ok, Some("deploy-42"), true),
            (Code::NotFound, Some("deploy-42"), true),
            (Code::NotFound, None, true),
        ] {
            let Ok(answer) = calls.call(ask(Some(code as i32), sent)).await;
            let id = answer.headers().get(REQUEST_ID).map(|id| id.to_str().expect("plain"));
            assert_eq!(id.is_some(), carried, "{code:?} {sent:?}");
            if let Some(sent) = sent {
                assert_eq!(id, Some(sent));
            }
        }
    }
}
