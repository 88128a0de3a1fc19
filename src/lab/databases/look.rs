//! How the databases are now: processes from `/proc` and the agents' own notes, roles from the
//! agents' HTTP ports, replication from the primary itself.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use regent_core::spec::Mode;

use super::{Databases, LabInstance, Proxy, ProxyView, http, owned};
use crate::layout::Lab;
use crate::process::Life;
use crate::writer::Access;

/// How long an agent may take to answer.
const PATIENCE: Duration = Duration::from_millis(1_000);

/// The databases as they are now: the part of a lab's object that only labs with databases have.
#[derive(Clone, Debug, Serialize)]
pub struct DatabasesView {
    /// The service's name.
    pub service: String,
    /// What was declared of it.
    pub policy: PolicyView,
    /// The instances.
    pub instances: Vec<InstanceView>,
    /// A role that may log in.
    pub user: String,
    /// Its password.
    pub password: String,
    /// Its database.
    pub dbname: String,
    /// HAProxy in front of them; `None`: clients name every instance.
    pub haproxy: Option<ProxyView>,
    /// Envoy in front of them.
    pub envoy: Option<ProxyView>,
}

/// What the lab declares of its service; the rest are the mode's defaults.
#[derive(Clone, Debug, Serialize)]
pub struct PolicyView {
    /// `lease` or `quorum`.
    pub mode: &'static str,
    /// The primary's lease.
    pub ttl_ms: u64,
    /// Least time between two automatic failovers: none in a lab.
    pub failover_cooldown_ms: u64,
    /// Whose loss must be survivable.
    pub survive: &'static str,
}

/// One instance as it is now.
#[derive(Clone, Debug, Serialize)]
pub struct InstanceView {
    /// Its name.
    pub id: String,
    /// Its zone.
    pub zone: String,
    /// `primary`, `standby`, or what else its agent says; empty when nobody says anything.
    pub role: String,
    /// Its agent says that it may be used in its role.
    pub healthy: bool,
    /// Clients may write (the agent's word).
    pub open: bool,
    /// Its end is certain when its lease is (the agent's word).
    pub armed: bool,
    /// The epoch it acts under, as its agent writes it.
    pub epoch: Value,
    /// Where clients reach it.
    pub host: String,
    /// Port for clients.
    pub port: u16,
    /// `host:port` where its agent answers HTTP.
    pub http: String,
    /// PostgreSQL's data.
    pub data_dir: PathBuf,
    /// What the agent's process does.
    pub agent: Life,
    /// The agent; `None`: dead.
    pub agent_pid: Option<u32>,
    /// The fencer; `None`: dead.
    pub fencer_pid: Option<u32>,
    /// PostgreSQL's first process; `None`: dead.
    pub postmaster_pid: Option<u32>,
    /// What went wrong last, in the agent's words; empty: nothing.
    pub problem: String,
    /// Where the agent's output goes.
    pub log: PathBuf,
}

/// What an agent writes down about itself, whenever it changes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct StatusFile {
    agent_pid: Option<i64>,
    fencer_pid: Option<i64>,
    postmaster_pid: Option<i64>,
    role: Option<String>,
    epoch: Value,
    open: bool,
    armed: bool,
    problem: String,
}

impl Databases {
    /// What the lab declares.
    pub fn policy(&self) -> PolicyView {
        PolicyView {
            mode: word(self.mode),
            ttl_ms: self.ttl_ms,
            failover_cooldown_ms: 0,
            survive: if self.instances.len() > 1 { "zone" } else { "instance" },
        }
    }

    /// How its clients log in.
    pub fn access(&self) -> Access {
        Access {
            hosts: self.instances.iter().map(|one| (one.host.clone(), one.port)).collect(),
            user: self.user.clone(),
            password: self.password.clone(),
            dbname: self.dbname.clone(),
            from: None,
            via: None,
        }
    }

    /// How its clients log in through HAProxy's write port; `None`: the lab has no HAProxy.
    pub fn through_haproxy(&self) -> Option<Access> {
        self.haproxy.as_ref().map(|proxy| self.through(proxy))
    }

    /// The same through Envoy's.
    pub fn through_envoy(&self) -> Option<Access> {
        self.envoy.as_ref().map(|proxy| self.through(proxy))
    }

    /// How its clients log in through the write port of one of its proxies.
    pub(super) fn through(&self, proxy: &Proxy) -> Access {
        let write = &proxy.write;
        Access { via: Some((write.host.clone(), write.port)), ..self.access() }
    }

    /// The instance with this name.
    pub fn instance(&self, id: &str) -> Option<&LabInstance> {
        self.instances.iter().find(|instance| instance.id == id)
    }
}

impl DatabasesView {
    /// The one instance that is primary, open and healthy.
    pub fn primary(&self) -> Option<&InstanceView> {
        let mut primaries = self.instances.iter().filter(|one| one.is_primary());
        primaries.next().filter(|_| primaries.next().is_none())
    }
}

impl InstanceView {
    /// A primary that may be used.
    pub fn is_primary(&self) -> bool {
        self.healthy && self.role == "primary"
    }

    /// A standby that may be used.
    pub fn is_standby(&self) -> bool {
        self.healthy && self.role == "standby"
    }
}

/// A mode as people write it.
pub const fn word(mode: Mode) -> &'static str {
    match mode {
        Mode::Lease => "lease",
        Mode::Quorum => "quorum",
    }
}

/// Looks at every instance at once; `None` for a lab without databases.
pub async fn view(lab: &Lab) -> Option<DatabasesView> {
    let databases = lab.databases.as_ref()?;
    let looks = databases.instances.iter().map(|instance| look(lab, instance));
    Some(DatabasesView {
        service: databases.service.clone(),
        policy: databases.policy(),
        instances: futures::future::join_all(looks).await,
        user: databases.user.clone(),
        password: databases.password.clone(),
        dbname: databases.dbname.clone(),
        haproxy: databases.haproxy.as_ref().map(Proxy::view),
        envoy: databases.envoy.as_ref().map(Proxy::view),
    })
}

async fn look(lab: &Lab, instance: &LabInstance) -> InstanceView {
    let told = status_file(instance);
    let agent = instance.process.as_ref().map_or(Life::Dead, |process| process.life());
    let (primary, replica) = if agent == Life::Running {
        tokio::join!(
            http::get(&instance.http, "/primary", PATIENCE),
            http::get(&instance.http, "/replica", PATIENCE)
        )
    } else {
        (None, None)
    };
    let is = |answer: &Option<http::Answer>| answer.as_ref().is_some_and(|one| one.code == 200);
    let role = match (is(&primary), is(&replica)) {
        (true, _) => "primary".to_owned(),
        (false, true) => "standby".to_owned(),
        // Neither: what it wrote down last, if it is alive to have meant it.
        _ => told.role.filter(|_| agent != Life::Dead).unwrap_or_default(),
    };
    let pid = |pid: Option<i64>| {
        let pid = pid.and_then(|pid| u32::try_from(pid).ok());
        pid.filter(|pid| owned::if_of(lab, instance, *pid).is_some())
    };
    let started = instance.process.as_ref().filter(|_| agent != Life::Dead).map(|p| p.pid);
    InstanceView {
        id: instance.id.clone(),
        zone: instance.zone.clone(),
        role,
        healthy: is(&primary) || is(&replica),
        open: told.open && agent != Life::Dead,
        armed: told.armed && agent != Life::Dead,
        epoch: told.epoch,
        host: instance.host.clone(),
        port: instance.port,
        http: instance.http.clone(),
        data_dir: instance.data_dir(),
        agent,
        agent_pid: started.or_else(|| pid(told.agent_pid)),
        fencer_pid: pid(told.fencer_pid),
        postmaster_pid: pid(told.postmaster_pid),
        problem: told.problem,
        log: instance.log(),
    }
}

/// Nothing, when there is no file or a half-written one: the next look sees the rest.
fn status_file(instance: &LabInstance) -> StatusFile {
    let text = std::fs::read(instance.status_file()).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// What keeps the databases from being one open primary with all others streaming from it, in the
/// sync set where there is one; `Ok` when nothing does.
///
/// # Errors
/// In words, for people.
pub async fn redundant(lab: &Lab) -> Result<DatabasesView, String> {
    let databases = lab.databases.as_ref().ok_or("the lab has no databases")?;
    let seen = view(lab).await.ok_or("the lab has no databases")?;
    let states: Vec<String> = seen
        .instances
        .iter()
        .filter(|one| !one.healthy)
        .map(|one| {
            let role = if one.role.is_empty() { "silent" } else { &one.role };
            format!("{} is {role}", one.id)
        })
        .collect();
    if !states.is_empty() {
        return Err(format!("not ready: {}", states.join(", ")));
    }
    let Some(primary) = seen.primary() else {
        return Err("not exactly one of them is primary".to_owned());
    };
    let others: Vec<&str> =
        seen.instances.iter().map(|one| one.id.as_str()).filter(|id| *id != primary.id).collect();
    let access = databases.access();
    let at = databases.instances.iter().position(|one| one.id == primary.id).unwrap_or(0);
    let (streams, names) = access
        .replication(at, PATIENCE)
        .await
        .map_err(|error| format!("{} cannot be asked: {error}", primary.id))?;
    if streams < others.len() {
        return Err(format!("{streams} of {} standbys stream from {}", others.len(), primary.id));
    }
    let missing: Vec<&str> =
        others.into_iter().filter(|id| !names.contains(&format!("\"{id}\""))).collect();
    if databases.mode == Mode::Quorum && !missing.is_empty() {
        return Err(format!("not in the sync set ({names}): {}", missing.join(", ")));
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::databases::tests::lab;

    #[tokio::test]
    async fn instances_that_never_ran_are_shown_dead_with_what_a_client_needs() {
        let lab = lab();
        let seen = view(&lab).await.expect("it has databases");
        assert!(seen.primary().is_none());
        let value = serde_json::to_value(&seen).expect("plain data");
        assert_eq!(value["instances"][2]["id"], "pg3");
        assert_eq!(value["instances"][2]["agent"], "dead");
        assert_eq!(value["instances"][2]["agent_pid"], Value::Null);
        assert_eq!(value["policy"]["mode"], "quorum");
        assert_eq!((&value["user"], &value["haproxy"]), (&"app".into(), &Value::Null));
        let why = redundant(&lab).await.expect_err("nothing runs");
        assert!(why.contains("pg1 is silent"), "{why}");
    }

    #[test]
    fn an_agents_note_with_other_keys_is_read_all_the_same() {
        let text = r#"{"agent_pid":7,"fencer_pid":null,"role":"primary","epoch":"1.42",
                       "open":true,"armed":false,"since":9}"#;
        let told: StatusFile = serde_json::from_str(text).expect("read");
        assert_eq!((told.agent_pid, told.fencer_pid), (Some(7), None));
        assert_eq!((told.role.as_deref(), told.open), (Some("primary"), true));
        assert_eq!(told.epoch, "1.42");
    }
}
