//! What a command takes: wall time, CPU of all its processes, and the largest one's memory.

use anyhow::{Context as _, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Commands, each reading what the one before writes.
pub(crate) type Pipeline = Vec<Vec<String>>;

/// What one run of a pipeline took.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// Seconds from start to end.
    pub(crate) wall: f64,
    /// Seconds of user and system time, all processes together.
    pub(crate) cpu: f64,
    /// Largest resident size of any one process, MB. Never less than the measuring process has itself, about 4.
    pub(crate) peak_mb: f64,
    /// What the last process printed.
    pub(crate) output: String,
}

/// Measures a pipeline from a process of its own, because a process only learns what all its children took together.
pub(crate) fn measure(pipeline: &Pipeline) -> anyhow::Result<Cost> {
    let pipeline = serde_json::to_string(pipeline)?;
    let output = Command::new(std::env::current_exe()?).args(["measured", &pipeline]).output()?;
    ensure!(output.status.success(), "{pipeline}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The measuring process.
pub(crate) fn child(pipeline: &str) -> anyhow::Result<()> {
    let pipeline: Pipeline = serde_json::from_str(pipeline)?;
    let started = Instant::now();
    let mut children = Vec::new();
    let mut last = None;
    for words in &pipeline {
        let (program, arguments) = words.split_first().context("a command without words")?;
        let input = last.take().map_or_else(Stdio::null, Stdio::from);
        let spawned = Command::new(program).args(arguments).stdin(input).stdout(Stdio::piped()).spawn();
        let mut child = spawned.with_context(|| program.clone())?;
        last = child.stdout.take();
        children.push((program, child));
    }
    let mut output = String::new();
    last.context("an empty pipeline")?.read_to_string(&mut output)?;
    for (program, child) in &mut children {
        let status = child.wait()?;
        ensure!(status.success(), "{program}: {status}");
    }
    let wall = started.elapsed().as_secs_f64();
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let cpu = (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6;
    let cost = Cost { wall, cpu, peak_mb: usage.max_rss() as f64 * 1024.0 / 1e6, output };
    println!("{}", serde_json::to_string(&cost)?);
    Ok(())
}

/// Median, smallest and largest of one figure over the rounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of at least one value.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (middle, last) = (values.len() / 2, values.len() - 1);
        let median = (values[last - middle] + values[middle]) / 2.0;
        Self { median, min: values[0], max: values[last] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(values: &[f64]) -> (f64, f64, f64) {
        let Spread { median, min, max } = Spread::of(values.iter().copied());
        (median, min, max)
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(spread(&[3.0]), (3.0, 3.0, 3.0));
        assert_eq!(spread(&[9.0, 1.0, 2.0]), (2.0, 1.0, 9.0));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 9.0]), (3.0, 1.0, 9.0));
    }
}
