//! What a command takes: wall time, CPU of it and everything it started, and the largest process's memory.

use anyhow::{Context as _, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::process::Command;
use std::time::Instant;

/// What one run of a command took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Seconds from start to end.
    pub(crate) wall: f64,
    /// Seconds of user and system time, children included.
    pub(crate) cpu: f64,
    /// Largest resident size of any one process, MiB.
    pub(crate) peak_mib: f64,
}

/// Measures a shell command. It runs under a process of its own, because a process only learns the peak memory of all its
/// children together.
pub(crate) fn measure(command: &str) -> anyhow::Result<Cost> {
    let output = Command::new(std::env::current_exe()?).args(["measured", command]).output()?;
    ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let mut numbers = text.split_whitespace().map(str::parse::<f64>);
    let mut next = || numbers.next().context("three numbers").and_then(|number| Ok(number?));
    Ok(Cost { wall: next()?, cpu: next()?, peak_mib: next()? })
}

/// The measuring process.
pub(crate) fn child(command: &str) -> anyhow::Result<()> {
    let started = Instant::now();
    let output = Command::new("bash").args(["-c", &format!("set -o pipefail; {command}")]).output()?;
    let wall = started.elapsed().as_secs_f64();
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let cpu = (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6;
    println!("{wall} {cpu} {}", usage.max_rss() as f64 / 1024.0);
    Ok(())
}

/// Median, smallest and largest.
pub(crate) fn spread(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}
