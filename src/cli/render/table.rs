//! Plain tables: columns as wide as their widest cell, two spaces between, no lines. They can be
//! read, and cut up by awk.

use std::fmt;

/// A table being filled.
#[derive(Clone, Debug, Default)]
pub struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column titles.
    pub fn new<const N: usize>(head: [&str; N]) -> Self {
        Self { head: head.iter().map(|title| title.to_uppercase()).collect(), rows: Vec::new() }
    }

    /// A list of `name  value` lines without titles.
    pub fn pairs() -> Self {
        Self::default()
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| clean(&cell)).to_vec());
    }

    /// Adds a `name  value` line.
    pub fn pair(&mut self, name: &str, value: impl fmt::Display) {
        self.row([name.to_owned(), value.to_string()]);
    }
}

/// Control characters of a cell (names and values come from other people) must not reach the
/// terminal.
fn clean(cell: &str) -> String {
    if cell.is_empty() {
        return "-".to_owned();
    }
    cell.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = || (!self.head.is_empty()).then_some(&self.head).into_iter().chain(&self.rows);
        let columns = lines().map(Vec::len).max().unwrap_or(0);
        let mut widths = vec![0; columns];
        for line in lines() {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for line in lines() {
            let mut text = String::new();
            for (cell, width) in line.iter().zip(&widths) {
                text.push_str(&format!("{cell:<width$}  "));
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_empty_cells_are_visible() {
        let mut table = Table::new(["id", "zone"]);
        table.row(["1".into(), "a".into()]);
        table.row(["1234".into(), String::new()]);
        assert_eq!(table.to_string(), "ID    ZONE\n1     a\n1234  -\n");
    }

    #[test]
    fn a_hostile_cell_cannot_write_to_the_terminal() {
        let mut table = Table::new(["label"]);
        table.row(["\u{1b}[2Jgone".into()]);
        assert!(!table.to_string().contains('\u{1b}'));
    }
}
