//! Tables that fit where they are shown: what is cut, and what is left out when that is not enough.

use std::io::IsTerminal;

/// A table is not wider than a terminal, and on anything else not than this.
const WIDTH: usize = 120;
/// Less of a text or a name would tell nothing.
const LEAST: usize = 10;
const GAP: usize = 2;

/// What the last column holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// Words, which may be cut.
    Words,
    /// Figures, which may not.
    Figures,
}

/// How many columns standard output shows.
pub fn width() -> usize {
    let columns = sbx::sys::tty::columns(sbx::sys::process::stdio(1));
    match std::io::stdout().is_terminal() {
        true => columns.map_or(WIDTH, usize::from),
        false => WIDTH,
    }
}

/// Rows as lines, the first of them the heads. Where the columns do not fit, the last one is cut if it may be, then the
/// first, which holds the names; then columns are left out from the right.
pub fn table(rows: &[Vec<String>], last: Last, width: usize) -> String {
    let all = rows.iter().map(Vec::len).max().unwrap_or(0);
    let longest = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| length(cell)).max();
    let mut widths: Vec<usize> = (0..all).map(|column| longest(column).unwrap_or(0)).collect();
    loop {
        let cuttable = (last == Last::Words && widths.len() == all).then(|| widths.len().saturating_sub(1));
        for column in cuttable.into_iter().chain([0]) {
            let over = total(&widths).saturating_sub(width);
            if let Some(cell) = widths.get_mut(column) {
                *cell = cell.saturating_sub(over).max(LEAST.min(*cell));
            }
        }
        if total(&widths) <= width || widths.len() <= 1 {
            break;
        }
        widths.pop();
        widths[0] = longest(0).unwrap_or(0);
    }
    rows.iter().map(|row| line(row, &widths, width)).collect()
}

fn total(widths: &[usize]) -> usize {
    widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1)
}

fn line(row: &[String], widths: &[usize], most: usize) -> String {
    let mut line = String::new();
    for (cell, width) in row.iter().zip(widths) {
        let cell = cut(cell, *width);
        line.push_str(&format!("{cell:<width$}{:GAP$}", ""));
    }
    cut(line.trim_end(), most) + "\n"
}

fn length(text: &str) -> usize {
    text.chars().count()
}

fn cut(text: &str, most: usize) -> String {
    match length(text) > most {
        true => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<String>> {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        vec![row(["NAME", "PID", "COMMAND"]), row(["a-rather-long-name", "12345", "sleep 1000 and more"])]
    }

    #[test]
    fn columns_give_way_in_their_order() {
        let at = |width, last| table(&rows(), last, width).lines().last().unwrap_or_default().to_owned();
        assert_eq!(at(80, Last::Words), "a-rather-long-name  12345  sleep 1000 and more");
        assert_eq!(at(38, Last::Words), "a-rather-long-name  12345  sleep 1000…");
        assert_eq!(at(30, Last::Words), "a-rather-l…  12345  sleep 100…");
        assert_eq!(at(28, Last::Words), "a-rather-long-name  12345");
        assert_eq!(at(18, Last::Words), "a-rather-l…  12345");
        assert_eq!(at(12, Last::Words), "a-rather-lo…");
        assert_eq!(at(5, Last::Words), "a-ra…");
        assert_eq!(at(40, Last::Figures), "a-rather-lo…  12345  sleep 1000 and more");
        assert_eq!(at(30, Last::Figures), "a-rather-long-name  12345");
    }

    proptest::proptest! {
        #[test]
        fn no_line_is_wider_than_asked(
            width in 1usize..100,
            cells in proptest::collection::vec(proptest::array::uniform3("[^\n]{0,30}"), 0..4),
        ) {
            let rows: Vec<Vec<String>> = cells.into_iter().map(|row| row.to_vec()).collect();
            for last in [Last::Words, Last::Figures] {
                proptest::prop_assert!(table(&rows, last, width).split('\n').all(|line| length(line) <= width));
            }
        }
    }
}
