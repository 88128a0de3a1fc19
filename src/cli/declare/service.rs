//! One service's declaration.

use regent_core::id::{InstanceName, Locality, NameError, PartitionName, ServiceName};
use regent_core::spec::{
    AwaitRouters, CoordinatorLoss, Engine, InstanceSpec, LossBound, LoweredSync, Mode, OnViolation,
    Policy, Scope, ServiceSpec, Survive, TooFewSync, TopologyKind,
};
use regent_core::timing::Timing;
use toml::de::{DeTable, DeValue};

use super::reader::{Part, Reader};
use crate::error::{CliError, Outcome};

/// A declaration to begin with; every key is in it.
pub const TEMPLATE: &str = include_str!("template.toml");

const TOP: [&str; 7] =
    ["name", "description", "engine", "topology", "instances", "partitions", "policy"];
const INSTANCE: [&str; 4] = ["name", "locality", "address", "priority"];
const LOCALITY: [&str; 3] = ["region", "zone", "host"];
const POLICY: [&str; 13] = [
    "mode",
    "ttl_ms",
    "sync_standbys",
    "min_sync_standbys",
    "on_too_few_sync",
    "on_lowered_sync",
    "on_coordinator_loss",
    "loss_bound",
    "max_failover_scope",
    "survive",
    "restart_grace_ms",
    "failover_cooldown_ms",
    "await_routers",
];
const AWAIT_ROUTERS: [&str; 2] = ["percent", "within_ms"];
const LOSS_BOUND: [&str; 3] = ["max_bytes", "max_ms", "on_violation"];

/// Which ttl is long enough (C6) depends on the cluster's Raft profile, and only the cluster knows
/// it: here the ttl is judged by the fastest cluster there could be, so that nothing is refused
/// which a cluster would allow.
const FASTEST: Timing = Timing {
    heartbeat_ms: 1,
    election_min_ms: 3,
    election_max_ms: 4,
    commit_tick_ms: 1,
    round_ms: 1,
    dial_ms: 1,
};

/// Reads, checks and judges a declaration. `file` is its name for people.
///
/// # Errors
/// Every problem, each with line, field and fix.
pub fn parse(file: &str, text: &str) -> Outcome<ServiceSpec> {
    let failed = || CliError::usage(format!("{file} declares no service that can be run"));
    let document = DeTable::parse(text)
        .map_err(|error| failed().because(error.to_string().trim_end().to_owned()))?;
    let mut reader = Reader::new(text);
    let spec = read(&mut reader, document.get_ref());
    match spec {
        Some(spec) if reader.is_clean() => {
            reader.problems(spec.validate(&FASTEST));
            if reader.is_clean() {
                return Ok(spec);
            }
        }
        _ => {}
    }
    let error = reader.report(file).into_iter().fold(failed(), CliError::because);
    Err(error.hint("`regent services template` prints a declaration to begin with"))
}

/// `None` only together with a problem.
fn read<'t>(reader: &mut Reader<'t>, table: &DeTable<'t>) -> Option<ServiceSpec> {
    let top = reader.enter("", table, &TOP);
    let name = name(reader, &top, "name", ServiceName::parse, "orders");
    let policy = policy(reader, &top);
    let instances = instances(reader, &top);
    let partitions = partitions(reader, &top);
    Some(ServiceSpec {
        description: reader.text(&top, "description").unwrap_or_default(),
        engine: reader.choice(&top, "engine", Engine::WORDS).unwrap_or(Engine::Postgres),
        topology: reader
            .choice(&top, "topology", TopologyKind::WORDS)
            .unwrap_or(TopologyKind::ActivePassive),
        instances,
        partitions,
        name: name?,
        policy: policy?,
    })
}

fn name<'t, T>(
    reader: &mut Reader<'t>,
    part: &Part<'_, 't>,
    key: &str,
    parse: impl Fn(&str) -> Result<T, NameError>,
    example: &str,
) -> Option<T> {
    if part.table.get(key).is_none() {
        reader.problem(part.field(key), "it is missing", format!("write {key} = {example:?}"));
        return None;
    }
    let text = reader.text(part, key)?;
    match parse(&text) {
        Ok(name) => Some(name),
        Err(error) => {
            reader.problem(
                part.field(key),
                error.to_string(),
                format!("use a name like {example:?}"),
            );
            None
        }
    }
}

fn instances<'t>(reader: &mut Reader<'t>, top: &Part<'_, 't>) -> Vec<InstanceSpec> {
    let Some(list) = reader.list(top, "instances") else { return Vec::new() };
    let mut instances = Vec::new();
    for (at, item) in list.iter().enumerate() {
        let path = format!("instances[{at}]");
        reader.place(path.clone(), item.span().start);
        let DeValue::Table(table) = item.get_ref() else {
            reader.wrong_type::<()>(path, item.get_ref(), "a table, [[instances]]");
            continue;
        };
        let part = reader.enter(path, table, &INSTANCE);
        let name = name(reader, &part, "name", InstanceName::parse, "pg1");
        let locality = locality(reader, &part);
        let address = reader.text(&part, "address").unwrap_or_default();
        let priority = reader.small(&part, "priority").unwrap_or(DEFAULT_PRIORITY);
        if let Some(name) = name {
            instances.push(InstanceSpec { name, locality, address, priority });
        }
    }
    instances
}

/// Priority of an instance that does not say one: any but 0, which is "never".
const DEFAULT_PRIORITY: u32 = 100;

fn locality<'t>(reader: &mut Reader<'t>, part: &Part<'_, 't>) -> Locality {
    let Some(table) = reader.table(part, "locality") else { return Locality::default() };
    let place = reader.enter(part.field("locality"), table, &LOCALITY);
    Locality {
        region: reader.text(&place, "region").unwrap_or_default(),
        zone: reader.text(&place, "zone").unwrap_or_default(),
        host: reader.text(&place, "host").unwrap_or_default(),
    }
}

fn partitions<'t>(reader: &mut Reader<'t>, top: &Part<'_, 't>) -> Vec<PartitionName> {
    let Some(list) = reader.list(top, "partitions") else { return Vec::new() };
    let mut partitions = Vec::new();
    for (at, item) in list.iter().enumerate() {
        let path = format!("partitions[{at}]");
        reader.place(path.clone(), item.span().start);
        match item.get_ref() {
            DeValue::String(text) => match PartitionName::parse(text) {
                Ok(name) => partitions.push(name),
                Err(error) => reader.problem(path, error.to_string(), "use a name like \"eu\""),
            },
            other => {
                reader.wrong_type::<()>(path, other, "a text in quotes");
            }
        }
    }
    partitions
}

fn policy<'t>(reader: &mut Reader<'t>, top: &Part<'_, 't>) -> Option<Policy> {
    if top.table.get("policy").is_none() {
        reader.problem("policy.mode", "it is missing", MODE_FIX);
        return None;
    }
    let table = reader.table(top, "policy")?;
    let part = reader.enter("policy", table, &POLICY);
    let mode = reader.choice(&part, "mode", Mode::WORDS);
    if part.table.get("mode").is_none() {
        reader.problem("policy.mode", "it is missing", MODE_FIX);
    }
    // With a mode that is not known the other keys are still read, for their problems.
    let defaults = Policy::default_for(mode.unwrap_or(Mode::Quorum));
    let loss_bound = loss_bound(reader, &part, defaults.loss_bound);
    let await_routers = await_routers(reader, &part, defaults.await_routers);
    let policy = Policy {
        mode: defaults.mode,
        ttl_ms: reader.number(&part, "ttl_ms").unwrap_or(defaults.ttl_ms),
        sync_standbys: reader.small(&part, "sync_standbys").unwrap_or(defaults.sync_standbys),
        min_sync_standbys: reader
            .small(&part, "min_sync_standbys")
            .unwrap_or(defaults.min_sync_standbys),
        on_too_few_sync: reader
            .choice(&part, "on_too_few_sync", TooFewSync::WORDS)
            .unwrap_or(defaults.on_too_few_sync),
        on_lowered_sync: reader
            .choice(&part, "on_lowered_sync", LoweredSync::WORDS)
            .unwrap_or(defaults.on_lowered_sync),
        on_coordinator_loss: reader
            .choice(&part, "on_coordinator_loss", CoordinatorLoss::WORDS)
            .unwrap_or(defaults.on_coordinator_loss),
        loss_bound,
        max_failover_scope: reader
            .choice(&part, "max_failover_scope", Scope::WORDS)
            .unwrap_or(defaults.max_failover_scope),
        survive: reader.choice(&part, "survive", Survive::WORDS).unwrap_or(defaults.survive),
        restart_grace_ms: reader
            .number(&part, "restart_grace_ms")
            .unwrap_or(defaults.restart_grace_ms),
        failover_cooldown_ms: reader
            .number(&part, "failover_cooldown_ms")
            .unwrap_or(defaults.failover_cooldown_ms),
        await_routers,
    };
    mode.map(|_| policy)
}

const MODE_FIX: &str =
    "write [policy] mode = \"quorum\" (synchronous replication) or \"lease\" (asynchronous)";

fn loss_bound<'t>(reader: &mut Reader<'t>, policy: &Part<'_, 't>, default: LossBound) -> LossBound {
    let Some(table) = reader.table(policy, "loss_bound") else { return default };
    let part = reader.enter("policy.loss_bound", table, &LOSS_BOUND);
    LossBound {
        max_bytes: reader.number(&part, "max_bytes").unwrap_or(default.max_bytes),
        max_ms: reader.number(&part, "max_ms").unwrap_or(default.max_ms),
        on_violation: reader
            .choice(&part, "on_violation", OnViolation::WORDS)
            .unwrap_or(default.on_violation),
    }
}

fn await_routers<'t>(
    reader: &mut Reader<'t>,
    policy: &Part<'_, 't>,
    default: AwaitRouters,
) -> AwaitRouters {
    let Some(table) = reader.table(policy, "await_routers") else { return default };
    let part = reader.enter("policy.await_routers", table, &AWAIT_ROUTERS);
    AwaitRouters {
        percent: reader.small(&part, "percent").unwrap_or(default.percent),
        within_ms: reader.number(&part, "within_ms").unwrap_or(default.within_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> String {
        let error = parse("orders.toml", text).expect_err("it is wrong");
        assert_eq!(error.kind.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn the_template_is_a_good_declaration() {
        let spec = parse("template.toml", TEMPLATE).expect("good");
        assert_eq!(spec.name.as_str(), "orders");
        assert_eq!(spec.instances.len(), 3);
        let defaults = Policy { survive: Survive::Zone, ..Policy::default_for(Mode::Quorum) };
        assert_eq!(spec.policy, defaults, "the template says that it shows the defaults");
    }

    #[test]
    fn an_unknown_key_names_its_line_and_the_nearest_key() {
        let text = TEMPLATE.replace("ttl_ms", "ttl_sm");
        let line = 1 + text.lines().position(|line| line.starts_with("ttl_sm")).expect("there");
        let got = problems(&text);
        let want = format!(
            "orders.toml:{line}: policy.ttl_sm: there is no such key; did you mean \"ttl_ms\"?"
        );
        assert!(got.contains(&want), "{got}");
    }

    #[test]
    fn every_problem_comes_at_once() {
        let text = TEMPLATE
            .replace("mode = \"quorum\"", "mode = \"quorom\"")
            .replace("priority = 100", "priority = \"high\"")
            .replace("name = \"pg2\"", "name = \"pg 2\"");
        let got = problems(&text);
        for want in ["did you mean \"quorum\"?", "priority: it is a string", "instances[1].name"] {
            assert!(got.contains(want), "{want} is missing in {got}");
        }
    }

    #[test]
    fn a_negative_number_and_a_missing_name_are_named() {
        let got = problems("[policy]\nmode = \"lease\"\nttl_ms = -1\n");
        assert!(got.contains("orders.toml:3: policy.ttl_ms: -1 cannot be"), "{got}");
        assert!(got.contains("name: it is missing; write name = \"orders\""), "{got}");
    }

    #[test]
    fn what_is_no_toml_is_shown_with_its_place() {
        let got = problems("name = \n");
        assert!(got.contains("line 1"), "{got}");
    }

    #[test]
    fn what_the_core_refuses_is_shown_with_the_line_of_the_field() {
        let got = problems(&TEMPLATE.replace("name = \"pg2\"", "name = \"pg1\""));
        assert!(got.contains("orders.toml:") && got.contains("instances[1]"), "{got}");
    }
}
