//! What of a job's objects is garbage, and why: decided on inventories of both sides, by pure functions.
//!
//! What a run would put right is found through the same views by which it does so. Everything else that carries the job's
//! keys, or sits where its replicas sit, is explained and left alone: a key alone proves nothing.

use crate::digests::{content_table, tables_of, tables_of_store};
use crate::inventory::Inventory;
use crate::job::{Job, StoreTarget, Target};
use crate::keys::{self, Keys, State};
use crate::lane::bytes;
use crate::lease::Claim;
use crate::migration;
use crate::offline;
use crate::reconcile::{Holding, superseded, unconfirmed, unmarked};
use crate::restoring;
use crate::store_lane;
use crate::view::{Condition, Identity, Pruning, Replica, SourceVm, TargetView, Unborn, is_unused};
use crate::xen_orchestra;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use vmferry_model::target::{StoredGarbage, StoredPoint};
use vmferry_xapi::Ref;
use vmferry_xapi::records::{Task, Vdi, Vm};

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
                    for disk in pool.inventory.disks_of(vm) {
                        let why = format!("it goes with {}, unless something else uses it", vm.name_label);
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

/// A source VM that the job has something of.
struct OneVm<'a> {
    scene: &'a Scene<'a>,
    identity: Identity,
    /// The VM, where it still exists.
    live: Option<(&'a Ref<Vm>, &'a Vm)>,
    views: Vec<(&'a Target, &'a PoolState, TargetView)>,
}

impl<'a> OneVm<'a> {
    fn new(scene: &'a Scene<'a>, vm: &str) -> Self {
        let identity = Identity { ids: scene.job.ids, vm: vm.to_owned() };
        let live = scene.source.inventory.vm_by_uuid(vm).filter(|(_, record)| !record.is_a_snapshot);
        let views = scene.views(&identity);
        Self { scene, identity, live, views }
    }

    fn about(&self) -> Option<&str> {
        Some(&self.identity.vm)
    }

    fn look(&self, found: &mut Found) {
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
            let hangs_elsewhere = disk.record.vbds.iter().any(|vbd| {
                let user = pool.inventory.vbds.get(vbd).map(|vbd| &vbd.vm);
                user != Some(snapshot)
                    && user.and_then(|vm| pool.inventory.vms.get(vm)).is_none_or(|vm| !vm.is_control_domain)
            });
            if !hangs_elsewhere {
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
