//! Who may connect: the list in use is the closed one or the open one.
//!
//! Closed lets in Regent's own roles only, each from where it has business. The file is replaced by a
//! rename, so that the server never reads half of one, and never synced: it counts while a server
//! runs that was told to read it, and before each start it is the closed one again.

use super::durable::{self, Owner};
use super::options::Options;
use crate::error::DiskError;
use crate::facts::Override;

pub(super) const IN_USE: &str = "regent.hba";
/// A name that no role has.
pub(super) const STRANGER: &str = "regent_somebody_else";

fn closed_text(options: &Options) -> String {
    let (agent, stream, rewind) = (super::AGENT, super::REPLICATION, super::REWIND);
    let mut text = String::from("# Written by Regent; changes are lost.\n");
    if options.socket_dir.is_some() {
        text += &format!("local postgres {agent},{stream} scram-sha-256\n");
    }
    for loopback in ["127.0.0.1/32", "::1/128"] {
        text += &format!("host postgres {agent},{stream},{rewind} {loopback} scram-sha-256\n");
        text += &format!("host replication {stream} {loopback} scram-sha-256\n");
    }
    // `samehost` has loopback in it, which is the agent's own way in above.
    let host = if options.tls.is_some() { "hostssl" } else { "host" };
    for peer in &options.peers {
        text += &format!("{host} postgres {rewind} {peer} scram-sha-256\n");
        text += &format!("{host} replication {stream} {peer} scram-sha-256\n");
    }
    text
}

/// A name as this file wants it. One that would mean something else there, or end the line, is
/// everybody's: what is to be refused is never let in.
fn name(text: &str) -> String {
    match text {
        "" => "all".to_owned(),
        odd if odd.starts_with(['/', '+', '@']) || odd.contains(char::is_control) => {
            "all".to_owned()
        }
        plain => format!("\"{}\"", plain.replace('"', "\"\"")),
    }
}

fn open_text(options: &Options, refused: &[Override]) -> String {
    let mut text = closed_text(options);
    // A client's line may be as wide as "all": it is not for Regent's roles.
    let ours = format!("{},{},{}", super::AGENT, super::REPLICATION, super::REWIND);
    text += &format!("local all {ours} reject\nhost all {ours} all reject\n");
    // No such role: by it the agent sees which list is in use, whomever the lines below let in.
    text += &format!("host postgres {STRANGER} 127.0.0.1/32 scram-sha-256\n");
    for one in refused {
        let (database, role) = (name(&one.database), name(&one.role));
        text += &format!("local {database} {role} reject\nhost {database} {role} all reject\n");
    }
    for line in &options.client_hba {
        text += line;
        text.push('\n');
    }
    text
}

/// The rules of a cluster that Regent lets go of: the same people get in from the same places, and
/// the owner of the data by the socket.
pub(super) fn plain_text(options: &Options) -> String {
    let first = "# Left by Regent, which does not manage this cluster any more.\n\
                 local all postgres peer\n";
    let open = open_text(options, &[]);
    let lines = open.lines().filter(|line| !line.starts_with('#') && !line.contains(STRANGER));
    first.to_owned() + &lines.map(|line| format!("{line}\n")).collect::<String>()
}

/// Puts a list in use: the open one but for some, or the closed one. A line break in an option is
/// refused.
pub(super) fn put(
    options: &Options,
    open: Option<&[Override]>,
    owner: Owner,
) -> Result<(), DiskError> {
    let lines = options.peers.iter().chain(&options.client_hba);
    if let Some(bad) = lines.into_iter().find(|l| l.contains(['\n', '\r'])) {
        return Err(DiskError::Setting(format!("an access rule has a line break: {bad:?}")));
    }
    let text = open.map_or_else(|| closed_text(options), |refused| open_text(options, refused));
    durable::write_unsynced(&options.data_dir.join(IN_USE), &text, owner)
}

/// Whether the file in use is the closed list.
pub(super) fn is_closed(options: &Options) -> Result<bool, DiskError> {
    let in_use = durable::read(&options.data_dir.join(IN_USE))?;
    Ok(in_use.is_some_and(|text| text == closed_text(options)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(role: &str, database: &str) -> Override {
        let [role, database, value] = [role, database, "off"].map(str::to_owned);
        Override { role, database, value }
    }

    #[test]
    fn what_is_refused_stands_before_what_is_let_in_and_no_odd_name_lets_more_in() {
        let mut options = Options::new("data", 5432);
        options.client_hba = vec!["host all all all scram-sha-256".to_owned()];
        let refused = [of("app", ""), of("a\"b", "d b"), of("/x\ny", "shop")];
        let text = open_text(&options, &refused);
        let line = |wanted: &str| text.lines().position(|line| line == wanted);
        let open = line("host all all all scram-sha-256").unwrap();
        for wanted in [
            "host all \"app\" all reject",
            "host \"d b\" \"a\"\"b\" all reject",
            "host \"shop\" all all reject",
            "local all \"app\" reject",
        ] {
            assert!(line(wanted).unwrap() < open, "{wanted}: {text}");
        }
        // Also where everybody is refused, it shows which list is in use.
        let all = open_text(&options, &[of("", "")]);
        let at = |text: &str| all.find(text).unwrap();
        assert!(at(STRANGER) < at("host all all all reject"), "{all}");
    }
}
