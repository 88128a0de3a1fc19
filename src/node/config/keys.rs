//! Which keys a configuration may have, and the nearest one for a misspelt one.

use regent_core::spec::Problem;

/// Tables by path (list elements as `[]`) and the keys of each.
const KEYS: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "node_id",
            "cluster",
            "data_dir",
            "listen",
            "advertise",
            "locality",
            "label",
            "tls",
            "profile",
            "timing",
            "join",
            "initial_members",
            "limits",
            "log",
            "otlp",
            "dns",
        ],
    ),
    ("listen", &["grpc", "http", "http_plaintext"]),
    ("advertise", &["grpc", "http"]),
    ("locality", &["region", "zone", "host"]),
    ("tls", &["cert", "key", "ca", "trust_domain", "revoked"]),
    (
        "timing",
        &[
            "heartbeat_ms",
            "election_min_ms",
            "election_max_ms",
            "commit_tick_ms",
            "round_ms",
            "dial_ms",
        ],
    ),
    ("initial_members[]", &["id", "address", "http_address", "locality", "label"]),
    ("initial_members[].locality", &["region", "zone", "host"]),
    (
        "limits",
        &["max_connections", "max_streams_per_connection", "max_request_bytes", "max_inflight"],
    ),
    ("log", &["format", "level"]),
    ("otlp", &["endpoint"]),
    ("dns", &["listen", "zone", "ttl", "ns"]),
];

/// Every unknown key of `table`, with a suggestion.
pub fn unknown(table: &toml::Table) -> Vec<Problem> {
    let mut found = Vec::new();
    walk("", "", table, &mut found);
    found
}

/// `kind` is the path in [`KEYS`], `shown` the path for people.
fn walk(kind: &str, shown: &str, table: &toml::Table, found: &mut Vec<Problem>) {
    let Some((_, keys)) = KEYS.iter().find(|(path, _)| *path == kind) else {
        return;
    };
    for (key, value) in table {
        let path = |base: &str| if base.is_empty() { key.clone() } else { format!("{base}.{key}") };
        let (kind, shown) = (path(kind), path(shown));
        if !keys.contains(&key.as_str()) {
            found.push(Problem {
                field: shown,
                problem: "there is no such key".into(),
                fix: suggest(key, keys),
            });
            continue;
        }
        match value {
            toml::Value::Table(inner) => walk(&kind, &shown, inner, found),
            toml::Value::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    if let toml::Value::Table(inner) = item {
                        walk(&format!("{kind}[]"), &format!("{shown}[{at}]"), inner, found);
                    }
                }
            }
            _ => {}
        }
    }
}

fn suggest(key: &str, keys: &[&str]) -> String {
    let nearest = keys.iter().map(|k| (distance(key, k), *k)).min();
    match nearest {
        Some((far, near)) if far <= 1 + key.len() / 3 => format!("did you mean {near:?}?"),
        _ => format!("keys here are {}", keys.join(", ")),
    }
}

/// Levenshtein distance: fewest insertions, deletions and replacements.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut before = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = before + usize::from(x != *y);
            before = row[j + 1];
            row[j + 1] = replaced.min(before + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_is_levenshteins() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}
