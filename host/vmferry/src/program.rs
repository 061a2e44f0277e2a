//! The process: its runtime, its log, its exit code. Part of the library, because a future is compiled wherever it is
//! polled: the program would compile everything once more.

use crate::cli::{Cli, Verb};
use crate::output::progress::Screen;
use crate::output::say;
use crate::verbs;
use clap::Parser;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Sets the log's filter in place of `-v`, in the syntax of tracing's `EnvFilter`: `info,vmferry_xapi=trace`.
const LOG_VARIABLE: &str = "VMFERRY_LOG";

/// Does what the command line asks for, and ends with the code that says how it went.
#[tokio::main]
pub async fn main() -> ExitCode {
    let cli = Cli::parse();
    let screen = Screen::of_this_process();
    start_log(&cli, &screen);
    // On a worker, not here: this thread has no I/O driver, and each wake-up of a stream would cross from one that has.
    match tokio::spawn(async move { verbs::perform(cli, &screen).await }).await {
        Ok(Ok(exit)) => exit.into(),
        Ok(Err(failure)) => {
            say(&failure);
            failure.exit.into()
        }
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

fn start_log(cli: &Cli, screen: &Screen) {
    // A daemon's log is its only output.
    let quiet = if matches!(cli.verb, Verb::Daemon) { 1 } else { 0 };
    let level = match quiet + cli.common.verbose {
        0 => "error",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = match std::env::var(LOG_VARIABLE) {
        Ok(filter) => EnvFilter::new(filter),
        // Only our own crates: what the libraries say at these levels drowns it.
        Err(_) => EnvFilter::new(format!(
            "warn,vmferry={level},vmferry_engine={level},vmferry_sandbox={level},vmferry_store={level},vmferry_xapi={level}"
        )),
    };
    let (screen, colours) = (screen.clone(), screen.is_terminal());
    tracing_subscriber::fmt()
        .with_ansi(colours)
        .with_env_filter(filter)
        .with_writer(move || screen.clone())
        .with_target(false)
        .init();
}
