//! Reads log directives: `info`, `debug,h2=warn`, `regent_node::watch=trace,info`.
//!
//! Deliberately small: level by target prefix, no regular expressions and no span matching, so that
//! a mistyped variable can be explained in one line.

use std::str::FromStr;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

/// The environment variable that goes before the configuration.
pub const LOG_ENV: &str = "REGENT_LOG";

/// Crates that say nothing useful below `warn` to an operator, unless named in the directives.
const QUIET: [&str; 6] = ["h2", "hyper", "hyper_util", "rustls", "tower", "openraft"];

/// A directive cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{directive:?} is no log directive: use a level (off, error, warn, info, debug, trace) or \
     target=level, separated by commas"
)]
pub struct FilterError {
    /// The part that is wrong.
    pub directive: String,
}

/// Parses directives separated by commas. Later ones go before earlier ones.
///
/// # Errors
/// [`FilterError`] names the part that is wrong.
pub fn parse(directives: &str) -> Result<Targets, FilterError> {
    let mut default = LevelFilter::INFO;
    let mut targets = Targets::new();
    for quiet in QUIET {
        targets = targets.with_target(quiet, LevelFilter::WARN);
    }
    for directive in directives.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let wrong = || FilterError { directive: directive.to_owned() };
        match directive.split_once('=') {
            None => default = level(directive).ok_or_else(wrong)?,
            Some((target, name)) => {
                let target = target.trim();
                if target.is_empty() || target.contains(char::is_whitespace) {
                    return Err(wrong());
                }
                let level = level(name.trim()).ok_or_else(wrong)?;
                targets = targets.with_target(target, level);
            }
        }
    }
    Ok(targets.with_default(default))
}

fn level(name: &str) -> Option<LevelFilter> {
    // Numbers are levels to `LevelFilter` too; a person who writes one means something else.
    if name.chars().any(|c| c.is_ascii_digit()) {
        return None;
    }
    LevelFilter::from_str(name).ok()
}

/// The environment's directives, or the configuration's. A wrong environment variable must not keep
/// a node from starting: it is ignored, and the second value says so.
///
/// # Errors
/// [`FilterError`] for the configuration's own directives.
pub fn from_environment(configured: &str) -> Result<(Targets, Option<FilterError>), FilterError> {
    let fallback = parse(configured)?;
    match std::env::var(LOG_ENV) {
        Err(_) => Ok((fallback, None)),
        Ok(text) => match parse(&text) {
            Ok(targets) => Ok((targets, None)),
            Err(error) => Ok((fallback, Some(error))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn directives_set_a_default_and_levels_by_target() {
        let targets = parse("warn, regent_node::watch=trace").expect("good directives");
        assert!(targets.would_enable("regent_node::watch::hub", &Level::TRACE));
        assert!(targets.would_enable("regent_raft", &Level::WARN));
        assert!(!targets.would_enable("regent_raft", &Level::INFO));
    }

    #[test]
    fn noisy_crates_stay_quiet_unless_they_are_named() {
        assert!(!parse("debug").expect("good").would_enable("h2::codec", &Level::DEBUG));
        assert!(parse("debug,h2=debug").expect("good").would_enable("h2::codec", &Level::DEBUG));
    }

    #[test]
    fn a_directive_that_cannot_be_read_is_named() {
        for (text, wrong) in [("info,regent=loud", "regent=loud"), ("3", "3"), ("=info", "=info")] {
            assert_eq!(parse(text).expect_err("bad").directive, wrong);
        }
    }

    #[test]
    fn nothing_said_is_info() {
        let targets = parse("").expect("empty is fine");
        assert!(targets.would_enable("regent_node", &Level::INFO));
        assert!(!targets.would_enable("regent_node", &Level::DEBUG));
    }
}
