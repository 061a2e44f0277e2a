//! What a run did: the plain data behind `vmferry run --json`, the history and the table on the terminal.
//!
//! These types are the documented wire format, so they serialize as they stand. Sizes are bytes, times are UTC.

use crate::plan::{FullReason, Kind};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How a run, or a part of it, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Everything asked for was done and proven.
    Succeeded,
    /// Some VMs or targets succeeded, others did not.
    Partial,
    /// Nothing was done; what existed before is as it was.
    Failed,
    /// Another run holds the lease, or there was nothing to do.
    Skipped,
    /// A policy said no.
    Refused,
}

impl Outcome {
    /// The outcome of a whole from the outcomes of its parts; no parts count as success.
    pub fn of(parts: impl IntoIterator<Item = Self>) -> Self {
        parts
            .into_iter()
            .reduce(|whole, part| if whole == part { whole } else { Self::mixed(whole, part) })
            .unwrap_or(Self::Succeeded)
    }

    /// Two different outcomes side by side: a success next to anything else makes the whole partial,
    /// and among ways of not succeeding the gravest speaks.
    fn mixed(a: Self, b: Self) -> Self {
        let pair = [a, b];
        if pair.contains(&Self::Succeeded) || pair.contains(&Self::Partial) {
            Self::Partial
        } else if pair.contains(&Self::Failed) {
            Self::Failed
        } else {
            Self::Refused
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Succeeded => "succeeded",
            Self::Partial => "partial",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Refused => "refused",
        })
    }
}

/// One execution of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// The job's name.
    pub job: String,
    /// Identity of this run.
    pub run: String,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// How it ended as a whole.
    pub outcome: Outcome,
    /// What stopped the run before any VM was looked at.
    #[serde(default)]
    pub error: Option<String>,
    /// Things worth knowing that stopped nothing, plugin failures among them.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// One entry per selected VM.
    pub vms: Vec<VmReport>,
}

/// What a run did for one VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmReport {
    /// uuid of the source VM.
    pub vm: String,
    /// Its name.
    pub name: String,
    /// How it ended over all targets.
    pub outcome: Outcome,
    /// What stopped it for all targets.
    pub error: Option<String>,
    /// Whether the VM was skipped because another run holds its lease, or its replica's.
    #[serde(default)]
    pub locked: bool,
    /// Things worth knowing that stopped nothing.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// One entry per target.
    pub targets: Vec<TargetReport>,
}

/// What a run did for one VM on one target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetReport {
    /// The target's name in the job.
    pub target: String,
    /// uuid of the storage repository that the replica is on, or that was chosen for it.
    #[serde(default)]
    pub sr: Option<String>,
    /// uuid of the replica VM.
    pub replica: Option<String>,
    /// uuid of the snapshot VM that is the new recovery point.
    pub recovery_point: Option<String>,
    /// How it ended.
    pub outcome: Outcome,
    /// What went wrong, on which object, and what to do.
    pub error: Option<String>,
    /// Recovery points removed by retention, by uuid.
    #[serde(default)]
    pub pruned: Vec<String>,
    /// Things worth knowing that stopped nothing.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// One entry per disk.
    pub disks: Vec<DiskReport>,
}

/// One disk's transfer to one target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskReport {
    /// uuid of the source disk.
    pub disk: String,
    /// Full, delta or resync.
    pub kind: Kind,
    /// Why, in one sentence.
    pub reason: String,
    /// Why it was no delta, when it was none.
    #[serde(default)]
    pub full_reason: Option<FullReason>,
    /// uuid of the source snapshot disk the delta started from.
    pub base: Option<String>,
    /// The transfer engine: `lockstep`, `splice` or `pooled`.
    pub engine: String,
    /// How the source was read: `export` (VHD over HTTP) or `nbd`.
    #[serde(default)]
    pub source: String,
    /// How the stream was written to the target: `vhd` or `chunked`.
    #[serde(default)]
    pub encoding: String,
    /// Why a better way was not taken, one sentence each.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Bytes of the stream taken from the source.
    pub bytes_read: u64,
    /// Bytes of the stream given to the target.
    pub bytes_sent: u64,
    /// Bytes of disk that the stream replaced.
    pub changed_bytes: u64,
    /// Root of the replica disk's block digests, lower-case hex; absent when it could not be known.
    pub digest: Option<String>,
    /// Wall time of the transfer.
    pub seconds: f64,
}
