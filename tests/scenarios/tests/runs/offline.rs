//! Offline snapshots: a VM that runs is off for the moment of its snapshot, and whoever stopped it starts it again.

use crate::kills::{assert_objects, check_each, die_after_call, points};
use serde_json::{Value, json};
use vmferry_engine::{FindingKind, GcAct, SnapshotMode};
use vmferry_model::report::Outcome;
use vmferry_scenarios::{MIB, World, point_of};
use vmferry_xapi::records::Vm;
use vmferry_xapi::{Ref, params};
use xapi_sim::{Fault, FaultKind, FaultPoint};

async fn world() -> World {
    let mut world = World::new().await;
    world.job.snapshot = SnapshotMode::Offline;
    world
}

/// Whether the VM runs, and whether it says that we stopped it.
fn state(world: &World) -> (Value, bool) {
    let vm = world.source.record("VM", &world.vm).unwrap();
    (vm["power_state"].clone(), vm["other_config"].get("vmferry:stopped").is_some())
}

/// The calls that stop, freeze and start, in order.
fn acts(world: &World) -> Vec<String> {
    let of_interest = ["Async.VM.clean_shutdown", "Async.VM.snapshot", "Async.VM.start"];
    world.source.calls().into_iter().filter(|call| of_interest.contains(&call.as_str())).collect()
}

fn fail(world: &World, method: &str, code: &str) {
    let kind = FaultKind::ApiError(code.to_owned(), vec![world.vm.clone()]);
    world.source.inject(Fault { at: FaultPoint::Call(method.to_owned()), nth: 1, kind });
}

#[tokio::test]
async fn a_running_vm_is_off_for_its_snapshot_and_runs_while_its_disks_travel() {
    let world = world().await;
    world.source.clear_calls();
    world.source.inject(Fault { at: FaultPoint::Export, nth: 1, kind: FaultKind::StallAfter(MIB) });
    let meanwhile = async {
        world.source.wait_until_stalled().await;
        let found = state(&world);
        world.source.clear_faults();
        found
    };
    let (report, meanwhile) = tokio::join!(world.run(), meanwhile);
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    assert_eq!(report.vms[0].warnings, Vec::<String>::new());
    assert_eq!(acts(&world), ["Async.VM.clean_shutdown", "Async.VM.snapshot", "Async.VM.start"]);
    assert_eq!(meanwhile, (json!("Running"), false));
    let snapshots = world.source.records("VM").into_iter().filter(|vm| vm["is_a_snapshot"] == true);
    let before: Vec<Value> = snapshots.map(|vm| vm["snapshot_info"]["power-state-at-snapshot"].clone()).collect();
    assert_eq!(before, ["Halted"]);
    assert_eq!(world.target_content(&point_of(&report)), world.source_content());
    world.assert_tidy(1);
}

#[tokio::test]
async fn a_vm_may_ask_for_it_by_xen_orchestras_tag() {
    let world = World::new().await;
    let session = world.at_source().await;
    let vm: Ref<Vm> = session.by_uuid(&world.vm).await.unwrap();
    let () = session.call("VM.add_tags", params![&vm, "xo-offline-backup"]).await.unwrap();
    session.logout().await.unwrap();
    world.source.clear_calls();
    assert_eq!(world.run().await.outcome, Outcome::Succeeded);
    assert_eq!(acts(&world).len(), 3);
}

#[tokio::test]
async fn a_vm_that_was_off_before_stays_off() {
    let world = world().await;
    let session = world.at_source().await;
    let vm: Ref<Vm> = session.by_uuid(&world.vm).await.unwrap();
    let () = session.call_async("VM.clean_shutdown", params![&vm]).await.unwrap();
    session.logout().await.unwrap();
    assert_eq!(world.run().await.outcome, Outcome::Succeeded);
    world.gc(true).await;
    assert_eq!(state(&world), (json!("Halted"), false));
}

#[tokio::test]
async fn a_snapshot_that_fails_leaves_the_vm_running() {
    let world = world().await;
    fail(&world, "VM.snapshot", "SR_BACKEND_FAILURE_44");
    assert_eq!(world.run().await.outcome, Outcome::Failed);
    assert_eq!(state(&world), (json!("Running"), false));
}

#[tokio::test]
async fn a_guest_that_cannot_be_shut_down_is_told_and_goes_on() {
    let world = world().await;
    fail(&world, "VM.clean_shutdown", "VM_MISSING_PV_DRIVERS");
    let report = world.run().await;
    let error = report.vms[0].error.as_ref().unwrap();
    assert!(error.contains("could not be shut down for its snapshot") && error.contains("guest tools"), "{error}");
    assert_eq!((report.outcome, state(&world)), (Outcome::Failed, (json!("Running"), false)));
}

#[tokio::test]
async fn a_vm_that_could_not_be_started_at_once_is_started_at_the_end() {
    let world = world().await;
    fail(&world, "VM.start", "HOST_NOT_ENOUGH_FREE_MEMORY");
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    let warnings = &report.vms[0].warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("could not be started again"), "{warnings:?}");
    assert_eq!(state(&world), (json!("Running"), false));
}

#[tokio::test]
async fn a_vm_that_cannot_be_started_again_is_a_failure_until_gc_starts_it() {
    let world = world().await;
    fail(&world, "VM.start", "HOST_NOT_ENOUGH_FREE_MEMORY");
    fail(&world, "VM.start", "HOST_NOT_ENOUGH_FREE_MEMORY");
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Failed, "{report:#?}");
    assert!(report.vms[0].error.as_ref().unwrap().contains("could not be started again"), "{report:#?}");
    assert_eq!(world.target_content(&point_of(&report)), world.source_content(), "its point is made");
    assert_eq!(state(&world), (json!("Halted"), true));
    let found = world.gc(true).await;
    assert!(found.findings.iter().any(|one| (one.kind, one.act) == (FindingKind::StoppedVm, GcAct::PutRight)));
    assert_eq!(state(&world), (json!("Running"), false));
}

#[tokio::test]
async fn a_shutdown_that_is_blocked_is_refused_before_the_vm_is_touched() {
    let world = world().await;
    let session = world.at_source().await;
    let vm: Ref<Vm> = session.by_uuid(&world.vm).await.unwrap();
    let () = session.call("VM.add_to_blocked_operations", params![&vm, "start", "licence"]).await.unwrap();
    session.logout().await.unwrap();
    let report = world.run().await;
    assert!(report.vms[0].error.as_ref().unwrap().contains("its `start` is blocked"), "{report:#?}");
    assert_eq!(state(&world), (json!("Running"), false));
}

/// Kills a run after its `nth` call on the source; the VM is started by the next run, or by gc.
async fn check(nth: u32, by_gc: bool) -> bool {
    let world = world().await;
    let died = die_after_call(&world, &world.source, nth).await;
    let name = format!("killed after call {nth}, gc: {by_gc}");
    if by_gc {
        let report = world.gc(true).await;
        assert_eq!(report.problems, Vec::new(), "{name}");
        // What XAPI was asked for before the run died may come after gc has looked.
        let later = world.gc(true).await;
        assert_eq!(later.problems, Vec::new(), "{name}");
        assert_eq!(state(&world), (json!("Running"), false), "{name}");
    }
    let points_before = points(&world);
    let healed = world.run().await;
    assert_eq!(healed.outcome, Outcome::Succeeded, "{name}: {healed:#?}");
    assert_eq!(state(&world), (json!("Running"), false), "{name}");
    assert_eq!(world.target_content(&point_of(&healed)), world.source_content(), "{name}");
    assert_objects(&world, &name, points_before);
    died
}

#[tokio::test]
async fn a_run_may_die_after_any_call_and_the_next_one_starts_the_vm() {
    check_each(25, async |nth| check(nth, false).await).await;
}

#[tokio::test]
async fn a_run_may_die_after_any_call_and_gc_starts_the_vm() {
    check_each(25, async |nth| check(nth, true).await).await;
}
