//! `client.toml`: the global options, for those who do not like to repeat them.
//!
//! ```toml
//! endpoints = ["db1:7400", "db2:7400", "db3:7400"]
//! cert = "/etc/regent/me.crt"
//! key = "/etc/regent/me.key"
//! ca = "/etc/regent/ca.crt"
//! trust_domain = "example.org"
//! ```
//! A flag or an environment variable wins over the file. Paths are relative to the file.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{CliError, Context as _, Outcome};
use crate::suggest;

/// The file's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientFile {
    /// `host:port` of nodes.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// Certificate chain.
    pub cert: Option<PathBuf>,
    /// Private key.
    pub key: Option<PathBuf>,
    /// Certificate authorities of the nodes.
    pub ca: Option<PathBuf>,
    /// Trust domain of the cluster.
    pub trust_domain: Option<String>,
}

const KEYS: [&str; 5] = ["endpoints", "cert", "key", "ca", "trust_domain"];

impl ClientFile {
    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read, is no TOML, or has a key that does not exist (with the nearest one).
    pub fn read(path: &Path) -> Outcome<Self> {
        let what = || format!("cannot use {} as client configuration", path.display());
        let text = std::fs::read_to_string(path).or_usage(what)?;
        let table: toml::Table = text.parse().or_usage(what)?;
        for key in table.keys() {
            if !KEYS.contains(&key.as_str()) {
                let error = CliError::usage(what()).because(format!("unknown key {key:?}"));
                return Err(match suggest::nearest(key, KEYS) {
                    Some(near) => error.hint(format!("did you mean {near:?}?")),
                    None => error.hint(format!("known keys are {}", KEYS.join(", "))),
                });
            }
        }
        let mut file: Self = table.try_into().or_usage(what)?;
        let base = path.parent().unwrap_or(Path::new("."));
        for entry in [&mut file.cert, &mut file.key, &mut file.ca].into_iter().flatten() {
            // `join` keeps an absolute path as it is.
            *entry = base.join(&*entry);
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Outcome<ClientFile> {
        let dir = std::env::temp_dir().join(format!("regent-client-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a temporary directory");
        let path = dir.join("client.toml");
        std::fs::write(&path, text).expect("written");
        let result = ClientFile::read(&path);
        std::fs::remove_dir_all(&dir).expect("removed");
        result
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_one() {
        let error = read("unknown", "endponts = []").expect_err("unknown");
        assert_eq!(error.kind.exit_code(), 2);
        assert!(error.to_string().contains("did you mean \"endpoints\"?"), "{error}");
    }

    #[test]
    fn paths_are_relative_to_the_file_not_to_where_one_happens_to_be() {
        let file = read("paths", "cert = 'me.crt'\nkey = '/abs/me.key'").expect("good");
        assert!(file.cert.expect("given").is_absolute());
        assert_eq!(file.key, Some(PathBuf::from("/abs/me.key")));
    }
}
