//! A cluster that somebody else made becomes one of Regent's: roles, settings, access rules.
//!
//! Roles are made in the server while it still runs, or by one in single mode; all else waits for an
//! orderly stop. It must never leave a directory that Regent and somebody else could both start
//! (PROTOCOL.md E3), and it throws nothing away: what it replaces is kept in `state_dir/adopted`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::control::{self, Running};
use super::foreign::{self, Files};
use super::managed::Managed;
use super::options::Options;
use super::programs::Programs;
use super::{durable, init, marker, passfile, start};
use crate::error::{DiskError, RebuildError};
use crate::facts::{ClusterState, Discovery, GenerationId};
use crate::orders::{Secrets, SyncNames};

/// Most clusters checkpoint in seconds; a large one may take minutes.
const CHECKPOINT: Duration = Duration::from_secs(600);
/// Questions of a server that answers.
const QUESTION: Duration = Duration::from_secs(10);
/// The ending of a configuration that must not be started with any more.
const ASIDE: &str = ".before-regent";

/// Asked with the superuser's rights; one line each.
const FACTS: &str = "SELECT name || '=' || setting FROM pg_settings WHERE name IN \
  ('config_file', 'hba_file', 'ident_file', 'max_wal_senders', 'max_replication_slots');
SELECT 'superuser=' || rolsuper FROM pg_roles WHERE rolname = current_user;
SELECT 'recovery=' || pg_is_in_recovery();
SELECT 'md5=' || count(*) FROM pg_authid WHERE rolcanlogin AND rolpassword LIKE 'md5%';
SELECT 'slots=' || coalesce(string_agg(slot_name, ', '), '') FROM pg_replication_slots;
SELECT 'standbys=' || coalesce(string_agg(application_name, ', '), '') FROM pg_stat_replication;
";

/// What the operator says beside the agent's file.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Who may make roles.
    pub superuser: String,
    /// `postgresql.conf`, where it is not found by itself.
    pub config_file: Option<PathBuf>,
    /// The present access rules may be replaced by those of the agent's file.
    pub replace_access: bool,
}

/// A cluster before its adoption.
#[derive(Clone, Debug)]
pub struct Survey {
    /// Its system identifier.
    pub system_identifier: u64,
    /// Its major version.
    pub version: u32,
    /// The server that runs on it.
    pub running: Option<Running>,
    /// Whether it is a standby.
    pub is_standby: bool,
    /// What speaks against the adoption.
    pub obstacles: Vec<String>,
    /// Settings that Regent sets otherwise, and access rules that go out of force.
    pub replaced: Vec<String>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
    files: Files,
}

/// A line of the superuser's session each; its errors name no password, for it is given none.
async fn psql(
    programs: &Programs,
    running: &Running,
    ask: &Ask,
    sql: &str,
    within: Duration,
) -> Result<String, RebuildError> {
    let port = running.port.to_string();
    let args = ["-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-p"];
    let mut args = args.map(OsStr::new).to_vec();
    args.extend([OsStr::new(&port), "-U".as_ref(), OsStr::new(&ask.superuser)]);
    args.extend(["-h".as_ref(), OsStr::new(&running.host), "-f".as_ref(), "-".as_ref()]);
    let ended = programs.run("psql", &args, &[], sql, within).await?;
    if ended.ok { Ok(ended.out) } else { Err(ended.failure("psql").into()) }
}

async fn facts(
    programs: &Programs,
    running: &Running,
    ask: &Ask,
) -> Result<BTreeMap<String, String>, RebuildError> {
    let out = psql(programs, running, ask, FACTS, QUESTION).await?;
    let lines = out.lines().filter_map(|line| line.split_once('='));
    Ok(lines.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

/// Looks at everything that an adoption depends on.
pub(super) async fn survey(
    options: &Options,
    programs: &Programs,
    ask: &Ask,
) -> Result<Survey, DiskError> {
    let dir = &options.data_dir;
    let mut survey = Survey {
        system_identifier: 0,
        version: programs.version,
        running: control::running(dir)?,
        is_standby: dir.join("standby.signal").exists(),
        obstacles: Vec::new(),
        replaced: Vec::new(),
        notes: Vec::new(),
        files: foreign::files(dir, ask.config_file.as_deref())?,
    };
    let cluster = match control::discover(options, programs).await? {
        Discovery::Cluster(cluster) => cluster,
        Discovery::Empty => {
            survey.obstacles.push(format!("{} holds no cluster", dir.display()));
            return Ok(survey);
        }
        Discovery::Unsafe { why } => {
            survey.obstacles.push(why);
            return Ok(survey);
        }
        Discovery::Quarantined { interrupted } => {
            survey.obstacles.push(format!("{interrupted} was interrupted here"));
            return Ok(survey);
        }
        Discovery::Foreign { found, wanted } => {
            survey.obstacles.push(format!("it is of cluster {found}, and not of {wanted}"));
            return Ok(survey);
        }
    };
    survey.system_identifier = cluster.system_identifier;
    if cluster.generation.is_some() {
        survey.obstacles.push("it is Regent's already: start its agent".to_owned());
        return Ok(survey);
    }
    let fields = control::fields(dir, programs).await?;
    survey.disk(options, cluster.state, &fields)?;
    if let Some(running) = survey.running.clone() {
        match facts(programs, &running, ask).await {
            Ok(facts) => survey.server(options, ask, &facts),
            Err(error) => {
                let user = &ask.superuser;
                let how = "name a superuser who can, or stop the server first";
                survey.obstacles.push(format!(
                    "{user} cannot log in at {}, port {}: {error}; {how}",
                    running.host, running.port
                ));
            }
        }
    }
    survey.settings(options, programs)?;
    survey.access(options, ask)?;
    Ok(survey)
}

impl Survey {
    /// The configuration that it was started with.
    pub fn config_file(&self) -> PathBuf {
        self.files.config.clone()
    }

    /// What the files say.
    fn disk(
        &mut self,
        options: &Options,
        state: ClusterState,
        fields: &std::collections::HashMap<String, String>,
    ) -> Result<(), DiskError> {
        let dir = &options.data_dir;
        let orderly = matches!(state, ClusterState::ShutDown | ClusterState::ShutDownInRecovery);
        if self.running.is_none() && !orderly {
            let how = "start it and stop it once as before";
            self.obstacles.push(format!("it was not stopped in order: {how}"));
        }
        if self.running.is_none() && (state == ClusterState::ShutDownInRecovery) != self.is_standby
        {
            let what = "what it was stopped as, and as what it would start, are not the same";
            self.obstacles.push(format!("{what} (standby.signal)"));
        }
        if dir.join("recovery.signal").exists() {
            self.obstacles.push("a recovery was asked for and is not over".to_owned());
        }
        let spaces = durable::names(&dir.join("pg_tblspc"))?;
        if !spaces.is_empty() {
            self.obstacles.push(format!("{} tablespaces lie outside of it", spaces.len()));
        }
        if fields.get("wal_level setting").is_some_and(|level| level == "logical")
            && !options.logical_wal
        {
            let how = "say wal_level = \"logical\" in the agent's file, or set it to replica";
            self.obstacles.push(format!("its wal_level is logical: {how}"));
        }
        self.senders(options, fields.get("max_wal_senders setting"), "max_wal_senders");
        if self.is_standby && durable::read(&options.passfile)?.is_none() {
            self.obstacles.push(format!(
                "{} is missing: copy it from the primary's host, which is adopted first",
                options.passfile.display()
            ));
        }
        if durable::read(&self.files.config)?.is_none() {
            let path = self.files.config.display();
            self.obstacles.push(format!("there is no {path}: say where it is (--config-file)"));
        }
        Ok(())
    }

    /// A standby must not have fewer than its primary had.
    fn senders(&mut self, options: &Options, found: Option<&String>, key: &str) {
        let found = found.and_then(|number| number.parse::<u32>().ok()).unwrap_or(0);
        if found > options.max_senders {
            let how = format!("say max_senders = {found} in the agent's file");
            self.obstacles.push(format!("its {key} is {found}: {how}"));
        }
    }

    /// What the server says.
    fn server(&mut self, options: &Options, ask: &Ask, facts: &BTreeMap<String, String>) {
        let fact = |key: &str| facts.get(key).map(String::as_str).unwrap_or_default();
        for (key, path) in [
            ("config_file", &mut self.files.config),
            ("hba_file", &mut self.files.hba),
            ("ident_file", &mut self.files.ident),
        ] {
            if !fact(key).is_empty() {
                *path = PathBuf::from(fact(key));
            }
        }
        if fact("superuser") != "true" {
            self.obstacles.push(format!("{} is no superuser", ask.superuser));
        }
        self.is_standby = fact("recovery") == "true";
        self.senders(options, facts.get("max_replication_slots"), "max_replication_slots");
        let md5 = fact("md5");
        let scram_only = options.client_hba.iter().all(|line| !line.contains("md5"));
        if md5 != "0" && scram_only {
            self.notes.push(format!(
                "{md5} roles have passwords in md5 form, and no rule of client_hba takes those: \
                 set them anew, or add a rule with md5"
            ));
        }
        if !fact("slots").is_empty() {
            let slots = fact("slots");
            self.notes.push(format!("slots that stay, and keep WAL until you drop them: {slots}"));
        }
        if !fact("standbys").is_empty() {
            let standbys = fact("standbys");
            self.notes.push(format!(
                "it streams to {standbys}: adopt these too, or give their agents empty directories"
            ));
        }
    }

    /// Settings in force that Regent sets otherwise.
    fn settings(&mut self, options: &Options, programs: &Programs) -> Result<(), DiskError> {
        let text = durable::read(&self.files.config)?.unwrap_or_default();
        let auto = durable::read(&options.data_dir.join("postgresql.auto.conf"))?;
        let auto = auto.unwrap_or_default();
        let theirs = foreign::settings([text.as_str(), auto.as_str()]);
        for key in foreign::targets(&theirs) {
            self.obstacles.push(format!("{key} is set: recovery would end by itself"));
        }
        let mut ours = Managed::afresh(&options.data_dir, programs.owner);
        ours.base(options);
        ours.no_upstream();
        ours.names(&SyncNames::Blocked);
        for (key, value) in ours.all() {
            if let Some(found) = theirs.get(key).filter(|found| *found != value) {
                self.replaced.push(format!("{key} = '{}'", shown(key, found)));
            }
        }
        if !self.files.config.starts_with(&options.data_dir) {
            let (from, dir) = (self.files.config.display(), options.data_dir.display());
            self.replaced.push(format!("{from}: goes on in {dir}, the old one as {from}{ASIDE}"));
        }
        Ok(())
    }

    /// Rules that go out of force.
    fn access(&mut self, options: &Options, ask: &Ask) -> Result<(), DiskError> {
        let text = durable::read(&self.files.hba)?.unwrap_or_default();
        let kept: Vec<_> =
            options.client_hba.iter().flat_map(|line| foreign::rules(line)).collect();
        let gone = foreign::rules(&text).into_iter().filter(|rule| !kept.contains(rule));
        let gone: Vec<_> = gone.collect();
        if !gone.is_empty() && !ask.replace_access {
            self.obstacles.push(format!(
                "{} rules of {} are not in client_hba of the agent's file: add those that you \
                 need, then say that the others may go (--replace-access)",
                gone.len(),
                self.files.hba.display()
            ));
        }
        self.replaced.extend(gone.into_iter().map(|rule| format!("access: {rule}")));
        Ok(())
    }
}

/// A connection string may hold a password.
fn shown<'a>(key: &str, value: &'a str) -> &'a str {
    if key == super::managed::CONNINFO { "..." } else { value }
}

/// The passwords: those that are there, or new ones.
fn secrets(options: &Options, programs: &Programs) -> Result<Secrets, DiskError> {
    if durable::read(&options.passfile)?.is_none() {
        passfile::write(&options.passfile, &Secrets::random(), programs.owner)?;
    }
    let of = |role| passfile::password(&options.passfile, role);
    Ok(Secrets {
        agent: of(super::AGENT)?,
        replication: of(super::REPLICATION)?,
        rewind: of(super::REWIND)?,
    })
}

/// Roles and a checkpoint in the server that runs.
pub(super) async fn make_ready(
    options: &Options,
    programs: &Programs,
    survey: &Survey,
    ask: &Ask,
) -> Result<(), RebuildError> {
    let Some(running) = &survey.running else { return Ok(()) };
    if !survey.is_standby {
        // Nothing of it into the server's log; and it must not wait for a standby that is away.
        let quiet = "SET log_statement = 'none';\nSET log_min_duration_statement = -1;\n\
                     SET log_min_error_statement = 'panic';\nSET synchronous_commit = 'local';\n";
        let sql = format!("{quiet}{}", init::roles(&secrets(options, programs)?, programs.version));
        psql(programs, running, ask, &sql, QUESTION).await?;
    }
    psql(programs, running, ask, "CHECKPOINT;\n", CHECKPOINT).await?;
    Ok(())
}

/// Keeps a file as it was before the first adoption.
fn keep(options: &Options, programs: &Programs, file: &Path, name: &str) -> Result<(), DiskError> {
    let Some(text) = durable::read(file)? else { return Ok(()) };
    let kept = options.state_dir.join("adopted").join(name);
    if durable::read(&kept)?.is_some() {
        return Ok(());
    }
    durable::make_dir(durable::parent(&kept), programs.owner)?;
    durable::write(&kept, &text, programs.owner)
}

/// The whole of it, for a cluster that was stopped in order.
pub(super) async fn adopt(
    options: &Options,
    programs: &Programs,
    ask: &Ask,
) -> Result<GenerationId, RebuildError> {
    let survey = survey(options, programs, ask).await?;
    let dir = &options.data_dir;
    if let Some(running) = &survey.running {
        return Err(RebuildError::InUse { path: dir.clone(), pid: running.pid });
    }
    if !survey.obstacles.is_empty() {
        return Err(RebuildError::CannotAdopt(survey.obstacles));
    }
    let Files { config, hba: rules, ident } = &survey.files;
    let auto = dir.join("postgresql.auto.conf");
    for (file, name) in [
        (config, "postgresql.conf"),
        (&auto, "postgresql.auto.conf"),
        (rules, "pg_hba.conf"),
        (ident, "pg_ident.conf"),
    ] {
        keep(options, programs, file, name)?;
    }
    if !survey.is_standby {
        let sql = init::roles(&secrets(options, programs)?, programs.version);
        init::single_with(options, programs, Some(config), &sql).await?;
    }
    if survey.is_standby {
        durable::write(&dir.join("standby.signal"), "", programs.owner)?;
    }
    let inside = dir.join("postgresql.conf");
    if *config != inside {
        let text = durable::read(config)?.unwrap_or_default();
        durable::write(&inside, &foreign::moved_in(&text, config), programs.owner)?;
        if let Some(text) = durable::read(ident)? {
            durable::write_if_other(&dir.join("pg_ident.conf"), &text, programs.owner)?;
        }
    } else {
        let text = durable::read(config)?.unwrap_or_default();
        durable::write_if_other(&inside, &foreign::moved_in(&text, config), programs.owner)?;
    }
    start::lay_closed(options, programs)?;
    start::after(options)?;
    if !config.starts_with(dir) {
        // Whoever starts the server with it would not meet what Regent closed (E3).
        let mut aside = config.clone().into_os_string();
        aside.push(ASIDE);
        std::fs::rename(config, &aside).map_err(|source| DiskError::Io {
            what: "put aside",
            path: config.clone(),
            source,
        })?;
        durable::sync_dir(durable::parent(config))?;
    }
    Ok(marker::new_generation(dir, programs.owner)?)
}
