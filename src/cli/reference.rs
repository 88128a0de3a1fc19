//! The reference of the command line as Markdown, made from the parser itself, so that the page in
//! `docs/` cannot say anything else than `--help` does (a test compares them).

use clap::{Arg, Command, CommandFactory};

use crate::args::Cli;

/// The whole reference.
pub fn markdown() -> String {
    let mut root = Cli::command();
    root.build();
    let mut page = String::from(
        "# The command line\n\nMade by `regent internal cli-docs`; do not edit by hand.\n\n\
         Exit codes: 0 done, 1 refused, 2 usage, 3 unreachable, 4 internal.\n",
    );
    page.push_str("\n## Global options\n\n");
    for argument in root.get_arguments().filter(|argument| argument.is_global_set()) {
        option(&mut page, argument);
    }
    for verb in root.get_subcommands().filter(|verb| is_documented(verb)) {
        section(&mut page, "regent", verb, 2);
    }
    page
}

fn is_documented(verb: &Command) -> bool {
    !verb.is_hide_set() && verb.get_name() != "help"
}

fn section(page: &mut String, parent: &str, verb: &Command, depth: usize) {
    let path = format!("{parent} {}", verb.get_name());
    let about = verb.get_long_about().or(verb.get_about()).map(ToString::to_string);
    page.push_str(&format!("\n{} `{path}`\n\n", "#".repeat(depth)));
    page.push_str(&format!("{}.\n", about.unwrap_or_default().trim_end_matches('.')));
    let children: Vec<&Command> =
        verb.get_subcommands().filter(|verb| is_documented(verb)).collect();
    if children.is_empty() {
        let usage = verb.clone().render_usage().to_string();
        let usage = usage.trim_start_matches("Usage:").trim().to_owned();
        page.push_str(&format!("\n```\n{usage}\n```\n"));
    }
    let own: Vec<&Arg> = verb
        .get_arguments()
        .filter(|argument| !argument.is_global_set() && !argument.is_hide_set())
        .filter(|argument| !matches!(argument.get_id().as_str(), "help" | "version"))
        .collect();
    if !own.is_empty() {
        page.push('\n');
        own.into_iter().for_each(|argument| option(page, argument));
    }
    if let Some(examples) = verb.get_after_help() {
        page.push_str(&format!("\n```\n{}\n```\n", examples.to_string().trim_end()));
    }
    for child in children {
        section(page, &path, child, depth + 1);
    }
}

fn option(page: &mut String, argument: &Arg) {
    let mut name = argument.to_string();
    if let Some(short) = argument.get_short() {
        name = format!("-{short}, {name}");
    }
    let help = argument.get_long_help().or(argument.get_help()).map(ToString::to_string);
    let mut line = format!("- `{name}`: {}", help.unwrap_or_default().replace('\n', " "));
    let defaults: Vec<_> =
        argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    // A flag's default is always "false": that says nothing.
    if !defaults.is_empty() && argument.get_action().takes_values() {
        line.push_str(&format!(" (default `{}`)", defaults.join(",")));
    }
    if let Some(variable) = argument.get_env() {
        line.push_str(&format!(" (environment `{}`)", variable.to_string_lossy()));
    }
    page.push_str(&line);
    page.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_names_every_verb_and_none_that_is_hidden() {
        let page = markdown();
        for verb in Cli::command().get_subcommands() {
            let title = format!("`regent {}`\n", verb.get_name());
            assert_eq!(page.contains(&title), !verb.is_hide_set(), "{title}");
        }
        assert!(page.contains("environment `REGENT_ENDPOINTS`"));
    }
}
