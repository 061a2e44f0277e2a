//! What runs left of one source VM, on either side.

use super::{Found, PoolState, Scene, answered, is_written_in_place};
use crate::finding::{FindingKind, GcAct};
use crate::job::Target;
use crate::keys::{self, Keys};
use crate::lease::Claim;
use crate::migration;
use crate::offline;
use crate::reconcile::{Holding, superseded, unconfirmed, unmarked};
use crate::store_lane;
use crate::view::{Condition, Identity, Pruning, Replica, SourceVm, TargetView, Unborn, is_unused};
use crate::xen_orchestra;
use vmferry_xapi::Ref;
use vmferry_xapi::records::{Vdi, Vm};

/// A source VM that the job has something of.
pub(super) struct OneVm<'a> {
    scene: &'a Scene<'a>,
    identity: Identity,
    /// The VM, where it still exists.
    live: Option<(&'a Ref<Vm>, &'a Vm)>,
    views: Vec<(&'a Target, &'a PoolState, TargetView)>,
}

impl<'a> OneVm<'a> {
    pub(super) fn new(scene: &'a Scene<'a>, vm: &str) -> Self {
        let identity = Identity { ids: scene.job.ids, vm: vm.to_owned() };
        let live = scene.source.inventory.vm_by_uuid(vm).filter(|(_, record)| !record.is_a_snapshot);
        let views = scene.views(&identity);
        Self { scene, identity, live, views }
    }

    fn about(&self) -> Option<&str> {
        Some(&self.identity.vm)
    }

    pub(super) fn look(&self, found: &mut Found) {
        let source = self.scene.source;
        if let Some((reference, record)) = self.live {
            // A VM that was reverted to one of our snapshots carries its keys; nothing on it is wrong.
            found.know_vm(source, reference, record);
        }
        let held =
            |found: &mut Found| self.live.is_some_and(|(vm, record)| self.is_held(found, source, vm, record, false));
        if self.is_anothers() || held(found) {
            self.know_all(found);
            return;
        }
        for (target, pool, view) in &self.views {
            if let Some(current) = view.current()
                && self.is_held(found, pool, &current.reference, &current.record, is_written_in_place(current))
            {
                self.know_all(found);
                continue;
            }
            self.target(found, target, pool, view);
        }
        match self.live {
            Some((reference, record)) => self.source(found, reference, record),
            None => self.source_without_vm(found),
        }
    }

    /// Whether something of it says that it is another tenant's: two jobs were given the same ids.
    fn is_anothers(&self) -> bool {
        let tenant = &self.scene.job.tenant;
        let differs =
            |keys: &Keys| self.identity.owns(keys) && keys.get(keys::TENANT).is_some_and(|found| found != tenant);
        self.scene.pools().any(|pool| {
            pool.inventory.vms.values().any(|vm| differs(&vm.other_config))
                || pool.inventory.vdis.values().any(|vdi| differs(&vdi.other_config))
        })
    }

    /// Everything of this VM counts as explained: somebody is at work on it.
    fn know_all(&self, found: &mut Found) {
        let id = self.identity.ids.job.to_string();
        let ours = |keys: &Keys| {
            self.identity.owns(keys)
                || keys.get(keys::XO_JOB) == Some(&id) && keys.get(keys::XO_VM) == Some(&self.identity.vm)
        };
        for pool in self.scene.pools() {
            for (reference, vm) in pool.inventory.vms.iter().filter(|(_, vm)| ours(&vm.other_config)) {
                found.know_vm(pool, reference, vm);
            }
            for (reference, _) in pool.inventory.vdis.iter().filter(|(_, vdi)| ours(&vdi.other_config)) {
                found.know(pool, reference.as_str());
            }
        }
    }

    /// Tells the lease of a VM. Whether somebody holds it, or may still write to its disks although it expired: then nothing
    /// can be said about what he works on.
    fn is_held(&self, found: &mut Found, pool: &PoolState, reference: &Ref<Vm>, vm: &Vm, is_written: bool) -> bool {
        let (kind, act, why) = match pool.claims.get(reference) {
            None | Some(Claim::Free) => return false,
            Some(Claim::TakeOver { gone: false, .. }) if is_written => (
                FindingKind::DeadLease,
                GcAct::Keep,
                "it expired, but nobody can tell from here whether its holder still writes; the next run takes it over and writes \
                 to clones, so that the two cannot meet"
                    .to_owned(),
            ),
            Some(Claim::TakeOver { .. }) => (
                FindingKind::DeadLease,
                GcAct::PutRight,
                "the run that held it ended without giving it back, or did not renew it in time; it is taken over and given back"
                    .to_owned(),
            ),
            Some(Claim::Held { holder, expires, .. }) => {
                let until = expires.map(|at| format!(" until {at}")).unwrap_or_default();
                let why = format!("{holder} works on this VM{until}; nothing of it is looked at or touched meanwhile");
                (FindingKind::HeldLease, GcAct::Keep, why)
            }
        };
        found.vm(pool, vm, self.about(), kind, act, why);
        act == GcAct::Keep
    }

    fn target(&self, found: &mut Found, target: &Target, pool: &PoolState, view: &TargetView) {
        let vdi = |reference: &Ref<Vdi>| pool.inventory.vdis.get(reference);
        self.pruning(found, pool, &view.pruning);
        for orphan in &view.orphans {
            found.know(pool, orphan.as_str());
            if let Some(disk) = vdi(orphan) {
                let why = "a run made or detached it and ended before it was done; no VM uses it".to_owned();
                found.disk(pool, disk, self.about(), FindingKind::UnfinishedDisk, GcAct::Remove, why);
            }
        }
        for disk in view.marked_for_cloning.iter().filter_map(vdi) {
            let why =
                "a run ended while it cloned this recovery point's disk; the point is whole, the mark is taken off"
                    .to_owned();
            found.disk(pool, disk, self.about(), FindingKind::CloneMark, GcAct::PutRight, why);
        }
        for unborn in &view.unborn {
            self.unborn(found, pool, unborn);
        }
        for (age, replica) in view.replicas.iter().enumerate() {
            found.know_vm(pool, &replica.reference, &replica.record);
            for point in &replica.points {
                found.know(pool, point.reference.as_str());
                point.disks.iter().for_each(|disk| found.know(pool, disk.attached.vdi.as_str()));
            }
            if age > 0 {
                self.is_held(found, pool, &replica.reference, &replica.record, false);
            }
            self.replica(found, target, pool, replica, age);
        }
    }

    fn unborn(&self, found: &mut Found, pool: &PoolState, unborn: &Unborn) {
        found.know_vm(pool, &unborn.reference, &unborn.record);
        let vm = &unborn.record;
        if !is_unused(vm) && !unborn.disks.is_empty() {
            let why =
                "a first run did not finish it, and somebody unblocked or started it; remove it with `xe vm-uninstall`"
                    .to_owned();
            found.vm(pool, vm, self.about(), FindingKind::UsedReplica, GcAct::Keep, why);
            return;
        }
        let why =
            "a first run made it and ended before its commit, so it holds nothing that could be restored".to_owned();
        found.vm(pool, vm, self.about(), FindingKind::UnfinishedReplica, GcAct::Remove, why);
        for disk in unborn.disks.iter().filter(|disk| disk.record.other_config.contains_key(keys::JOB)) {
            let why = format!("it goes with {}", vm.name_label);
            found.disk(pool, &disk.record, self.about(), FindingKind::HalfWrittenDisk, GcAct::Remove, why);
        }
    }

    fn replica(&self, found: &mut Found, target: &Target, pool: &PoolState, replica: &Replica, age: usize) {
        let vm = &replica.record;
        let newest = &replica.newest().uuid;
        let mut tell = |kind, act, why| found.vm(pool, vm, self.about(), kind, act, why);
        match replica.condition {
            Condition::HalfWritten => {
                let why = format!("a run ended while it wrote to it; it gets clones of its newest recovery point {newest}");
                tell(FindingKind::HalfWrittenReplica, GcAct::PutRight, why);
                let id = self.identity.ids.job.to_string();
                for disk in replica.disks.iter().filter(|disk| disk.record.other_config.get(keys::JOB) == Some(&id)) {
                    let why = format!("a clone of the disk of recovery point {newest} takes its place");
                    found.disk(pool, &disk.record, self.about(), FindingKind::HalfWrittenDisk, GcAct::Remove, why);
                }
            }
            Condition::Untidy => {
                let why = format!("recovery point {newest} is committed; its keys are taken off the live replica");
                tell(FindingKind::UntidyReplica, GcAct::PutRight, why);
            }
            Condition::Used => tell(
                FindingKind::UsedReplica,
                GcAct::Keep,
                "somebody reverted it, or unblocked it while it was half written; the next run goes on beside it, so remove it with \
                 `xe vm-uninstall` when it is not wanted"
                    .to_owned(),
            ),
            Condition::FailedOver => tell(
                FindingKind::UsedReplica,
                GcAct::Keep,
                "it was started by a failover and is a VM in its own right; the next run goes on beside it".to_owned(),
            ),
            Condition::Foreign => tell(
                FindingKind::UsedReplica,
                GcAct::Keep,
                format!("it {}; it is left to Xen Orchestra", xen_orchestra::UNDER_WAY),
            ),
            Condition::Tidy => {}
        }
        let told = [Condition::Used, Condition::FailedOver, Condition::Foreign].contains(&replica.condition);
        if age > 0 && !told {
            let why = format!(
                "a newer replica of the VM has taken over on target {}; its {} recovery points can be restored, so remove it by hand \
                 when they are not wanted",
                target.name,
                replica.points.len()
            );
            found.vm(pool, vm, self.about(), FindingKind::OlderReplica, GcAct::Keep, why);
        }
        if self.live.is_none() || !self.scene.selected.contains(&self.identity.vm) {
            let (points, source) = (replica.points.len(), &self.identity.vm);
            let why = match self.live {
                Some((_, live)) => format!(
                    "VM {} ({source}) is not selected by the job any more; its {points} recovery points stay: select it again, or remove \
                     the replica and its snapshots with `xe`",
                    live.name_label
                ),
                None => format!(
                    "VM {source} is not in pool {} any more; these {points} recovery points may be all that is left of it: use \
                     `vmferry failover clone`, or remove the replica and its snapshots with `xe`",
                    self.scene.source.name
                ),
            };
            found.vm(pool, vm, self.about(), FindingKind::UnselectedReplica, GcAct::Keep, why);
        }
    }

    fn source(&self, found: &mut Found, reference: &Ref<Vm>, record: &Vm) {
        let pool = self.scene.source;
        if offline::is_stopped_by_us(record) {
            let why = "a run shut it down for its snapshot and ended before it had started it again; it is started if it is off"
                .to_owned();
            found.vm(pool, record, self.about(), FindingKind::StoppedVm, GcAct::PutRight, why);
        }
        if migration::is_blocked_by_us(record) {
            let why = "the run that blocked its migration is gone; the block is lifted".to_owned();
            found.vm(pool, record, self.about(), FindingKind::MigrationBlock, GcAct::PutRight, why);
        }
        let source = SourceVm::new(&pool.inventory, reference, record, &self.identity.ids);
        let mut held: Vec<Vec<Holding>> = self.views.iter().map(|(_, _, view)| view.holdings()).collect();
        let stored = self.scene.stored(&self.identity.vm);
        held.extend(stored.map(|(store, points)| store_lane::holdings(&points, &store.place)));
        self.pruning(found, pool, &source.pruning);
        for snapshot in &source.untagged {
            let why = "a run took it and ended before it could say so".to_owned();
            self.snapshot(found, pool, snapshot, FindingKind::UntaggedSnapshot, GcAct::Remove, why);
        }
        for snapshot in &source.snapshots {
            if let Some(record) = pool.inventory.vms.get(&snapshot.reference) {
                found.know_vm(pool, &snapshot.reference, record);
            }
        }
        for (snapshot, holders) in unmarked(&source, &held) {
            if let Some(record) = pool.inventory.vms.get(&snapshot.reference) {
                let why = format!(
                    "{} of the job's targets holds a recovery point of it; it is marked as a base",
                    holders.len()
                );
                found.vm(pool, record, self.about(), FindingKind::UnmarkedBase, GcAct::PutRight, why);
            }
        }
        let answered = self.scene.everybody_answered();
        let (act, unknown) = match answered {
            true => (GcAct::Remove, String::new()),
            false => (GcAct::Keep, format!("; {} could not be asked, so it stays: it may be a base", self.unasked())),
        };
        for snapshot in unconfirmed(&source, &held) {
            let why = format!("a run took it, and it became no recovery point{unknown}");
            self.snapshot(found, pool, &snapshot.reference, FindingKind::UnconfirmedSnapshot, act, why);
        }
        let superseded = superseded(&source, &held, &self.scene.job.places());
        let seeds = source.snapshots.iter().filter_map(|snapshot| Some((snapshot, snapshot.seed.as_ref()?)));
        for (snapshot, media) in seeds.filter(|(seed, _)| !superseded.iter().any(|gone| gone.uuid == seed.uuid)) {
            if let Some(record) = pool.inventory.vms.get(&snapshot.reference) {
                let why = format!(
                    "media {media} carry what it holds; it is the base of the first run after `vmferry seed import`, and goes by itself when \
                     every target holds something as new; if the media are lost: vmferry seed forget {} --vm {}",
                    self.scene.job.name, self.identity.vm
                );
                found.vm(pool, record, self.about(), FindingKind::Seed, GcAct::Keep, why);
            }
        }
        for snapshot in superseded {
            let why = format!("every target of the job holds something newer{unknown}");
            self.snapshot(found, pool, &snapshot.reference, FindingKind::SupersededSnapshot, act, why);
        }
    }

    /// The source without its VM: no run will need these as bases, but they may be the last there is of it.
    fn source_without_vm(&self, found: &mut Found) {
        let pool = self.scene.source;
        let pruning = Pruning::new(&pool.inventory, &self.identity);
        self.pruning(found, pool, &pruning);
        let ours = |vm: &Vm| {
            let keys = &vm.other_config;
            vm.is_a_snapshot
                && self.identity.owns(keys)
                && !keys.contains_key(keys::XO_COPY_OF)
                && keys.get(keys::SELF) == Some(&vm.uuid)
        };
        for (reference, vm) in pool.inventory.vms.iter().filter(|(_, vm)| ours(vm)) {
            if pruning.snapshots.contains(reference) {
                continue;
            }
            found.know_vm(pool, reference, vm);
            let why = format!(
                "VM {} is gone from pool {}, and this may be the last there is of it; remove it with `xe snapshot-uninstall` when it \
                 is not wanted",
                self.identity.vm, pool.name
            );
            found.vm(pool, vm, self.about(), FindingKind::LastSnapshot, GcAct::Keep, why);
        }
    }

    fn unasked(&self) -> String {
        let silent = self.scene.targets.iter().filter(|(target, pool)| !answered(target, *pool));
        let stores = self.scene.stores.iter().filter(|(_, points)| points.is_none());
        let stores = stores.map(|(store, _)| store.name.as_str());
        let names: Vec<&str> = silent.map(|(target, _)| target.name.as_str()).chain(stores).collect();
        format!("target {}", names.join(", "))
    }

    fn pruning(&self, found: &mut Found, pool: &PoolState, pruning: &Pruning) {
        let why = || "it is marked as being removed, and whoever did so ended before it was".to_owned();
        for snapshot in &pruning.snapshots {
            self.snapshot(found, pool, snapshot, FindingKind::UnfinishedRemoval, GcAct::Remove, why());
        }
        for reference in &pruning.disks {
            if let Some(disk) = pool.inventory.vdis.get(reference) {
                found.know(pool, reference.as_str());
                self.content(found, disk);
                found.disk(pool, disk, self.about(), FindingKind::UnfinishedRemoval, GcAct::Remove, why());
            }
        }
    }

    /// A snapshot VM, with the disks that go with it.
    fn snapshot(
        &self,
        found: &mut Found,
        pool: &PoolState,
        snapshot: &Ref<Vm>,
        kind: FindingKind,
        act: GcAct,
        why: String,
    ) {
        let Some(vm) = pool.inventory.vms.get(snapshot) else { return };
        found.know_vm(pool, snapshot, vm);
        found.vm(pool, vm, self.about(), kind, act, why);
        if act == GcAct::Keep {
            return;
        }
        for disk in pool.inventory.disks_of(vm).iter().filter(|disk| disk.record.is_a_snapshot) {
            if !pool.inventory.hangs_elsewhere(&disk.record, snapshot) {
                self.content(found, &disk.record);
                let why = format!("it goes with snapshot {}", vm.uuid);
                found.disk(pool, &disk.record, self.about(), kind, act, why);
            }
        }
        if let Some(image) = pool.inventory.vdis.get(&vm.suspend_vdi) {
            self.content(found, image);
            let why = format!("it goes with snapshot {}", vm.uuid);
            found.disk(pool, image, self.about(), kind, act, why);
        }
    }

    /// Notes the content that a disk to be removed held: its digest table may be garbage, too.
    fn content(&self, found: &mut Found, disk: &Vdi) {
        let named = disk.other_config.get(keys::XO_CONTENT_KEY).unwrap_or(&disk.uuid);
        found.contents.insert(named.clone(), self.identity.vm.clone());
    }
}
