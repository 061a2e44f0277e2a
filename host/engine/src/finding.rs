//! What `gc` tells of an object, and what it does about it.

use crate::lane::bytes;
use serde::Serialize;
use vmferry_model::target::StoredGarbage;

/// One object that was found, and what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name of the pool it is in, or of the target that is a store; empty for a file of the state folder.
    pub pool: String,
    /// XAPI class, `digest table`, or `stored`.
    pub class: String,
    /// Its uuid; for a digest table its file name, in a store what that calls it.
    pub uuid: String,
    /// Its name; in a store its size.
    pub name: String,
    /// uuid of the source VM it belongs to, where that is known.
    pub vm: Option<String>,
    /// What it is.
    pub kind: FindingKind,
    /// Why it is garbage, or why it is left alone and what to do then: one sentence or two.
    pub why: String,
    /// What `--apply` does about it.
    pub act: GcAct,
    /// What became of it.
    pub fate: Fate,
}

impl Finding {
    /// What a store found, and removed if that was asked for.
    pub(crate) fn stored(target: &str, garbage: StoredGarbage, removed: bool) -> Self {
        Self {
            pool: target.to_owned(),
            class: "stored".to_owned(),
            uuid: garbage.what,
            name: bytes(garbage.bytes),
            vm: None,
            kind: FindingKind::Stored,
            why: garbage.why,
            act: GcAct::Remove,
            fate: if removed { Fate::Done } else { Fate::Found },
        }
    }

    /// Whether both are about the same thing.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (&self.pool, &self.class, &self.uuid, self.kind) == (&other.pool, &other.class, &other.uuid, other.kind)
    }
}

/// What `gc --apply` does about a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GcAct {
    /// It is destroyed.
    Remove,
    /// It stays, and is put right.
    PutRight,
    /// Nothing.
    Keep,
}

/// What became of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It was found, and nothing was to be done or asked for.
    Found,
    /// It is removed, or right again.
    Done,
    /// It should have been, and is as before.
    Left,
}

/// What a found object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// A disk of a run that did not finish, on no VM.
    UnfinishedDisk,
    /// A first replica that never got a recovery point.
    UnfinishedReplica,
    /// A replica that a run wrote to and did not finish.
    HalfWrittenReplica,
    /// A disk of one of these two.
    HalfWrittenDisk,
    /// What a restore to a new VM made, which ended before that VM was whole.
    UnfinishedRestore,
    /// A replica whose recovery point was committed, and which was not tidied up.
    UntidyReplica,
    /// A recovery point's disk that was being cloned.
    CloneMark,
    /// A snapshot, or its disk, whose destruction was interrupted.
    UnfinishedRemoval,
    /// A source snapshot of a run that died before it could tag it.
    UntaggedSnapshot,
    /// A source snapshot that never became a recovery point anywhere.
    UnconfirmedSnapshot,
    /// A source snapshot that is nobody's base any more.
    SupersededSnapshot,
    /// A source snapshot that is a base and does not say so yet.
    UnmarkedBase,
    /// A source snapshot of which a copy on media is on its way to a target.
    Seed,
    /// A lease whose holder is gone.
    DeadLease,
    /// A lease that somebody holds.
    HeldLease,
    /// A source VM whose migration a run blocked that is gone.
    MigrationBlock,
    /// A source VM that a run shut down that is gone.
    StoppedVm,
    /// A digest table of a content that nobody holds.
    UnusedTable,
    /// What takes up room in a store and belongs to no recovery point.
    Stored,
    /// A task in a pool's list.
    Task,
    /// A replica that somebody used.
    UsedReplica,
    /// A replica that another one has taken over from.
    OlderReplica,
    /// A replica of a VM that the job does not select, or that is gone.
    UnselectedReplica,
    /// A replica without any recovery point.
    EmptyReplica,
    /// A snapshot that looks like a recovery point and is not whole.
    BrokenPoint,
    /// A snapshot of a VM that is gone.
    LastSnapshot,
    /// A disk with the job's keys that hangs on no VM.
    LooseDisk,
    /// What inherited the job's keys.
    Copy,
    /// What another job, or Xen Orchestra, keeps.
    Foreign,
}

impl FindingKind {
    /// What it is, in a few words.
    pub fn explain(self) -> &'static str {
        match self {
            Self::UnfinishedDisk => "disk of an unfinished run",
            Self::UnfinishedReplica => "first replica of an unfinished run",
            Self::HalfWrittenReplica => "half-written replica",
            Self::HalfWrittenDisk => "half-written disk",
            Self::UnfinishedRestore => "unfinished restore",
            Self::UntidyReplica => "unfinished commit",
            Self::CloneMark => "mark of an interrupted clone",
            Self::UnfinishedRemoval => "unfinished removal",
            Self::UntaggedSnapshot => "untagged source snapshot",
            Self::UnconfirmedSnapshot => "unconfirmed source snapshot",
            Self::SupersededSnapshot => "superseded source snapshot",
            Self::UnmarkedBase => "base that is not marked",
            Self::Seed => "seed on its way",
            Self::DeadLease => "dead lease",
            Self::HeldLease => "held lease",
            Self::MigrationBlock => "forgotten migration block",
            Self::StoppedVm => "VM that was not started again",
            Self::UnusedTable => "unused digest table",
            Self::Stored => "stored for nothing",
            Self::Task => "task",
            Self::UsedReplica => "used replica",
            Self::OlderReplica => "older replica",
            Self::UnselectedReplica => "replica of an unselected VM",
            Self::EmptyReplica => "replica without recovery points",
            Self::BrokenPoint => "broken recovery point",
            Self::LastSnapshot => "snapshot of a lost VM",
            Self::LooseDisk => "loose disk",
            Self::Copy => "copy",
            Self::Foreign => "foreign",
        }
    }
}
