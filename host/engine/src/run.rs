//! One run of one VM, told once, in order.

use crate::commit::{self, Committing};
use crate::digests::{self, Digests};
use crate::error::{RunError, chain};
use crate::holder::Holder;
use crate::inventory::{AttachedDisk, Inventory};
use crate::job::{Job, Policies, SnapshotMode, StoreTarget, Target};
use crate::keys;
use crate::landing;
use crate::lane::{Lane, LaneId, unopened};
use crate::lease::{Lease, LeaseTerms};
use crate::migration;
use crate::objects::set_keys;
use crate::offline;
use crate::placement::Ledger;
use crate::pools::Pools;
use crate::preflight::{self, Survey};
use crate::progress::Progress;
use crate::reconcile::{self, Holding};
use crate::replica;
use crate::retain;
use crate::snapshot::{self, Taken};
use crate::store_lane::{StoreLane, is_full};
use crate::view::{Identity, SourceSnapshot, SourceVm};
use crate::vtpm;
use crate::xen_orchestra;
use futures_util::FutureExt;
use futures_util::future::join_all;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use vmferry_model::plan::{JobPlan, TargetPlan, Transfer, VmPlan};
use vmferry_model::plugin::Approval;
use vmferry_model::report::{Outcome, TargetReport, VmReport};
use vmferry_model::store::RunStore;
use vmferry_xapi::records::{Network, PowerState, Vdi, Vif, Vm};
use vmferry_xapi::{ApiError, Error, Ref, Session};

/// How often somebody who waits for a lease asks again.
const LEASE_POLL: Duration = Duration::from_secs(5);

/// What all VMs of a run share.
pub(crate) struct Run<'a> {
    pub(crate) job: &'a Job,
    pub(crate) policies: &'a Policies,
    /// Wait for a held lease instead of skipping the VM.
    pub(crate) wait: bool,
    pub(crate) progress: &'a Arc<dyn Progress>,
    pub(crate) pools: &'a Pools,
    pub(crate) runs: &'a dyn RunStore,
    pub(crate) digests: Digests,
    pub(crate) holder: &'a Holder,
    /// What it is about to put where.
    pub(crate) ledger: Ledger,
    /// When it began, by which it is decided what to try again.
    pub(crate) now: Timestamp,
}

/// Replicates one VM to all targets of the job.
///
/// Whatever happens, the recovery points that existed before are as they were, and the base of each target is still
/// there for the next run.
pub(crate) async fn replicate(run: &Run<'_>, session: &Session, vm: &Ref<Vm>, record: &Vm) -> VmReport {
    let mut work = Work {
        run,
        session,
        identity: Identity { ids: run.job.ids, vm: record.uuid.clone() },
        name: record.name_label.clone(),
        lanes: Vec::new(),
        stores: Vec::new(),
        unopened: Vec::new(),
        warnings: Vec::new(),
    };
    work.step("taking the lease");
    let error = match run.lease(session, vm, &record.uuid).await {
        Ok(lease) => {
            let error = work.under_lease(&lease, vm).await.err();
            work.put_right(&lease).await;
            let error = error.or(work.start_again(&lease, vm).await);
            work.allow_migration(&lease, vm).await;
            if let Err(error) = lease.release().await {
                work.warnings
                    .push(format!("the VM's lease could not be given back and will expire: {}", chain(&error)));
            }
            error
        }
        Err(error) => Some(error),
    };
    for lane in &mut work.lanes {
        lane.release().await;
        if !lane.is_done() {
            run.ledger.take_back(&lane.sr_record, lane.promised);
        }
    }
    work.into_report(error)
}

/// A run of one VM under way.
pub(crate) struct Work<'a> {
    pub(crate) run: &'a Run<'a>,
    pub(crate) session: &'a Session,
    identity: Identity,
    pub(crate) name: String,
    pub(crate) lanes: Vec<Lane<'a>>,
    pub(crate) stores: Vec<StoreLane<'a>>,
    /// Targets that could not take part from the start.
    unopened: Vec<TargetReport>,
    warnings: Vec<String>,
}

impl Work<'_> {
    /// The run itself. The undo is one line: without a commit the new source snapshot is nobody's base, so it goes.
    async fn under_lease(&mut self, lease: &Lease, vm: &Ref<Vm>) -> Result<(), RunError> {
        let record = migration::block(self.session, vm, &self.run.job.name).await?;
        let mode = SnapshotMode::of(self.run.job, &record);
        let offline = mode == SnapshotMode::Offline;
        if !offline {
            self.start_again(lease, vm).await;
        }
        self.step("looking at the targets");
        self.open_lanes().await;
        let (inventory, source) = self.observe_source(vm).await?;
        let (inventory, source) = self.reconcile_source(inventory, source, vm).await?;
        self.preflight(&inventory, &source).await?;
        self.approve(&source).await?;

        self.track_changes(&source).await;
        if offline {
            self.step("shutting the VM down");
            offline::stop(lease, self.session, vm).await?;
        }
        self.step("taking a snapshot");
        let taken = snapshot::take(self.session, &source, self.run.job, mode, self.newest(&source)).await;
        if offline {
            self.start_again(lease, vm).await;
        }
        let taken = taken?;
        if source.record.power_state == PowerState::Suspended && taken.memory().next().is_none() {
            self.warnings.push(
                "the VM is suspended: its recovery point holds its disks and not its memory, so what the guest had not written yet is not in it"
                    .to_owned(),
            );
        }
        drop(inventory);
        let outcome = self.after_snapshot(lease, vm, &taken).await;
        let begun = self.lanes.iter().map(|lane| lane.commit_begun);
        if !begun.chain(self.stores.iter().map(|lane| lane.commit_begun)).any(|begun| begun) {
            self.discard(&taken).await;
        }
        outcome
    }

    async fn after_snapshot(&mut self, lease: &Lease, vm: &Ref<Vm>, taken: &Taken) -> Result<(), RunError> {
        let (inventory, mut source) = self.observe_source(vm).await?;
        // What the snapshot has travels, whatever was attached or detached since.
        source.disks = taken.disks.iter().map(|disk| disk.of.clone()).collect();
        self.plan_again(&inventory, &source).await?;
        let chain_lengths = self.chain_lengths(&inventory);
        self.prepare_landings(taken).await?;
        self.begin_stores(&source, taken).await?;
        // A transfer may take hours, and the records of a large pool hundreds of megabytes.
        drop(inventory);
        self.lanes.iter_mut().for_each(|lane| lane.inventory = Inventory::default());
        self.step("transferring");
        self.transfer(lease, &source, taken).await?;
        self.step("committing");
        lease.check().await?;
        self.commit(&source, taken).await?;
        self.advance(&chain_lengths, vm, taken).await?;
        self.retain(taken).await;
        Ok(())
    }

    /// Steps 1 to 3 on the targets: lease, observe, reconcile. A target that cannot be opened is out of the run.
    async fn open_lanes(&mut self) {
        let open = self.run.job.targets.iter().map(|target| {
            let (run, identity) = (self.run, &self.identity);
            async move { (target, Lane::open(run, identity, target).await) }.boxed()
        });
        for (target, lane) in join_all(open).await {
            match lane {
                Ok(lane) => self.lanes.push(lane),
                Err(error) => self.unopened.push(unopened(&target.name, &error)),
            }
        }
        let open = self.run.job.stores.iter().map(|target| {
            let identity = &self.identity;
            async move { (target, StoreLane::look(identity, target).await) }.boxed()
        });
        for (target, lane) in join_all(open).await {
            match lane {
                Ok(lane) => self.stores.push(lane),
                Err(error) => self.unopened.push(unopened(&target.name, &error)),
            }
        }
    }

    /// What the targets hold that were reached.
    fn holdings(&self) -> Vec<Vec<Holding>> {
        let pools = self.lanes.iter().map(|lane| lane.view.holdings());
        pools.chain(self.stores.iter().map(StoreLane::holdings)).collect()
    }

    async fn observe_source(&self, vm: &Ref<Vm>) -> Result<(Inventory, SourceVm), RunError> {
        let inventory = Inventory::load(self.session).await?;
        let record = inventory.vms.get(vm).ok_or_else(|| RunError::NotFound {
            class: "VM",
            name: self.identity.vm.clone(),
            pool: self.run.job.select.pool.clone(),
            remedy: "it was destroyed while the run started; remove it from the job",
        })?;
        let source = SourceVm::new(&inventory, vm, record, &self.run.job.ids);
        Ok((inventory, source))
    }

    /// Step 3 on the source.
    async fn reconcile_source(
        &mut self,
        inventory: Inventory,
        source: SourceVm,
        vm: &Ref<Vm>,
    ) -> Result<(Inventory, SourceVm), RunError> {
        self.no_lane_left()?;
        let targets = self.holdings();
        let everybody = self.sees_everything();
        if everybody {
            // Nobody holds the content of these, so nobody will ask for its digests.
            let unconfirmed = reconcile::unconfirmed(&source, &targets).into_iter();
            let records = unconfirmed.filter_map(|snapshot| inventory.vms.get(&snapshot.reference));
            let disks = records.flat_map(|record| inventory.content_of(record));
            let tables = disks.map(|disk| digests::content_table(&disk.uuid)).collect();
            self.run.digests.drop_unused(&tables, &BTreeSet::new());
        }
        let done = reconcile::source(self.session, &inventory, &source, &targets, everybody).await?;
        let changed = !done.is_empty();
        self.warnings.extend(done);
        if changed { self.observe_source(vm).await } else { Ok((inventory, source)) }
    }

    /// Steps 4 and 5: what stands in the way, and how each disk travels.
    async fn preflight(&mut self, inventory: &Inventory, source: &SourceVm) -> Result<(), RunError> {
        preflight::source(inventory, source, &self.run.job.tuning.chains).passed()?;
        let networks = Networks::load(self.session, &source.record).await?;
        for lane in &mut self.lanes {
            let survey = survey_lane(self.run, lane, &self.identity, inventory, source, &networks).await;
            match survey.and_then(Survey::passed) {
                Ok(warnings) => lane.warnings.extend(warnings),
                Err(error) => lane.fail(error),
            }
        }
        for lane in &mut self.stores {
            lane.plan_transfers(self.run, inventory, source).await;
        }
        self.no_lane_left()
    }

    /// Step 5: the scheduler sees the plan before anything is made.
    async fn approve(&self, source: &SourceVm) -> Result<(), RunError> {
        let Some(scheduler) = &self.run.policies.scheduler else { return Ok(()) };
        let pools = self.lanes.iter().filter(|lane| lane.is_live()).map(Lane::plan);
        let stores = self.stores.iter().filter(|lane| lane.is_live()).map(StoreLane::plan);
        let targets = pools.chain(stores).collect();
        let vm = VmPlan { vm: source.record.uuid.clone(), name: self.name.clone(), error: None, targets };
        let plan = JobPlan { job: self.run.job.name.clone(), vms: vec![vm] };
        match scheduler.approve(&plan, Timestamp::now()).await? {
            Approval::Approved => Ok(()),
            Approval::Deferred { until, reason } => Err(RunError::Deferred { until, reason }),
            Approval::Refused { reason } => Err(RunError::Refused { reason }),
        }
    }

    /// Switches changed-block tracking on where the job asks for it. The next snapshot but one is the first that can be
    /// compared with one before.
    async fn track_changes(&mut self, source: &SourceVm) {
        if !self.run.job.reading.enable_cbt {
            return;
        }
        for disk in source.disks.iter().filter(|disk| !disk.record.cbt_enabled) {
            if let Err(error) = self.session.enable_cbt(&disk.vdi).await {
                self.warnings.push(format!(
                    "changed-block tracking could not be switched on for disk {} ({}): {}",
                    disk.record.name_label,
                    disk.record.uuid,
                    chain(&error)
                ));
            }
        }
    }

    /// The newest date that either side knows.
    fn newest(&self, source: &SourceVm) -> Option<Timestamp> {
        let points = self.lanes.iter().filter_map(|lane| lane.view.points().next()).map(|point| point.taken_at);
        let own = source.snapshots.iter().map(|snapshot| snapshot.taken_at);
        let stored = self.stores.iter().filter_map(StoreLane::newest);
        points.chain(stored).chain(own).chain(source.newest_date).max()
    }

    /// Step 6, second half: the same plan from the snapshot. A delta that became a full copy needs a new approval.
    async fn plan_again(&mut self, inventory: &Inventory, source: &SourceVm) -> Result<(), RunError> {
        let grew_in = |before: Vec<bool>, after: &[Transfer]| {
            before.into_iter().zip(after).any(|(was_full, after)| !was_full && is_full(after))
        };
        let mut grew = false;
        for lane in self.lanes.iter_mut().filter(|lane| lane.is_live()) {
            let before = lane.transfers.iter().map(is_full).collect();
            lane.plan_transfers(self.run, inventory, source).await;
            grew |= grew_in(before, &lane.transfers);
        }
        for lane in self.stores.iter_mut().filter(|lane| lane.is_live()) {
            let before = lane.transfers.iter().map(is_full).collect();
            lane.plan_transfers(self.run, inventory, source).await;
            grew |= grew_in(before, &lane.transfers);
        }
        if grew { self.approve(source).await } else { Ok(()) }
    }

    async fn prepare_landings(&mut self, taken: &Taken) -> Result<(), RunError> {
        let disks: Vec<&AttachedDisk> = taken.disks.iter().map(|disk| &disk.of).collect();
        for lane in self.lanes.iter_mut().filter(|lane| lane.is_live()) {
            if let Err(error) = landing::prepare(lane, self.run.job, &self.identity, &disks).await {
                lane.fail(error);
            }
        }
        self.no_lane_left()
    }

    /// Tells what the points of the stores will be.
    async fn begin_stores(&mut self, source: &SourceVm, taken: &Taken) -> Result<(), RunError> {
        if self.stores.is_empty() {
            return Ok(());
        }
        let networks = Networks::load(self.session, &source.record).await?;
        for lane in self.stores.iter_mut().filter(|lane| lane.is_live()) {
            if let Err(error) = lane.begin(self.run, &self.identity, &source.record, taken, &networks) {
                lane.fail(error);
            }
            if vtpm::has_one(&taken.record) {
                let warning = "the VM's virtual TPM is a secret and not kept here: a restored guest may ask for the recovery key of its disks";
                lane.warnings.push(warning.to_owned());
            }
        }
        self.no_lane_left()
    }

    /// Step 9, on each target by itself.
    async fn commit(&mut self, source: &SourceVm, taken: &Taken) -> Result<(), RunError> {
        let vtpms = &vtpm::read(self.session, &taken.record, &source.record).await;
        // A commit may end without anybody hearing of it: until its target was looked at, the snapshot is perhaps a base.
        let pools = self.lanes.iter().filter(|lane| lane.is_live()).map(|lane| lane.sr_record.uuid.as_str());
        let stores = self.stores.iter().filter(|lane| lane.is_live()).map(|lane| lane.target.place.as_str());
        let offered: Vec<&str> = pools.chain(stores).collect();
        set_keys(self.session, &taken.reference, &[(keys::OFFERED_TO, offered.join(" "))], &[]).await?;
        let this = Committing { job: self.run.job, identity: &self.identity, source, taken };
        let commits = self.lanes.iter_mut().filter(|lane| lane.is_live()).map(|lane| {
            let this = &this;
            async move {
                if let Err(error) = commit::commit(lane, this, vtpms).await {
                    lane.fail(error);
                }
            }
            .boxed()
        });
        let stores = self.stores.iter_mut().filter(|lane| lane.is_live()).map(|lane| {
            async move {
                if let Err(error) = lane.commit(taken).await {
                    lane.fail(error);
                }
            }
            .boxed()
        });
        join_all(commits.chain(stores)).await;
        self.no_lane_left()
    }

    /// How many deltas came before each disk that one is made from.
    fn chain_lengths(&self, inventory: &Inventory) -> BTreeMap<String, u64> {
        let pools = self.lanes.iter().flat_map(|lane| &lane.transfers);
        let bases = pools.chain(self.stores.iter().flat_map(|lane| &lane.transfers)).filter_map(Transfer::base);
        bases.filter_map(|base| Some((base.to_owned(), snapshot::delta_chain_length(inventory, base)?))).collect()
    }

    /// The source's snapshots that this job made, as they are now.
    async fn source_snapshots(&self, vm: &Ref<Vm>) -> Result<Vec<SourceSnapshot>, RunError> {
        let record: Vm = self.session.get_record(vm).await?;
        let mut inventory = Inventory::default();
        for snapshot in &record.snapshots {
            match self.session.get_record(snapshot).await {
                // Somebody else removed it meanwhile.
                Err(Error::Api(ApiError::HandleInvalid { .. })) => {}
                found => drop(inventory.vms.insert(snapshot.clone(), found?)),
            }
        }
        Ok(SourceVm::new(&inventory, vm, &record, &self.run.job.ids).snapshots)
    }

    /// Step 10: the snapshot becomes the base of the targets that have it, and snapshots that are nobody's base go.
    async fn advance(
        &mut self,
        chain_lengths: &BTreeMap<String, u64>,
        vm: &Ref<Vm>,
        taken: &Taken,
    ) -> Result<(), RunError> {
        let pools = self.lanes.iter().filter(|lane| lane.committed.is_some());
        let pools = pools.map(|lane| (&lane.sr_record.uuid, &lane.transfers));
        let stores = self.stores.iter().filter(|lane| lane.committed.is_some());
        let stores = stores.map(|lane| (&lane.target.place, &lane.transfers));
        let committed: Vec<(&String, &Vec<Transfer>)> = pools.chain(stores).collect();
        let places: Vec<String> = committed.iter().map(|(place, _)| (*place).clone()).collect();
        // A memory image has no deltas.
        let disks = taken.disks.len() - taken.memory().count();
        let bases = committed.iter().flat_map(|(_, transfers)| transfers.iter().take(disks).map(Transfer::base));
        let chain_length = bases.map(|base| base.and_then(|base| chain_lengths.get(base)).map_or(0, |n| n + 1));
        let chain_length = chain_length.min().unwrap_or(0);
        let disks: Vec<Ref<Vdi>> = taken.disks.iter().map(|disk| disk.vdi.clone()).collect();
        snapshot::mark_exported(self.session, &taken.reference, &disks, &places, Some(chain_length)).await?;

        let snapshots = self.source_snapshots(vm).await?;
        // What a target holds was marked when it was looked at; one whose commit ended without a word was not since.
        let is_resolved = |target: &&Target| {
            let lane = self.lanes.iter().find(|lane| lane.target.name == target.name);
            lane.is_some_and(|lane| lane.sees_everything() && (lane.committed.is_some() || !lane.commit_begun))
        };
        let unresolved = self.run.job.targets.iter().filter(|target| !is_resolved(target));
        let unresolved = unresolved.map(|target| target.srs.as_slice());
        let is_resolved = |target: &&StoreTarget| {
            let lane = self.stores.iter().find(|lane| lane.target.name == target.name);
            lane.is_some_and(|lane| lane.committed.is_some() || !lane.commit_begun)
        };
        let stores = self.run.job.stores.iter().filter(|target| !is_resolved(target));
        let unresolved: Vec<&[String]> =
            unresolved.chain(stores.map(|target| std::slice::from_ref(&target.place))).collect();
        for old in snapshot::superfluous(&snapshots, &self.run.job.places(), &unresolved) {
            if let Err(error) = snapshot::destroy(self.session, &old.reference).await {
                self.warnings.push(format!("source snapshot {} could not be removed: {}", old.uuid, chain(&error)));
            }
        }
        Ok(())
    }

    /// Step 11, on each target by itself. What cannot be pruned now is pruned later.
    async fn retain(&mut self, taken: &Taken) {
        let Some(retention) = &self.run.policies.retention else { return };
        let held = self.digest_tables();
        // Points carry the source's time, so their age is told by it and not by the clock of this machine.
        let now = taken.taken_at;
        for lane in self.lanes.iter_mut().filter(|lane| lane.committed.is_some()) {
            if let Err(error) = retain::retain(lane, &self.identity, retention.as_ref(), now).await {
                lane.warnings.push(format!("pruning stopped: {}", chain(&error)));
            }
        }
        for lane in self.stores.iter_mut().filter(|lane| lane.committed.is_some()) {
            lane.retain(&self.identity, retention.as_ref(), now).await;
        }
        if self.sees_everything() {
            self.run.digests.drop_unused(&held, &self.digest_tables());
        }
    }

    /// A target that did not get to its end is put right at once, as the next run would do it. What cannot be done now
    /// stays for that one.
    async fn put_right(&mut self, lease: &Lease) {
        for lane in self.lanes.iter_mut().filter(|lane| lane.landing_begun && !lane.is_done()) {
            let done = match lease.check().await {
                Ok(()) => lane.put_right(self.run.job, &self.identity).await,
                Err(lost) => Err(lost),
            };
            if let Err(error) = done {
                lane.warnings.push(format!("what this run left here is put right by the next one: {}", chain(&error)));
            }
        }
        for lane in &mut self.stores {
            lane.put_right().await;
        }
    }

    /// Starts the VM again if we shut it down, we or a dead run. What keeps it off is told at once, and tried again at the end.
    async fn start_again(&mut self, lease: &Lease, vm: &Ref<Vm>) -> Option<RunError> {
        let error = offline::start_again(lease, self.session, vm).await.err()?;
        self.warnings.push(chain(&error));
        Some(error)
    }

    /// Lifts the block of migrations, a dead run's as well.
    async fn allow_migration(&mut self, lease: &Lease, vm: &Ref<Vm>) {
        if let Err(error) = migration::allow(lease, self.session, vm).await {
            self.warnings.push(format!("migration of the VM stays blocked until the next run: {}", chain(&error)));
        }
    }

    /// Whether all that the job's targets hold was looked at.
    fn sees_everything(&self) -> bool {
        self.unopened.is_empty() && self.lanes.iter().all(Lane::sees_everything)
    }

    /// The digest tables that belong to what the targets hold.
    fn digest_tables(&self) -> BTreeSet<String> {
        let pools = self.lanes.iter().flat_map(|lane| digests::tables_of(&lane.view));
        pools.chain(self.stores.iter().flat_map(|lane| digests::tables_of_store(&lane.points))).collect()
    }

    async fn discard(&mut self, taken: &Taken) {
        // Nobody holds this content, so nobody will ask for its digests.
        let tables = taken.disks.iter().map(|disk| digests::content_table(&disk.uuid)).collect();
        self.run.digests.drop_unused(&tables, &BTreeSet::new());
        if let Err(error) = snapshot::destroy(self.session, &taken.reference).await {
            self.warnings.push(format!(
                "source snapshot {} is left for the next run to remove: {}",
                taken.record.uuid,
                chain(&error)
            ));
        }
    }

    pub(crate) fn no_lane_left(&self) -> Result<(), RunError> {
        let any = self.lanes.iter().any(Lane::is_live) || self.stores.iter().any(StoreLane::is_live);
        if any { Ok(()) } else { Err(RunError::NoTargetLeft) }
    }

    /// Drops a target from the run.
    pub(crate) fn fail(&mut self, lane: LaneId, error: RunError) {
        match lane {
            LaneId::Pool(number) => self.lanes[number].fail(error),
            LaneId::Store(number) => self.stores[number].fail(error),
        }
    }

    /// How each disk travels to a target.
    pub(crate) fn transfers(&mut self, lane: LaneId) -> &mut Vec<Transfer> {
        match lane {
            LaneId::Pool(number) => &mut self.lanes[number].transfers,
            LaneId::Store(number) => &mut self.stores[number].transfers,
        }
    }

    fn step(&self, text: &str) {
        tracing::debug!(vm = self.identity.vm, step = text);
        self.run.progress.step(&self.name, text);
    }

    fn into_report(self, error: Option<RunError>) -> VmReport {
        let mut targets: Vec<TargetReport> = self.unopened;
        let stopped = error.as_ref().map_or(Outcome::Failed, RunError::outcome);
        targets.extend(self.lanes.into_iter().map(|lane| lane.into_report(stopped)));
        targets.extend(self.stores.into_iter().map(|lane| lane.into_report(stopped)));
        targets.sort_by_key(|target| self.run.job.target_names().position(|configured| configured == target.target));
        let outcome = match &error {
            Some(RunError::NoTargetLeft) | None => {
                let best_effort = |report: &TargetReport| {
                    let pools = self.run.job.targets.iter().map(|target| (&target.name, target.required));
                    let stores = self.run.job.stores.iter().map(|target| (&target.name, target.required));
                    pools.chain(stores).any(|(name, required)| *name == report.target && !required)
                };
                // Best-effort targets count where there are no others.
                let all = targets.iter().all(best_effort);
                Outcome::of(targets.iter().filter(|report| all || !best_effort(report)).map(|target| target.outcome))
            }
            Some(error) => error.outcome(),
        };
        let migrating = matches!(error, Some(RunError::Migrating { .. }));
        VmReport {
            vm: self.identity.vm,
            name: self.name,
            outcome,
            locked: outcome == Outcome::Skipped && !migrating,
            error: error.map(|error| chain(&error)),
            warnings: self.warnings,
            targets,
        }
    }
}

/// The source's interfaces and the networks of its pool.
pub(crate) struct Networks {
    pub(crate) interfaces: Vec<Vif>,
    pub(crate) networks: Vec<(Ref<Network>, Network)>,
}

impl Networks {
    pub(crate) async fn load(session: &Session, vm: &Vm) -> Result<Self, RunError> {
        let networks = session.get_all_records().await?;
        let mut interfaces = Vec::with_capacity(vm.vifs.len());
        for vif in &vm.vifs {
            interfaces.push(session.get_record(vif).await?);
        }
        Ok(Self { interfaces, networks })
    }
}

async fn survey_lane(
    run: &Run<'_>,
    lane: &mut Lane<'_>,
    identity: &Identity,
    inventory: &Inventory,
    source: &SourceVm,
    networks: &Networks,
) -> Result<Survey, RunError> {
    lane.plan_transfers(run, inventory, source).await;
    lane.settle_on_sr(run, source)?;
    let there = lane.session.get_all_records().await?;
    lane.interfaces = replica::map_networks(&networks.interfaces, &networks.networks, &there, lane.target)?;
    lane.warnings.extend(xen_orchestra::notes(&lane.view, &lane.transfers, source));
    let vifs: Vec<Vif> = lane.session.get_all_records().await?.into_iter().map(|(_, vif)| vif).collect();
    Ok(preflight::target(lane, identity, &source.disks, &vifs, &run.job.tuning.chains))
}

impl Run<'_> {
    /// Takes the lease of a VM; waits for it where the run was asked to.
    pub(crate) async fn lease(&self, session: &Session, vm: &Ref<Vm>, uuid: &str) -> Result<Lease, RunError> {
        let terms = LeaseTerms::of(&self.job.tuning);
        loop {
            match Lease::acquire(session, vm, uuid, self.holder, terms, false).await {
                Err(RunError::Locked { .. }) if self.wait => tokio::time::sleep(LEASE_POLL).await,
                other => return other,
            }
        }
    }
}

/// What a run would do for a VM now. Changes nothing.
pub(crate) async fn foresee(
    run: &Run<'_>,
    session: &Session,
    inventory: &Inventory,
    vm: &Ref<Vm>,
    record: &Vm,
) -> Result<VmPlan, RunError> {
    let identity = Identity { ids: run.job.ids, vm: record.uuid.clone() };
    let source = SourceVm::new(inventory, vm, record, &run.job.ids);
    let networks = Networks::load(session, record).await?;
    let mut stops = preflight::source(inventory, &source, &run.job.tuning.chains).stops();
    if let Some(operation) = migration::under_way(record) {
        let (vm, operation) = (record.uuid.clone(), operation.to_owned());
        stops.push(chain(&RunError::Migrating { vm, operation }));
    }
    let mut targets = Vec::with_capacity(run.job.targets.len());
    for target in &run.job.targets {
        targets.push(match Lane::look(run, &identity, target).await {
            Ok(mut lane) => {
                let survey = survey_lane(run, &mut lane, &identity, inventory, &source, &networks).await;
                let mut survey =
                    survey.unwrap_or_else(|error| Survey { obstacles: vec![chain(&error)], ..Survey::default() });
                let warnings = std::mem::take(&mut survey.warnings);
                TargetPlan { obstacles: survey.stops(), warnings, ..lane.plan() }
            }
            Err(error) => unplanned(&target.name, &error),
        });
    }
    for target in &run.job.stores {
        targets.push(match StoreLane::look(&identity, target).await {
            Ok(mut lane) => {
                lane.plan_transfers(run, inventory, &source).await;
                lane.plan()
            }
            Err(error) => unplanned(&target.name, &error),
        });
    }
    let error = (!stops.is_empty()).then(|| stops.join("; "));
    Ok(VmPlan { vm: record.uuid.clone(), name: record.name_label.clone(), error, targets })
}

/// The plan for a target that could not be reached.
fn unplanned(target: &str, error: &RunError) -> TargetPlan {
    TargetPlan {
        target: target.to_owned(),
        sr: None,
        replica: None,
        obstacles: vec![chain(error)],
        warnings: Vec::new(),
        disks: Vec::new(),
    }
}

/// The plan of a VM that nothing can be planned for.
pub(crate) fn unforeseeable(vm: &str, error: &RunError) -> VmPlan {
    VmPlan { vm: vm.to_owned(), name: String::new(), error: Some(chain(error)), targets: Vec::new() }
}

/// The report of a VM that the job names and that cannot be replicated.
pub(crate) fn unfound(vm: &str, error: &RunError) -> VmReport {
    VmReport {
        vm: vm.to_owned(),
        name: String::new(),
        outcome: error.outcome(),
        error: Some(chain(error)),
        locked: false,
        warnings: Vec::new(),
        targets: Vec::new(),
    }
}
