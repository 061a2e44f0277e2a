//! Which disks travel whole and which as a delta, and where they land: pure functions from what exists.

use crate::inventory::AttachedDisk;
use crate::view::{Point, PointDisk, Replica, SourceVm, TargetView};
use vmferry_model::plan::{Base, FullReason, Transfer};
use vmferry_xapi::Ref;
use vmferry_xapi::records::{PowerState, Vdi};

/// Storage repositories round disks up to this, so a replica may be larger than its source by less than this.
const SR_GRANULARITY: u64 = 2 << 20;

/// How a disk travels to one target.
///
/// The base is the newest content that source and target both hold: recovery points are tried from the newest to the
/// oldest, each identified by the content key of its disk, never by a name or a date.
pub(crate) fn transfer(source: &SourceVm, disk: &AttachedDisk, target: &TargetView, sr: &str) -> Transfer {
    let mut known_to_target = false;
    for (age, point) in target.points().enumerate() {
        let Some(held) = point.disks.iter().find(|held| is_copy_of(source, disk, held, point)) else { continue };
        known_to_target = true;
        if held.attached.record.virtual_size > disk.record.virtual_size.next_multiple_of(SR_GRANULARITY) {
            return Transfer::Full { reason: FullReason::DiskShrunk };
        }
        if source.bases.get(&held.content_key).is_some_and(|base| base.of == disk.vdi) {
            return Transfer::Delta {
                base: Base {
                    source_snapshot_disk: held.content_key.clone(),
                    target_snapshot_disk: held.uuid().to_owned(),
                    newest: age == 0,
                },
            };
        }
    }
    let target_has_points = target.current().is_some();
    let reason = match (target_has_points, known_to_target, source.keeps_snapshot_for(sr)) {
        (true, false, _) => FullReason::NewDisk,
        (false, _, false) => FullReason::FirstRun,
        (_, _, true) => FullReason::BaseGoneOnTarget,
        (true, true, false) => FullReason::BaseGoneOnSource,
    };
    Transfer::Full { reason }
}

/// Whether a disk of a recovery point was copied from this source disk: by its base, else by what it says of
/// itself, else (Xen Orchestra's points say nothing) by its device number.
fn is_copy_of(source: &SourceVm, disk: &AttachedDisk, held: &PointDisk, point: &Point) -> bool {
    if let Some(base) = source.bases.get(&held.content_key) {
        return base.of == disk.vdi;
    }
    match &held.source_disk {
        Some(uuid) => *uuid == disk.record.uuid,
        None => {
            held.userdevice() == disk.vbd_record.userdevice
                && point.disks.iter().filter(|other| other.userdevice() == held.userdevice()).count() == 1
        }
    }
}

/// Where a disk's stream lands.
#[derive(Clone, Debug)]
pub(crate) enum Landing {
    /// On the live replica disk, which is proven to equal the base.
    InPlace(Ref<Vdi>),
    /// On a clone of a recovery point's disk.
    Clone(Box<PointDisk>),
    /// On a new disk.
    Fresh,
}

/// Where a transfer lands. `untouched` is the replica that goes on: proven to equal its newest recovery point.
pub(crate) fn landing(transfer: &Transfer, target: &TargetView, untouched: Option<&Replica>) -> Landing {
    let Transfer::Delta { base } = transfer else { return Landing::Fresh };
    let Some(held) = target.point_disk(&base.target_snapshot_disk) else { return Landing::Fresh };
    let live = untouched
        .filter(|replica| replica.newest().disks.iter().any(|disk| disk.uuid() == held.uuid()))
        .and_then(|replica| replica.live_disk(held));
    match live {
        Some(live) => Landing::InPlace(live.vdi.clone()),
        None => Landing::Clone(Box::new(held.clone())),
    }
}

/// Why a replica's live disks cannot be what its newest recovery point says, as far as records tell. What records
/// cannot tell (a write) is asked of the storage afterwards.
pub(crate) fn divergence(replica: &Replica) -> Option<String> {
    if replica.record.power_state != PowerState::Halted {
        return Some(format!("it is {:?}", replica.record.power_state).to_lowercase());
    }
    let point = replica.newest();
    let whole = point.disks.len() == replica.disks.len() && point.disks.iter().all(|d| replica.live_disk(d).is_some());
    (!whole).then(|| "its disks are not those of its newest recovery point".to_owned())
}
