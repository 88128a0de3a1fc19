//! A cgroup of the fencer's own, with one below it for what it starts (PROTOCOL.md E1): limits and
//! freezes of the agent's unit can then be told apart from those of the database, and whoever ends the
//! one by its cgroup does not end the other.
//!
//! ```text
//! .../regent-agent.service          the agent, and its fencer if nothing else can be had
//!     └── regent-fencer-<pid>
//!         ├── fencer                the fencer
//!         └── database              what it starts
//! ```
//! Only in the second version's hierarchy, and only where it may be written (as root, or
//! `Delegate=yes` in the unit). No proof rests on it: that is the namespace's part.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const PREFIX: &str = "regent-fencer-";
const FENCER: &str = "fencer";
const DATABASE: &str = "database";
/// Moves whoever writes 0.
const MEMBERS: &str = "cgroup.procs";

/// Moves this process, and with it all that it starts, into a new one.
pub(crate) fn enter_own() -> io::Result<PathBuf> {
    let parent = outside(own()?);
    sweep(&parent);
    let base = parent.join(format!("{PREFIX}{}", std::process::id()));
    make(&base)?;
    make(&base.join(DATABASE))?;
    let mine = base.join(FENCER);
    make(&mine)?;
    fs::write(mine.join(MEMBERS), "0")?;
    Ok(mine)
}

/// Moves this process from the fencer's into that beside it; nothing where the fencer has none.
pub(crate) fn enter_database() -> io::Result<()> {
    let mine = own()?;
    let base = mine.parent().filter(|base| is_base(base) && mine.ends_with(FENCER));
    match base {
        Some(base) => {
            let database = base.join(DATABASE);
            // An empty one may have been swept.
            make(&database)?;
            fs::write(database.join(MEMBERS), "0")
        }
        None => Ok(()),
    }
}

fn make(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn is_base(dir: &Path) -> bool {
    dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX))
}

/// Not inside another fencer's.
fn outside(mut dir: PathBuf) -> PathBuf {
    while let Some(base) = dir.ancestors().find(|one| is_base(one)) {
        dir = base.parent().unwrap_or(Path::new("/")).to_owned();
    }
    dir
}

/// Removes those of fencers that are gone; the kernel keeps any in which somebody lives.
fn sweep(parent: &Path) {
    let Ok(all) = fs::read_dir(parent) else { return };
    for base in all.flatten().map(|entry| entry.path()).filter(|path| is_base(path)) {
        let alive = base
            .file_name()
            .and_then(|name| name.to_str()?.strip_prefix(PREFIX)?.parse::<u32>().ok())
            .is_some_and(|pid| Path::new("/proc").join(pid.to_string()).exists());
        // One that is being made at this moment is empty, too: its maker lives.
        if !alive {
            let _ = fs::remove_dir(base.join(DATABASE));
            let _ = fs::remove_dir(base.join(FENCER));
            let _ = fs::remove_dir(&base);
        }
    }
}

/// The directory of this process's cgroup.
fn own() -> io::Result<PathBuf> {
    let missing = || io::Error::other("there is no cgroup of the second version");
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    find(&mounts, &groups).ok_or_else(missing)
}

fn find(mounts: &str, groups: &str) -> Option<PathBuf> {
    let inside = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        if kind.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let below = Path::new(inside).strip_prefix(root).ok()?;
        Some(Path::new(point).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_found_whatever_part_of_the_hierarchy_is_mounted() {
        let groups = "4:memory:/x\n0::/system.slice/a.service\n";
        let whole = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw";
        let both = format!("29 24 0:25 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n{whole}");
        let found = Some(PathBuf::from("/sys/fs/cgroup/system.slice/a.service"));
        assert_eq!(find(whole, groups), found);
        assert_eq!(find(&both, groups), found);
        let part = "30 24 0:26 /system.slice /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        assert_eq!(find(part, groups), Some(PathBuf::from("/sys/fs/cgroup/a.service")));
        assert_eq!(find("29 24 0:25 / /cpu rw - cgroup cgroup rw,cpu", groups), None);
        assert_eq!(find(whole, "4:memory:/x\n"), None);
    }

    #[test]
    fn a_launch_from_within_a_fencers_own_makes_its_beside_it() {
        let within = PathBuf::from("/cg/a.service/regent-fencer-7/fencer");
        assert_eq!(outside(within), PathBuf::from("/cg/a.service"));
        assert_eq!(outside(PathBuf::from("/cg/a")), PathBuf::from("/cg/a"));
    }
}
