//! DNS from this node, for whoever can reach the port: it says what the routes say at that moment.
//!
//! A node that knows nothing yet, or stops, answers SERVFAIL, so that its asker turns to another one:
//! "no such name" and "nobody" would be believed, and kept for as long as the TTL says.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use regent_core::id::{Locality, ServiceName};
use regent_core::route::table::Routes;
use regent_dns::{Bounds, Known, Outcome, Ports, Source, Zone, label_of, serve};
use tokio::sync::watch;

use crate::config::NodeConfig;
use crate::http::metrics::Label;
use crate::routes::{LOOK_FIRST, Told};
use crate::run::RunError;
use crate::shell::Shell;

/// How often a node that is not ready yet is looked at.
const READY_EVERY: Duration = Duration::from_millis(20);
/// At most this often the names are made anew, while services are being declared.
const NAMES_EVERY: Duration = Duration::from_millis(50);

impl Label for Outcome {
    const ALL: &'static [&'static str] = &[
        "answered",
        "no_data",
        "no_name",
        "not_here",
        "refused",
        "malformed",
        "not_implemented",
        "bad_version",
        "dropped",
    ];
    fn place(self) -> usize {
        self as usize
    }
}

/// The sockets that a node was told to open, and what it answers there.
pub struct Opened {
    ports: Ports,
    zone: Zone,
    /// Where they are.
    pub address: SocketAddr,
}

/// Opens what `config` asks for.
///
/// # Errors
/// [`RunError::Listen`].
pub async fn open(config: &NodeConfig) -> Result<Option<Opened>, RunError> {
    let Some(dns) = &config.dns else { return Ok(None) };
    let failed = |source| RunError::Listen { address: format!("{} (DNS)", dns.listen), source };
    // Both were checked with all of the configuration.
    let wrong = || failed(std::io::ErrorKind::InvalidInput.into());
    let at = dns.listen.parse().map_err(|_| wrong())?;
    let ports = Ports::open(at).await.map_err(failed)?;
    let address = ports.address().map_err(failed)?;
    let Some(zone) = dns.zone(address) else { return Err(wrong()) };
    Ok(Some(Opened { ports, zone, address }))
}

/// Answers for as long as the node runs.
pub fn begin(shell: &Arc<Shell>, opened: Opened) {
    let Opened { ports, zone, address } = opened;
    tracing::info!(%address, "answering DNS");
    let source = Arc::new(DnsSource {
        shell: shell.clone(),
        zone: zone.clone(),
        names: ArcSwapOption::empty(),
        followed: Mutex::default(),
    });
    shell.duties.spawn("names of DNS", source.clone().name_forever());
    shell.duties.spawn("DNS", serve(ports, zone, source, Bounds::default()));
}

/// The services by their labels, and where this node is.
struct Names {
    services: HashMap<String, ServiceName>,
    place: Locality,
}

/// The routes of this node, by the labels of services.
struct DnsSource {
    shell: Arc<Shell>,
    zone: Zone,
    /// `None`: nothing can be said yet.
    names: ArcSwapOption<Names>,
    /// What was asked for once is followed: its table is then at hand, whoever asks how often.
    followed: Mutex<HashMap<ServiceName, watch::Receiver<Told>>>,
}

impl Source for DnsSource {
    fn find(&self, label: &str) -> Known {
        let names = self.names.load();
        let Some(names) = names.as_ref().filter(|_| !self.shell.is_stopping()) else {
            return Known::NotHere;
        };
        let Some(service) = names.services.get(label) else { return Known::Nothing };
        match self.shell.routes.current(service).or_else(|| self.follow(service)) {
            Some(Some(routes)) => Known::Routes(routes),
            // It was declared no more a moment ago.
            Some(None) => Known::Nothing,
            None => Known::NotHere,
        }
    }

    fn serial(&self) -> u32 {
        // Serials wrap, and are compared so (RFC 1982).
        (self.shell.state.read().revision().0 & u64::from(u32::MAX)) as u32
    }

    fn place(&self) -> Locality {
        self.names.load().as_ref().map(|names| names.place.clone()).unwrap_or_default()
    }

    fn noted(&self, outcome: Outcome) {
        self.shell.metrics.dns_questions.inc(outcome);
    }
}

impl DnsSource {
    /// The routes of a service that nobody has asked for yet; `None`: they cannot be followed.
    fn follow(&self, service: &ServiceName) -> Option<Told> {
        let told = {
            let state = self.shell.state.read();
            self.shell.routes.follow(&state, service)
        };
        let told = match told {
            Ok(told) => told,
            Err(status) => {
                tracing::warn!(%service, why = status.message(), "DNS cannot answer for it");
                return None;
            }
        };
        let routes = told.borrow().clone();
        if let Some(routes) = &routes {
            self.say_who_is_left_out(routes);
        }
        self.followed.lock().insert(service.clone(), told);
        Some(routes)
    }

    fn say_who_is_left_out(&self, routes: &Routes) {
        let service = &routes.service;
        for one in &routes.all {
            let (instance, address) = (one.instance.as_str(), one.address.as_str());
            if let Some(why) = self.zone.leaves_out(service.as_str(), instance, address) {
                tracing::warn!(%service, instance, address, why, "DNS leaves an instance out");
            }
        }
    }

    /// Keeps the names current, from when this node can say who is primary.
    async fn name_forever(self: Arc<Self>) {
        while !self.shell.health.get().is_ready() {
            tokio::time::sleep(READY_EVERY).await;
        }
        // Renewals of the sessions that live have been seen by then: nobody is not said too early.
        tokio::time::sleep(LOOK_FIRST).await;
        let mut declared = self.shell.routes.declared();
        let mut left_out = BTreeSet::new();
        loop {
            declared.mark_unchanged();
            self.name(&mut left_out);
            if declared.changed().await.is_err() {
                // The hub lives as long as the shell, which is held here.
                return;
            }
            tokio::time::sleep(NAMES_EVERY).await;
        }
    }

    fn name(&self, left_out: &mut BTreeSet<ServiceName>) {
        let names: Vec<ServiceName> = self.shell.state.read().services().keys().cloned().collect();
        let node = self.shell.node;
        let status = self.shell.leadership.status();
        let own = status.members.iter().find(|(id, _, _)| *id == node);
        let place = own.map(|(_, member, _)| member.locality.clone()).unwrap_or_default();
        let (services, left) = by_label(names);
        for (service, why) in &left {
            if !left_out.contains(service) {
                tracing::warn!(%service, why, "DNS does not answer for it");
            }
        }
        *left_out = left.into_iter().map(|(service, _)| service).collect();
        self.followed.lock().retain(|service, _| {
            label_of(service.as_str()).is_some_and(|label| services.get(&label) == Some(service))
        });
        self.names.store(Some(Arc::new(Names { services, place })));
    }
}

/// Services by their labels, and those that have none of their own. Of names that differ in case
/// alone the one in lower case has it: the label of a service must not become another's.
fn by_label(
    names: Vec<ServiceName>,
) -> (HashMap<String, ServiceName>, Vec<(ServiceName, &'static str)>) {
    let mut left = Vec::new();
    let mut all: HashMap<String, Vec<ServiceName>> = HashMap::new();
    for name in names {
        match label_of(name.as_str()) {
            Some(label) => all.entry(label).or_default().push(name),
            None => {
                left.push((name, "its name is no label: letters, digits, '-', '_', at most 63"))
            }
        }
    }
    let mut services = HashMap::new();
    for (label, names) in all {
        let alone = names.len() == 1;
        for name in names {
            if alone || name.as_str() == label {
                services.insert(label.clone(), name);
            } else {
                left.push((name, "another service's name differs in case alone"));
            }
        }
    }
    (services, left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_label_is_one_services_and_a_later_one_does_not_take_it() {
        let long = "x".repeat(64);
        let names = ["Billing", "ORDERS", "Orders", "orders", "A", "a_1-x", "a.b", "a/b", &long];
        let names = names.map(|name| name.parse().expect("a name"));
        let (services, left) = by_label(names.into());
        let mut got: Vec<_> = services.iter().map(|(l, s)| format!("{l}={s}")).collect();
        got.sort();
        assert_eq!(got, ["a=A", "a_1-x=a_1-x", "billing=Billing", "orders=orders"]);
        let left: BTreeSet<_> = left.iter().map(|(service, _)| service.as_str()).collect();
        assert_eq!(left, BTreeSet::from(["ORDERS", "Orders", "a.b", "a/b", &long]));
        // Nobody has it where none is spelled as the label.
        let two = ["ORDERS", "Orders"].map(|name| name.parse().expect("a name"));
        assert!(by_label(two.into()).0.is_empty());
    }
}
