//! The page of metrics of one instance.

use crate::status::Published;

/// In the text format that every scraper reads.
pub fn text(now: &Published) -> String {
    let mut text = String::new();
    let mut say = |name: &str, help: &str, labels: String, value: u64| {
        text += &format!("# HELP {name} {help}\n# TYPE {name} gauge\n{name}{labels} {value}\n");
    };
    // Names of instances and epochs are letters, digits and a few signs: nothing is escaped.
    let (instance, role, epoch) = (&now.service, now.run, &now.epoch);
    let labels = format!("{{instance=\"{instance}\",role=\"{role}\",epoch=\"{epoch}\"}}");
    say("regent_agent_role_info", "Always 1: what runs, and the last epoch it has led", labels, 1);
    for (name, help, on) in [
        ("regent_agent_open_flag", "1 while it takes writes of clients", now.open),
        ("regent_agent_reads_flag", "1 while it is a standby that lets clients read", now.reads),
        ("regent_agent_held_flag", "1 while it does so without a confirmed lease", now.held),
        ("regent_agent_answers_flag", "1 while it answers fresh connections", now.answers),
        ("regent_agent_streams_flag", "1 while it streams from an upstream", now.streams),
        ("regent_agent_attached_flag", "1 while a coordinator hears it", now.attached),
        ("regent_agent_armed_flag", "1 if PostgreSQL cannot outlive its fencer", now.armed),
        (
            "regent_agent_problem_flag",
            "1 while something keeps it from its orders",
            !now.problem.is_empty(),
        ),
    ] {
        say(name, help, String::new(), u64::from(on));
    }
    let lag = "WAL that was received and not replayed";
    say("regent_agent_replay_lag_bytes", lag, String::new(), now.lag_bytes);
    let slowest = "The slowest end of everything so far; 0: none was measured";
    say("regent_agent_fence_slowest_milliseconds", slowest, String::new(), now.slowest_fence_ms);
    let budget = "What is set aside for the end of everything";
    say("regent_agent_fence_budget_milliseconds", budget, String::new(), now.fence_budget_ms);
    let fed = "1 if its fencer feeds a watchdog";
    say("regent_agent_watchdog_flag", fed, String::new(), u64::from(now.watchdog_ms > 0));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_metrics_names_the_role_and_every_flag_once() {
        let now = Published {
            service: "orders/pg1".into(),
            run: "primary",
            epoch: "1.173".into(),
            open: true,
            held: true,
            lag_bytes: 7,
            slowest_fence_ms: 40,
            ..Published::default()
        };
        let text = text(&now);
        for line in [
            "regent_agent_role_info{instance=\"orders/pg1\",role=\"primary\",epoch=\"1.173\"} 1",
            "regent_agent_open_flag 1",
            "regent_agent_held_flag 1",
            "regent_agent_armed_flag 0",
            "regent_agent_problem_flag 0",
            "regent_agent_replay_lag_bytes 7",
            "regent_agent_fence_slowest_milliseconds 40",
            "regent_agent_watchdog_flag 0",
        ] {
            assert_eq!(text.lines().filter(|one| *one == line).count(), 1, "{line}: {text}");
        }
        let samples = text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(text.matches("# TYPE ").count(), samples, "{text}");
    }
}
