//! The daemon: every job runs when its scheduler says so, and never overlaps itself.
//!
//! One task watches one job, so a job that runs is not asked for its next time, and one that is stuck holds up
//! nobody else:
//!
//! ```text
//!          ┌──────────── the past changed ─────────────┐
//!          ▼                                           │
//!       asking ── at T ──▶ waiting for T ── T comes ───┴── same past ──▶ running
//!        ▲ ▲ │                                                              │
//!        │ │ └── never, or no answer ──▶ waiting to ask again ──┐           │
//!        │ └──────────────────────────────────────────────────────┘           │
//!        └──────────────────────────── recorded ◀───────────────────────────────┘
//! ```
//!
//! A scheduler's answer holds as long as the past it was given: a run by hand in between makes it be asked again.

pub mod clock;

use async_trait::async_trait;
use clock::Clock;
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use tokio::sync::watch;
use vmferry_engine::Subscription;
use vmferry_model::event::{Event, Severity};
use vmferry_model::plugin::{NextRun, Scheduler};
use vmferry_model::report::{Outcome, RunReport};
use vmferry_model::store::RunStore;

/// Between the end of a run and the start of the next: a scheduler that always says "now" must not spin.
const PAUSE: SignedDuration = SignedDuration::from_secs(1);

/// How long a scheduler that said "never" is left alone: what it said may depend on the day.
const ASK_AGAIN: SignedDuration = SignedDuration::from_mins(10);

/// First wait after a scheduler brought no answer; it doubles with every further failure.
const FIRST_RETRY: SignedDuration = SignedDuration::from_secs(10);

/// Longest wait after a scheduler brought no answer.
const LAST_RETRY: SignedDuration = SignedDuration::from_mins(10);

/// What a job does when it is due.
#[async_trait]
pub trait Work: Send + Sync {
    /// Runs the job once. The run is in the history when this returns.
    async fn run(&self) -> RunReport;
}

/// A job under watch.
pub struct Watched {
    /// Whose job it is.
    pub tenant: String,
    /// Its name.
    pub job: String,
    /// Decides when it runs.
    pub scheduler: Arc<dyn Scheduler>,
    /// Who is told when the scheduler fails.
    pub notifiers: Vec<Subscription>,
    /// What it does.
    pub work: Arc<dyn Work>,
    /// What it did.
    pub history: Arc<dyn RunStore>,
}

/// Tells watching tasks to end: at once when they wait, after the run when they run.
#[derive(Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// A switch and the tasks' view of it. Dropping the switch stops them, too.
    pub fn switch() -> (watch::Sender<bool>, Self) {
        let (switch, view) = watch::channel(false);
        (switch, Self(view))
    }

    fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    async fn set(&mut self) {
        // An error means that the switch is gone.
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}

/// Watches one job until told to stop.
pub async fn watch(job: &Watched, clock: &dyn Clock, mut stop: Stop) {
    let mut trouble = Trouble::default();
    let mut not_before = Timestamp::MIN;
    while !stop.is_set() {
        let wake = match job.ask(clock.now()).await {
            Answer::Run { at, past } => {
                trouble = Trouble::default();
                let due = at.max(not_before);
                tracing::info!(job = job.job, at = %due, "next run");
                if !sleep(clock, due, &mut stop).await {
                    return;
                }
                if job.past().await.is_ok_and(|now| now == past) {
                    job.run_once().await;
                    not_before = after(clock.now(), PAUSE);
                }
                continue;
            }
            Answer::Never { reason } => {
                trouble = Trouble::default();
                tracing::info!(job = job.job, reason, "no run is planned");
                after(clock.now(), ASK_AGAIN)
            }
            Answer::None { error } => {
                if trouble.is_new() {
                    job.tell_of_failure(&error, clock.now()).await;
                }
                after(clock.now(), trouble.wait())
            }
        };
        if !sleep(clock, wake, &mut stop).await {
            return;
        }
    }
}

/// Whether the time came, rather than the stop.
async fn sleep(clock: &dyn Clock, until: Timestamp, stop: &mut Stop) -> bool {
    tokio::select! {
        biased;
        () = stop.set() => false,
        () = clock.sleep_until(until) => true,
    }
}

fn after(now: Timestamp, wait: SignedDuration) -> Timestamp {
    now.saturating_add(wait).unwrap_or(Timestamp::MAX)
}

/// Failures of a scheduler in a row.
#[derive(Default)]
struct Trouble {
    failures: u32,
}

impl Trouble {
    fn is_new(&self) -> bool {
        self.failures == 0
    }

    /// How long to wait after one more failure.
    fn wait(&mut self) -> SignedDuration {
        let factor = 2_i32.saturating_pow(self.failures);
        self.failures += 1;
        FIRST_RETRY.checked_mul(factor).unwrap_or(LAST_RETRY).min(LAST_RETRY)
    }
}

enum Answer {
    /// Run at this time, if the past is still this one.
    Run { at: Timestamp, past: vmferry_model::plugin::ScheduleState },
    /// Do not run.
    Never { reason: String },
    /// There is no answer.
    None { error: String },
}

impl Watched {
    async fn past(&self) -> Result<vmferry_model::plugin::ScheduleState, vmferry_model::store::StoreError> {
        self.history.schedule_state(&self.tenant, &self.job).await
    }

    async fn ask(&self, now: Timestamp) -> Answer {
        let past = match self.past().await {
            Ok(past) => past,
            Err(error) => return Answer::None { error: error.to_string() },
        };
        match self.scheduler.next_run(&past, now).await {
            Ok(NextRun::At(at)) => Answer::Run { at, past },
            Ok(NextRun::Never(reason)) => Answer::Never { reason },
            Err(error) => Answer::None { error: error.to_string() },
        }
    }

    async fn run_once(&self) {
        let report = self.work.run().await;
        let took = report.ended_at.duration_since(report.started_at);
        let (job, run, outcome) = (&self.job, &report.run, report.outcome);
        match outcome {
            Outcome::Succeeded => tracing::info!(job, run, %outcome, ?took, "run ended"),
            _ => tracing::warn!(job, run, %outcome, ?took, "run ended"),
        }
        let (errors, warnings) = crate::output::report::problems(&report);
        for problem in &errors {
            tracing::error!(job, run, place = problem.place, "{}", problem.what);
        }
        for problem in &warnings {
            tracing::warn!(job, run, place = problem.place, "{}", problem.what);
        }
    }

    /// Once per streak of failures: the job waits and asks again, and nobody needs to hear of every try.
    async fn tell_of_failure(&self, error: &str, now: Timestamp) {
        const KIND: &str = "plugin-failed";
        tracing::error!(job = self.job, error, "the schedule gives no time; it is asked again");
        let event = Event {
            kind: KIND.to_owned(),
            time: now,
            severity: Severity::Error,
            job: Some(self.job.clone()),
            vm: None,
            run: None,
            detail: serde_json::json!({ "error": error }),
        };
        let hears = |one: &&Subscription| one.on.is_empty() || one.on.iter().any(|kind| kind == KIND);
        for subscription in self.notifiers.iter().filter(hears) {
            if let Err(error) = subscription.notifier.handle(&event).await {
                tracing::warn!(job = self.job, notifier = subscription.name, %error, "nobody was told");
            }
        }
    }
}

#[cfg(test)]
mod tests;
