//! One target of one VM in one run: what it holds, what it will get, and how it ends.

use crate::allocation::{MAX_VHD_DISK, Question};
use crate::error::{RunError, chain};
use crate::export::{self, NotBegun};
use crate::forecast;
use crate::framing::Framing;
use crate::inventory::{AttachedDisk, Inventory};
use crate::job::{Integrity, Job, Target};
use crate::keys::Keys;
use crate::lease::Lease;
use crate::memory;
use crate::objects::{replace_keys, wait_until_detached};
use crate::placement::TargetSrs;
use crate::plan;
use crate::reconcile;
use crate::replica::MappedInterface;
use crate::run::Run;
use crate::source::Chunked;
use crate::tried;
use crate::view::{Identity, Point, Replica, SourceVm, TargetView, is_unused};
use std::collections::BTreeSet;
use std::time::Duration;
use vmferry_model::plan::{DiskPlan, Kind, TargetPlan, Transfer};
use vmferry_model::report::{DiskReport, Outcome, TargetReport};
use vmferry_xapi::records::{Sr, Vdi, Vm};
use vmferry_xapi::{Ref, Session, params};

/// One of a run's targets, by its number among those of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LaneId {
    /// A pool.
    Pool(usize),
    /// A store.
    Store(usize),
}

/// A target that is reached, leased and tidy.
pub(crate) struct Lane<'j> {
    pub(crate) target: &'j Target,
    pub(crate) session: Session,
    /// The target's SRs.
    pub(crate) srs: TargetSrs,
    /// The one of them that the replica is on, or will be: see [`Lane::settle_on_sr`].
    pub(crate) sr: Ref<Sr>,
    pub(crate) sr_record: Sr,
    /// Bytes that this run promised the replica there.
    pub(crate) promised: u64,
    pub(crate) view: TargetView,
    /// Whether the pool's hosts take the `chunked` framing.
    pub(crate) framing: Framing,
    /// What the view was read from; preflight measures chains in it. Empty while disks travel.
    pub(crate) inventory: Inventory,
    pub(crate) lease: Option<Lease>,
    /// Whether the current replica is proven to equal its newest recovery point.
    pub(crate) untouched: bool,
    /// Live disks of it of which the storage does not tell whether they were written.
    pub(crate) untold: BTreeSet<Ref<Vdi>>,
    pub(crate) interfaces: Vec<MappedInterface>,
    /// One per source disk.
    pub(crate) transfers: Vec<Transfer>,
    /// The same with what they will probably take.
    pub(crate) plans: Vec<DiskPlan>,
    /// Where each transfer lands, once prepared.
    pub(crate) landed: Vec<Ref<Vdi>>,
    pub(crate) disks: Vec<DiskReport>,
    pub(crate) pruned: Vec<String>,
    pub(crate) warnings: Vec<String>,
    /// Whether this run may have changed the replica's disks.
    pub(crate) landing_begun: bool,
    /// Whether the snapshot that makes the recovery point was asked for: it may exist even if this run does not get to know.
    pub(crate) commit_begun: bool,
    /// uuids of the replica and its new recovery point, once committed.
    pub(crate) committed: Option<(String, String)>,
    pub(crate) failed: Option<RunError>,
}

impl<'j> Lane<'j> {
    /// Reaches the target and reads what it holds; changes nothing.
    pub(crate) async fn look(run: &Run<'_>, identity: &Identity, target: &'j Target) -> Result<Self, RunError> {
        let session = run.pools.session(&target.pool).await?;
        let inventory = Inventory::load(&session).await?;
        let srs = TargetSrs::new(&inventory, &session.get_all_records().await?, target)?;
        let view = TargetView::new(&inventory, identity, &target.srs);
        let on = view.current().and_then(|replica| srs.get(replica.sr())).unwrap_or(&srs.there[0]).clone();
        // A failover may need no stream, and must not fail for the way of one.
        let warnings = session.stream_warnings().await.unwrap_or_else(|error| vec![chain(&error)]);
        let framing = Framing::of(&session, run.runs, &run.job.tenant).await?;
        Ok(Self {
            target,
            session,
            srs,
            sr: on.reference,
            sr_record: on.record,
            promised: 0,
            view,
            framing,
            inventory,
            lease: None,
            untouched: false,
            untold: BTreeSet::new(),
            interfaces: Vec::new(),
            transfers: Vec::new(),
            plans: Vec::new(),
            landed: Vec::new(),
            disks: Vec::new(),
            pruned: Vec::new(),
            warnings,
            landing_begun: false,
            commit_begun: false,
            committed: None,
            failed: None,
        })
    }

    /// Reaches the target, takes the lease of its replica, rolls back what an interrupted run left there, and asks whether
    /// the replica is as the last run left it.
    pub(crate) async fn open(run: &Run<'_>, identity: &Identity, target: &'j Target) -> Result<Self, RunError> {
        let mut lane = Self::look(run, identity, target).await?;
        lane.session.stream_warnings().await?;
        if let Some(lost) = lane.view.current().and_then(|replica| lane.srs.lost(target, replica.sr())) {
            return Err(RunError::Obstacles(vec![lost]));
        }
        lane.settle(run, identity).await?;
        if let Err(error) = lane.prove_untouched(run.job.tuning.first_byte).await {
            lane.release().await;
            return Err(error);
        }
        Ok(lane)
    }

    /// Takes the lease of the replica, and rolls back what an interrupted run left there.
    pub(crate) async fn settle(&mut self, run: &Run<'_>, identity: &Identity) -> Result<(), RunError> {
        if let Some(replica) = self.view.current() {
            let (vm, uuid) = (replica.reference.clone(), replica.record.uuid.clone());
            self.lease = Some(run.lease(&self.session, &vm, &uuid).await?);
        }
        let ready = self.make_ready(run.job, identity).await;
        if ready.is_err() {
            self.release().await;
        }
        ready
    }

    async fn make_ready(&mut self, job: &Job, identity: &Identity) -> Result<(), RunError> {
        if self.lease.is_some() {
            // What was read before the lease was taken may have changed since.
            self.observe(identity).await?;
        }
        let done = reconcile::target(self, job, identity).await?;
        if !done.is_empty() {
            self.warnings.extend(done);
            self.observe(identity).await?;
        }
        Ok(())
    }

    /// Puts right what this run left unfinished here.
    pub(crate) async fn put_right(&mut self, job: &Job, identity: &Identity) -> Result<(), RunError> {
        if let Some(lease) = &self.lease {
            lease.check().await?;
        }
        self.observe(identity).await?;
        let done = reconcile::target(self, job, identity).await?;
        self.warnings.extend(done);
        self.observe(identity).await
    }

    /// Reads again what the target holds.
    pub(crate) async fn observe(&mut self, identity: &Identity) -> Result<(), RunError> {
        // Not both at once: those of a large pool take hundreds of megabytes.
        self.inventory = Inventory::default();
        self.inventory = Inventory::load(&self.session).await?;
        self.view = TargetView::new(&self.inventory, identity, &self.target.srs);
        Ok(())
    }

    /// Asks the storage whether anybody wrote to the replica since its newest recovery point. A replica that was started,
    /// written or rearranged is never overwritten: it stays as it is, and another VM goes on in its place.
    async fn prove_untouched(&mut self, patience: Duration) -> Result<(), RunError> {
        let Some(replica) = self.view.current() else { return Ok(()) };
        let change = change(&self.session, replica, patience, Asking::Quickly).await?;
        let why = change.written;
        self.untold = change.untold;
        self.untouched = why.is_none();
        if let Some(why) = why {
            self.warnings.push(format!(
                "replica {} ({}) was changed: {why}; it is kept as it is, and a new VM takes its place",
                replica.record.name_label, replica.record.uuid
            ));
        }
        Ok(())
    }

    /// Decides how each disk of the source travels here, and forecasts it.
    pub(crate) async fn plan_transfers(&mut self, run: &Run<'_>, inventory: &Inventory, source: &SourceVm) {
        let mut untold = BTreeSet::new();
        for disk in &source.disks {
            if tried::has_no_differences(run, disk).await {
                untold.insert(&disk.vdi);
            }
        }
        let named = |sr: &String| run.job.targets.iter().any(|target| target.srs.contains(sr));
        let moved = source.snapshots.iter().flat_map(|snapshot| &snapshot.exported_to).any(|sr| !named(sr));
        let plan = |known: &BTreeSet<String>| {
            let disks = source.disks.iter().map(|disk| {
                let planned = plan::transfer(source, disk, &self.view, &self.target.srs, known);
                let planned = plan::after_change_of_sr(planned, moved);
                match untold.contains(&disk.vdi) {
                    true => plan::without_differences(planned, |copy| known.contains(copy)),
                    false => planned,
                }
            });
            disks.collect::<Vec<_>>()
        };
        let mut transfers = plan(&BTreeSet::new());
        // Whole digest tables are read only where something is to be gained.
        let damaged = self.view.points().any(Point::is_damaged);
        // What differs can travel in the chunked framing alone.
        let framing = match self.framing.chunked {
            Chunked::Proven => true,
            Chunked::Untried => run.job.integrity == Integrity::Digest,
            Chunked::Unusable(_) => false,
        };
        let is_full = |(disk, transfer): (&AttachedDisk, &Transfer)| {
            transfer.kind() == Kind::Full && !memory::is_image(&disk.record)
        };
        if framing && (damaged || source.disks.iter().zip(&transfers).any(is_full)) {
            transfers = plan(&run.digests.comparable(&self.view).await);
        }
        self.transfers = transfers;
        self.plans.clear();
        for (disk, transfer) in source.disks.iter().zip(&self.transfers) {
            self.plans.push(forecast::disk_plan(run.runs, run.job, &self.target.name, inventory, disk, transfer).await);
        }
    }

    /// Decides on which SR the replica is from now on, and promises it what was planned: it stays where its newest recovery point
    /// is, and a new one goes where the most space is left.
    pub(crate) fn settle_on_sr(&mut self, run: &Run<'_>, source: &SourceVm) -> Result<(), RunError> {
        let obstacle = |why| RunError::Obstacles(vec![why]);
        if let Some(lost) = self.srs.lost_home(self.target, &self.view, source) {
            return Err(obstacle(lost));
        }
        let needed = self.plans.iter().map(|plan| plan.expected_bytes).sum();
        let home = self.view.current().and_then(|replica| self.srs.get(replica.sr()));
        // With one SR there is nothing to choose; whether it has room the pre-flight tells.
        let only = self.srs.there.first().filter(|only| only.is_plugged && self.target.srs.len() == 1);
        let on = match home.or(only) {
            Some(on) => {
                run.ledger.promise(&on.record, needed);
                on
            }
            None => run.ledger.place(&self.srs, needed, self.target).map_err(obstacle)?,
        };
        (self.sr, self.sr_record, self.promised) = (on.reference.clone(), on.record.clone(), needed);
        self.warnings.extend(self.notes_on_srs());
        Ok(())
    }

    /// What an operator should know of the target's SRs.
    fn notes_on_srs(&self) -> Vec<String> {
        let (target, pool) = (&self.target.name, &self.target.pool);
        let missing = self.srs.missing.iter().map(|sr| {
            format!("SR {sr} of target {target} is not in pool {pool}; nothing is put there: take it out of `srs`")
        });
        let replicas = self.view.replicas.iter().skip(1).filter(|replica| replica.sr() != self.sr_record.uuid);
        let older = replicas.map(|replica| {
            format!(
                "replica {} ({}) on SR {} holds {} older recovery points; the one on SR {} goes on, and that one stays until somebody \
                 removes it",
                replica.record.name_label,
                replica.record.uuid,
                replica.sr(),
                replica.points.len(),
                self.sr_record.uuid
            )
        });
        missing.chain(older).collect()
    }

    /// Whether all that the target holds was looked at: an SR that is gone for a while may hold a recovery point.
    pub(crate) fn sees_everything(&self) -> bool {
        self.srs.missing.is_empty()
    }

    /// What is planned here.
    pub(crate) fn plan(&self) -> TargetPlan {
        TargetPlan {
            target: self.target.name.clone(),
            sr: Some(self.sr_record.uuid.clone()),
            replica: self.view.current().map(|replica| replica.record.uuid.clone()),
            obstacles: Vec::new(),
            warnings: Vec::new(),
            disks: self.plans.clone(),
        }
    }

    /// The replica that goes on.
    pub(crate) fn continued(&self) -> Option<&Replica> {
        self.view.current().filter(|_| self.untouched)
    }

    /// Changes the keys of a live replica: under its lease, where it has one. A replica that this run made has none; the
    /// lease of its source keeps others away.
    pub(crate) async fn change_live_keys(
        &self,
        live: &Ref<Vm>,
        change: impl FnOnce(&mut Keys) + Send,
    ) -> Result<(), RunError> {
        match &self.lease {
            Some(lease) if lease.is_of(live) => lease.change_keys(change).await,
            _ => {
                let mut keys: Keys = self.session.call("VM.get_other_config", params![live]).await?;
                change(&mut keys);
                Ok(replace_keys(&self.session, live, &keys).await?)
            }
        }
    }

    /// Ends the lane's part in the run.
    pub(crate) fn fail(&mut self, error: RunError) {
        tracing::warn!(target = self.target.name, %error, "target dropped from the run");
        self.failed.get_or_insert(error);
    }

    pub(crate) fn is_live(&self) -> bool {
        self.failed.is_none()
    }

    /// Whether its recovery point is made and everything after it done.
    pub(crate) fn is_done(&self) -> bool {
        self.is_live() && self.committed.is_some()
    }

    pub(crate) async fn release(&mut self) {
        if let Some(lease) = self.lease.take()
            && let Err(error) = lease.release().await
        {
            self.warnings.push(format!("the replica's lease could not be given back and will expire: {error}"));
        }
    }

    /// What became of it; `stopped` is the outcome of a target that was not reached before the whole run ended.
    pub(crate) fn into_report(self, stopped: Outcome) -> TargetReport {
        let replica = self.view.current().map(|replica| replica.record.uuid.clone());
        let (replica, recovery_point, outcome) = match self.committed {
            Some((replica, point)) => (Some(replica), Some(point), Outcome::Succeeded),
            None => (replica, None, stopped),
        };
        TargetReport {
            target: self.target.name.clone(),
            sr: Some(self.sr_record.uuid),
            replica,
            recovery_point,
            outcome: self.failed.as_ref().map_or(outcome, RunError::outcome),
            error: self.failed.map(|error| chain(&error)),
            pruned: self.pruned,
            warnings: self.warnings,
            disks: self.disks,
        }
    }
}

/// The report of a target that could not even be opened.
pub(crate) fn unopened(target: &str, error: &RunError) -> TargetReport {
    TargetReport {
        target: target.to_owned(),
        sr: None,
        replica: None,
        recovery_point: None,
        outcome: error.outcome(),
        error: Some(chain(error)),
        pruned: Vec::new(),
        warnings: Vec::new(),
        disks: Vec::new(),
    }
}

/// Which disks the storage is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asking {
    /// Those of which it knows by its tables.
    Quickly,
    /// Those beyond VHD as well. To tell what differs in one of them, a host compares all of its data before it says anything,
    /// and holds the disk for as long: nothing for a run to wait for.
    Thoroughly,
}

/// What became of a replica since its newest recovery point.
#[derive(Debug, Default)]
pub(crate) struct Change {
    /// Why it is not that point any more.
    pub(crate) written: Option<String>,
    /// Live disks of which the storage does not tell: what is kept as something else than VHD has no differences to ask for.
    pub(crate) untold: BTreeSet<Ref<Vdi>>,
    /// Those of them of which it should have told, and why it did not.
    pub(crate) unknown: Vec<String>,
}

/// Asks the records of a replica whether it was used, and then the storage. Where the storage does not tell, a replica counts
/// as untouched as long as its start is blocked as we left it.
pub(crate) async fn change(
    session: &Session,
    replica: &Replica,
    patience: Duration,
    asking: Asking,
) -> Result<Change, RunError> {
    if let Some(why) = plan::divergence(replica) {
        return Ok(Change { written: Some(why), ..Change::default() });
    }
    let mut change = written_disk(session, replica, patience, asking).await?;
    if change.written.is_none() && !change.untold.is_empty() && !is_unused(&replica.record) {
        change.written = Some("its start is not blocked any more, and it may have been used".to_owned());
    }
    Ok(change)
}

/// Asks the storage for live disks whose difference from the newest recovery point holds anything.
async fn written_disk(
    session: &Session,
    replica: &Replica,
    patience: Duration,
    asking: Asking,
) -> Result<Change, RunError> {
    let mut change = Change::default();
    for held in &replica.newest().disks {
        let Some(live) = replica.live_disk(held) else { continue };
        let (uuid, base) = (&live.record.uuid, &held.attached.vdi);
        let beyond_vhd = live.record.virtual_size > MAX_VHD_DISK;
        if beyond_vhd && asking == Asking::Quickly {
            change.untold.insert(live.vdi.clone());
            continue;
        }
        let label = format!("vmferry: is disk {} untouched?", live.record.name_label);
        let told = match beyond_vhd {
            true => {
                let size = live.record.virtual_size;
                let question = Question { session, vdi: &live.vdi, base: Some(base), size, patience, label: &label };
                let told = question.ask().await.map(|extents| extents.total_bytes());
                told.inspect_err(|why| {
                    change.unknown.push(format!("whether disk {uuid} of the replica was written is not known: {why}"));
                })
                .ok()
            }
            false => changed_bytes(session, live, base, &label, patience).await?,
        };
        wait_until_detached(session, &live.vdi).await?;
        match told {
            Some(0) => {}
            Some(written) => {
                change.written = Some(format!("{} of its disk {uuid} were written since", bytes(written)));
                break;
            }
            None => {
                change.untold.insert(live.vdi.clone());
            }
        }
    }
    Ok(change)
}

/// Bytes of the blocks that a differential VHD export would hold; `None` where the storage knows no differences.
async fn changed_bytes(
    session: &Session,
    live: &AttachedDisk,
    base: &Ref<Vdi>,
    label: &str,
    patience: Duration,
) -> Result<Option<u64>, RunError> {
    match export::begin(session, &live.vdi, Some(base), label, patience).await {
        Ok((export, head)) => {
            export.abort().await;
            Ok(Some(head.changed_bytes()))
        }
        Err(NotBegun::NoDifferences(_)) => Ok(None),
        Err(NotBegun::Failed(message)) => Err(RunError::Transfer { disk: live.record.uuid.clone(), message }),
    }
}

/// A size for people.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}
