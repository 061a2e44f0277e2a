//! What the streaming core costs, beside the plainest things that move the same bytes.
//!
//! Rounds are interleaved, so that whatever else the machine does hits all alike; ratios count, not absolute figures.
//! Source, target and everything measured are processes of their own, and all of them are this program, `bare-forward`
//! and other people's tools. Nothing here fails a test.
//!
//! - `figures`: the command. `contender` says what is measured, `goal` what is compared and how good it has to be,
//!   `scene` starts what the contenders need, `print` shows the outcome.
//! - `measure`: what a command takes.
//! - `host`: a host with as much of XAPI as a transfer meets, cheap enough not to be what is measured; `stream`: what it
//!   sends.
//! - `forward`, `nbd_read`, `delta`, `floor`: the measured processes.

#![allow(clippy::print_stdout, reason = "a bench prints")]

mod contender;
mod counting;
mod delta;
mod figures;
mod floor;
mod forward;
mod goal;
mod host;
mod measure;
mod nbd_read;
mod print;
mod scene;
mod stream;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Measures every figure about streaming and says which goals are missed
    Streaming(figures::Streaming),
    /// Serves disks and takes them
    #[command(hide = true)]
    Host(host::Host),
    /// Moves one disk as a run does
    #[command(hide = true)]
    Forward(forward::Forward),
    /// Reads an NBD export
    #[command(hide = true)]
    NbdRead(nbd_read::NbdRead),
    /// Sends the delta of scattered writes
    #[command(hide = true)]
    Delta(delta::Delta),
    /// Does only what nobody can leave out
    #[command(hide = true)]
    Floor(floor::Floor),
    /// Runs a pipeline and tells what it took
    #[command(hide = true)]
    Measured {
        /// The commands as JSON, each a list of words
        pipeline: String,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().role {
        Role::Streaming(streaming) => streaming.run(),
        Role::Host(host) => host.run(),
        Role::Forward(forward) => forward.run(),
        Role::NbdRead(read) => read.run(),
        Role::Delta(delta) => delta.run(),
        Role::Floor(floor) => floor.run(),
        Role::Measured { pipeline } => measure::child(&pipeline),
    }
}
