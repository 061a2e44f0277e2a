//! What would stop a run on a target, found before anything is changed; each obstacle says what to do about it.

use crate::inventory::AttachedDisk;
use crate::job::Tuning;
use crate::lane::{Lane, bytes};
use vmferry_model::plan::Kind;

/// The obstacles of one target.
pub(crate) fn obstacles(lane: &Lane<'_>, disks: &[AttachedDisk], tuning: &Tuning) -> Vec<String> {
    let mut found = Vec::new();
    let sr = &lane.sr_record;
    let needed: u64 = lane.plans.iter().map(|plan| plan.expected_bytes).sum();
    let free = sr.physical_size.saturating_sub(sr.physical_utilisation);
    let full = lane.plans.iter().any(|plan| plan.kind == Kind::Full);
    if full && needed > free {
        found.push(format!(
            "SR {} ({}) of target {} has {} free, the run needs about {}; free space there or set another `sr`",
            sr.name_label,
            sr.uuid,
            lane.target.name,
            bytes(free),
            bytes(needed)
        ));
    }
    for (transfer, disk) in lane.transfers.iter().zip(disks) {
        let Some(held) = transfer.lands_on().and_then(|copy| lane.view.point_disk(copy)) else { continue };
        let depth = lane.inventory.chain_depth(&held.attached.record);
        if depth > tuning.max_chain_depth {
            found.push(format!(
                "the replica of disk {} sits on a chain of {depth} links on SR {}, and the storage manager stops at 30; let it coalesce, or keep fewer recovery points",
                disk.record.uuid, sr.name_label
            ));
        }
    }
    found
}
