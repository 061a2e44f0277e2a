//! One replication run, from lease to commit.
//!
//! An [`Engine`] holds the way to the pools and the history; a [`Job`] says what to replicate where; [`Policies`] carry
//! the plugins' decisions in. [`Engine::run`] does the work and answers with a report, whatever happened.
//! An orchestrator embeds it as `examples/embed.rs` shows.
//!
//! Reading order: [`run`](Engine::run) tells the story; `plan` decides; `view` is what it decides on; the rest acts.

mod allocation;
mod clone;
mod commit;
mod description;
mod digests;
mod doctor;
mod engine;
mod error;
mod export;
mod failover;
mod finding;
mod forecast;
mod framing;
mod garbage;
mod gc;
mod guest;
mod holder;
mod interfaces;
mod inventory;
mod job;
mod keys;
mod landing;
mod lane;
mod lease;
mod media;
mod memory;
mod migration;
mod moving;
mod objects;
mod offline;
mod origin;
mod ova;
mod placement;
mod plan;
mod points;
mod pools;
mod preflight;
mod progress;
mod readback;
mod reconcile;
mod replica;
mod restore;
mod restoring;
mod retain;
mod retrieving;
mod run;
mod seed;
mod seed_media;
mod select;
mod shares;
mod snapshot;
mod source;
mod store_lane;
mod storing;
mod tell;
mod transfer;
mod tried;
mod verify;
mod view;
mod vtpm;
mod xen_orchestra;
mod xva;

pub use clone::{CloneReport, CloneRequest};
pub use doctor::{DoctorLine, DoctorProbe, DoctorReport, DoctorRequest, DoctorVerdict};
pub use engine::{Engine, RunOptions};
pub use error::{EngineError, RunError};
pub use failover::{StartReport, StartRequest};
pub use finding::{Fate, Finding, FindingKind, GcAct};
pub use gc::{GcOptions, GcProblem, GcReport};
pub use guest::{GuestCheck, GuestReport, GuestWait};
pub use interfaces::NetworkChoice;
pub use job::{
    ChainLimits, Integrity, Job, JobIds, Nbd, Policies, Reading, Selection, SnapshotMode, StoreTarget, Subscription,
    Target, Tuning,
};
pub use points::{PointSummary, PointsReport, ReplicaPoints, ReplicaState, TargetProblem};
pub use progress::{DiskLabel, Progress, Silent};
pub use restore::{RestoreReport, RestoreRequest, RestoreTo, RestoredDisk, XvaRequest};
pub use seed::{SeedPair, SeedReport, SeedRequest, SeededDisk};
pub use seed_media::{ExportedDisk, SeedExport, SeedExportRequest, SeedImport, SeedImportRequest};
pub use storing::ImageFormat;
pub use verify::{Difference, Verdict, VerifiedDisk, VerifiedReplica, VerifyOptions, VerifyReport};
pub use vmferry_disk::nbd::Pace;
pub use vmferry_disk::transfer::Throttle;
