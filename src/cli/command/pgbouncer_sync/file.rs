//! The file of PgBouncer's databases.

use std::io::Write as _;
use std::path::Path;

use regent_core::id::{Epoch, Revision, ServiceName};
use regent_core::route::pgbouncer;
use regent_rpc::pb::v1;

use crate::error::{CliError, Outcome};

/// Refuses what would end a line of the file, or is no name in the console's language.
///
/// # Errors
/// Which one.
pub fn check(names: &[String], settings: &str) -> Outcome {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let odd = |name: &&String| name.is_empty() || !name.chars().all(is_plain);
    if let Some(name) = names.iter().find(odd) {
        return Err(CliError::usage(format!("{name:?} is no name of a database here"))
            .hint("use letters, digits, '_', '-' and '.'"));
    }
    if names.iter().any(|name| name == "pgbouncer") {
        return Err(CliError::usage("\"pgbouncer\" is PgBouncer's own database"));
    }
    if settings.contains(['\n', '\r']) {
        return Err(CliError::usage("--settings is one line"));
    }
    Ok(())
}

/// Its text.
pub fn text(
    service: &ServiceName,
    routes: &v1::Routes,
    names: &[String],
    address: &str,
    settings: &str,
) -> String {
    let epoch = routes.epoch.as_ref().map_or(Epoch::NONE, |epoch| Epoch {
        incarnation: epoch.incarnation,
        revision: Revision(epoch.revision),
    });
    pgbouncer::databases(service, epoch, names, address, settings)
}

/// Puts `text` in the place of what is there; nobody ever reads half of it. Whether it says something
/// else.
///
/// # Errors
/// It cannot be written: which file, and why.
pub fn replace(path: &Path, text: &str) -> Result<bool, String> {
    if std::fs::read_to_string(path).is_ok_and(|was| was == text) {
        return Ok(false);
    }
    let beside = path.with_extension("new");
    let write = || {
        let mut file = std::fs::File::create(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().map_err(|error: std::io::Error| format!("{}: {error}", path.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_end_its_line_is_refused() {
        assert!(check(&["app".into()], "pool_size=5").is_ok());
        for bad in ["", "a b", "a;", "a\nb", "pgbouncer"] {
            assert!(check(&[bad.into()], "").is_err(), "{bad:?}");
        }
        assert!(check(&["app".into()], "a=1\nb = host=x").is_err());
    }

    #[test]
    fn it_is_written_once_for_each_text() {
        let path = std::env::temp_dir().join(format!("regent-databases-{}", std::process::id()));
        assert_eq!(replace(&path, "one"), Ok(true));
        assert_eq!(replace(&path, "one"), Ok(false));
        assert_eq!(replace(&path, "two"), Ok(true));
        assert_eq!(std::fs::read_to_string(&path).expect("it is there"), "two");
        std::fs::remove_file(&path).expect("it is there");
        assert!(replace(Path::new("/nowhere/at/all.ini"), "x").is_err());
    }
}
