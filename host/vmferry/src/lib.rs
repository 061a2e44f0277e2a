//! The program: configuration, command line, daemon and demo, on top of the crates that do the work.
//!
//! Everything here uses the public API of those crates only, so another program can do the same.
//!
//! - [`program`]: the process; [`cli`]: the command line; [`exit`]: how it ends; [`problem`]: what is told when something
//!   is wrong.
//! - [`config`]: the configuration as values; [`compose`] and [`plugins`]: from there to what the engine works with.
//! - [`verbs`]: what each verb does; [`daemon`]: jobs that run by themselves; [`demo`]: the main job, nothing to set up.
//! - [`output`]: tables, JSON, progress.

pub mod cli;
pub mod compose;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod exit;
pub mod nearest;
pub mod output;
pub mod plugins;
pub mod problem;
pub mod program;
pub mod signals;
pub mod verbs;
