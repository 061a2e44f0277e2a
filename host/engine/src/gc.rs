//! `vmferry gc`: finds and explains what runs that did not finish left on either side, and puts it right when asked to.
//!
//! What is garbage is decided in `garbage`, and it is put right by the same acts, under the same leases, as a run does it
//! before anything else: nothing here destroys anything by a rule of its own.

use crate::engine::{Engine, RunOptions};
use crate::error::{EngineError, RunError, chain};
use crate::finding::{Fate, Finding, FindingKind, GcAct};
use crate::garbage::{PoolState, Scene, is_written_in_place};
use crate::inventory::Inventory;
use crate::job::{Job, Policies};
use crate::keys;
use crate::lane::Lane;
use crate::lease::{Claim, Lease};
use crate::migration;
use crate::offline;
use crate::progress::Progress;
use crate::reconcile::{self, Holding};
use crate::restoring;
use crate::run::Run;
use crate::select::select;
use crate::store_lane;
use crate::view::{Identity, Pruning, SourceVm};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use vmferry_model::report::Outcome;
use vmferry_model::target::StoredPoint;
use vmferry_xapi::Session;
use vmferry_xapi::records::Vm;

/// What to look at, and whether to do something about it.
#[derive(Clone, Debug, Default)]
pub struct GcOptions {
    /// Only what belongs to this source VM, by uuid.
    pub only: Option<String>,
    /// Put right what was found, instead of only telling it.
    pub apply: bool,
}

/// What was found, and what was done about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// The job's name.
    pub job: String,
    /// Whether it was to be put right.
    pub apply: bool,
    /// What is removed first, what is left alone last.
    pub findings: Vec<Finding>,
    /// What kept it from knowing or doing everything.
    pub problems: Vec<GcProblem>,
}

/// What could not be known or done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GcProblem {
    /// uuid of the source VM it is about.
    pub vm: Option<String>,
    /// Name of the target it is about.
    pub target: Option<String>,
    /// What happened and what to do, in one line.
    pub error: String,
    /// Whether somebody else works there.
    pub locked: bool,
}

impl GcProblem {
    fn new(vm: Option<&str>, target: Option<&str>, error: &RunError) -> Self {
        Self {
            vm: vm.map(str::to_owned),
            target: target.map(str::to_owned),
            error: chain(error),
            locked: error.outcome() == Outcome::Skipped,
        }
    }
}

impl GcReport {
    /// How many findings met this fate.
    pub fn count(&self, fate: Fate) -> usize {
        self.findings.iter().filter(|finding| finding.fate == fate).count()
    }
}

/// Both sides at one moment.
struct Seen {
    source: PoolState,
    /// By pool; those that are not the source.
    others: BTreeMap<String, PoolState>,
    /// By name of the store: the job's points there.
    stores: BTreeMap<String, Vec<StoredPoint>>,
    selected: BTreeSet<String>,
    problems: Vec<GcProblem>,
}

impl Engine {
    /// Finds what runs of this job left behind, and everything else with its keys, and explains it. With `apply` it puts
    /// right what a run would; it refuses where somebody holds the lease. Needs the source, and as many targets as can be
    /// reached: what only the others could tell is left alone.
    pub async fn gc(&self, job: &Job, options: &GcOptions) -> Result<GcReport, EngineError> {
        let (policies, of_run) = (Policies::default(), RunOptions::default());
        let silent: Arc<dyn Progress> = Arc::new(crate::Silent);
        let run = self.context(job, &policies, &of_run, &silent, Timestamp::now());
        let seen = self.see(job).await?;
        let mut findings = seen.scene(&run, options).findings();
        if let (Some(vm), true) = (&options.only, findings.is_empty())
            && !seen.scene(&run, &GcOptions::default()).source_vms().contains(vm)
        {
            return Err(EngineError::Usage(format!(
                "job {} has nothing of VM {vm}: it does not select it, and no object carries both; check the uuid",
                job.name
            )));
        }
        let mut problems = seen.problems.clone();
        if options.apply {
            problems.extend(put_right(&run, &findings).await);
            let after = self.see(job).await?;
            drop_tables(&run, &after, &findings);
            let left = after.scene(&run, options).findings();
            for finding in findings.iter_mut().filter(|finding| finding.act != GcAct::Keep) {
                let is_left = left.iter().any(|other| other.is_same(finding));
                finding.fate = if is_left { Fate::Left } else { Fate::Done };
            }
        }
        // A store does not tell whose its garbage is, so it is looked for where all VMs are.
        if options.only.is_none() {
            self.collect(job, options.apply, &mut findings, &mut problems).await;
        }
        Ok(GcReport { job: job.name.clone(), apply: options.apply, findings, problems })
    }

    /// What the stores find that belongs to no point, removed already where that was asked for.
    async fn collect(&self, job: &Job, apply: bool, findings: &mut Vec<Finding>, problems: &mut Vec<GcProblem>) {
        for target in &job.stores {
            let collected = async {
                let drafts = self.drafts(job).await?;
                target.store.collect(&drafts, apply).await.map_err(RunError::Store)
            };
            match collected.await {
                Ok(garbage) => {
                    findings.extend(garbage.into_iter().map(|found| Finding::stored(&target.name, found, apply)));
                }
                Err(error) => problems.push(GcProblem::new(None, Some(&target.name), &error)),
            }
        }
    }

    /// What may be a draft of a run that is under way now: it is called as the source's snapshot, which such a run still has.
    async fn drafts(&self, job: &Job) -> Result<Vec<String>, RunError> {
        let vms = self.pools.session(&job.select.pool).await?.get_all_records::<Vm>().await?;
        Ok(vms.into_iter().filter(|(_, vm)| vm.is_a_snapshot).map(|(_, vm)| vm.uuid).collect())
    }

    async fn see(&self, job: &Job) -> Result<Seen, RunError> {
        let source = self.pool_state(&job.select.pool).await?;
        let mut seen = Seen {
            source,
            others: BTreeMap::new(),
            stores: BTreeMap::new(),
            selected: BTreeSet::new(),
            problems: Vec::new(),
        };
        seen.selected = select(&seen.source.inventory, job, None).into_iter().map(|(uuid, _)| uuid).collect();
        for target in job.targets.iter().filter(|target| target.pool != job.select.pool) {
            if seen.others.contains_key(&target.pool) {
                continue;
            }
            match self.pool_state(&target.pool).await {
                Ok(pool) => drop(seen.others.insert(target.pool.clone(), pool)),
                Err(error) => seen.problems.push(GcProblem::new(None, Some(&target.name), &error)),
            }
        }
        for target in &job.stores {
            match store_lane::points(target, &job.ids, None).await {
                Ok(points) => drop(seen.stores.insert(target.name.clone(), points)),
                Err(error) => seen.problems.push(GcProblem::new(None, Some(&target.name), &error)),
            }
        }
        Ok(seen)
    }

    async fn pool_state(&self, name: &str) -> Result<PoolState, RunError> {
        let session = self.pools.session(name).await?;
        let inventory = Inventory::load(&session).await?;
        let now = session.server_time().await?;
        let leased = inventory.vms.iter().filter(|(_, vm)| vm.other_config.contains_key(keys::LEASE));
        let claims = leased.map(|(vm, record)| (vm.clone(), Lease::judge(record, &self.holder, now))).collect();
        let tasks = session.get_all_records().await?.into_iter().map(|(_, task)| task).collect();
        Ok(PoolState { name: name.to_owned(), inventory, claims, tasks })
    }
}

impl Seen {
    fn scene<'a>(&'a self, run: &Run<'a>, options: &'a GcOptions) -> Scene<'a> {
        let pool = |name: &String| if *name == self.source.name { Some(&self.source) } else { self.others.get(name) };
        Scene {
            job: run.job,
            only: options.only.as_deref(),
            selected: self.selected.clone(),
            source: &self.source,
            targets: run.job.targets.iter().map(|target| (target, pool(&target.pool))).collect(),
            stores: run
                .job
                .stores
                .iter()
                .map(|target| (target, self.stores.get(&target.name).map(Vec::as_slice)))
                .collect(),
            tables: run.digests.names(),
        }
    }
}

/// Puts right what was found, VM by VM.
async fn put_right(run: &Run<'_>, findings: &[Finding]) -> Vec<GcProblem> {
    let to_do = findings.iter().filter(|finding| finding.act != GcAct::Keep);
    let vms: BTreeSet<&String> = to_do.filter_map(|finding| finding.vm.as_ref()).collect();
    let mut problems = Vec::new();
    for vm in vms {
        if let Err(error) = put_vm_right(run, vm, &mut problems).await {
            problems.push(GcProblem::new(Some(vm), None, &error));
        }
    }
    let restores = findings.iter().filter(|finding| finding.kind == FindingKind::UnfinishedRestore);
    for pool in restores.map(|finding| &finding.pool).collect::<BTreeSet<_>>() {
        if let Err(error) = remove_restores(run, pool).await {
            problems.push(GcProblem::new(None, None, &error));
        }
    }
    // Nothing looks for a VM whose lease is held, so what is found there is that lease alone.
    for held in findings.iter().filter(|finding| finding.kind == FindingKind::HeldLease) {
        problems.push(GcProblem { vm: held.vm.clone(), target: None, error: held.why.clone(), locked: true });
    }
    problems
}

async fn remove_restores(run: &Run<'_>, pool: &str) -> Result<(), RunError> {
    restoring::remove_unfinished(run, &run.pools.session(pool).await?).await
}

/// What a run does before anything else: the lease of the source VM, the targets under theirs, then the source.
///
/// A VM that is gone has no lease. A run that still works on it cannot commit, because it checks that lease first; so what
/// it has not finished is garbage already.
async fn put_vm_right(run: &Run<'_>, vm: &str, problems: &mut Vec<GcProblem>) -> Result<(), RunError> {
    let session = run.pools.session(&run.job.select.pool).await?;
    let inventory = Inventory::load(&session).await?;
    let live = inventory.vm_by_uuid(vm).filter(|(_, record)| !record.is_a_snapshot);
    let lease = match live {
        Some((reference, _)) => Some(run.lease(&session, reference, vm).await?),
        None => None,
    };
    let done = put_sides_right(run, &session, vm, problems).await;
    let freed = match (lease, live) {
        (Some(lease), Some((reference, _))) => {
            let started = offline::start_again(&lease, &session, reference).await;
            let allowed = migration::allow(&lease, &session, reference).await;
            let released = lease.release().await;
            started.and(allowed).and(released)
        }
        _ => Ok(()),
    };
    done.and(freed)
}

async fn put_sides_right(
    run: &Run<'_>,
    session: &Session,
    vm: &str,
    problems: &mut Vec<GcProblem>,
) -> Result<(), RunError> {
    let identity = Identity { ids: run.job.ids, vm: vm.to_owned() };
    let mut lanes: Vec<Lane<'_>> = Vec::new();
    for target in &run.job.targets {
        let lane = async {
            let mut lane = Lane::look(run, &identity, target).await?;
            if !may_be_written(run, &lane).await? {
                lane.settle(run, &identity).await?;
                free_older_replicas(run, &lane).await?;
            }
            Ok(lane)
        };
        match lane.await {
            Ok(lane) => lanes.push(lane),
            Err(error) => problems.push(GcProblem::new(Some(vm), Some(&target.name), &error)),
        }
    }
    let mut targets: Vec<Vec<Holding>> = lanes.iter().map(|lane| lane.view.holdings()).collect();
    for target in &run.job.stores {
        match store_lane::points(target, &identity.ids, Some(vm)).await {
            Ok(points) => targets.push(store_lane::holdings(&points, &target.place)),
            Err(error) => problems.push(GcProblem::new(Some(vm), Some(&target.name), &error)),
        }
    }
    let everybody = targets.len() == run.job.places().len() && lanes.iter().all(Lane::sees_everything);
    let done = put_source_right(run, session, &identity, &targets, everybody).await;
    for lane in &mut lanes {
        lane.release().await;
        let warnings = lane.warnings.iter();
        warnings.for_each(|done| tracing::info!(target = lane.target.name, vm, done, "put right"));
    }
    done
}

/// Whether the holder of an expired lease may still write to the current replica's disks. Such a lease is left for the next
/// run to take over, which then lands on clones.
async fn may_be_written(run: &Run<'_>, lane: &Lane<'_>) -> Result<bool, RunError> {
    let Some(current) = lane.view.current().filter(|replica| is_written_in_place(replica)) else { return Ok(false) };
    let now = lane.session.server_time().await?;
    let claim = Lease::judge(&current.record, run.holder, now);
    Ok(matches!(claim, Claim::TakeOver { gone: false, .. }))
}

/// Replicas that another one has taken over from are worked on by nobody; a lease on one is a dead run's.
async fn free_older_replicas(run: &Run<'_>, lane: &Lane<'_>) -> Result<(), RunError> {
    let older = lane.view.replicas.iter().skip(1);
    for replica in older.filter(|replica| replica.record.other_config.contains_key(keys::LEASE)) {
        run.lease(&lane.session, &replica.reference, &replica.record.uuid).await?.release().await?;
    }
    Ok(())
}

async fn put_source_right(
    run: &Run<'_>,
    session: &Session,
    identity: &Identity,
    targets: &[Vec<Holding>],
    everybody: bool,
) -> Result<(), RunError> {
    let inventory = Inventory::load(session).await?;
    let Some((vm, record)) = inventory.vm_by_uuid(&identity.vm) else {
        let pruning = Pruning::new(&inventory, identity);
        return reconcile::finish_pruning(session, &inventory, &pruning).await.map(drop);
    };
    let source = SourceVm::new(&inventory, vm, record, &run.job.ids);
    reconcile::source(session, &inventory, &source, targets, everybody).await?;
    if !everybody {
        return Ok(());
    }
    let inventory = Inventory::load(session).await?;
    let Some((vm, record)) = inventory.vm_by_uuid(&identity.vm) else { return Ok(()) };
    let source = SourceVm::new(&inventory, vm, record, &run.job.ids);
    for snapshot in reconcile::superseded(&source, targets, &run.job.places()) {
        reconcile::destroy_leftover_snapshot(session, &inventory, &snapshot.reference).await?;
    }
    Ok(())
}

/// Removes the tables that were found unused, as far as they still are.
fn drop_tables(run: &Run<'_>, after: &Seen, findings: &[Finding]) {
    let unused = findings.iter().filter(|finding| finding.kind == FindingKind::UnusedTable);
    let tables: BTreeSet<String> = unused.map(|finding| finding.uuid.clone()).collect();
    let all = GcOptions::default();
    let scene = after.scene(run, &all);
    if scene.everybody_answered() {
        run.digests.drop_unused(&tables, &scene.needed_tables());
    }
}
