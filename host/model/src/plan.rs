//! What a run will send, per disk and target, and why.

use serde::{Deserialize, Serialize};

/// Why no delta will do.
///
/// A full copy always has a reason, printed by `vmferry plan` before it starts and handed to the
/// scheduler plugin, which may refuse it. So has a resync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FullReason {
    /// The target holds no recovery point of this VM yet.
    FirstRun,
    /// The VM is replicated already, this disk is not.
    NewDisk,
    /// The target's recovery points were made from snapshots that the source no longer has.
    BaseGoneOnSource,
    /// The snapshots behind the target's recovery points have only their change logs left.
    BasePurged,
    /// The source keeps snapshots for this target, but the target lost the matching recovery points.
    BaseGoneOnTarget,
    /// The disk is smaller than its replica; a delta cannot shrink a disk.
    DiskShrunk,
    /// `verify` found the newest recovery point's copy of the disk damaged.
    ReplicaDamaged,
    /// The source's storage keeps the disk as something else than VHD and does not tell what differs between two snapshots.
    NoDifferences,
    /// The target's recovery points were on an SR that the job names no more.
    SrChanged,
    /// The target holds only copies that Xen Orchestra 6.2 or older made, each a VM of its own: nothing proves that their disks
    /// are what was sent.
    XoVmPerRun,
    /// The target holds only copies that Xen Orchestra did not finish.
    XoUnfinished,
    /// The VM was replicated by a Xen Orchestra older than 5.17, whose keys name no content.
    XoLegacy,
    /// The operator asked for a full copy.
    Requested,
}

impl FullReason {
    /// One sentence for an operator.
    pub fn explain(self) -> &'static str {
        match self {
            Self::FirstRun => "first run: the target holds no recovery point of this VM",
            Self::NewDisk => "new disk: the target's recovery points do not have it",
            Self::BaseGoneOnSource => {
                "base gone on the source: the snapshots behind the target's recovery points no longer exist"
            }
            Self::BasePurged => {
                "base purged on the source: of the snapshots behind the target's recovery points only the change log is left"
            }
            Self::BaseGoneOnTarget => {
                "base gone on the target: no recovery point matches the snapshots kept on the source"
            }
            Self::DiskShrunk => "disk shrunk: it is smaller than its replica",
            Self::ReplicaDamaged => {
                "replica damaged: `verify` found that its newest recovery point is not what was sent"
            }
            Self::NoDifferences => {
                "no differences: the source's storage does not tell what changed between two snapshots of the disk"
            }
            Self::SrChanged => {
                "another SR: the recovery points of this VM were on one that no target of the job names any more"
            }
            Self::XoVmPerRun => {
                "copies by Xen Orchestra 6.2 or older: each is a VM with live disks, and nothing proves that nobody wrote to them"
            }
            Self::XoUnfinished => "a copy by Xen Orchestra that was never finished: it may lack data",
            Self::XoLegacy => {
                "replicated by a Xen Orchestra older than 5.17: its keys do not tell what its copies hold"
            }
            Self::Requested => "requested: a full copy was asked for",
        }
    }
}

/// The common content a delta starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// uuid of the source snapshot disk that both sides hold; also the content key on the target.
    pub source_snapshot_disk: String,
    /// uuid of the target's snapshot disk with that content.
    pub target_snapshot_disk: String,
    /// Whether this is the newest recovery point, or an older one because the newest has no match.
    pub newest: bool,
}

/// How one disk travels to one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// Only blocks changed since `base`.
    Delta {
        /// Where the delta starts.
        base: Base,
    },
    /// Only what differs from an old copy on the target, whose digests are known. The source is read whole.
    Resync {
        /// uuid of the target's snapshot disk that is compared with.
        copy: String,
        /// Why no delta will do.
        reason: FullReason,
    },
    /// The whole disk.
    Full {
        /// Why nothing less will do.
        reason: FullReason,
    },
}

impl Transfer {
    /// The kind, as reports and plans name it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Delta { .. } => Kind::Delta,
            Self::Resync { .. } => Kind::Resync,
            Self::Full { .. } => Kind::Full,
        }
    }

    /// uuid of the source snapshot disk a delta starts from.
    pub fn base(&self) -> Option<&str> {
        match self {
            Self::Delta { base } => Some(&base.source_snapshot_disk),
            Self::Resync { .. } | Self::Full { .. } => None,
        }
    }

    /// uuid of the target's snapshot disk that what is sent is put on; `None` for a new disk.
    pub fn lands_on(&self) -> Option<&str> {
        match self {
            Self::Delta { base } => Some(&base.target_snapshot_disk),
            Self::Resync { copy, .. } => Some(copy),
            Self::Full { .. } => None,
        }
    }

    /// Why no delta will do; `None` for a delta.
    pub fn full_reason(&self) -> Option<FullReason> {
        match self {
            Self::Delta { .. } => None,
            Self::Resync { reason, .. } | Self::Full { reason } => Some(*reason),
        }
    }

    /// One sentence for an operator.
    pub fn reason(&self) -> String {
        match self {
            Self::Delta { base } if base.newest => {
                "the newest recovery point and the source share this base".to_owned()
            }
            Self::Delta { .. } => {
                "an older recovery point and the source share this base; the newest has no match".to_owned()
            }
            Self::Resync { reason, .. } => {
                format!("{}; compared by digests with the target's old copy", reason.explain())
            }
            Self::Full { reason } => reason.explain().to_owned(),
        }
    }
}

/// Kind of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The whole disk.
    Full,
    /// Blocks changed since a base.
    Delta,
    /// Blocks that differ from an old copy on the target.
    Resync,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Full => "full",
            Self::Delta => "delta",
            Self::Resync => "resync",
        })
    }
}

/// Where an expectation of bytes comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpectedFrom {
    /// Median of the disk's earlier deltas to this target.
    History,
    /// What the source storage says the disk occupies.
    PhysicalUtilisation,
    /// The disk's virtual size: nothing better is known.
    Full,
}

/// What a run of one job would do now; the shape of `vmferry plan --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobPlan {
    /// The job's name.
    pub job: String,
    /// One entry per selected VM.
    pub vms: Vec<VmPlan>,
}

/// What a run would do for one VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmPlan {
    /// uuid of the source VM.
    pub vm: String,
    /// Its name.
    pub name: String,
    /// Why nothing can be planned for this VM, if so.
    pub error: Option<String>,
    /// One entry per target.
    pub targets: Vec<TargetPlan>,
}

/// What a run would do for one VM on one target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetPlan {
    /// The target's name in the job.
    pub target: String,
    /// uuid of the storage repository that the replica is on, or would be made on.
    #[serde(default)]
    pub sr: Option<String>,
    /// uuid of the replica VM, when there is one.
    pub replica: Option<String>,
    /// What would stop the run here, each with its remedy.
    pub obstacles: Vec<String>,
    /// What stops nothing now and will matter at a failover.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// One entry per disk.
    pub disks: Vec<DiskPlan>,
}

/// What a run would do for one disk on one target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskPlan {
    /// uuid of the source disk.
    pub disk: String,
    /// Full, delta or resync.
    pub kind: Kind,
    /// uuid of the source snapshot disk the delta starts from.
    pub base: Option<String>,
    /// Why, in one sentence.
    pub reason: String,
    /// Why no delta will do, when none will.
    pub full_reason: Option<FullReason>,
    /// Bytes that will probably travel. What really changed is known only from the snapshot on.
    pub expected_bytes: u64,
    /// Where that number comes from.
    pub expected_from: ExpectedFrom,
}
