//! Which of Xen Orchestra's copies a delta can be built on, and why not on the others. Pure functions of inventories.
//!
//! | Generation | Versions | What it leaves on the target | A base? |
//! | --- | --- | --- | --- |
//! | 2 | since 6.3 | one VM, a snapshot of it after each transfer | its snapshots: [`committed`] |
//! | 1 | 5.17 to 6.2, `xo-cr-seed` | one VM per transfer, the newest disks cloned from those before | no |
//! | 0 | before 5.17 | the same; the source VM names the base, per SR | no |
//!
//! Nobody can write to a snapshot. The disks of generation 1 are live disks of a VM that can be unblocked, started, stopped and
//! blocked again, or attached elsewhere; a clone that somebody made of it carries the same keys and the same block; and
//! there is no snapshot that a differential export could compare it with. Building on it and comparing it with the source
//! afterwards costs what a full copy costs, and until then the recovery point is unproven. So its disks are no base. Xen
//! Orchestra 6.3 or newer turns such a chain into generation 2 with its next run.
//!
//! What a transfer that did not finish left is told by `xo:backup:datetime`, which says 1970 until the end (generation 2), or by
//! the absence of `xo:backup:sr` (generation 1). `xo:copy_of` is set before the data and proves nothing. Nothing here is ever
//! changed or removed: Xen Orchestra may still be at work on it.

use crate::inventory::Inventory;
use crate::keys::{self, Keys, State};
use crate::view::{Identity, Origin, Point, SourceVm, TargetView};
use std::collections::BTreeSet;
use vmferry_model::plan::{FullReason, Transfer};
use vmferry_xapi::Ref;
use vmferry_xapi::records::{Vdi, Vm};

/// How the name of a VM begins while its first transfer runs.
const IMPORTING_VM: &str = "[Importing…]";
/// The same of a disk.
const IMPORTING_DISK: &str = "[Importing]";

/// What a replica does that [`is_under_way`].
pub(crate) const UNDER_WAY: &str =
    "carries the keys of a run of Xen Orchestra that was not finished, or was reverted to a snapshot of one";

/// A copy of the source VM that is no base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unproven {
    pub(crate) name: String,
    pub(crate) uuid: String,
    pub(crate) why: Why,
}

/// Why a copy is no base; the one that says most about a chain comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Why {
    /// Generation 1, complete: nothing proves that nobody wrote to its disks.
    LiveDisks,
    /// Its transfer did not come to its end, or its last keys were not taken off.
    Unfinished,
    /// Generation 0: its keys do not tell which snapshot its disks equal.
    Legacy,
}

/// The source snapshot that a snapshot of generation 2 was made from, if its keys prove that it is a finished transfer:
/// the real date, the same one on all its disks, and no sign on the live VM that the run is still under way. Until Xen Orchestra has
/// taken the keys off the live VM, any snapshot that somebody takes of it carries them as well.
pub(crate) fn committed(inventory: &Inventory, snapshot: &Vm, live: &Vm) -> Option<String> {
    let keys = &snapshot.other_config;
    let copy_of = keys.get(keys::XO_COPY_OF)?;
    keys::parse_datetime(keys.get(keys::XO_DATETIME)?)?;
    let same_date = |disk: &Keys| disk.get(keys::XO_DATETIME) == keys.get(keys::XO_DATETIME);
    let whole = inventory.disks_of(snapshot).iter().all(|disk| same_date(&disk.record.other_config));
    let settled = live.other_config.get(keys::XO_COPY_OF) != Some(copy_of);
    (whole && settled).then(|| copy_of.clone())
}

/// Whether a live VM carries the keys that Xen Orchestra puts on for the time of a transfer.
pub(crate) fn is_under_way(identity: &Identity, live: &Vm) -> bool {
    State::of(&live.other_config).is_none() && identity.is_named_by(&live.other_config)
}

/// The copies of the source VM on `srs` that are no base. `replicas` hold recovery points, and are told of elsewhere.
pub(crate) fn unproven(
    inventory: &Inventory,
    identity: &Identity,
    srs: &[String],
    replicas: &[&Ref<Vm>],
) -> Vec<Unproven> {
    let live = inventory.vms.iter().filter(|(_, vm)| !vm.is_a_snapshot && !vm.is_a_template);
    live.filter(|(reference, _)| !replicas.contains(reference))
        .filter_map(|(reference, vm)| {
            let why = why(inventory, identity, srs, reference, vm)?;
            Some(Unproven { name: vm.name_label.clone(), uuid: vm.uuid.clone(), why })
        })
        .collect()
}

fn why(inventory: &Inventory, identity: &Identity, srs: &[String], reference: &Ref<Vm>, vm: &Vm) -> Option<Why> {
    let keys = &vm.other_config;
    let disks = inventory.disks_of(vm);
    let is_here = |disk: &Vdi| inventory.srs.get(&disk.sr).is_some_and(|record| srs.contains(&record.uuid));
    let on_sr = || disks.iter().any(|disk| is_here(&disk.record));
    if keys.get(keys::XO_SOURCE_VM) == Some(&identity.vm) && on_sr() {
        return Some(Why::Legacy);
    }
    // What carries keys of ours is a copy that somebody made of something of ours; the source carries such keys where it was
    // reverted to one of the job's snapshots.
    if keys.contains_key(keys::JOB) || vm.uuid == identity.vm || !is_under_way(identity, vm) {
        return None;
    }
    match keys.get(keys::XO_SR) {
        None => (disks.is_empty() || on_sr()).then_some(Why::Unfinished),
        Some(on) if !srs.contains(on) => None,
        Some(_) => {
            let real_date = keys.get(keys::XO_DATETIME).and_then(|text| keys::parse_datetime(text)).is_some();
            let importing = vm.name_label.starts_with(IMPORTING_VM)
                || disks.iter().any(|disk| {
                    disk.record.name_label.starts_with(IMPORTING_DISK)
                        || disk.record.other_config.contains_key(keys::XO_IMPORT_TASK)
                });
            let has_snapshots = inventory.vms.values().any(|other| other.snapshot_of == *reference);
            let finished = real_date && !importing && !has_snapshots;
            Some(if finished { Why::LiveDisks } else { Why::Unfinished })
        }
    }
}

/// The SRs that a source VM names a base for in the way of generation 0.
pub(crate) fn legacy_srs(source: &Vm) -> BTreeSet<String> {
    source.other_config.keys().filter_map(|key| key.strip_prefix(keys::XO_BASE_DELTA_OF)).map(str::to_owned).collect()
}

/// Why a target without any recovery point gets no delta although Xen Orchestra replicated to it.
pub(crate) fn reason(source: &SourceVm, target: &TargetView, srs: &[String]) -> Option<FullReason> {
    let found = target.unproven.iter().map(|copy| copy.why);
    let legacy = srs.iter().any(|sr| source.legacy_srs.contains(sr)).then_some(Why::Legacy);
    Some(match found.chain(legacy).min()? {
        Why::LiveDisks => FullReason::XoVmPerRun,
        Why::Unfinished => FullReason::XoUnfinished,
        Why::Legacy => FullReason::XoLegacy,
    })
}

/// What an operator should know of a chain that Xen Orchestra made: what of it is no base and stays, or what it means to go on
/// with it.
pub(crate) fn notes(target: &TargetView, transfers: &[Transfer], source: &SourceVm) -> Vec<String> {
    if target.current().is_none() {
        return target.unproven.iter().map(Unproven::to_string).collect();
    }
    let goes_on = |point: &&Point| point.disks.iter().any(|disk| lands_on(transfers, disk.uuid()));
    let taken_over = target.points().find(goes_on).filter(|point| point.origin == Origin::XenOrchestra);
    let note = taken_over.map(|point| {
        let has_snapshot = point.disks.iter().any(|disk| source.bases.contains_key(&disk.content_key));
        let kept = has_snapshot.then(|| {
            format!(
                "; source snapshot {} is Xen Orchestra's and is kept: destroy it when no job of Xen Orchestra needs it",
                point.source_snapshot
            )
        });
        let kept = kept.unwrap_or_default();
        format!(
            "goes on from recovery point {}, which Xen Orchestra made without digests: `vmferry verify --deep` compares what it held with \
             the source{kept}",
            point.uuid
        )
    });
    note.into_iter().collect()
}

fn lands_on(transfers: &[Transfer], disk: &str) -> bool {
    transfers.iter().any(|transfer| transfer.lands_on() == Some(disk))
}

impl std::fmt::Display for Unproven {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, uuid, why } = self;
        let why = match why {
            Why::LiveDisks => {
                "was made by Xen Orchestra 6.2 or older: its disks are no snapshots, and nothing proves that nobody wrote to them. A \
                 run of the job by Xen Orchestra 6.3 or newer makes snapshots that a delta can start from"
            }
            Why::Unfinished => {
                "carries the keys of a transfer by Xen Orchestra that was not finished (or somebody reverted it to one), and may lack data"
            }
            Why::Legacy => "was made by a Xen Orchestra older than 5.17, whose keys do not tell what it holds",
        };
        write!(
            f,
            "VM {name} ({uuid}) {why}. It is no base, and stays as it is: destroy it when it is of no use any more"
        )
    }
}
