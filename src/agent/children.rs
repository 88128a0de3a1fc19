//! The processes that a server has, as `/proc` shows them: some are in none of its own lists yet.

use std::io;

use regent_engine::Child;

/// Those whose parent is `postmaster`, a pid on the host; each with the pid that the server itself
/// knows it by.
pub fn of(postmaster: i32) -> io::Result<Vec<Child>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|it| it.is_ascii_digit()))
        else {
            continue;
        };
        // Whoever is gone by now does nothing any more.
        let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        let field = |key: &str| status.lines().find_map(|line| line.strip_prefix(key));
        let parent = field("PPid:").and_then(|text| text.trim().parse::<i32>().ok());
        let is_dead = field("State:").is_some_and(|state| state.trim().starts_with('Z'));
        if parent != Some(postmaster) || is_dead {
            continue;
        }
        // The last of these is the one of its own namespace.
        let inside = field("NSpid:").and_then(|pids| pids.split_whitespace().last()?.parse().ok());
        let Some(pid_inside) = inside.or_else(|| pid.parse().ok()) else { continue };
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let title = String::from_utf8_lossy(&words).replace('\0', " ").trim_end().to_owned();
        found.push(Child { pid: pid_inside, title });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_child_is_found_by_its_parent_and_with_its_title() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let me = std::process::id().cast_signed();
        let found = of(me).unwrap();
        let pid = child.id().cast_signed();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.iter().any(|it| it.title == "sleep 60"), "{found:?}");
        assert!(found.iter().any(|it| it.pid == pid), "{found:?}");
        assert!(of(pid).unwrap().is_empty());
    }
}
