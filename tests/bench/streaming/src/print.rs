//! The outcome as tables.

use crate::figures::Measured;
use crate::goal::{Bound, Figure};
use crate::measure::{Cost, Spread};

/// What each contender took for `gib` GiB of source.
pub(crate) fn costs(measured: &[Measured], gib: f64) {
    let mut rows = vec![["", "CPU-s/GiB", "GiB/s", "peak MB"].map(str::to_owned).to_vec()];
    for Measured { contender, costs } in measured {
        let column = |figure: &dyn Fn(&Cost) -> f64| Spread::of(costs.iter().map(figure));
        rows.push(vec![
            contender.to_string(),
            spread(column(&|cost| cost.cpu / gib), 3),
            spread(column(&|cost| gib / cost.wall), 2),
            format!("{:.1}", column(&|cost| cost.peak_mb).max),
        ]);
    }
    table(&rows);
}

/// The goals, and how many are missed.
pub(crate) fn figures(figures: &[Figure]) {
    let mut rows = vec![["", "measured", "goal", "floor", ""].map(str::to_owned).to_vec()];
    let mut missed = 0;
    for figure in figures {
        let reached = figure.goal.holds(figure.measured.median);
        missed += usize::from(!reached);
        rows.push(vec![
            figure.what.clone(),
            spread(figure.measured, 3),
            match figure.goal {
                Bound::AtMost(bound) => format!("≤ {bound}"),
                Bound::AtLeast(bound) => format!("≥ {bound}"),
            },
            figure.floor.map(|floor| format!("{floor:.3}")).unwrap_or_default(),
            if reached { "reached" } else { "MISSED" }.to_owned(),
        ]);
    }
    table(&rows);
    println!("{missed} of {} goals missed", figures.len());
}

fn spread(Spread { median, min, max }: Spread, digits: usize) -> String {
    format!("{median:.digits$} ({min:.digits$} - {max:.digits$})")
}

/// Columns as wide as their widest cell.
fn table(rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    println!();
}
