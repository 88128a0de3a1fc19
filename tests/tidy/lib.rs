//! Checks on the tree itself: layering, file length, headers, banned names and marks, and documents
//! that must stay in step with the code. It reads files as text and never writes, unless `UPDATE=1`
//! asks it to rewrite a generated document.

#![cfg(test)]

use std::fs;
use std::path::{Path, PathBuf};

/// Longest file without its tests; STYLE: the models' medians are 90 to 340.
const MAX_LINES: usize = 600;
const MAX_COLUMNS: usize = 110;

/// What each folder must not name. The compiler keeps crates apart; this keeps vocabularies apart.
const LAYERS: &[(&str, &[&str])] = &[
    (
        "src/core",
        &[
            "tokio::",
            "tonic::",
            "prost::",
            "sled::",
            "tracing::",
            "openraft::",
            "std::time::Instant",
            "SystemTime",
            "std::fs",
            "std::env",
            "std::net::Tcp",
            "std::net::Udp",
            "std::net::ToSocketAddrs",
            "HashMap",
            "HashSet",
            "rand::",
            "f64",
            "f32",
        ],
    ),
    ("src/rpc", &["openraft::", "sled::"]),
    ("src/raft", &["tonic::", "sled::", "regent_rpc"]),
    ("src/node", &["openraft::"]),
    ("src/xds", &["regent_rpc", "regent_node", "Instant", "SystemTime", "std::fs", "std::env"]),
    ("src/dns", &["tonic::", "regent_rpc", "regent_node", "SystemTime", "std::fs", "std::env"]),
    ("src/fencer", &["tokio::", "SystemTime"]),
    // Its clocks are the lease's, which count a suspend.
    ("src/fencer/init", &["Instant"]),
    ("src/engine", &["tonic::", "openraft::", "sled::", "regent_rpc", "regent_fencer"]),
    ("src/cli", &["openraft::", "sled::"]),
    ("src/lab", &["openraft::", "sled::"]),
    ("tests/sim", &["tonic::", "sled::", "SystemTime", "HashMap", "HashSet"]),
];

/// Folders outside which a name must not appear.
const ONLY_IN: &[(&str, &str)] = &[
    ("sled::", "src/node/history"),
    ("openraft::", "src/raft"),
    ("rustls::", "src/rpc"),
    ("hickory_proto::", "src/dns"),
];

const BANNED_NAMES: &[&str] = &["Manager", "Helper", "Util", "Misc"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn files(dir: &Path, ending: &str, into: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if name != "target" && name != ".git" {
                files(&path, ending, into);
            }
        } else if path.to_string_lossy().ends_with(ending) {
            into.push(path);
        }
    }
}

struct Source {
    /// Path from the root, with forward slashes.
    path: String,
    text: String,
}

impl Source {
    /// The lines of product code: what stands before the file's own test module.
    fn product(&self) -> impl Iterator<Item = (usize, &str)> {
        let tests = self.path.contains("/tests/") || self.path.ends_with("_test.rs");
        self.text
            .lines()
            .enumerate()
            .take_while(move |(_, line)| tests || line.trim() != "#[cfg(test)]")
            .map(|(at, line)| (at + 1, line))
    }
}

fn sources() -> Vec<Source> {
    let root = root();
    let mut paths = Vec::new();
    for dir in ["src", "tests"] {
        files(&root.join(dir), ".rs", &mut paths);
    }
    paths.sort();
    paths
        .into_iter()
        .map(|path| Source {
            text: fs::read_to_string(&path).expect("a source file is readable"),
            path: path.strip_prefix(&root).expect("below the root").to_string_lossy().into_owned(),
        })
        .filter(|source| source.path != "tests/tidy/lib.rs")
        .collect()
}

fn report(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn every_file_says_what_it_is() {
    let found: Vec<_> = sources()
        .iter()
        .filter(|s| !s.text.starts_with("//!"))
        .map(|s| format!("{} does not begin with a //! header", s.path))
        .collect();
    report("files without a header", &found);
}

#[test]
fn no_file_is_a_god_file() {
    let found: Vec<_> = sources()
        .iter()
        .filter_map(|s| {
            let count = s.product().count();
            (count > MAX_LINES && !s.path.contains("/tests/"))
                .then(|| format!("{} has {count} lines, the most is {MAX_LINES}", s.path))
        })
        .collect();
    report("files too long", &found);
}

#[test]
fn lines_fit_a_screen() {
    let mut found = Vec::new();
    for source in sources() {
        for (at, line) in source.text.lines().enumerate() {
            if line.chars().count() > MAX_COLUMNS {
                found.push(format!("{}:{}", source.path, at + 1));
            }
        }
    }
    report(&format!("lines over {MAX_COLUMNS} columns"), &found);
}

#[test]
fn layers_do_not_name_what_is_not_theirs() {
    let mut found = Vec::new();
    for source in sources() {
        for (folder, banned) in LAYERS {
            if !source.path.starts_with(&format!("{folder}/")) {
                continue;
            }
            for (at, line) in source.product() {
                let code = line.split("//").next().unwrap_or_default();
                for word in *banned {
                    if code.contains(word) && !source.path.contains("/tests/") {
                        found.push(format!("{}:{at} names {word}", source.path));
                    }
                }
            }
        }
        for (word, home) in ONLY_IN {
            for (at, line) in source.product() {
                let code = line.split("//").next().unwrap_or_default();
                if code.contains(word)
                    && !code.contains("_rustls")
                    && !source.path.starts_with(home)
                    && !source.path.contains("/tests/")
                {
                    found.push(format!("{}:{at} names {word}, which lives in {home}", source.path));
                }
            }
        }
    }
    report("layering", &found);
}

#[test]
fn no_name_says_nothing() {
    let mut found = Vec::new();
    for source in sources() {
        for (at, line) in source.product() {
            let mut words = line
                .split_whitespace()
                .skip_while(|w| !matches!(*w, "struct" | "enum" | "trait" | "mod" | "type"));
            let (Some(_), Some(name)) = (words.next(), words.next()) else { continue };
            if line.trim_start().starts_with("//") {
                continue;
            }
            for banned in BANNED_NAMES {
                if name.contains(banned) {
                    found.push(format!("{}:{at} {name}", source.path));
                }
            }
        }
    }
    report("names that say nothing", &found);
}

#[test]
fn nothing_is_left_open_or_skipped() {
    let marks = ["todo!(", "unimplemented!(", "#[ignore", "FIXME", "TODO", "XXX"];
    let mut found = Vec::new();
    for source in sources() {
        for (at, line) in source.text.lines().enumerate() {
            for mark in marks {
                if line.contains(mark) {
                    found.push(format!("{}:{} {mark}", source.path, at + 1));
                }
            }
        }
    }
    report("left open", &found);
}

#[test]
fn every_decision_record_is_listed() {
    let dir = root().join("docs/adr");
    let index = fs::read_to_string(dir.join("README.md")).expect("docs/adr/README.md");
    let mut records = Vec::new();
    files(&dir, ".md", &mut records);
    let found: Vec<_> = records
        .iter()
        .filter_map(|path| path.file_name()?.to_str().map(str::to_owned))
        .filter(|name| name != "README.md" && !index.contains(name.as_str()))
        .collect();
    report("decision records missing in docs/adr/README.md", &found);
}

#[test]
fn documents_point_at_files_that_exist() {
    let root = root();
    let mut docs = vec![
        root.join("README.md"),
        root.join("ARCHITECTURE.md"),
        root.join("CONTRIBUTING.md"),
        root.join("CHANGELOG.md"),
    ];
    files(&root.join("docs"), ".md", &mut docs);
    let mut found = Vec::new();
    for doc in docs {
        let text = fs::read_to_string(&doc)
            .unwrap_or_else(|e| panic!("{} is missing: {e}", doc.display()));
        for piece in text.split("](").skip(1) {
            let target = piece.split([')', '#']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let from = doc.parent().expect("a file has a folder");
            if !from.join(target).exists() {
                found.push(format!("{} -> {target}", doc.display()));
            }
        }
    }
    report("broken links", &found);
}
