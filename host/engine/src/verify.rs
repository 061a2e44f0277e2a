//! Reads replicas back and says whether they are what was sent.
//!
//! The quick look asks the storage whether anybody wrote to the live replica since its newest recovery point. The deep one
//! reads every byte of that point and compares its digests with those of what was sent. A disk that differs is marked, so
//! that no failover offers it and no delta builds on it, and what was read stays in a table: the next run mends it with the
//! extents that differ alone.

use crate::digests::{Digests, table_size};
use crate::engine::Engine;
use crate::error::{EngineError, RunError, chain};
use crate::inventory::{AttachedDisk, Inventory};
use crate::job::{Job, StoreTarget};
use crate::keys;
use crate::lane::{self, Asking};
use crate::objects::set_keys;
use crate::points::{Survivor, TargetProblem, Unheard};
use crate::progress::Progress;
use crate::readback::ReadBack;
use crate::store_lane;
use crate::transfer::blocking;
use crate::view::{Point, PointDisk, Replica};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tokio::sync::OnceCell;
use vmferry_disk::digest::{DraftTable, Root, Table};
use vmferry_disk::extent::Extents;
use vmferry_model::target::{Damage, StoredDisk, StoredPoint};
use vmferry_xapi::records::Vdi;
use vmferry_xapi::{Ref, Session};

/// How many differing ranges a report names.
const NAMED_DIFFERENCES: usize = 16;

/// What to look at, and how closely.
#[derive(Clone, Debug, Default)]
pub struct VerifyOptions {
    /// Only this VM, by uuid.
    pub only: Option<String>,
    /// Read everything back, instead of asking whether somebody wrote to it.
    pub deep: bool,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// The job's name.
    pub job: String,
    /// One entry per replica.
    pub replicas: Vec<VerifiedReplica>,
    /// The targets that did not answer: nothing of theirs was looked at.
    pub problems: Vec<TargetProblem>,
}

/// The newest recovery point of a replica, looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifiedReplica {
    /// uuid of the source VM.
    pub vm: String,
    /// Name of the replica.
    pub name: String,
    /// The target's name in the job.
    pub target: String,
    /// uuid of the replica VM; none where a store keeps the point.
    pub replica: Option<String>,
    /// uuid of the recovery point.
    pub point: String,
    /// The moment of the source that it shows.
    pub taken_at: Timestamp,
    /// The gravest verdict on its disks.
    pub verdict: Verdict,
    /// What kept it from being looked at, or was found besides.
    pub error: Option<String>,
    /// Its disks; empty after a quick look.
    pub disks: Vec<VerifiedDisk>,
}

/// A disk of a recovery point, read back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifiedDisk {
    /// uuid of the recovery point's disk.
    pub disk: String,
    /// Its name.
    pub name: String,
    /// What it is.
    pub verdict: Verdict,
    /// Why, in one sentence.
    pub reason: String,
    /// Bytes that differ, in whole 64 KiB; `None` where it is not known which.
    pub different_bytes: Option<u64>,
    /// The first ranges that differ.
    pub differences: Vec<Difference>,
}

/// A range of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// What a recovery point, or a disk of it, turned out to be. The gravest comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every byte was read and is what was sent.
    Intact,
    /// Nobody wrote to the live replica since its newest recovery point. Nothing was read.
    Untouched,
    /// The live replica was used or changed; its recovery points are another matter.
    Changed,
    /// It cannot be told.
    Unknown,
    /// It is not what was sent.
    Damaged,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Intact => "intact",
            Self::Untouched => "untouched",
            Self::Changed => "changed",
            Self::Unknown => "unknown",
            Self::Damaged => "damaged",
        })
    }
}

impl Engine {
    /// Looks at the newest recovery point of every replica of a job. Needs the targets only; where a digest is missing, the
    /// source is asked as well.
    pub async fn verify(
        &self,
        job: &Job,
        options: &VerifyOptions,
        progress: &dyn Progress,
    ) -> Result<VerifyReport, EngineError> {
        let source = SourcePool { engine: self, job, inventory: OnceCell::new() };
        let digests = Digests::open(&self.digest_dir, &job.tenant);
        let mut report = VerifyReport { job: job.name.clone(), replicas: Vec::new(), problems: Vec::new() };
        let mut unheard = Unheard::default();
        for target in &job.targets {
            let Some(survivor) = unheard.heard(&target.name, Survivor::reach(self, target).await) else { continue };
            for vm in survivor.source_vms(job).iter().filter(|vm| options.only.as_ref().is_none_or(|only| only == *vm))
            {
                for replica in survivor.view(job, vm).replicas {
                    progress.step(&replica.record.name_label, "looking at the newest recovery point");
                    let look = Look { job, survivor: &survivor, source: &source, digests: &digests, progress };
                    report.replicas.push(look.at(vm, &replica, options.deep).await);
                }
            }
        }
        for target in &job.stores {
            let looked_at = stored(job, target, options, progress).await;
            report.replicas.extend(unheard.heard(&target.name, looked_at).into_iter().flatten());
        }
        report.problems = unheard.unless_all(job.target_names().count())?;
        match &options.only {
            Some(vm) if report.replicas.is_empty() && report.problems.is_empty() => Err(EngineError::Usage(format!(
                "job {} has no recovery point of VM {vm} on any of its targets; `points list {}` names those it has",
                job.name, job.name
            ))),
            _ => Ok(report),
        }
    }
}

/// The newest points of a store, looked at. It keeps no live disks that somebody could have used, so there is one way to look:
/// to read everything.
async fn stored(
    job: &Job,
    target: &StoreTarget,
    options: &VerifyOptions,
    progress: &dyn Progress,
) -> Result<Vec<VerifiedReplica>, RunError> {
    let points = store_lane::points(target, &job.ids, options.only.as_deref()).await?;
    let newest: BTreeMap<String, StoredPoint> = points.into_iter().map(|point| (point.vm.clone(), point)).collect();
    let mut looked_at = Vec::new();
    for (vm, point) in newest {
        progress.step(&point.name, "reading the newest recovery point");
        let mut verified = VerifiedReplica {
            vm,
            name: point.name.clone(),
            target: target.name.clone(),
            replica: None,
            point: point.id.clone(),
            taken_at: point.taken_at,
            verdict: Verdict::Intact,
            error: None,
            disks: Vec::new(),
        };
        match target.store.verify(&point.id).await {
            Ok(damage) => {
                let of_point = damage.iter().find(|damage| damage.disk.is_none());
                verified.error = of_point.map(|damage| damage.message.clone());
                verified.disks = point.disks.iter().map(|disk| stored_disk(disk, &damage)).collect();
                if !damage.is_empty() {
                    verified.verdict = Verdict::Damaged;
                }
            }
            Err(error) => {
                verified.verdict = Verdict::Unknown;
                verified.error = Some(error.to_string());
            }
        }
        looked_at.push(verified);
    }
    Ok(looked_at)
}

fn stored_disk(disk: &StoredDisk, damage: &[Damage]) -> VerifiedDisk {
    let found: Vec<&Damage> = damage.iter().filter(|damage| damage.disk.as_ref() == Some(&disk.disk)).collect();
    let ranges = found.iter().filter_map(|damage| damage.extent);
    let differences: Vec<Difference> =
        ranges.map(|extent| Difference { offset: extent.offset, length: extent.length }).collect();
    let all_known = found.len() == differences.len();
    VerifiedDisk {
        disk: disk.disk.clone(),
        name: String::new(),
        verdict: if found.is_empty() { Verdict::Intact } else { Verdict::Damaged },
        reason: found.first().map_or("every byte is what was stored", |damage| &damage.message).to_owned(),
        different_bytes: all_known.then(|| differences.iter().map(|range| range.length).sum()),
        differences: differences.into_iter().take(NAMED_DIFFERENCES).collect(),
    }
}

/// The source, asked only where a digest is missing.
struct SourcePool<'a> {
    engine: &'a Engine,
    job: &'a Job,
    inventory: OnceCell<(Session, Inventory)>,
}

impl SourcePool<'_> {
    /// The source snapshot disk with this uuid, if it still exists.
    async fn snapshot_disk(&self, uuid: &str) -> Result<Option<(Session, Ref<Vdi>)>, RunError> {
        let pool = &self.job.select.pool;
        let load = async {
            let session = self.engine.pools.session(pool).await?;
            let inventory = Inventory::load(&session).await?;
            Ok::<_, RunError>((session, inventory))
        };
        let (session, inventory) = self.inventory.get_or_try_init(|| load).await?;
        let found = inventory.vdis.iter().find(|(_, vdi)| vdi.uuid == uuid && vdi.is_a_snapshot && vdi.managed);
        Ok(found.map(|(vdi, _)| (session.clone(), vdi.clone())))
    }
}

/// One look at one replica.
struct Look<'a> {
    job: &'a Job,
    survivor: &'a Survivor<'a>,
    source: &'a SourcePool<'a>,
    digests: &'a Digests,
    progress: &'a dyn Progress,
}

/// What a disk should be.
enum Expected {
    /// Leaf by leaf.
    Table(PathBuf),
    /// As a whole.
    Root(Root),
}

impl Look<'_> {
    async fn at(&self, vm: &str, replica: &Replica, deep: bool) -> VerifiedReplica {
        let point = replica.newest();
        let mut verified = VerifiedReplica {
            vm: vm.to_owned(),
            name: replica.record.name_label.clone(),
            target: self.survivor.target.name.clone(),
            replica: Some(replica.record.uuid.clone()),
            point: point.uuid.clone(),
            taken_at: point.taken_at,
            verdict: Verdict::Unknown,
            error: None,
            disks: Vec::new(),
        };
        let done = match deep {
            true => self.read(point, &mut verified).await,
            false => self.ask(replica, &mut verified).await,
        };
        if let Err(error) = done {
            verified.error = Some(chain(&error));
            verified.verdict = verified.verdict.max(Verdict::Unknown);
        }
        verified
    }

    async fn ask(&self, replica: &Replica, verified: &mut VerifiedReplica) -> Result<(), RunError> {
        let change =
            lane::change(&self.survivor.session, replica, self.job.tuning.first_byte, Asking::Thoroughly).await?;
        verified.verdict = match (&change.written, replica.newest().is_damaged()) {
            (_, true) => Verdict::Damaged,
            (Some(_), false) => Verdict::Changed,
            (None, false) if !change.untold.is_empty() => Verdict::Unknown,
            (None, false) => Verdict::Untouched,
        };
        let untold = (!change.untold.is_empty()).then(|| {
            "its storage does not tell whether somebody wrote to it; `--deep` reads its newest recovery point"
                .to_owned()
        });
        verified.error = change.written.or_else(|| change.unknown.into_iter().next()).or(untold);
        Ok(())
    }

    async fn read(&self, point: &Point, verified: &mut VerifiedReplica) -> Result<(), RunError> {
        verified.verdict = Verdict::Intact;
        for held in &point.disks {
            let disk = self.read_disk(held, &verified.name).await?;
            verified.verdict = verified.verdict.max(disk.verdict);
            verified.disks.push(disk);
        }
        Ok(())
    }

    async fn read_disk(&self, held: &PointDisk, replica: &str) -> Result<VerifiedDisk, RunError> {
        let digests = self.digests;
        let mut notes = Vec::new();
        let (verdict, reason, different, found) = match self.expected(held, replica, &mut notes).await? {
            Err(why) => (Verdict::Unknown, why, None, None),
            Ok(expected) => {
                let path = digests.as_read(held.uuid());
                let found = self.hash(&self.survivor.session, &held.attached, replica, path, &mut notes).await?;
                let path = digests.of_content(&held.content_key);
                blocking(move || compare(found, &expected, path)).await?
            }
        };
        let reason = [reason.to_owned()].into_iter().chain(notes).collect::<Vec<_>>().join("; ");
        if let Some(found) = found {
            // The table first: a mark without it costs the next run a full copy, a table without a mark nothing.
            let root = blocking(move || found.commit()).await.map_err(RunError::Digests)?;
            let mark = [(keys::DAMAGED, keys::digest_value(&held.content_key, &root.to_string()))];
            set_keys(&self.survivor.session, &held.attached.vdi, &mark, &[]).await?;
        } else if held.damaged.is_some() && verdict == Verdict::Intact {
            set_keys(&self.survivor.session, &held.attached.vdi, &[], &[keys::DAMAGED]).await?;
        }
        Ok(VerifiedDisk {
            disk: held.uuid().to_owned(),
            name: held.attached.record.name_label.clone(),
            verdict,
            reason,
            different_bytes: different.as_ref().map(Extents::total_bytes),
            differences: different.as_ref().map(first_differences).unwrap_or_default(),
        })
    }

    /// What a disk should be: by the table of what was sent, by its root that stands on the disk, or by the source's
    /// snapshot, if that is still there.
    /// Else, why it cannot be known.
    async fn expected(
        &self,
        held: &PointDisk,
        replica: &str,
        notes: &mut Vec<String>,
    ) -> Result<Result<Expected, &'static str>, RunError> {
        let path = self.digests.of_content(&held.content_key);
        let root: Option<Root> = held.digest.as_ref().and_then(|digest| digest.parse().ok());
        let table = path.clone();
        let known = blocking(move || Table::open(&table).and_then(|table| table.root()).ok()).await;
        if let Some(known) = known
            && root.is_none_or(|root| root == known)
        {
            return Ok(Ok(Expected::Table(path)));
        }
        match (root, self.source.snapshot_disk(&held.content_key).await) {
            (_, Ok(Some((session, vdi)))) => {
                let disk = AttachedDisk { vdi, ..held.attached.clone() };
                let sent = self.hash(&session, &disk, replica, path.clone(), notes).await?;
                blocking(move || sent.commit()).await.map_err(RunError::Digests)?;
                Ok(Ok(Expected::Table(path)))
            }
            (Some(root), _) => Ok(Ok(Expected::Root(root))),
            (None, Ok(None)) => Ok(Err("no digest was recorded, and the source's snapshot is gone")),
            (None, Err(_)) => Ok(Err("no digest was recorded, and the source could not be asked")),
        }
    }

    /// Reads a whole disk; the digests of what it holds, in a draft of the table at `path`. Notes why more was read than had
    /// to be.
    async fn hash(
        &self,
        session: &Session,
        disk: &AttachedDisk,
        replica: &str,
        path: PathBuf,
        notes: &mut Vec<String>,
    ) -> Result<DraftTable, RunError> {
        let mut table = Table::create(path, table_size(disk.record.virtual_size)).map_err(RunError::Digests)?;
        let back = ReadBack { job: self.job, progress: self.progress, vm: replica };
        let read = back.read(session, disk, None, &mut |leaf, digest| table.set(leaf, digest)).await?;
        notes.extend(read.and_then(|read| read.note));
        Ok(table)
    }
}

/// The first ranges of what differs, as a report names them.
pub(crate) fn first_differences(different: &Extents) -> Vec<Difference> {
    let named = different.iter().take(NAMED_DIFFERENCES);
    named.map(|extent| Difference { offset: extent.offset, length: extent.length }).collect()
}

type Compared = (Verdict, &'static str, Option<Extents>, Option<DraftTable>);

/// Compares what was read with what it should be. Gives what was read back where it is to be kept as the record of a damaged
/// disk. `path` is where the table of the content goes if there is none yet.
fn compare(mut found: DraftTable, expected: &Expected, path: PathBuf) -> Result<Compared, RunError> {
    let root = found.root().map_err(RunError::Digests)?;
    match expected {
        Expected::Table(table) => {
            let expected = Table::open(table).map_err(RunError::Digests)?;
            let different = found.differences(&expected).map_err(RunError::Digests)?;
            match different.is_empty() {
                true => Ok((Verdict::Intact, "every byte is what was sent", Some(different), None)),
                false => Ok((Verdict::Damaged, "some of it is not what was sent", Some(different), Some(found))),
            }
        }
        Expected::Root(expected) if *expected == root => {
            found.commit_as(path).map_err(RunError::Digests)?;
            Ok((Verdict::Intact, "every byte is what was sent", Some(Extents::new()), None))
        }
        Expected::Root(_) => {
            let reason = "it is not what was sent; which part of it cannot be told without the digest table";
            Ok((Verdict::Damaged, reason, None, Some(found)))
        }
    }
}
