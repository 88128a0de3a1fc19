//! Durations as people write them on a command line: `250ms`, `3s`, `2m`, `1h`.
//!
//! A bare number is refused: "5" has been read as seconds and as milliseconds by too many tools.

use std::time::Duration;

/// Reads a duration with its unit (`ms`, `s`, `m`, `h`).
///
/// # Errors
/// A sentence for people that says what would be right.
pub fn parse(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let wrong =
        || format!("{text:?} is no duration; write a whole number and a unit: 250ms, 3s, 2m, 1h");
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let ms = match unit {
        "ms" => number,
        "s" => number.saturating_mul(1_000),
        "m" => number.saturating_mul(60_000),
        "h" => number.saturating_mul(3_600_000),
        _ => return Err(wrong()),
    };
    Ok(Duration::from_millis(ms))
}

/// Writes a length of time in the largest unit that keeps two digits.
pub fn human(ms: u64) -> String {
    match ms {
        0..=9_999 => format!("{ms}ms"),
        10_000..=119_999 => format!("{}s", ms / 1_000),
        120_000..=7_199_999 => format!("{}m", ms / 60_000),
        7_200_000..=172_799_999 => format!("{}h", ms / 3_600_000),
        _ => format!("{}d", ms / 86_400_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_needs_its_unit() {
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("3s"), Ok(Duration::from_secs(3)));
        for wrong in ["5", "s", "", "1.5s", "3 s", "3d", "-1s"] {
            let message = parse(wrong).expect_err(wrong);
            assert!(message.contains("250ms"), "{message}");
        }
    }

    #[test]
    fn a_length_of_time_is_written_in_a_unit_people_can_compare() {
        assert_eq!(human(12), "12ms");
        assert_eq!(human(61_000), "61s");
        assert_eq!(human(180 * 60_000), "3h");
        assert_eq!(human(365 * 86_400_000), "365d");
    }
}
