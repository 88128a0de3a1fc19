//! Reads a TOML table key by key and remembers every problem with its line, so that people mend a
//! file once and not once per problem.

use std::collections::BTreeMap;
use std::str::FromStr;

use regent_core::spec::Problem;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use crate::suggest;

/// What was found so far.
pub struct Reader<'t> {
    text: &'t str,
    /// Line of each field seen, for problems that are found later.
    lines: BTreeMap<String, usize>,
    problems: Vec<Problem>,
}

/// A table of the file and its path.
pub struct Part<'a, 't> {
    /// `policy`, `instances[1]`; empty at the top.
    pub path: String,
    /// The table.
    pub table: &'a DeTable<'t>,
}

impl Part<'_, '_> {
    /// The path of one of its keys.
    pub fn field(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

impl<'t> Reader<'t> {
    /// A reader of this text.
    pub fn new(text: &'t str) -> Self {
        Self { text, lines: BTreeMap::new(), problems: Vec::new() }
    }

    /// Whether everything was right so far.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// Remembers a problem.
    pub fn problem(
        &mut self,
        field: impl Into<String>,
        problem: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.problems.push(Problem {
            field: field.into(),
            problem: problem.into(),
            fix: fix.into(),
        });
    }

    /// Remembers problems found by others.
    pub fn problems(&mut self, problems: Vec<Problem>) {
        self.problems.extend(problems);
    }

    /// Every problem as a line `file:line: field: what; fix`, in the order of the file.
    pub fn report(mut self, file: &str) -> Vec<String> {
        let lines = std::mem::take(&mut self.lines);
        let mut found: Vec<(usize, String)> = std::mem::take(&mut self.problems)
            .into_iter()
            .map(|problem| match line_of(&lines, &problem.field) {
                Some(line) => (line, format!("{file}:{line}: {problem}")),
                None => (usize::MAX, format!("{file}: {problem}")),
            })
            .collect();
        found.sort_by_key(|(line, _)| *line);
        found.into_iter().map(|(_, text)| text).collect()
    }

    /// Begins with a table: remembers the lines of its keys and refuses those that do not exist.
    pub fn enter<'a>(
        &mut self,
        path: impl Into<String>,
        table: &'a DeTable<'t>,
        known: &[&'static str],
    ) -> Part<'a, 't> {
        let part = Part { path: path.into(), table };
        for (key, _) in table {
            let name = key.get_ref().as_ref();
            let field = part.field(name);
            self.lines.insert(field.clone(), self.line(key.span().start));
            if !known.contains(&name) {
                let fix = match suggest::nearest(name, known.iter().copied()) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => format!("known keys here are {}", known.join(", ")),
                };
                self.problem(field, "there is no such key", fix);
            }
        }
        part
    }

    /// A text, if it is there.
    pub fn text(&mut self, part: &Part<'_, 't>, key: &str) -> Option<String> {
        let value = part.table.get(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some(text.to_string()),
            other => self.wrong_type(part.field(key), other, "a text in quotes"),
        }
    }

    /// A whole number, if it is there.
    pub fn number(&mut self, part: &Part<'_, 't>, key: &str) -> Option<u64> {
        let value = part.table.get(key)?;
        match value.get_ref() {
            DeValue::Integer(number) => {
                match u64::from_str_radix(number.as_str(), number.radix()) {
                    Ok(number) => Some(number),
                    Err(_) => {
                        let problem = format!("{} cannot be", number.as_str());
                        self.problem(part.field(key), problem, "use a whole number from 0 up");
                        None
                    }
                }
            }
            other => self.wrong_type(part.field(key), other, "a whole number without quotes"),
        }
    }

    /// A number that fits 32 bits, if it is there.
    pub fn small(&mut self, part: &Part<'_, 't>, key: &str) -> Option<u32> {
        let number = self.number(part, key)?;
        match u32::try_from(number) {
            Ok(number) => Some(number),
            Err(_) => {
                self.problem(
                    part.field(key),
                    format!("{number} is too large"),
                    "use at most 4294967295",
                );
                None
            }
        }
    }

    /// One of a few words, if it is there.
    pub fn choice<T: FromStr>(
        &mut self,
        part: &Part<'_, 't>,
        key: &str,
        words: &'static [&'static str],
    ) -> Option<T> {
        let word = self.text(part, key)?;
        if let Ok(value) = word.parse() {
            return Some(value);
        }
        let fix = match suggest::nearest(&word, words.iter().copied()) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("use one of {}", words.join(", ")),
        };
        self.problem(part.field(key), format!("there is no {word:?}"), fix);
        None
    }

    /// A table, if it is there.
    pub fn table<'a>(&mut self, part: &Part<'a, 't>, key: &str) -> Option<&'a DeTable<'t>> {
        let value = part.table.get(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(table),
            other => self.wrong_type(part.field(key), other, &format!("a table, [{key}]")),
        }
    }

    /// A list, if it is there.
    pub fn list<'a>(&mut self, part: &Part<'a, 't>, key: &str) -> Option<&'a DeArray<'t>> {
        let value: &Spanned<DeValue<'t>> = part.table.get(key)?;
        match value.get_ref() {
            DeValue::Array(list) => Some(list),
            other => self.wrong_type(part.field(key), other, "a list"),
        }
    }

    /// Says that a value has the wrong type.
    pub fn wrong_type<T>(&mut self, field: String, got: &DeValue<'_>, want: &str) -> Option<T> {
        self.problem(field, format!("it is a {}", got.type_str()), format!("write {want}"));
        None
    }

    /// Remembers where a field stands.
    pub fn place(&mut self, field: impl Into<String>, at: usize) {
        let line = self.line(at);
        self.lines.insert(field.into(), line);
    }

    fn line(&self, at: usize) -> usize {
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }
}

/// The line of a field, or of the nearest table around it: a key that is missing has no line.
fn line_of(lines: &BTreeMap<String, usize>, field: &str) -> Option<usize> {
    let mut path = field;
    loop {
        if let Some(line) = lines.get(path) {
            return Some(*line);
        }
        path = &path[..path.rfind(['.', '['])?];
    }
}
