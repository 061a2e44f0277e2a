//! What vmferry costs, beside the plainest thing that moves the same bytes.
//!
//! Rounds are interleaved, so that whatever else the machine does hits both sides alike; ratios count, not absolute
//! figures. Nothing here fails a test.

#![allow(clippy::print_stdout, reason = "a bench prints")]

mod crowd;
mod measure;
mod pool;
mod whole;

use clap::{Parser, Subcommand};

/// The measured claims, each with its command.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// A full copy and a delta through the program, against `curl | curl` over the same streams
    Whole(whole::Whole),
    /// A run of one VM in pools of many
    Crowd(crowd::Crowd),
    /// Serves a simulated pool for a measured process
    #[command(hide = true)]
    Serve(pool::Serve),
    /// Runs a command and prints what it took
    #[command(hide = true)]
    Measured {
        /// Passed to `bash -c`
        command: String,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().bench {
        Bench::Whole(whole) => whole.run(),
        Bench::Crowd(crowd) => crowd.run(),
        Bench::Serve(serve) => serve.run(),
        Bench::Measured { command } => measure::child(&command),
    }
}
