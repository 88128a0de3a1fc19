//! `regent pki ...`: a small certificate authority in a directory, for those who have none.
//!
//! Works without a cluster. The authority's key stays where it was made; nodes get certificates.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use regent_core::authz::Role;
use regent_rpc::pki;
use serde_json::{Value, json};
use x509_parser::pem::Pem;
use x509_parser::prelude::{GeneralName, ParsedExtension, X509Certificate};

use super::Context;
use crate::duration;
use crate::error::{CliError, Context as _, Outcome};
use crate::render::table::Table;
use crate::render::text;

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Make an authority
    #[command(after_help = "\
Example: everything for three nodes and yourself
  regent pki init --dir pki --trust-domain example.org
  regent pki issue --dir pki node 1
  regent pki issue --dir pki node 2
  regent pki issue --dir pki node 3
  regent pki issue --dir pki admin alice

A process needs its pair of files and bundle.crt; ca.key must never leave the directory.
")]
    Init {
        /// Directory of the authority
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// How many days it is valid
        #[arg(long, default_value_t = pki::CA_DAYS)]
        days: u32,
        /// Replace the authority; every certificate it signed becomes worthless
        #[arg(long)]
        force: bool,
    },
    /// Issue a certificate
    #[command(after_help = "\
Roles: node, agent, router, client, observer, operator, approver, auditor, admin.
A node's name is its id; an agent's is <service>/<instance>.

Examples:
  regent pki issue --dir pki node 4
  regent pki issue --dir pki client billing --name-also billing.example.org
  regent pki issue --dir pki node 4 --force             the same again, with a new key
")]
    Issue {
        /// What the certificate may do
        #[arg(value_parser = parse_role)]
        role: Role,
        /// Whose it is
        name: String,
        /// Directory of the authority
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// DNS names or addresses to add, for clients in other languages that check them
        #[arg(long, value_delimiter = ',', value_name = "NAME")]
        name_also: Vec<String>,
        /// How many days it is valid; never longer than the authority
        #[arg(long, default_value_t = pki::LEAF_DAYS)]
        days: u32,
        /// Replace an existing pair
        #[arg(long)]
        force: bool,
    },
    /// Replace the authority without a refused connection, in three steps
    #[command(after_help = "\
  begin    make the next authority; trust both        then give bundle.crt to every process
  switch   sign with the new one, reissue all pairs   then give every process its new pair
  finish   trust the new one only                     then give bundle.crt to every process

Processes read their files again by themselves within seconds; `regent status` shows expiries.
A step that was interrupted can be run again.
")]
    Rotate {
        /// Which step
        #[arg(value_enum)]
        step: Step,
        /// Directory of the authority
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Say what certificates a file holds
    Show {
        /// A PEM file
        file: PathBuf,
    },
}

/// A step of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Step {
    /// Trust both authorities.
    Begin,
    /// Sign with the new one.
    Switch,
    /// Trust the new one only.
    Finish,
}

fn parse_role(text: &str) -> Result<Role, String> {
    text.parse().map_err(|error: regent_core::authz::UnknownRole| error.to_string())
}

/// Runs one of them.
pub async fn run(context: &Context, verb: Verb) -> Outcome {
    match verb {
        Verb::Init { dir, days, force } => {
            let Some(trust) = &context.globals.trust_domain else {
                return Err(CliError::usage("cannot make an authority without a trust domain")
                    .hint(
                        "add --trust-domain NAME, like example.org: every identity begins with it",
                    ));
            };
            let made = pki::init(&dir, trust, days, force)
                .map_err(|error| refused("cannot make the authority", error))?;
            report(context, &made);
            Ok(())
        }
        Verb::Issue { role, name, dir, name_also, days, force } => {
            let what = format!("cannot issue a certificate for {role}/{name}");
            let request = pki::Request { role, name, names: name_also, days, force };
            let made = pki::issue(&dir, &request).map_err(|error| refused(&what, error))?;
            report(context, &made);
            Ok(())
        }
        Verb::Rotate { step, dir } => {
            let step = match step {
                Step::Begin => pki::Step::Begin,
                Step::Switch => pki::Step::Switch,
                Step::Finish => pki::Step::Finish,
            };
            let done = pki::rotate(&dir, step)
                .map_err(|error| refused("cannot rotate the authority", error))?;
            context.out.value(
                || json!({ "written": done.written, "next": done.next }),
                || {
                    let written: Vec<String> = done
                        .written
                        .iter()
                        .map(|path| format!("wrote {}", path.display()))
                        .collect();
                    format!("{}\nnext: {}", written.join("\n"), done.next)
                },
            );
            Ok(())
        }
        Verb::Show { file } => show(context, file),
    }
}

fn refused(what: &str, error: pki::PkiError) -> CliError {
    use pki::PkiError as E;
    let base = match &error {
        E::Exists { .. } | E::Order(_) => CliError::refused(what),
        E::Request(_) | E::Content { .. } => CliError::usage(what),
        E::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            CliError::usage(what).hint("make an authority first: `regent pki init`")
        }
        E::File { .. } | E::Make(_) => CliError::internal(what),
    };
    base.caused_by(error)
}

fn report(context: &Context, made: &pki::Issued) {
    let valid_ms = u64::try_from(made.valid_for.as_millis()).unwrap_or(u64::MAX);
    context.out.value(
        || {
            json!({
                "spiffe": made.spiffe,
                "cert": made.cert,
                "key": made.key,
                "valid_for_ms": valid_ms,
            })
        },
        || {
            let mut table = Table::pairs();
            table.pair("identity", &made.spiffe);
            table.pair("certificate", made.cert.display());
            table.pair("key", made.key.display());
            table.pair("valid for", duration::human(valid_ms));
            table.to_string()
        },
    );
}

/// What one certificate says.
struct Shown {
    uris: Vec<String>,
    subject: String,
    issuer: String,
    serial: String,
    authority: bool,
    not_before_ms: u64,
    not_after_ms: u64,
}

fn show(context: &Context, file: PathBuf) -> Outcome {
    let what = || format!("cannot read {} as certificates", file.display());
    let bytes = std::fs::read(&file).or_usage(what)?;
    let mut all = Vec::new();
    for part in Pem::iter_from_buffer(&bytes) {
        let part = part.or_usage(what)?;
        if part.label == "CERTIFICATE" {
            let certificate = part.parse_x509().or_usage(what)?;
            all.push(read(&certificate));
        }
    }
    if all.is_empty() {
        return Err(CliError::usage(what()).because("it holds no certificate"));
    }
    let now_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    context.out.value(
        || json!(all.iter().map(|one| as_json(one, now_ms)).collect::<Vec<_>>()),
        || all.iter().map(|one| as_text(one, now_ms)).collect::<Vec<_>>().join("\n"),
    );
    Ok(())
}

fn read(certificate: &X509Certificate<'_>) -> Shown {
    let ms = |at: x509_parser::time::ASN1Time| {
        u64::try_from(at.timestamp()).unwrap_or(0).saturating_mul(1_000)
    };
    let mut uris = Vec::new();
    for extension in certificate.extensions() {
        if let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() {
            uris.extend(names.general_names.iter().filter_map(|name| match name {
                GeneralName::URI(uri) => Some((*uri).to_owned()),
                _ => None,
            }));
        }
    }
    Shown {
        uris,
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        serial: text::hex(certificate.raw_serial()),
        authority: certificate.is_ca(),
        not_before_ms: ms(certificate.validity().not_before),
        not_after_ms: ms(certificate.validity().not_after),
    }
}

fn as_json(one: &Shown, now_ms: u64) -> Value {
    json!({
        "uris": one.uris,
        "subject": one.subject,
        "issuer": one.issuer,
        "serial": one.serial,
        "authority": one.authority,
        "not_before": text::instant(one.not_before_ms),
        "not_after": text::instant(one.not_after_ms),
        "expires_in_ms": one.not_after_ms.saturating_sub(now_ms),
    })
}

fn as_text(one: &Shown, now_ms: u64) -> String {
    let mut table = Table::pairs();
    table.pair("identity", one.uris.join(", "));
    table.pair("subject", &one.subject);
    table.pair("issuer", &one.issuer);
    table.pair("serial", &one.serial);
    table.pair("signs others", if one.authority { "yes" } else { "no" });
    table.pair("valid from", text::instant(one.not_before_ms));
    let left = match one.not_after_ms.saturating_sub(now_ms) {
        0 => "EXPIRED".to_owned(),
        left => format!("in {}", duration::human(left)),
    };
    table.pair("valid until", format!("{} ({left})", text::instant(one.not_after_ms)));
    table.to_string()
}
