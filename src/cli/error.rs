//! What a person sees when a verb fails: what failed, why, and one thing to do next.
//!
//! The exit code follows from the kind alone, so that scripts can branch on it: 1 the cluster said
//! no, 2 the request itself was wrong, 3 nobody could be asked, 4 a fault of Regent or the machine.

use std::error::Error as StdError;
use std::fmt;

use serde_json::{Value, json};

/// The class of a failure; each has its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A rule said no; the same request again is of no use until something changes.
    Refused,
    /// The command line, a file or a field is wrong.
    Usage,
    /// No node answered, or none in time.
    Unreachable,
    /// A fault of this program, of a node, or of the machine.
    Internal,
}

impl Kind {
    /// The process's exit code.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Refused => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::Internal => 4,
        }
    }

    /// As in JSON output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Usage => "usage",
            Self::Unreachable => "unreachable",
            Self::Internal => "internal",
        }
    }
}

/// A verb that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CliError {
    /// Its class.
    pub kind: Kind,
    /// What failed, as one clause without a full stop.
    pub what: String,
    /// Why, from the nearest cause to the farthest; or every problem found in a file.
    pub causes: Vec<String>,
    /// What to do next.
    pub hint: Option<String>,
    /// Name of the rule that refused, when a node named one.
    pub rule: Option<String>,
    /// The gRPC status, when a node gave one.
    pub code: Option<tonic::Code>,
    /// What the node's log calls the request, when a node answered it.
    pub request: Option<Box<str>>,
}

impl CliError {
    /// A failure of `kind`.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            causes: Vec::new(),
            hint: None,
            rule: None,
            code: None,
            request: None,
        }
    }
    /// A rule said no.
    pub fn refused(what: impl Into<String>) -> Self {
        Self::new(Kind::Refused, what)
    }
    /// The request is wrong.
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Kind::Usage, what)
    }
    /// Nobody answered.
    pub fn unreachable(what: impl Into<String>) -> Self {
        Self::new(Kind::Unreachable, what)
    }
    /// A fault.
    pub fn internal(what: impl Into<String>) -> Self {
        Self::new(Kind::Internal, what)
    }

    /// Adds an error and its sources as causes; a source that its parent already repeats is left
    /// out.
    #[must_use]
    pub fn caused_by(mut self, error: impl StdError) -> Self {
        self.causes.push(error.to_string());
        let mut source = error.source();
        while let Some(error) = source {
            self = self.because(error.to_string());
            source = error.source();
        }
        self
    }

    /// Adds a cause in words.
    #[must_use]
    pub fn because(mut self, cause: impl Into<String>) -> Self {
        let cause = cause.into();
        let known = self.causes.last().is_some_and(|last| last.contains(&cause));
        if !cause.is_empty() && !known {
            self.causes.push(cause);
        }
        self
    }

    /// Sets what to do next, unless a more precise hint is there already.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        if self.hint.is_none() && !hint.is_empty() {
            self.hint = Some(hint);
        }
        self
    }

    /// As JSON, for `-o json`.
    pub fn to_json(&self) -> Value {
        json!({ "error": {
            "kind": self.kind.as_str(),
            "exit_code": self.kind.exit_code(),
            "what": self.what,
            "causes": self.causes,
            "hint": self.hint,
            "rule": self.rule,
            "request": self.request,
        }})
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        for cause in &self.causes {
            write!(f, "\n  because: {cause}")?;
        }
        if let Some(request) = &self.request {
            write!(f, "\n  request {request}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl StdError for CliError {}

/// What every verb returns.
pub type Outcome<T = ()> = Result<T, CliError>;

/// Turns any error into a failure of a kind, saying what was being done.
pub trait Context<T> {
    /// The input was wrong.
    fn or_usage(self, what: impl FnOnce() -> String) -> Outcome<T>;
    /// Something of this machine or program failed.
    fn or_internal(self, what: impl FnOnce() -> String) -> Outcome<T>;
}

impl<T, E: StdError> Context<T> for Result<T, E> {
    fn or_usage(self, what: impl FnOnce() -> String) -> Outcome<T> {
        self.map_err(|error| CliError::usage(what()).caused_by(error))
    }
    fn or_internal(self, what: impl FnOnce() -> String) -> Outcome<T> {
        self.map_err(|error| CliError::internal(what()).caused_by(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_failed_why_and_what_to_do() {
        let io = std::io::Error::new(std::io::ErrorKind::NotFound, "no such file");
        let error = CliError::usage("cannot read orders.toml").caused_by(io).hint("check the path");
        assert_eq!(
            error.to_string(),
            "error: cannot read orders.toml\n  because: no such file\nhint: check the path"
        );
        assert_eq!(error.kind.exit_code(), 2);
    }

    #[test]
    fn each_kind_has_the_documented_exit_code() {
        let codes =
            [Kind::Refused, Kind::Usage, Kind::Unreachable, Kind::Internal].map(Kind::exit_code);
        assert_eq!(codes, [1, 2, 3, 4]);
    }
}
