//! Small things as text: epochs, localities, instants, hashes, words.

use regent_rpc::pb::v1;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// `<incarnation>.<revision>`, as in logs and in `REGENT_EPOCH`.
pub fn epoch(epoch: &v1::Epoch) -> String {
    format!("{}.{}", epoch.incarnation, epoch.revision)
}

/// `region/zone/host`, without the parts that nobody gave.
pub fn locality(locality: &Option<v1::Locality>) -> String {
    let Some(place) = locality else { return String::new() };
    let parts = [&place.region, &place.zone, &place.host];
    let known: Vec<&str> =
        parts.into_iter().map(String::as_str).filter(|p| !p.is_empty()).collect();
    known.join("/")
}

/// An instant of somebody's wall clock, in UTC.
pub fn instant(at_ms: u64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(at_ms) * 1_000_000)
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{at_ms} ms since 1970"))
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads hexadecimal; `None` when it is not.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

/// A proclaimed value for people: its text, or its first bytes.
pub fn value(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("0x{}", hex(&bytes[..bytes.len().min(16)])),
    }
}

/// The name of a generated enum's value as people write it: `ACTIVE_PASSIVE` is `active-passive`.
pub fn word(name: &str) -> String {
    name.to_lowercase().replace('_', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_written_in_utc_and_a_nonsense_one_does_not_panic() {
        assert_eq!(instant(0), "1970-01-01T00:00:00Z");
        assert!(instant(u64::MAX).contains("ms since 1970"));
    }

    #[test]
    fn parts_of_a_locality_that_nobody_gave_are_left_out() {
        let place = v1::Locality { region: "eu".into(), zone: "a".into(), host: String::new() };
        assert_eq!(locality(&Some(place)), "eu/a");
        assert_eq!(locality(&None), "");
    }
}
