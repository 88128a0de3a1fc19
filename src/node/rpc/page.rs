//! Lists in pages: a page is made while the state is locked against entries, so it takes about a
//! millisecond at most, and fits a message.

use prost::Message;

/// Rows of a page at most.
const ROWS: usize = 1_000;
/// A page ends at this many bytes, too.
const BYTES: usize = 4 * 1024 * 1024;

/// The first rows, and whether there are more.
pub fn page<T: Message>(rows: impl Iterator<Item = T>) -> (Vec<T>, bool) {
    let (mut page, mut bytes) = (Vec::new(), 0);
    for row in rows {
        if page.len() == ROWS || bytes >= BYTES {
            return (page, true);
        }
        bytes += row.encoded_len();
        page.push(row);
    }
    (page, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_ends_by_rows_and_by_bytes_and_says_when_it_is_the_last() {
        let rows = |count, bytes| (0..count).map(move |_| "x".repeat(bytes));
        let made = |count, bytes| {
            let (page, more) = page(rows(count, bytes));
            (page.len(), more)
        };
        assert_eq!(made(0, 1), (0, false));
        assert_eq!(made(ROWS, 1), (ROWS, false));
        assert_eq!(made(ROWS + 1, 1), (ROWS, true));
        assert_eq!(made(3, BYTES), (1, true));
        assert_eq!(made(1, BYTES), (1, false));
    }
}
