//! `vmferry run`: one run, now.

use super::{Workplace, print};
use crate::cli::Run;
use crate::compose;
use crate::exit::Exit;
use crate::output::progress::Screen;
use crate::output::report;
use crate::plugins::Plugins;
use crate::problem::{Failure, Problem};
use crate::signals;
use vmferry_engine::RunOptions;

pub(super) async fn run(at: &Workplace, arguments: &Run, screen: &Screen) -> Result<Exit, Failure> {
    let name = &arguments.what.job;
    let configured = at.config.job(name).map_err(Failure::usage)?;
    let plugins = Plugins::new(&at.config, &at.store, Some(&at.config.store))?;
    let policies = plugins.policies(configured).await?;
    let job = compose::job(name, configured, plugins.stores(name, configured).await?);
    let options =
        RunOptions { only: arguments.what.vm.clone(), wait: compose::waits(configured, arguments.wait), now: None };
    let progress = screen.progress();
    let report = tokio::select! {
        report = at.engine.run(&job, &policies, &options, progress) => at.close(report).await,
        () = signals::end() => return Err(interrupted()),
    };
    let (errors, warnings) = report::problems(&report);
    for warning in &warnings {
        screen.line(warning.as_warning());
    }
    for error in &errors {
        screen.line(error);
    }
    print(at.form, &report, report::run)?;
    Ok(Exit::of(&report))
}

/// The sessions are left to time out: a pool that hangs must not keep the program from ending.
fn interrupted() -> Failure {
    let remedy = "start the run again: it takes over at once and clears away what this one left";
    Failure::failed(Problem::new("the run was interrupted").remedy(remedy))
}
