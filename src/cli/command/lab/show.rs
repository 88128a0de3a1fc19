//! A lab as one object for programs, and as tables for people.

use regent_lab::View;
use regent_lab::databases::DatabasesView;
use regent_lab::process::Life;
use serde_json::Value;

use crate::duration;
use crate::render::table::Table;

/// Everything, as one object.
pub fn as_json(view: &View) -> Value {
    serde_json::to_value(view).expect("a view is plain data")
}

/// Nodes, instances, who leads, how to log in.
pub fn as_text(view: &View) -> String {
    let mut table = Table::new([
        "node", "zone", "role", "process", "pid", "grpc", "http", "applied", "memory", "cpu",
    ]);
    for node in &view.nodes {
        table.row([
            node.id.to_string(),
            node.zone.clone(),
            node.role.clone(),
            life(node.life, node.ready).to_owned(),
            pid(node.pid),
            node.grpc.clone(),
            node.http.clone(),
            node.applied.to_string(),
            node.usage.map(|usage| format!("{} MiB", usage.rss_kib / 1024)).unwrap_or_default(),
            node.usage.map(|usage| duration::human(usage.cpu_ms)).unwrap_or_default(),
        ]);
    }
    let leader = match view.leader {
        0 => "nobody leads".to_owned(),
        leader => format!("node {leader} leads"),
    };
    let databases = view.databases.as_ref().map(databases_text).unwrap_or_default();
    let network = view.network.as_ref().map(|network| {
        let (net, id) = (network.net(), &network.id);
        format!("network {net}, each machine in a namespace: ip netns exec {id}-MACHINE ...\n")
    });
    format!("{table}{leader}\n{}{databases}", network.unwrap_or_default())
}

const fn life(life: Life, ready: bool) -> &'static str {
    match life {
        Life::Running if ready => "ready",
        Life::Running => "runs, not ready",
        Life::Frozen => "FROZEN",
        Life::Dead => "DEAD",
    }
}

fn pid(pid: Option<u32>) -> String {
    pid.map(|pid| pid.to_string()).unwrap_or_default()
}

fn databases_text(view: &DatabasesView) -> String {
    let mut table = Table::new([
        "instance",
        "zone",
        "role",
        "agent",
        "address",
        "http",
        "agent pid",
        "fencer",
        "postgres",
    ]);
    for one in &view.instances {
        table.row([
            one.id.clone(),
            one.zone.clone(),
            one.role.clone(),
            life(one.agent, one.healthy).to_owned(),
            format!("{}:{}", one.host, one.port),
            one.http.clone(),
            pid(one.agent_pid),
            pid(one.fencer_pid),
            pid(one.postmaster_pid),
        ]);
    }
    let primary = match view.primary() {
        Some(primary) => format!("{} is primary", primary.id),
        None => "nobody is primary".to_owned(),
    };
    format!(
        "\n{table}{primary} of {}, mode {}, ttl {}\n\n{}",
        view.service,
        view.policy.mode,
        duration::human(view.policy.ttl_ms),
        ways(view),
    )
}

/// How clients come in: every way, with what is at its end.
fn ways(view: &DatabasesView) -> String {
    let login = format!("postgresql://{}:{}@", view.user, view.password);
    let hosts: Vec<&str> = view.instances.iter().map(|one| one.host.as_str()).collect();
    let ports: Vec<String> = view.instances.iter().map(|one| one.port.to_string()).collect();
    let mut text = String::new();
    let fronts = [("HAProxy", &view.haproxy), ("Envoy", &view.envoy)];
    for (name, front) in fronts {
        let Some(front) = front else { continue };
        let how = match (front.life, front.pid) {
            (Life::Running, Some(pid)) => format!("pid {pid}"),
            (Life::Frozen, Some(pid)) => format!("pid {pid}, FROZEN"),
            _ => "DEAD".to_owned(),
        };
        text += &format!(
            "to the primary, through {name} ({how}):\n  psql \"{login}{}/{}\"\n",
            front.write, view.dbname,
        );
    }
    if !text.is_empty() {
        text += "without it:\n";
    }
    format!(
        "{text}  psql \"{login}/{}?host={}&port={}&target_session_attrs=read-write\"\n",
        view.dbname,
        hosts.join(","),
        ports.join(","),
    )
}
