//! Tables for people.

/// The heads and the rows, every column as wide as its widest cell.
pub(super) fn aligned<'a, const N: usize>(
    heads: [&str; N],
    rows: impl Iterator<Item = &'a [String; N]> + Clone,
) -> (String, Vec<String>) {
    let width = |column: usize| {
        let of_cells = rows.clone().map(|cells| cells[column].chars().count());
        of_cells.chain([heads[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let text = |cells: &[String; N]| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}", width = *width))
            .collect();
        padded.join("  ").trim_end().to_owned()
    };
    (text(&heads.map(str::to_owned)), rows.clone().map(text).collect())
}
