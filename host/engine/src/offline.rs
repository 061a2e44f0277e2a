//! Offline snapshots: a running VM is shut down for the moment of its snapshot, and started again at once.
//!
//! The key `vmferry:stopped`, the VM's own uuid so that a copy is told from it, is on the VM from before its shutdown until after its start, so that whoever holds its lease knows that it
//! was us who stopped it, also after a crash. A VM that was off before never gets the key, and stays off.

use crate::error::{RunError, chain};
use crate::keys;
use crate::lease::Lease;
use std::time::Duration;
use vmferry_xapi::records::{PowerState, Vm};
use vmferry_xapi::{ApiError, Error, Ref, Session, params};

/// Operations that change whether a VM runs.
const CHANGES: [&str; 8] =
    ["start", "start_on", "clean_shutdown", "hard_shutdown", "shutdown", "clean_reboot", "hard_reboot", "suspend"];

/// Whether a run shut this VM down and did not get to say that it runs again.
pub(crate) fn is_stopped_by_us(vm: &Vm) -> bool {
    vm.other_config.get(keys::STOPPED) == Some(&vm.uuid)
}

/// Shuts a leased VM down if it runs. One that a dead run left stopped is as it should be.
pub(crate) async fn stop(lease: &Lease, session: &Session, vm: &Ref<Vm>) -> Result<(), RunError> {
    let record = settled(session, vm).await?;
    if record.power_state != PowerState::Running {
        return Ok(());
    }
    let blocked =
        ["clean_shutdown", "start"].into_iter().filter(|operation| record.blocked_operations.contains_key(*operation));
    let blocked: Vec<String> = blocked
        .map(|operation| {
            format!("the VM is to be off for its snapshot, and its `{operation}` is blocked; lift that with `xe vm-param-remove`")
        })
        .collect();
    if !blocked.is_empty() {
        return Err(RunError::Obstacles(blocked));
    }
    lease.check().await?;
    match session.add_to_other_config(vm, keys::STOPPED, &record.uuid).await {
        // A run died before its shutdown began.
        Err(Error::Api(ApiError::MapDuplicateKey { .. })) => {}
        other => other?,
    }
    let stopped = session.call_async::<()>("VM.clean_shutdown", params![vm]).await;
    stopped.map_err(|error| {
        RunError::Obstacles(vec![format!(
            "the VM could not be shut down for its snapshot: {}; see that its guest tools run, or take snapshots of its disks alone",
            chain(&error)
        )])
    })
}

/// Starts a leased VM that we shut down, and takes the key off. Does nothing to any other.
pub(crate) async fn start_again(lease: &Lease, session: &Session, vm: &Ref<Vm>) -> Result<(), RunError> {
    let found: Vm = session.get_record(vm).await?;
    if !is_stopped_by_us(&found) {
        return Ok(());
    }
    lease.check().await?;
    // A shutdown that a dead run asked for may not be done yet: without the key the VM would then stay off.
    let record = settled(session, vm).await?;
    let left = |why: &dyn std::error::Error| RunError::LeftStopped { vm: record.uuid.clone(), why: chain(why) };
    if record.power_state == PowerState::Halted {
        match session.call_async::<()>("VM.start", params![vm, false, false]).await {
            // Somebody was faster.
            Ok(()) | Err(Error::Api(ApiError::VmBadPowerState { .. })) => {}
            Err(error) => return Err(left(&error)),
        }
    }
    Ok(session.remove_from_other_config(vm, keys::STOPPED).await?)
}

/// The VM once nothing changes whether it runs. After about 40 seconds somebody has to look. (Events would begin with the
/// records of the whole pool, for what is nearly always told by the first look.)
async fn settled(session: &Session, vm: &Ref<Vm>) -> Result<Vm, RunError> {
    let mut pause = Duration::from_millis(20);
    loop {
        let record: Vm = session.get_record(vm).await?;
        let Some(change) = record.current_operations.values().find(|operation| CHANGES.contains(&operation.as_str()))
        else {
            return Ok(record);
        };
        if pause > Duration::from_secs(30) {
            let obstacle =
                format!("the VM is in the middle of `{change}`, for half a minute already; see what keeps it");
            return Err(RunError::Obstacles(vec![obstacle]));
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}
