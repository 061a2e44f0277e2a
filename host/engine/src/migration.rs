//! No migration of a source VM while a run reads it: its disks would move away under the snapshot and the lease.
//!
//! The block is a text under `blocked_operations`, which snapshots do not inherit. Only who holds the VM's lease puts it there
//! or takes it off, so under the lease one with a text of ours is this run's or a dead run's, whatever job it names. What
//! somebody else blocked has another text, and is left as it is.

use crate::error::RunError;
use crate::keys::Keys;
use crate::lease::Lease;
use vmferry_xapi::records::Vm;
use vmferry_xapi::{ApiError, Error, Ref, Session, params};

/// The two ways in which XAPI moves a VM: within its pool, and with its disks.
const OPERATIONS: [&str; 2] = ["pool_migrate", "migrate_send"];

/// How every text of ours begins.
const MARK: &str = "vmferry is replicating this VM";

/// What a migration is refused with.
fn text(job: &str) -> String {
    format!(
        "{MARK}: it can be migrated again as soon as the run of job {job} ends; if that run was killed, its next one or `vmferry gc {job} \
         --apply` lifts this block"
    )
}

/// The operations that a run of vmferry blocked.
fn blocked_by_us(blocked: &Keys) -> Vec<&'static str> {
    let ours = |operation: &&str| blocked.get(*operation).is_some_and(|text| text.starts_with(MARK));
    OPERATIONS.into_iter().filter(ours).collect()
}

/// Whether a run of vmferry blocked the migration of this VM.
pub(crate) fn is_blocked_by_us(vm: &Vm) -> bool {
    !blocked_by_us(&vm.blocked_operations).is_empty()
}

/// Whether a run of this job did.
pub(crate) fn is_blocked_by(vm: &Vm, job: &str) -> bool {
    let text = text(job);
    OPERATIONS.iter().any(|operation| vm.blocked_operations.get(*operation) == Some(&text))
}

/// Which migration of this VM is under way.
pub(crate) fn under_way(vm: &Vm) -> Option<&str> {
    vm.current_operations.values().map(String::as_str).find(|operation| OPERATIONS.contains(operation))
}

/// Blocks the migration of a leased VM where nobody else has done so. Fails if one is under way already, and tells
/// the VM as it is.
pub(crate) async fn block(session: &Session, vm: &Ref<Vm>, job: &str) -> Result<Vm, RunError> {
    let text = text(job);
    for operation in OPERATIONS {
        match session.call::<()>("VM.add_to_blocked_operations", params![vm, operation, &text]).await {
            // By somebody else, or by a run that died.
            Err(Error::Api(ApiError::MapDuplicateKey { .. })) => {}
            other => other?,
        }
    }
    // Asked after the block, so that none can begin in between.
    let record: Vm = session.get_record(vm).await?;
    match under_way(&record) {
        Some(operation) => Err(RunError::Migrating { vm: record.uuid.clone(), operation: operation.to_owned() }),
        None => Ok(record),
    }
}

/// Takes the block off a VM again, and a dead run's with it. Who took the lease over takes it off when he is done.
pub(crate) async fn allow(lease: &Lease, session: &Session, vm: &Ref<Vm>) -> Result<(), RunError> {
    lease.check().await?;
    let blocked: Keys = session.call("VM.get_blocked_operations", params![vm]).await?;
    let ours = blocked_by_us(&blocked);
    for operation in &ours {
        let () = session.call("VM.remove_from_blocked_operations", params![vm, *operation]).await?;
    }
    if !ours.is_empty() {
        // XAPI does not do so by itself, and clients would go on to offer no migration.
        let () = session.call("VM.update_allowed_operations", params![vm]).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_we_blocked_is_ours_whatever_job_it_was() {
        let blocked = |text: &str| Keys::from([("migrate_send".to_owned(), text.to_owned())]);
        assert_eq!(blocked_by_us(&blocked(&text("erp"))), ["migrate_send"]);
        assert_eq!(blocked_by_us(&blocked(&text("another"))), ["migrate_send"]);
        assert!(blocked_by_us(&blocked("VM migration is blocked during backup")).is_empty());
        assert!(blocked_by_us(&Keys::from([("start".to_owned(), text("erp"))])).is_empty());
    }
}
