//! The program as its users meet it: processes, a configuration file, exit codes, output.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stderr, reason = "a skipped test says so")]

mod bad_input;
mod daemon;
mod doctor;
mod failover;
mod files;
mod gc;
mod plugins;
mod runs;
mod seed;
mod stage;
