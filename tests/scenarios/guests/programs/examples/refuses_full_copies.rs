//! A scheduler that is no misbehaviour: it refuses plans with a full copy, naming the disk and the reason it was given.

use vmferry_plugin_api::scheduler::*;

struct Guest;

impl Scheduler for Guest {
    type Config = std::collections::BTreeMap<String, String>;

    fn describe() -> Description {
        description!("Refuses full copies.")
    }

    fn next_run(_: Self::Config, _: State, now: Timestamp) -> Result<Due, Error> {
        Ok(Due::At(now))
    }

    fn approve(_: Self::Config, plan: Plan, _: Timestamp) -> Result<Approval, Error> {
        let disks = plan.vms.iter().flat_map(|vm| &vm.targets).flat_map(|target| &target.disks);
        for disk in disks {
            if disk.kind == TransferKind::Full {
                return Ok(Approval::Refused(format!("{}: {:?}", disk.disk, disk.full_reason)));
            }
        }
        Ok(Approval::Approved)
    }
}

vmferry_plugin_api::export_scheduler!(Guest);
