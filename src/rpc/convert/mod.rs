//! Between the wire's types and the core's, both ways, one file per service.
//!
//! What comes from the wire is checked here, once: a wrong field is [`Invalid`] and names itself as
//! the request does. After this module a value is what its type says. Must never panic, whatever
//! the bytes were.

pub mod agent;
pub mod audit;
pub mod cluster;
pub mod common;
pub mod election;
pub mod observe;
pub mod operation;
pub mod page;
pub mod role;
#[cfg(test)]
mod role_tests;
pub mod routing;
pub mod status;
#[cfg(test)]
mod tests;
pub mod topology;

use tonic::Status;

use self::status::Refused;

/// A request's field that cannot be; becomes INVALID_ARGUMENT.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}; {fix}")]
pub struct Invalid {
    /// As the request names it: `spec.instances[1].address`.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to do.
    pub fix: String,
}

impl Invalid {
    /// An [`Invalid`] of these parts.
    pub fn new(
        field: impl Into<String>,
        problem: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { field: field.into(), problem: problem.into(), fix: fix.into() }
    }

    /// The same, one level further out: `address` becomes `instances[1].address`.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        self.field = format!("{outer}.{}", self.field);
        self
    }
}

impl From<Invalid> for Status {
    fn from(invalid: Invalid) -> Self {
        let message = invalid.to_string();
        Refused { field: invalid.field, hint: invalid.fix, ..Refused::of("invalid") }
            .into_status(tonic::Code::InvalidArgument, message)
    }
}
