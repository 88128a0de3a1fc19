//! What is printed: tables for people, JSON for programs, one notion of "colour or not".

pub mod json;
pub mod progress;
pub mod role;
pub mod table;
pub mod text;

use std::io::{IsTerminal, Write};

use serde_json::Value;

use crate::error::CliError;
use table::Table;

/// `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: one JSON value, or one per line where the verb goes on (watch, observe).
    Json,
}

/// The value of `-o`. `backup -o FILE` names a file instead of a format: there is nothing to print
/// but a remark, and everybody's fingers know `-o FILE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A format.
    Format(Format),
    /// A file; only `backup` takes one.
    File(std::path::PathBuf),
}

impl Destination {
    /// A format, or else the name of a file.
    pub fn parse(text: &str) -> Result<Self, std::convert::Infallible> {
        Ok(match <Format as clap::ValueEnum>::from_str(text, false) {
            Ok(format) => Self::Format(format),
            Err(_) => Self::File(text.into()),
        })
    }

    /// How results are printed.
    pub fn format(&self) -> Format {
        match self {
            Self::Format(format) => *format,
            Self::File(_) => Format::default(),
        }
    }
}

/// Where a verb prints. Results go to stdout, everything else to stderr, so that a pipe only ever
/// sees results.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Which format was asked for.
    pub format: Format,
}

impl Output {
    /// Whether programs read the output.
    pub fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Prints one result: `json` for programs, `table` for people.
    pub fn value(self, json: impl FnOnce() -> Value, table: impl FnOnce() -> String) {
        match self.format {
            Format::Json => line(&json().to_string()),
            Format::Table => line(table().trim_end_matches('\n')),
        }
    }

    /// Prints a table, or its JSON.
    pub fn table(self, json: impl FnOnce() -> Value, table: impl FnOnce() -> Table) {
        self.value(json, || table().to_string());
    }

    /// A remark for people; programs do not see it.
    pub fn note(self, text: &str) {
        if !self.is_json() {
            // A closed stderr is no reason to fail: the remark was a courtesy.
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    /// Prints an error on stderr.
    pub fn error(self, error: &CliError) {
        let text = if self.is_json() { error.to_json().to_string() } else { error.to_string() };
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    /// Whether a progress bar would be seen by a person.
    pub fn shows_progress(self) -> bool {
        !self.is_json() && std::io::stderr().is_terminal()
    }
}

/// Writes one line to stdout. A reader that went away (`| head`) ends the program quietly, as with
/// any tool of a pipeline.
fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}
