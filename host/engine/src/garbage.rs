//! What of a job's objects is garbage, and why: decided on inventories of both sides, by pure functions.
//!
//! What a run would put right is found through the same views by which it does so. Everything else that carries the job's
//! keys, or sits where its replicas sit, is explained and left alone: a key alone proves nothing.

mod one_vm;

use crate::digests::{content_table, tables_of, tables_of_store};
use crate::finding::{Fate, Finding, FindingKind, GcAct};
use crate::inventory::Inventory;
use crate::job::{Job, StoreTarget, Target};
use crate::keys::{self, Keys, State};
use crate::lease::Claim;
use crate::migration;
use crate::restoring;
use crate::view::{Condition, Identity, Replica, TargetView};
use one_vm::OneVm;
use std::collections::{BTreeMap, BTreeSet};
use vmferry_model::target::StoredPoint;
use vmferry_xapi::Ref;
use vmferry_xapi::records::{Task, Vdi, Vm};

/// A pool at one moment, with what only the engine can tell about it.
#[derive(Debug, Default)]
pub(crate) struct PoolState {
    pub(crate) name: String,
    pub(crate) inventory: Inventory,
    /// The judged leases of the VMs that carry one.
    pub(crate) claims: BTreeMap<Ref<Vm>, Claim>,
    pub(crate) tasks: Vec<Task>,
}

/// What is decided on.
pub(crate) struct Scene<'a> {
    pub(crate) job: &'a Job,
    /// Only this source VM, by uuid.
    pub(crate) only: Option<&'a str>,
    /// uuids of the VMs that the job selects.
    pub(crate) selected: BTreeSet<String>,
    pub(crate) source: &'a PoolState,
    /// The job's targets; `None` for one that could not be asked.
    pub(crate) targets: Vec<(&'a Target, Option<&'a PoolState>)>,
    /// The job's stores with the job's points of all VMs; `None` for one that could not be asked.
    pub(crate) stores: Vec<(&'a StoreTarget, Option<&'a [StoredPoint]>)>,
    /// The digest tables that there are.
    pub(crate) tables: BTreeSet<String>,
}

impl Scene<'_> {
    /// Everything that is worth telling: what `--apply` removes first, what it leaves alone last.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        let mut found = Found::default();
        for vm in self.source_vms() {
            OneVm::new(self, &vm).look(&mut found);
        }
        if self.only.is_none() {
            self.restores(&mut found);
            self.strangers(&mut found);
        }
        self.tables(&mut found);
        self.tasks(&mut found);
        found.findings.sort_by(|a, b| {
            (a.act, a.kind, &a.pool, &a.class, &a.uuid).cmp(&(b.act, b.kind, &b.pool, &b.class, &b.uuid))
        });
        found.findings
    }

    /// The VMs that the job has anything of, by uuid, whether they still exist or not.
    pub(crate) fn source_vms(&self) -> BTreeSet<String> {
        let id = self.job.ids.job.to_string();
        let named = |keys: &Keys| {
            let ours = keys.get(keys::JOB) == Some(&id);
            let point = keys.get(keys::XO_JOB) == Some(&id);
            let vm = ours.then(|| keys.get(keys::VM)).flatten().or(point.then(|| keys.get(keys::XO_VM)).flatten());
            vm.cloned()
        };
        let mut vms = self.selected.clone();
        for pool in self.pools() {
            vms.extend(pool.inventory.vms.values().filter_map(|vm| named(&vm.other_config)));
            vms.extend(pool.inventory.vdis.values().filter_map(|vdi| named(&vdi.other_config)));
        }
        // A run that was killed early has left no object of the job's, and yet the block of migrations and what goes with it.
        let live = self.source.inventory.vms.values().filter(|vm| !vm.is_a_snapshot);
        vms.extend(live.filter(|vm| migration::is_blocked_by(vm, &self.job.name)).map(|vm| vm.uuid.clone()));
        vms.retain(|vm| self.only.is_none_or(|only| only == vm));
        vms
    }

    /// Each pool once.
    fn pools(&self) -> impl Iterator<Item = &PoolState> {
        let all = std::iter::once(self.source).chain(self.targets.iter().filter_map(|(_, pool)| *pool));
        let mut seen = BTreeSet::new();
        all.filter(move |pool| seen.insert(pool.name.as_str()))
    }

    pub(crate) fn everybody_answered(&self) -> bool {
        let pools = self.targets.iter().all(|(target, pool)| answered(target, *pool));
        pools && self.stores.iter().all(|(_, points)| points.is_some())
    }

    /// What the stores hold of a VM.
    fn stored<'s>(&'s self, vm: &'s str) -> impl Iterator<Item = (&'s StoreTarget, Vec<StoredPoint>)> {
        let asked = self.stores.iter().filter_map(|(store, points)| Some((*store, (*points)?)));
        asked.map(move |(store, points)| (store, points.iter().filter(|point| point.vm == vm).cloned().collect()))
    }

    fn views(&self, identity: &Identity) -> Vec<(&Target, &PoolState, TargetView)> {
        let reached = self.targets.iter().filter_map(|(target, pool)| Some((*target, (*pool)?)));
        reached.map(|(target, pool)| (target, pool, TargetView::new(&pool.inventory, identity, &target.srs))).collect()
    }

    /// What restores made that ended before they were done. They are of no run, so they are looked for where all VMs are.
    fn restores(&self, found: &mut Found) {
        for pool in self.pools() {
            for left in restoring::unfinished(&pool.inventory, &self.job.ids.job.to_string()).into_values() {
                if let Some((reference, vm)) = left.vm {
                    if let Some(Claim::Held { holder, .. }) = pool.claims.get(reference) {
                        let why = format!("{holder} restores a recovery point to it");
                        found.vm(pool, vm, None, FindingKind::HeldLease, GcAct::Keep, why);
                        continue;
                    }
                    let why = "a restore made it and ended before it was whole".to_owned();
                    found.vm(pool, vm, None, FindingKind::UnfinishedRestore, GcAct::Remove, why);
                    let disks = pool.inventory.disks_of(vm).into_iter();
                    for disk in disks.filter(|disk| !pool.inventory.hangs_elsewhere(&disk.record, reference)) {
                        let why = format!("it goes with {}", vm.name_label);
                        found.disk(pool, &disk.record, None, FindingKind::UnfinishedRestore, GcAct::Remove, why);
                    }
                }
                for (_, disk) in left.loose {
                    let why = "a restore made it and ended before it was attached".to_owned();
                    found.disk(pool, disk, None, FindingKind::UnfinishedRestore, GcAct::Remove, why);
                }
            }
        }
    }

    /// Objects that no view takes for the job's, though they carry its keys or are in its way.
    fn strangers(&self, found: &mut Found) {
        let id = self.job.ids.job.to_string();
        for pool in self.pools() {
            for (reference, vm) in pool.inventory.vms.iter().filter(|(_, vm)| !vm.is_control_domain) {
                if !found.knows(pool, reference.as_str())
                    && let Some((kind, why)) = self.stranger(pool, vm, &id)
                {
                    found.know_vm(pool, reference, vm);
                    let about = vm.other_config.get(keys::VM).map(String::as_str);
                    found.vm(pool, vm, about, kind, GcAct::Keep, why);
                }
            }
            for (reference, vdi) in pool.inventory.vdis.iter().filter(|(_, vdi)| vdi.managed) {
                if !found.knows(pool, reference.as_str()) && vdi.other_config.get(keys::JOB) == Some(&id) {
                    let (kind, why) = stranger_disk(pool, vdi);
                    let about = vdi.other_config.get(keys::VM).map(String::as_str);
                    found.disk(pool, vdi, about, kind, GcAct::Keep, why);
                }
            }
        }
    }

    fn stranger(&self, pool: &PoolState, vm: &Vm, id: &String) -> Option<(FindingKind, String)> {
        let keys = &vm.other_config;
        let of = |key: &str| keys.get(key).map_or("", String::as_str);
        if keys.get(keys::JOB) != Some(id) && keys.get(keys::XO_JOB) != Some(id) {
            let on_our_sr = self
                .targets
                .iter()
                .any(|(target, _)| target.pool == pool.name && target.srs.iter().any(|sr| sr == of(keys::XO_SR)));
            let of_our_vm = vm.is_a_snapshot
                && keys.contains_key(keys::XO_JOB)
                && pool.inventory.vms.get(&vm.snapshot_of).is_some_and(|live| self.selected.contains(&live.uuid));
            let owner = match keys.get(keys::JOB) {
                Some(job) => format!("job {job} of tenant {} keeps it", of(keys::TENANT)),
                None => format!("Xen Orchestra keeps it (job {})", of(keys::XO_JOB)),
            };
            let live = !vm.is_a_snapshot && on_our_sr;
            return (live || of_our_vm).then(|| (FindingKind::Foreign, format!("{owner}; it is none of this job's")));
        }
        Some(match State::of(keys) {
            _ if !keys::is_original(keys, &vm.uuid) => (
                FindingKind::Copy,
                format!(
                    "it inherited the keys of {} and belongs to whoever made it; they do no harm",
                    of(keys::SELF)
                ),
            ),
            Some(State::Committed { .. }) if vm.is_a_snapshot => (
                FindingKind::BrokenPoint,
                "its replica is gone, or it lost disks or keys, so it is no base and is offered to nobody; clone it by hand if it \
                 is wanted, then remove it with `xe snapshot-uninstall`"
                    .to_owned(),
            ),
            Some(State::Committed { .. }) => (
                FindingKind::Copy,
                "it inherited the keys of a recovery point and belongs to whoever made it; they do no harm".to_owned(),
            ),
            _ if vm.is_a_snapshot => (
                FindingKind::BrokenPoint,
                "it carries the job's keys and is no recovery point; remove it with `xe snapshot-uninstall` if nobody wants it"
                    .to_owned(),
            ),
            _ => (
                FindingKind::EmptyReplica,
                "somebody removed its recovery points, so no run goes on with it; its disks may be the last copy, so remove it \
                 with `xe vm-uninstall` only when they are not"
                    .to_owned(),
            ),
        })
    }

    /// The digest tables of what the targets hold.
    pub(crate) fn needed_tables(&self) -> BTreeSet<String> {
        let identities = self.source_vms().into_iter().map(|vm| Identity { ids: self.job.ids, vm });
        let stored = self.stores.iter().filter_map(|(_, points)| *points).flat_map(tables_of_store);
        identities
            .flat_map(|identity| self.views(&identity))
            .flat_map(|(_, _, view)| tables_of(&view).collect::<Vec<_>>())
            .chain(stored)
            .collect()
    }

    /// Tables of contents that our garbage names and no recovery point holds.
    fn tables(&self, found: &mut Found) {
        if found.contents.is_empty() || !self.everybody_answered() {
            return;
        }
        let needed = self.needed_tables();
        for (content, vm) in std::mem::take(&mut found.contents) {
            let table = content_table(&content);
            if self.tables.contains(&table) && !needed.contains(&table) {
                found.push(Finding {
                    pool: String::new(),
                    class: "digest table".to_owned(),
                    uuid: table,
                    name: String::new(),
                    vm: Some(vm),
                    kind: FindingKind::UnusedTable,
                    why: "no target holds a recovery point of this content".to_owned(),
                    act: GcAct::Remove,
                    fate: Fate::Found,
                });
            }
        }
    }

    /// Tasks outlive a run that died. XAPI collects them, and nobody can tell one of a run that lives.
    fn tasks(&self, found: &mut Found) {
        let label = format!("vmferry {}: ", self.job.name);
        for pool in self.pools() {
            for task in pool.tasks.iter().filter(|task| task.name_label.starts_with(&label)) {
                found.push(Finding {
                    pool: pool.name.clone(),
                    class: "task".to_owned(),
                    uuid: task.uuid.clone(),
                    name: task.name_label.clone(),
                    vm: None,
                    kind: FindingKind::Task,
                    why: "a run that lives may still wait for it; XAPI itself removes it 65 minutes after its end, or after a day \
                          without one"
                        .to_owned(),
                    act: GcAct::Keep,
                    fate: Fate::Found,
                });
            }
        }
    }
}

/// The findings so far, and the objects that are explained.
#[derive(Default)]
struct Found {
    findings: Vec<Finding>,
    /// Pool and reference.
    known: BTreeSet<(String, String)>,
    /// Contents that garbage names, with the VM they are of.
    contents: BTreeMap<String, String>,
}

impl Found {
    fn push(&mut self, finding: Finding) {
        // Targets may share a pool, with each other and with the source.
        if !self.findings.iter().any(|known| known.is_same(&finding)) {
            self.findings.push(finding);
        }
    }

    fn knows(&self, pool: &PoolState, reference: &str) -> bool {
        self.known.contains(&(pool.name.clone(), reference.to_owned()))
    }

    fn know(&mut self, pool: &PoolState, reference: &str) {
        self.known.insert((pool.name.clone(), reference.to_owned()));
    }

    /// The VM and its disks are explained.
    fn know_vm(&mut self, pool: &PoolState, reference: &Ref<Vm>, vm: &Vm) {
        self.know(pool, reference.as_str());
        for disk in pool.inventory.disks_of(vm) {
            self.know(pool, disk.vdi.as_str());
        }
        self.know(pool, vm.suspend_vdi.as_str());
    }

    fn vm(&mut self, pool: &PoolState, vm: &Vm, about: Option<&str>, kind: FindingKind, act: GcAct, why: String) {
        self.push(Finding {
            pool: pool.name.clone(),
            class: "VM".to_owned(),
            uuid: vm.uuid.clone(),
            name: vm.name_label.clone(),
            vm: about.map(str::to_owned),
            kind,
            why,
            act,
            fate: Fate::Found,
        });
    }

    fn disk(&mut self, pool: &PoolState, disk: &Vdi, about: Option<&str>, kind: FindingKind, act: GcAct, why: String) {
        self.push(Finding {
            pool: pool.name.clone(),
            class: "VDI".to_owned(),
            uuid: disk.uuid.clone(),
            name: disk.name_label.clone(),
            vm: about.map(str::to_owned),
            kind,
            why,
            act,
            fate: Fate::Found,
        });
    }
}

/// Whether all that a target holds was seen: an SR that is gone for a while may hold a recovery point.
fn answered(target: &Target, pool: Option<&PoolState>) -> bool {
    pool.is_some_and(|pool| target.srs.iter().all(|sr| pool.inventory.sr_by_uuid(sr).is_some()))
}

/// What a disk is that carries the job's keys and belongs to nothing that is explained.
fn stranger_disk(pool: &PoolState, disk: &Vdi) -> (FindingKind, String) {
    let users: BTreeSet<&str> = disk
        .vbds
        .iter()
        .filter_map(|vbd| pool.inventory.vms.get(&pool.inventory.vbds.get(vbd)?.vm))
        .filter(|vm| !vm.is_control_domain)
        .map(|vm| vm.name_label.as_str())
        .collect();
    if !users.is_empty() {
        let users: Vec<&str> = users.into_iter().collect();
        let why = format!("it hangs on {}, so it belongs to whoever attached it there", users.join(", "));
        return (FindingKind::Copy, why);
    }
    if !disk.is_a_snapshot && !keys::is_original(&disk.other_config, &disk.uuid) {
        return (FindingKind::Copy, "it inherited the job's keys and belongs to whoever made it".to_owned());
    }
    let why = "nothing proves that a run left it: somebody may have detached it; remove it with `xe vdi-destroy` if nobody wants it";
    (FindingKind::LooseDisk, why.to_owned())
}

/// Whether the next run writes to the live disks of a replica, unless it takes its lease over. One that is half written is
/// rolled back onto clones first.
pub(crate) fn is_written_in_place(replica: &Replica) -> bool {
    replica.condition != Condition::HalfWritten
}
