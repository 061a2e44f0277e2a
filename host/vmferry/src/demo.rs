//! The main job with nothing to set up: two simulated pools in this process, and everything else as it always is.
//!
//! The configuration is a file, the components are the bundled ones in their sandbox, the pools speak HTTPS. Only
//! the hosts are simulated.

mod listener;
mod stage;

use crate::cli;
use crate::compose;
use crate::exit::Exit;
use crate::output::Form;
use crate::output::progress::Screen;
use crate::output::report::{self, short};
use crate::output::table::{Align, Table};
use crate::output::units::{Seconds, Size};
use crate::plugins::Plugins;
use crate::problem::{Failure, Problem};
use crate::signals;
use crate::verbs::{Workplace, load_file};
use jiff::Timestamp;
use serde::Serialize;
use stage::{JOB, Proof, Stage};
use std::path::PathBuf;
use vmferry_engine::{CloneReport, CloneRequest, Job, Policies, RunOptions};
use vmferry_model::plugin::NextRun;
use vmferry_model::report::{Outcome, RunReport};
use vmferry_model::store::RunStore;

/// One full copy, then deltas; with two recovery points kept, the third run is the first to prune.
const RUNS: u32 = 4;

/// What the demo did; printed with `--json`.
#[derive(Serialize)]
struct Shown {
    runs: Vec<RunReport>,
    /// Kinds of the events that reached the listener, in order.
    events: Vec<String>,
    clone: CloneReport,
    disks: Vec<Proof>,
    /// The configuration of the pools that are left up.
    config: Option<PathBuf>,
}

/// Shows the main job from beginning to end, or says at which step it broke.
pub async fn demo(arguments: &cli::Demo, form: Form, screen: &Screen) -> Result<Exit, Failure> {
    let stage = Stage::build().await.map_err(|error| Failure::because(format_args!("simulated pools: {error:#}")))?;
    screen.line(format_args!("two simulated pools: {} and {}", stage.prod.url(), stage.dr.url()));
    screen.line(stage.describe());
    let at = Workplace::new(load_file(&stage.config_file)?, form).await?;
    let shown = show(&stage, &at, screen, arguments.keep).await;
    at.engine.close().await;
    let shown = shown?;
    form.print(&shown, table).map_err(|error| Failure::because(format_args!("standard output: {error}")))?;
    for proof in &shown.disks {
        screen.line(format_args!("disk {}: sha256 {} on both sides", short(&proof.disk), &proof.sha256));
    }
    if arguments.keep {
        screen.line(stage.invitation(&shown.clone.point));
        signals::end().await;
    }
    stage.close().await;
    Ok(Exit::Done)
}

async fn show(stage: &Stage, at: &Workplace, screen: &Screen, keep: bool) -> Result<Shown, Failure> {
    let configured = at.config.job(JOB).map_err(Failure::usage)?;
    let policies = Plugins::new(&at.config, &at.store, Some(&at.config.store))?.policies(configured).await?;
    let job = compose::job(JOB, configured, Vec::new());
    let mut runs = Vec::new();
    for n in 1..=RUNS {
        if n > 1 {
            screen.line(stage.change(n));
            wait_for_schedule(at, &policies, screen).await?;
        }
        runs.push(run_once(at, &job, &policies, screen, n).await?);
    }
    let events = stage.listener.heard();
    if events.is_empty() {
        return Err(Failure::failed(Problem::new("the listener heard nothing from notify-webhook")));
    }
    screen.line(format_args!("notify-webhook told {}: {}", stage.listener.url(), events.join(", ")));
    let clone = clone_newest(at, &job, &stage.vm, screen).await?;
    screen.line("comparing the clone's disks with the originals");
    let disks = stage.prove(&clone.disks).await.map_err(|problem| Failure::failed(Problem::new(problem)))?;
    Ok(Shown { runs, events, clone, disks, config: keep.then(|| stage.config_file.clone()) })
}

async fn wait_for_schedule(at: &Workplace, policies: &Policies, screen: &Screen) -> Result<(), Failure> {
    let Some(scheduler) = &policies.scheduler else { return Ok(()) };
    let past = at.store.schedule_state(compose::TENANT, JOB).await.map_err(Failure::because)?;
    let now = Timestamp::now();
    match scheduler.next_run(&past, now).await.map_err(Failure::because)? {
        NextRun::At(due) => {
            let wait = std::time::Duration::try_from(due.duration_since(now)).unwrap_or_default();
            screen.line(format_args!("schedule-interval: next run at {due}, in {}", Seconds(wait.as_secs_f64())));
            tokio::time::sleep(wait).await;
            Ok(())
        }
        NextRun::Never(reason) => Err(Failure::because(format_args!("schedule-interval plans no run: {reason}"))),
    }
}

async fn run_once(
    at: &Workplace,
    job: &Job,
    policies: &Policies,
    screen: &Screen,
    n: u32,
) -> Result<RunReport, Failure> {
    screen.line(format_args!("run {n}"));
    let progress = screen.progress();
    let report = at.engine.run(job, policies, &RunOptions::default(), progress).await;
    let (errors, warnings) = report::problems(&report);
    for warning in &warnings {
        screen.line(warning.as_warning());
    }
    if report.outcome != Outcome::Succeeded || report.vms.is_empty() {
        let unexplained = || vec![Problem::new(format!("run {n} {}", report.outcome))];
        let problems = if errors.is_empty() { unexplained() } else { errors };
        return Err(Failure { exit: Exit::Failed, problems });
    }
    screen.line(report::summary(&report));
    Ok(report)
}

async fn clone_newest(at: &Workplace, job: &Job, vm: &str, screen: &Screen) -> Result<CloneReport, Failure> {
    let clone = at.engine.clone_point(job, &CloneRequest::newest(vm)).await.map_err(Failure::because)?;
    screen.line(crate::verbs::clone_text(&clone).trim_end());
    Ok(clone)
}

fn table(shown: &Shown) -> String {
    let mut table = Table::new(&[
        ("run", Align::Right),
        ("disk", Align::Left),
        ("kind", Align::Left),
        ("changed", Align::Right),
        ("sent", Align::Right),
        ("time", Align::Right),
        ("reason", Align::Left),
    ]);
    for (n, report) in (1..).zip(&shown.runs) {
        let targets = report.vms.iter().flat_map(|vm| &vm.targets);
        for disk in targets.flat_map(|target| &target.disks) {
            table.row([
                u32::to_string(&n),
                short(&disk.disk).to_owned(),
                disk.kind.to_string(),
                Size(disk.changed_bytes).to_string(),
                Size(disk.bytes_sent).to_string(),
                Seconds(disk.seconds).to_string(),
                disk.reason.clone(),
            ]);
        }
    }
    format!(
        "\n{table}\nthe started clone equals its source: {} of {} disks\n\n",
        shown.disks.len(),
        shown.clone.disks.len()
    )
}
