//! What the host asks of plugins.
//!
//! A plugin is a value behind one of these traits: a sandboxed component in production, native code in a test.
//! An implementation carries its own settings, checked when it was made. It can fail in many ways, and the
//! host goes on safely after each: see [`PluginFailure`].

use crate::event::Event;
use crate::plan::JobPlan;
use crate::report::Outcome;
use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Which plugin, in which version: every error and log line names both.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PluginId {
    /// The plugin's id, for example `schedule-interval`.
    pub name: String,
    /// Its version.
    pub version: String,
}

impl std::fmt::Display for PluginId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "plugin {} {}", self.name, self.version)
    }
}

/// A call into a plugin that brought no usable answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{plugin}: {call}: {failure}")]
pub struct PluginError {
    /// Whose call it was.
    pub plugin: PluginId,
    /// The export that was called.
    pub call: String,
    /// What came instead of an answer.
    pub failure: PluginFailure,
}

/// The ways in which a plugin fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PluginFailure {
    /// The plugin itself said no, in its own words.
    #[error("{message} ({code})")]
    Refused {
        /// Its error code.
        code: String,
        /// Its message.
        message: String,
    },
    /// The guest trapped; its instance is gone.
    #[error("trapped: {0}")]
    Trap(String),
    /// The guest used more time than it is given.
    #[error("did not answer within {}; raise its `limits.timeout` if it needs longer", human(*.0))]
    Timeout(Duration),
    /// The guest asked for more than it is given.
    #[error("{what} limit of {limit} reached; raise `limits.{setting}` if it needs more")]
    Limit {
        /// What it asked for.
        what: String,
        /// How much it may have.
        limit: String,
        /// The setting that raises it.
        setting: String,
    },
    /// The guest asked for something it was not granted.
    #[error("{0}")]
    Denied(String),
    /// The answer breaks the contract.
    #[error("answered nonsense: {0}")]
    Nonsense(String),
    /// The host is at fault.
    #[error("host failure: {0}")]
    Host(String),
}

fn human(duration: Duration) -> String {
    if duration.as_millis() < 1000 {
        format!("{} ms", duration.as_millis())
    } else {
        format!("{} s", duration.as_secs_f64())
    }
}

/// What a scheduler may know about a job's past.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ScheduleState {
    /// The job's name.
    pub job: String,
    /// When the last run started.
    pub last_started: Option<Timestamp>,
    /// When the last run ended.
    pub last_ended: Option<Timestamp>,
    /// How the last run ended.
    pub last_outcome: Option<Outcome>,
    /// When the last successful run started: the moment its recovery points show.
    pub last_success: Option<Timestamp>,
    /// Runs since then that did not succeed.
    pub failures_since_success: u32,
}

/// When a job runs next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextRun {
    /// At this time, or at once if it has passed.
    At(Timestamp),
    /// Not until something changes, for the reason given.
    Never(String),
}

/// What a scheduler says to a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Approval {
    /// Go ahead.
    Approved,
    /// Not now; ask again at that time.
    Deferred {
        /// When to try again.
        until: Timestamp,
        /// Why not now.
        reason: String,
    },
    /// Not like this.
    Refused {
        /// Why not.
        reason: String,
    },
}

/// Decides when a job runs and whether a plan may be carried out.
#[async_trait]
pub trait Scheduler: Send + Sync {
    /// When the job should start next. Pure: the same arguments give the same answer.
    async fn next_run(&self, state: &ScheduleState, now: Timestamp) -> Result<NextRun, PluginError>;

    /// Whether this plan may go ahead. Asked before a byte moves, and again when a delta turned into a full copy.
    async fn approve(&self, plan: &JobPlan, now: Timestamp) -> Result<Approval, PluginError>;
}

/// One recovery point, as a retention rule sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointView {
    /// Identity: uuid of the snapshot VM on the target.
    pub id: String,
    /// The moment of the source that it shows.
    pub taken_at: Timestamp,
    /// Held by the operator: the host keeps it whatever the rule says.
    pub held: bool,
}

/// A retention rule's word on one recovery point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Whether the rule wants it kept.
    pub keep: bool,
    /// The rule that says so, for the report: `newest 6`, `daily`.
    pub rule: String,
}

/// Decides which recovery points to keep.
#[async_trait]
pub trait Retention: Send + Sync {
    /// One judgement per point, in the order of `points` (oldest first). The host vetoes dropping what it needs.
    async fn select(&self, points: &[PointView], now: Timestamp) -> Result<Vec<Judgement>, PluginError>;
}

/// A notifier's word on an event that has not happened yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Proceed,
    /// Leave it out this time.
    Skip(String),
    /// Stop with an error.
    Fail(String),
}

/// Tells somebody about events.
#[async_trait]
pub trait Notifier: Send + Sync {
    /// Handles one event. The verdict counts for `before-*` events only, and only where granted.
    async fn handle(&self, event: &Event) -> Result<Verdict, PluginError>;
}
