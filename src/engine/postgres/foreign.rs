//! The files of a PostgreSQL that Regent did not make: its settings and its access rules.
//!
//! They are read to say what an adoption replaces. Nothing here judges, and nothing is changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::durable;
use crate::error::DiskError;

/// Settings that say where files are, or how the server was reached: wrong for a server that Regent
/// starts, so they are put out of force in the copy of the configuration.
const PLACES: [&str; 4] = ["data_directory", "hba_file", "ident_file", "external_pid_file"];
/// Recovery would end by them, and the standby be a primary that nobody granted.
const TARGETS: [&str; 5] = [
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
];

/// Where the configuration lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Files {
    pub config: PathBuf,
    pub hba: PathBuf,
    pub ident: PathBuf,
}

/// The key and the value of a line of `postgresql.conf`; comments and blank lines have none.
fn setting(line: &str) -> Option<(String, String)> {
    let line = line.trim_start();
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.'))?;
    let (key, rest) = line.split_at(end);
    if key.is_empty() {
        return None;
    }
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let value = match rest.strip_prefix('\'') {
        Some(quoted) => unquoted(quoted),
        None => rest.split(['#', ' ', '\t']).next().unwrap_or_default().to_owned(),
    };
    Some((key.to_ascii_lowercase(), value))
}

/// Up to the closing quote; a quote is doubled or has a backslash before it.
fn unquoted(text: &str) -> String {
    let mut value = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => value.extend(chars.next()),
            '\'' if chars.peek() == Some(&'\'') => value.extend(chars.next()),
            '\'' => break,
            c => value.push(c),
        }
    }
    value
}

/// The settings of these texts, the last one of each key; what is included is not read.
pub(super) fn settings<'a>(texts: impl IntoIterator<Item = &'a str>) -> BTreeMap<String, String> {
    let lines = texts.into_iter().flat_map(str::lines);
    lines.filter_map(setting).filter(|(key, _)| !key.starts_with("include")).collect()
}

/// The rules of a `pg_hba.conf`, one blank between words.
pub(super) fn rules(text: &str) -> Vec<String> {
    let line = |line: &str| {
        let words: Vec<_> = line.split('#').next()?.split_whitespace().collect();
        (!words.is_empty()).then(|| words.join(" "))
    };
    text.lines().filter_map(line).collect()
}

/// Of settings, those by which recovery would end by itself.
pub(super) fn targets(settings: &BTreeMap<String, String>) -> Vec<&'static str> {
    let is_set = |key: &&str| settings.get(*key).is_some_and(|value| !value.is_empty());
    TARGETS.into_iter().filter(is_set).collect()
}

/// Where the files are: as the command line of the last start says, which the server keeps in
/// `postmaster.opts`, and as the configuration says; else in the data directory.
pub(super) fn files(data_dir: &Path, config: Option<&Path>) -> Result<Files, DiskError> {
    let config = match config {
        Some(given) => given.to_owned(),
        None => {
            let opts = durable::read(&data_dir.join("postmaster.opts"))?.unwrap_or_default();
            let named = opts.split('"').find_map(|word| word.strip_prefix("config_file="));
            named.map_or_else(|| data_dir.join("postgresql.conf"), PathBuf::from)
        }
    };
    let text = durable::read(&config)?.unwrap_or_default();
    let settings = settings([text.as_str()]);
    let at = |key: &str, name: &str| {
        let named = settings.get(key).filter(|path| !path.is_empty());
        named.map_or_else(|| data_dir.join(name), |path| data_dir.join(path))
    };
    let (hba, ident) = (at("hba_file", "pg_hba.conf"), at("ident_file", "pg_ident.conf"));
    Ok(Files { config, hba, ident })
}

/// The configuration as it goes on inside the data directory: places are out of force, and what is
/// included from beside the old file is named by its whole path.
pub(super) fn moved_in(text: &str, from: &Path) -> String {
    let base = durable::parent(from);
    let line = |line: &str| match setting(line) {
        Some((key, _)) if PLACES.contains(&key.as_str()) => format!("# before Regent: {line}"),
        Some((key, path)) if key.starts_with("include") && Path::new(&path).is_relative() => {
            let whole = base.join(path).display().to_string().replace('\'', "''");
            format!("{key} = '{whole}'")
        }
        _ => line.to_owned(),
    };
    text.lines().map(line).map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_the_server_reads_them() {
        let text = "# port = 1\n port = 5433 # mine\nshared_buffers='16MB'\nsearch_path 'it''s'\n\
                    Port = 5434\ninclude_dir 'conf.d'\n\n";
        let found = settings([text, "work_mem = 4MB\n"]);
        let expected = [
            ("port", "5434"),
            ("search_path", "it's"),
            ("shared_buffers", "16MB"),
            ("work_mem", "4MB"),
        ];
        let found: Vec<_> = found.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_configuration_from_elsewhere_goes_on_without_its_places() {
        let text = "data_directory = '/var/lib/x'\nwork_mem = 4MB\ninclude_dir = 'conf.d'\n\
                    include '/etc/y.conf'\n";
        let expected = "# before Regent: data_directory = '/var/lib/x'\nwork_mem = 4MB\n\
                        include_dir = '/etc/pg/conf.d'\ninclude '/etc/y.conf'\n";
        assert_eq!(moved_in(text, Path::new("/etc/pg/postgresql.conf")), expected);
    }

    #[test]
    fn rules_are_compared_by_their_words() {
        let text = "# TYPE\nlocal   all all\tpeer # local\n\nhost app app 10.0.0.0/8 md5\n";
        assert_eq!(rules(text), ["local all all peer", "host app app 10.0.0.0/8 md5"]);
    }
}
