//! A channel to one node: dials when first used, again when the connection broke, with whatever
//! certificates are in force at that moment.
//!
//! The URI says `http://` because TLS is done in the connector ([`Tls::dial`]); tonic refuses
//! `https://` when its own TLS is compiled out.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

use crate::limits::{CONNECT_TIMEOUT, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT};
use crate::tls::{ExpectPeer, Tls};

/// How to dial.
#[derive(Clone, Copy, Debug)]
pub struct ChannelOptions {
    /// Longest wait for TCP and TLS.
    pub connect_timeout: Duration,
    /// After this long without a frame the peer is asked for a sign of life.
    pub keepalive_interval: Duration,
    /// Without one for this long the connection is given up.
    pub keepalive_timeout: Duration,
    /// HTTP/2 windows of stream and connection, in bytes; `None`: 64 KiB. Snapshots and append
    /// streams among nodes want more.
    pub window: Option<u32>,
}

impl Default for ChannelOptions {
    fn default() -> Self {
        Self {
            connect_timeout: CONNECT_TIMEOUT,
            keepalive_interval: KEEPALIVE_INTERVAL,
            keepalive_timeout: KEEPALIVE_TIMEOUT,
            window: None,
        }
    }
}

/// Not `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{address:?} is no address; use <host>:<port>")]
pub struct BadAddress {
    /// What was given.
    pub address: String,
}

/// A lazy channel to `address` (`host:port`), at which `expect` must answer.
///
/// # Errors
/// [`BadAddress`]; nothing is dialled here.
pub fn connect_lazy(
    address: &str,
    tls: Arc<Tls>,
    expect: ExpectPeer,
    options: ChannelOptions,
) -> Result<Channel, BadAddress> {
    let bad = || BadAddress { address: address.to_owned() };
    let port = address.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
    if !matches!(port, Some(Ok(_))) {
        return Err(bad());
    }
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| bad())?
        .connect_timeout(options.connect_timeout)
        .http2_keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(options.window)
        .initial_connection_window_size(options.window)
        .tcp_nodelay(true);
    let address: Arc<str> = Arc::from(address);
    let dial = move |_: http::Uri| {
        let (tls, expect, address) = (Arc::clone(&tls), expect.clone(), Arc::clone(&address));
        async move { tls.dial(&address, &expect).await.map(TokioIo::new) }
    };
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(dial)))
}
