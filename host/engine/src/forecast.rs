//! How many bytes a transfer will probably take. What really changed is known only from the snapshot on.

use crate::inventory::{AttachedDisk, Inventory};
use crate::job::Job;
use std::collections::BTreeMap;
use vmferry_model::plan::{DiskPlan, ExpectedFrom, Transfer};
use vmferry_model::store::RunStore;
use vmferry_xapi::records::Vdi;

/// Earlier deltas that an expectation is drawn from.
const REMEMBERED: u32 = 10;

/// A transfer with what it will probably cost.
pub(crate) async fn disk_plan(
    runs: &dyn RunStore,
    job: &Job,
    target: &str,
    source: &Inventory,
    disk: &AttachedDisk,
    transfer: &Transfer,
) -> DiskPlan {
    let (expected_bytes, expected_from) = match transfer {
        Transfer::Full { .. } => full(source, &disk.record),
        Transfer::Delta { .. } | Transfer::Resync { .. } => {
            let history = runs.delta_history(&job.tenant, &job.name, target, &disk.record.uuid, REMEMBERED).await;
            match median(history.unwrap_or_default()) {
                Some(bytes) => (bytes, ExpectedFrom::History),
                None => (disk.record.physical_utilisation, ExpectedFrom::PhysicalUtilisation),
            }
        }
    };
    DiskPlan {
        disk: disk.record.uuid.clone(),
        kind: transfer.kind(),
        base: transfer.base().map(str::to_owned),
        reason: transfer.reason(),
        full_reason: transfer.full_reason(),
        expected_bytes,
        expected_from,
    }
}

/// What the chain of a disk occupies, or its virtual size where the storage says nothing.
fn full(source: &Inventory, disk: &Vdi) -> (u64, ExpectedFrom) {
    let by_uuid: BTreeMap<&str, &Vdi> = source.vdis.values().map(|vdi| (vdi.uuid.as_str(), vdi)).collect();
    let links =
        std::iter::successors(Some(disk), |link| by_uuid.get(link.sm_config.get("vhd-parent")?.as_str()).copied());
    let occupied: u64 = links.take(by_uuid.len()).map(|link| link.physical_utilisation).sum();
    match occupied {
        0 => (disk.virtual_size, ExpectedFrom::Full),
        occupied => (occupied.min(disk.virtual_size), ExpectedFrom::PhysicalUtilisation),
    }
}

fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_ignores_one_wild_run() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![7]), Some(7));
        assert_eq!(median(vec![10, 1_000_000, 12]), Some(12));
    }
}
