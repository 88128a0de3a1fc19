//! What a stage of the fencer is told on its command line. The fencer writes these arguments itself
//! (agent to launch, launch to init, init to exec), so there is one parser and one printer, and the
//! command line of the product only passes them through.

use std::ffi::OsString;
use std::path::PathBuf;

/// Which part of the work this process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Makes the namespace, starts the init, reports, ends.
    Launch,
    /// The fencer proper.
    Init,
    /// Gives its rights away and becomes the program.
    Exec,
}

/// A watchdog that resets the machine (or ends whatever reads the file) unless it is fed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchdogOptions {
    /// The device, or in tests a FIFO or file.
    pub path: PathBuf,
    /// Time in milliseconds after the last feeding at which it acts. Must match the device.
    pub timeout_ms: u64,
}

/// The arguments of one stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Which part of the work.
    pub stage: Stage,
    /// Where socket, receipt and lock live: a directory of this fencer alone, on a disk that keeps
    /// what fsync acknowledged.
    pub state_dir: PathBuf,
    /// Words before the stage's name that lead this program to the fencer: `["fencer"]`.
    pub verb: Vec<OsString>,
    /// User to start the program as, by name; needs root.
    pub user: Option<String>,
    /// Launch: make no namespace although it could. Init: why there is none.
    pub weak: Option<String>,
    /// Optional watchdog (PROTOCOL.md A3).
    pub watchdog: Option<WatchdogOptions>,
}

/// What is wrong with the arguments.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// Neither `launch`, `init` nor `exec` came first.
    #[error("the first word is launch, init or exec, not {0:?}")]
    Stage(Option<OsString>),
    /// An argument nobody knows.
    #[error("unknown argument {0:?}")]
    Unknown(OsString),
    /// An argument came last that needs a value after it, or its value is not readable.
    #[error("{0} needs a value")]
    Value(&'static str),
    /// No `--state-dir`.
    #[error("--state-dir is missing")]
    StateDir,
}

impl Options {
    /// Options of a launch below `state_dir`, with everything else left out.
    pub fn launch(state_dir: PathBuf) -> Self {
        Self {
            stage: Stage::Launch,
            state_dir,
            verb: vec!["fencer".into()],
            user: None,
            weak: None,
            watchdog: None,
        }
    }

    /// The same for another stage.
    #[must_use]
    pub(crate) fn at(&self, stage: Stage) -> Self {
        Self { stage, ..self.clone() }
    }

    /// All words after the program's name, such that [`Options::parse`] of what follows the verb
    /// gives these options again.
    pub fn args(&self) -> Vec<OsString> {
        let mut args = self.verb.clone();
        let stage = match self.stage {
            Stage::Launch => "launch",
            Stage::Init => "init",
            Stage::Exec => "exec",
        };
        args.push(stage.into());
        let mut pair = |name: &str, value: OsString| args.extend([name.into(), value]);
        pair("--state-dir", self.state_dir.clone().into());
        for word in &self.verb {
            pair("--verb", word.clone());
        }
        if let Some(user) = &self.user {
            pair("--user", user.into());
        }
        if let Some(reason) = &self.weak {
            pair("--weak", reason.into());
        }
        if let Some(watchdog) = &self.watchdog {
            pair("--watchdog", watchdog.path.clone().into());
            pair("--watchdog-timeout-ms", watchdog.timeout_ms.to_string().into());
        }
        args
    }

    /// Reads the words after the verb.
    ///
    /// # Errors
    /// [`OptionsError`] names the first word that does not fit.
    pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Self, OptionsError> {
        let mut words = words.into_iter();
        let first = words.next();
        let stage = match first.as_ref().and_then(|word| word.to_str()) {
            Some("launch") => Stage::Launch,
            Some("init") => Stage::Init,
            Some("exec") => Stage::Exec,
            _ => return Err(OptionsError::Stage(first)),
        };
        let mut options = Self { stage, verb: Vec::new(), ..Self::launch(PathBuf::new()) };
        let (mut path, mut timeout_ms) = (None, 10_000);
        while let Some(word) = words.next() {
            let mut value = |name| words.next().ok_or(OptionsError::Value(name));
            let text =
                |name, value: OsString| value.into_string().map_err(|_| OptionsError::Value(name));
            match word.to_str() {
                Some("--state-dir") => options.state_dir = value("--state-dir")?.into(),
                Some("--verb") => options.verb.push(value("--verb")?),
                Some("--user") => options.user = Some(text("--user", value("--user")?)?),
                Some("--weak") => options.weak = Some(text("--weak", value("--weak")?)?),
                Some("--watchdog") => path = Some(PathBuf::from(value("--watchdog")?)),
                Some("--watchdog-timeout-ms") => {
                    let digits = text("--watchdog-timeout-ms", value("--watchdog-timeout-ms")?)?;
                    timeout_ms =
                        digits.parse().map_err(|_| OptionsError::Value("--watchdog-timeout-ms"))?;
                }
                _ => return Err(OptionsError::Unknown(word)),
            }
        }
        if options.state_dir.as_os_str().is_empty() {
            return Err(OptionsError::StateDir);
        }
        options.watchdog = path.map(|path| WatchdogOptions { path, timeout_ms });
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_printed_is_read_back() {
        let options = Options {
            stage: Stage::Init,
            user: Some("postgres".into()),
            weak: Some("no right to make one".into()),
            watchdog: Some(WatchdogOptions { path: "/dev/watchdog".into(), timeout_ms: 5_000 }),
            ..Options::launch("/var/lib/regent".into())
        };
        assert_eq!(Options::parse(options.args().into_iter().skip(1)).unwrap(), options);
    }

    #[test]
    fn a_wrong_word_is_named() {
        let parse = |words: &[&str]| Options::parse(words.iter().map(OsString::from));
        assert_eq!(parse(&["frob"]), Err(OptionsError::Stage(Some("frob".into()))));
        assert_eq!(parse(&["init", "--frob"]), Err(OptionsError::Unknown("--frob".into())));
        assert_eq!(parse(&["init"]), Err(OptionsError::StateDir));
        assert_eq!(parse(&["init", "--state-dir"]), Err(OptionsError::Value("--state-dir")));
    }
}
