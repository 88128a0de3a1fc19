//! What the lab's own tools (demo, bench) ask of the nodes, with the operator's identity.

use std::time::Duration;

use regent_core::id::ServiceName;
use regent_lab::Lab;
use regent_rpc::client::{Client, ClientOptions, Wanted};
use regent_rpc::convert::common::Freshness;
use regent_rpc::pb::v1;
use regent_rpc::tls::{Tls, TlsFiles};

use crate::connect::from_call;
use crate::error::{CliError, Context as _, Outcome};

/// A role change may wait for an election.
const PATIENCE: Duration = Duration::from_secs(10);

/// A lab's operator, and the service it looks at.
#[derive(Clone)]
pub struct Operator {
    client: Client,
    service: ServiceName,
}

impl Operator {
    /// Must be called in a tokio runtime.
    ///
    /// # Errors
    /// The lab has no database, or its certificates cannot be used.
    pub fn of(lab: &Lab) -> Outcome<Self> {
        let databases =
            lab.databases.as_ref().ok_or_else(|| CliError::usage("the lab has no databases"))?;
        let service = ServiceName::parse(&databases.service)
            .or_internal(|| "the lab's service has no name".to_owned())?;
        let all = lab.certificates();
        let tls = Tls::load(TlsFiles {
            cert: all.operator.cert,
            key: all.operator.key,
            ca: all.ca,
            revoked: None,
            trust: Some(lab.trust_domain.clone()),
        })
        .or_internal(|| "cannot use the lab's certificates".to_owned())?;
        let options = ClientOptions { timeout: PATIENCE, ..ClientOptions::default() };
        let client = Client::new(&lab.endpoints(), tls, options)
            .or_internal(|| "cannot use the lab's endpoints".to_owned())?;
        Ok(Self { client, service })
    }

    /// The newest role change; `None`: there was none, or nobody answers.
    pub async fn newest(&self) -> Option<v1::Operation> {
        let asked = self.client.show_operation(&self.service, None, Freshness::Linearizable).await;
        asked.ok()?.operation
    }

    /// Asks for another primary.
    ///
    /// # Errors
    /// Refused, or nobody answers.
    pub async fn switchover(&self, reason: &str) -> Outcome {
        let service = self.service.clone();
        let wanted = Wanted { service, to: None, reason: reason.to_owned(), seen: None };
        let asked = self.client.switchover(&wanted).await;
        asked.map(|_| ()).map_err(|error| from_call("switch over", &error))
    }

    /// Tells every new state of the newest role change, for as long as it is awaited. A watch that
    /// ends (its node died) is begun again.
    pub async fn watch(&self, mut told: impl FnMut(v1::Operation)) {
        loop {
            if let Ok(mut changes) = self.client.watch_operations(&self.service).await {
                while let Ok(Some(message)) = changes.message().await {
                    message.operation.into_iter().for_each(&mut told);
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
