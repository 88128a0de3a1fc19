//! The first copy of a cluster: initdb, Regent's roles and tables, and nothing of it left open.
//!
//! The roles are made by a server in single mode, which listens nowhere; passwords reach it as SCRAM
//! verifiers on its standard input, never as arguments.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use super::options::Options;
use super::programs::Programs;
use super::{AGENT, REPLICATION, REWIND};
use super::{durable, marker, passfile, scram};
use crate::error::RebuildError;
use crate::facts::GenerationId;
use crate::orders::{Secret, Secrets};

/// Of WAL. A promotion copies a whole segment before it ends, and a standby that comes to a new
/// primary streams its segment from the beginning before it acknowledges anything: clients wait for
/// both. With 16 MiB, the usual size, that is four times as much.
const SEGMENT: &str = "--wal-segsize=4";
/// initdb syncs some 50 MB.
const INIT: Duration = Duration::from_secs(120);

fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// One statement a line: single mode ends a statement at a line break. May be repeated: a role that
/// is there already has these rights afterwards and no more, and what belongs to somebody else
/// is refused.
pub(super) fn roles(secrets: &Secrets, version: u32) -> String {
    const NO: &str = "NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS";
    let login = |role: &str, with: &str, secret: &Secret| {
        let absent = format!("NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}')");
        let make = format!("DO $$ BEGIN IF {absent} THEN CREATE ROLE {role}; END IF; END $$;\n");
        let password = scram::verifier(secret);
        make + &format!("ALTER ROLE {role} LOGIN {with} {NO} PASSWORD '{password}';\n")
    };
    let strange = format!(
        "EXISTS (SELECT FROM pg_namespace n JOIN pg_roles r ON r.oid = n.nspowner \
         WHERE n.nspname = 'regent' AND r.rolname <> '{AGENT}')"
    );
    let what = "RAISE EXCEPTION 'the schema regent belongs to somebody else'";
    let mut sql = format!("DO $$ BEGIN IF {strange} THEN {what}; END IF; END $$;\n");
    sql += &login(AGENT, "NOREPLICATION", &secrets.agent);
    sql += &login(REPLICATION, "REPLICATION", &secrets.replication);
    sql += &login(REWIND, "NOREPLICATION", &secrets.rewind);
    sql += &format!("GRANT pg_monitor, pg_signal_backend TO {AGENT};\n");
    if version >= 15 {
        // A rewind needs a checkpoint at its source first.
        sql += &format!("GRANT pg_checkpoint TO {AGENT}, {REWIND};\n");
    }
    for function in ["pg_promote(boolean, integer)", "pg_wal_replay_resume()"] {
        sql += &format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {AGENT};\n");
    }
    for function in [
        "pg_ls_dir(text, boolean, boolean)",
        "pg_stat_file(text, boolean)",
        "pg_read_binary_file(text)",
        "pg_read_binary_file(text, bigint, bigint, boolean)",
    ] {
        sql += &format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {REWIND};\n");
    }
    sql += &format!("CREATE SCHEMA IF NOT EXISTS regent AUTHORIZATION {AGENT};\n");
    sql += "CREATE TABLE IF NOT EXISTS regent.epoch (incarnation bigint NOT NULL, \
            revision bigint NOT NULL, at timestamptz NOT NULL DEFAULT now(), \
            PRIMARY KEY (incarnation, revision));\n";
    sql += "CREATE TABLE IF NOT EXISTS regent.canary \
            (id integer PRIMARY KEY, n bigint NOT NULL);\n";
    sql += "INSERT INTO regent.canary VALUES (1, 0), (2, 0), (3, 0) ON CONFLICT DO NOTHING;\n";
    for table in ["regent.epoch", "regent.canary"] {
        sql += &format!("ALTER TABLE {table} OWNER TO {AGENT};\n");
    }
    sql
}

/// Runs statements on a directory that no server uses.
async fn single(options: &Options, programs: &Programs, sql: &str) -> Result<(), RebuildError> {
    single_with(options, programs, None, sql).await
}

/// The same, with a configuration that lies outside of the directory.
pub(super) async fn single_with(
    options: &Options,
    programs: &Programs,
    config: Option<&Path>,
    sql: &str,
) -> Result<(), RebuildError> {
    // Nobody acknowledges here, and the names on disk are those of nobody.
    let args = ["--single", "-c", "exit_on_error=on", "-c", "synchronous_commit=local"];
    let mut args = args.map(OsStr::new).to_vec();
    let config = config.map(|path| format!("config_file={}", path.display()));
    if let Some(config) = &config {
        args.extend(["-c".as_ref(), OsStr::new(config)]);
    }
    args.extend(["-D".as_ref(), options.data_dir.as_os_str(), "postgres".as_ref()]);
    let ended = programs.run("postgres", &args, &[], sql, INIT).await?;
    if ended.ok && !ended.err.contains("ERROR:") && !ended.err.contains("FATAL:") {
        Ok(())
    } else {
        Err(ended.failure("postgres --single").into())
    }
}

fn refuse_in_use(dir: &Path) -> Result<(), RebuildError> {
    match super::control::pid_file(dir)? {
        Some(pid) => Err(RebuildError::InUse { path: dir.to_owned(), pid }),
        None => Ok(()),
    }
}

/// Makes the cluster and everything that Regent needs in it.
pub(super) async fn init(
    options: &Options,
    programs: &Programs,
    secrets: &Secrets,
) -> Result<GenerationId, RebuildError> {
    let dir = &options.data_dir;
    if !durable::names(dir)?.is_empty() {
        return Err(RebuildError::NotEmpty(dir.clone()));
    }
    durable::make_dir(dir, programs.owner)?;
    passfile::write(&options.passfile, secrets, programs.owner)?;
    // Rebuilt from nothing after an interruption: no half of a cluster is ever adopted.
    marker::begin(options, "init", programs.owner)?;
    // The superuser gets no password, and initdb's own access rules let nobody in.
    let args = ["-k", "-U", "postgres", "-A", "reject", "-E", "UTF8"];
    let mut args = args.map(OsStr::new).to_vec();
    args.extend([OsStr::new("--locale=C.UTF-8"), SEGMENT.as_ref(), "-D".as_ref(), dir.as_os_str()]);
    let ended = programs.run("initdb", &args, &[], "", INIT).await?;
    if !ended.ok {
        return Err(ended.failure("initdb").into());
    }
    single(options, programs, &roles(secrets, programs.version)).await?;
    super::start::lay_closed(options, programs)?;
    let generation = marker::new_generation(dir, programs.owner)?;
    marker::end(options)?;
    Ok(generation)
}

/// Makes a superuser who logs in with a password, for people. Only before the first start, or
/// whenever no server runs on the directory.
pub(super) async fn create_admin(
    options: &Options,
    programs: &Programs,
    user: &str,
    password: &Secret,
) -> Result<(), RebuildError> {
    refuse_in_use(&options.data_dir)?;
    let (user, password) = (ident(user), scram::of_people(password));
    let sql = format!("CREATE ROLE {user} LOGIN SUPERUSER PASSWORD '{password}'\n");
    single(options, programs, &sql).await
}

/// Makes a role that may log in, and a database that it owns. Only before the first start, or
/// whenever no server runs on the directory.
pub(super) async fn create_app(
    options: &Options,
    programs: &Programs,
    user: &str,
    password: &Secret,
    database: &str,
) -> Result<(), RebuildError> {
    refuse_in_use(&options.data_dir)?;
    let (user, database) = (ident(user), ident(database));
    let sql = format!(
        "CREATE ROLE {user} LOGIN PASSWORD '{}'\nCREATE DATABASE {database} OWNER {user}\n",
        scram::of_people(password)
    );
    single(options, programs, &sql).await
}
