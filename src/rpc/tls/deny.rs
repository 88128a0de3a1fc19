//! The deny list: certificates and identities that are refused although a trusted CA signed them.

use std::collections::BTreeSet;

use super::identity::Facts;

/// A serial has at most 20 bytes (RFC 5280, 4.1.2.2): bare digits beyond that are something else, a
/// fingerprint most likely, and taken for a serial they would deny nobody.
const MAX_SERIAL_DIGITS: usize = 40;

/// What the file `revoked` says.
#[derive(Clone, Debug, Default)]
pub(super) struct DenyList {
    serials: BTreeSet<String>,
    fingerprints: BTreeSet<String>,
    spiffe: BTreeSet<String>,
}

impl DenyList {
    /// Reads the file's text. A line nobody understands is an error: to skip it would let in
    /// somebody whom the operator meant to keep out.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut list = Self::default();
        for (at, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            let digits = |text: &str| {
                let hex: String = text.chars().filter(|c| *c != ':').collect();
                let hex = hex.to_ascii_lowercase();
                (!hex.is_empty() && hex.chars().all(|c| c.is_ascii_hexdigit())).then_some(hex)
            };
            let known = if line.is_empty() {
                true
            } else if line.starts_with("spiffe://") {
                list.spiffe.insert(line.to_owned())
            } else if let Some(hex) = digits(line.strip_prefix("serial:").unwrap_or(line))
                && hex.len() <= MAX_SERIAL_DIGITS
            {
                list.serials.insert(hex.trim_start_matches('0').to_owned());
                true
            } else if let Some(hex) = line.strip_prefix("sha256:").and_then(digits) {
                list.fingerprints.insert(hex);
                true
            } else {
                false
            };
            if !known && !list.spiffe.contains(line) {
                return Err(format!(
                    "line {}: {line:?} is none of serial:<hex> (or the hex alone), sha256:<hex>, \
                     spiffe://...",
                    at + 1
                ));
            }
        }
        Ok(list)
    }

    /// Whether a certificate is refused, and by which line.
    pub fn denies(&self, facts: &Facts) -> Option<String> {
        if self.serials.contains(&facts.serial) {
            return Some(format!("serial:{}", facts.serial));
        }
        if self.fingerprints.contains(&facts.fingerprint) {
            return Some(format!("sha256:{}", facts.fingerprint));
        }
        facts.uris.iter().find(|uri| self.spiffe.contains(*uri)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(serial: &str, uri: &str) -> Facts {
        Facts {
            uris: vec![uri.to_owned()],
            serial: serial.to_owned(),
            fingerprint: "ab".to_owned(),
            not_after: 0,
        }
    }

    #[test]
    fn a_listed_serial_fingerprint_or_identity_is_denied_however_it_is_written() {
        let list = DenyList::parse("# gone\nserial:00:0A:ff\nspiffe://t/client/x # left\n\n")
            .expect("a good file");
        assert!(list.denies(&facts("aff", "spiffe://t/client/y")).is_some());
        assert!(list.denies(&facts("1", "spiffe://t/client/x")).is_some());
        assert!(list.denies(&facts("1", "spiffe://t/client/y")).is_none());
        let list = DenyList::parse("0a:FF\n12").expect("bare serials");
        assert!(
            list.denies(&facts("aff", "")).is_some() && list.denies(&facts("12", "")).is_some()
        );
        let list = DenyList::parse("sha256:AB").expect("a good file");
        assert!(list.denies(&facts("1", "spiffe://t/client/y")).is_some());
    }

    #[test]
    fn a_line_that_nobody_understands_is_an_error_that_names_it() {
        let problem = DenyList::parse("serial:12\nclient/x\n").expect_err("not a line");
        assert!(problem.contains("line 2") && problem.contains("client/x"), "{problem}");
        assert!(DenyList::parse("serial:xyz").is_err());
        let fingerprint = "ab".repeat(32);
        DenyList::parse(&fingerprint).expect_err("taken for a serial it would deny nobody");
        DenyList::parse(&format!("sha256:{fingerprint}")).expect("said what it is");
    }
}
