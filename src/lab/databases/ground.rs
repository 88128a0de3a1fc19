//! What this machine must have before databases can be made: PostgreSQL's programs, and, for root,
//! an ordinary user to run them as.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};

use super::{Front, Wanted, proxy};

/// What the agents call; all of them come with the server's package.
const PROGRAMS: [&str; 5] = ["postgres", "initdb", "pg_ctl", "pg_basebackup", "pg_rewind"];
/// Where Debian and its children put each version.
const DEBIAN: &str = "/usr/lib/postgresql";
/// PostgreSQL refuses to run as root; packages make this user.
const OWNER: &str = "postgres";
/// Newer versions' receivers and functions are used.
const LEAST_VERSION: u32 = 13;

/// What was found.
#[derive(Clone, Debug)]
pub struct Ground {
    /// Where PostgreSQL's programs are.
    pub bin_dir: PathBuf,
    /// Who runs them and owns their files; `None`: whoever runs this.
    pub owner: Option<Owner>,
    /// HAProxy's program; `None`: none is wanted, or none is there.
    pub haproxy: Option<PathBuf>,
}

/// A user of the system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its name.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// What is missing, and how to get it.
#[derive(Debug, thiserror::Error)]
pub enum GroundError {
    /// No PostgreSQL.
    #[error("PostgreSQL {LEAST_VERSION} or newer was found neither on PATH nor in {DEBIAN}")]
    NoPostgres,
    /// No HAProxy, and it is required.
    #[error("HAProxy was found neither on PATH nor in /usr/sbin")]
    NoHaproxy,
    /// Root, and nobody to run PostgreSQL as.
    #[error("PostgreSQL does not run as root, and there is no user {OWNER:?}")]
    NoOwner,
    /// The user cannot reach the lab.
    #[error("the user {user:?} may not enter {}", at.display())]
    Closed {
        /// Who.
        user: String,
        /// What is closed to it.
        at: PathBuf,
    },
}

impl Ground {
    /// Looks around.
    ///
    /// # Errors
    /// [`GroundError`].
    pub fn survey(wanted: &Wanted) -> Result<Self, GroundError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let on_path: Vec<PathBuf> = std::env::split_paths(&path).collect();
        let bin_dir = programs(&on_path, Path::new(DEBIAN)).ok_or(GroundError::NoPostgres)?;
        let haproxy = match wanted.haproxy {
            Front::Off => None,
            Front::Auto => proxy::program(),
            Front::Require => Some(proxy::program().ok_or(GroundError::NoHaproxy)?),
        };
        if !Uid::effective().is_root() {
            return Ok(Self { bin_dir, owner: None, haproxy });
        }
        let user = User::from_name(OWNER).ok().flatten().ok_or(GroundError::NoOwner)?;
        let owner = Owner { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw() };
        Ok(Self { bin_dir, owner: Some(owner), haproxy })
    }

    /// Whether PostgreSQL's user can get to `dir` (which exists).
    ///
    /// # Errors
    /// Names the first directory on the way that is closed to it.
    pub fn can_enter(&self, dir: &Path) -> Result<(), GroundError> {
        let Some(owner) = &self.owner else { return Ok(()) };
        let mut way: Vec<&Path> = dir.ancestors().collect();
        way.reverse();
        for at in way {
            let Ok(meta) = at.metadata() else { continue };
            let bit = match (meta.uid() == owner.uid, meta.gid() == owner.gid) {
                (true, _) => 0o100,
                (false, true) => 0o010,
                (false, false) => 0o001,
            };
            if meta.mode() & bit == 0 {
                return Err(GroundError::Closed { user: owner.name.clone(), at: at.to_owned() });
            }
        }
        Ok(())
    }
}

/// The newest of Debian's versions with all programs; else the first place on PATH.
///
/// Debian first: on its machines only the clients' wrappers are on PATH, and a symbolic link there
/// would hide where the rest is.
fn programs(on_path: &[PathBuf], debian: &Path) -> Option<PathBuf> {
    let complete = |dir: &Path| PROGRAMS.iter().all(|program| dir.join(program).is_file());
    let versions = std::fs::read_dir(debian).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .map(|(version, path)| (version, path.join("bin")))
        .filter(|(version, path)| *version >= LEAST_VERSION && complete(path))
        .collect();
    found.sort();
    let newest = found.pop().map(|(_, path)| path);
    newest.or_else(|| on_path.iter().find(|dir| complete(dir)).cloned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    fn install(dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        for program in PROGRAMS {
            fs::write(dir.join(program), "").unwrap();
        }
    }

    #[test]
    fn the_newest_complete_version_is_taken_and_path_is_the_fallback() {
        let scratch = std::env::temp_dir().join(format!("regent-ground-{}", std::process::id()));
        let (debian, other) = (scratch.join("debian"), scratch.join("other"));
        install(&other);
        assert_eq!(programs(&[scratch.clone(), other.clone()], &debian), Some(other.clone()));
        for version in ["9", "13", "15"] {
            install(&debian.join(version).join("bin"));
        }
        fs::create_dir_all(debian.join("17/bin")).unwrap();
        let path = std::slice::from_ref(&other);
        assert_eq!(programs(path, &debian), Some(debian.join("15/bin")), "17 is half installed");
        fs::remove_dir_all(&scratch).unwrap();
        assert_eq!(programs(&[], &debian), None);
    }
}
