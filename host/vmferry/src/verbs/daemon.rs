//! `vmferry daemon`: every job, when its schedule says so.

use super::Workplace;
use crate::compose;
use crate::config::Config;
use crate::daemon::clock::SystemClock;
use crate::daemon::{self, Stop, Watched, Work};
use crate::exit::Exit;
use crate::output::Form;
use crate::output::progress::Screen;
use crate::plugins::Plugins;
use crate::problem::{Failure, Problem};
use crate::signals;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use vmferry_engine::{Job, Policies, RunOptions, Silent};
use vmferry_model::report::RunReport;

/// How long running jobs may go on after the first signal. Deltas usually end within it; what does not is broken off,
/// and the next run clears away what it left.
const GRACE: Duration = Duration::from_secs(60);

pub(super) async fn daemon(config: Config, screen: &Screen) -> Result<Exit, Failure> {
    let at = Arc::new(Workplace::new(config, Form::Text).await?);
    let plugins = Plugins::new(&at.config, &at.store, Some(&at.config.store))?;
    let (switch, stop) = Stop::switch();
    let mut watches = JoinSet::new();
    for (name, configured) in &at.config.jobs {
        let policies = plugins.policies(configured).await?;
        let Some(scheduler) = policies.scheduler.clone() else {
            let problem = Problem::new(format!("job {name} has no schedule: the daemon never runs it"));
            screen.line(problem.remedy(format!("add `schedule` to [job.{name}]")).as_warning());
            continue;
        };
        let stores = plugins.stores(name, configured).await?;
        let watched = Watched {
            tenant: compose::TENANT.to_owned(),
            job: name.clone(),
            scheduler,
            notifiers: policies.notifiers.clone(),
            work: Arc::new(OneJob {
                at: at.clone(),
                job: compose::job(name, configured, stores),
                policies,
                options: RunOptions { only: None, wait: compose::waits(configured, false), now: None },
            }),
            history: Arc::new(at.store.clone()),
        };
        let stop = stop.clone();
        watches.spawn(async move { daemon::watch(&watched, &SystemClock, stop).await });
    }
    if watches.is_empty() {
        let problem = Problem::new("no job has a schedule: there is nothing to wait for");
        return Err(Failure::usage(problem.remedy("add `schedule` to a job, or use `vmferry run JOB`")));
    }
    tracing::info!(jobs = watches.len(), "watching");
    signals::end().await;
    tracing::info!(grace = ?GRACE, "stopping: waiting for running jobs; another signal breaks them off");
    switch.send_replace(true);
    let exit = tokio::select! {
        () = all(&mut watches) => Exit::Done,
        () = tokio::time::sleep(GRACE) => broken_off(),
        () = signals::end() => broken_off(),
    };
    watches.shutdown().await;
    at.engine.close().await;
    Ok(exit)
}

async fn all(watches: &mut JoinSet<()>) {
    while let Some(ended) = watches.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a job's watch ended before its time");
        }
    }
}

fn broken_off() -> Exit {
    tracing::warn!("running jobs are broken off; their next run takes over and clears away what they left");
    Exit::Failed
}

struct OneJob {
    at: Arc<Workplace>,
    job: Job,
    policies: Policies,
    options: RunOptions,
}

#[async_trait]
impl Work for OneJob {
    async fn run(&self) -> RunReport {
        self.at.engine.run(&self.job, &self.policies, &self.options, Arc::new(Silent)).await
    }
}
