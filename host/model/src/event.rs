//! What happened, as notifiers hear it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How much an event matters to somebody who is asleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth a line in a log.
    Info,
    /// Worth a look tomorrow.
    Warning,
    /// Worth waking up for.
    Error,
}

/// One thing that happened.
///
/// The kind is a string so that new kinds need no new plugin interface. Kinds sent today: `started`,
/// `succeeded`, `partial`, `failed`, `skipped`, `refused` (how a run ended, after [`Outcome`](crate::report::Outcome)) and
/// `plugin-failed`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// What happened.
    pub kind: String,
    /// When.
    pub time: Timestamp,
    /// How much it matters.
    pub severity: Severity,
    /// Name of the job it is about.
    pub job: Option<String>,
    /// uuid of the source VM it is about.
    pub vm: Option<String>,
    /// The run it belongs to.
    pub run: Option<String>,
    /// Everything else; for the end of a run, its whole report.
    pub detail: serde_json::Value,
}
