//! Whatever changes on the source VM between two runs, or during one, is in the next recovery point; the one before stays as
//! it was.

use serde_json::json;
use std::collections::BTreeMap;
use vmferry_model::plan::{FullReason, Kind};
use vmferry_model::report::{Outcome, RunReport};
use vmferry_scenarios::{MIB, World, disk_record, disks, only_target, point_of, vbd_record};
use vmferry_xapi::records::{Host, Vbd, Vdi, Vif, Vm};
use vmferry_xapi::{IntoValue, Ref, Session, Value, params};
use xapi_sim::{Fault, FaultKind, FaultPoint};

/// A session on the source, and the VM there.
async fn source_vm(world: &World) -> (Session, Ref<Vm>) {
    let session = world.at_source().await;
    let vm = session.by_uuid(&world.vm).await.unwrap();
    (session, vm)
}

fn blocked(world: &World) -> serde_json::Value {
    world.source.record("VM", &world.vm).unwrap()["blocked_operations"].clone()
}

#[tokio::test]
async fn during_a_run_the_vm_cannot_be_migrated_and_after_it_it_can() {
    let world = World::new().await;
    world.source.inject(Fault { at: FaultPoint::Export, nth: 1, kind: FaultKind::StallAfter(MIB) });
    let operator = async {
        world.source.wait_until_stalled().await;
        let found = blocked(&world);
        let (session, vm) = source_vm(&world).await;
        let hosts: Vec<(Ref<Host>, Host)> = session.get_all_records().await.unwrap();
        let options = BTreeMap::<String, String>::new();
        let refused = session.call::<()>("VM.pool_migrate", params![&vm, &hosts[0].0, options]).await.unwrap_err();
        session.logout().await.unwrap();
        world.source.clear_faults();
        (found, refused.to_string())
    };
    let (report, (found, refused)) = tokio::join!(world.run(), operator);

    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    for operation in ["pool_migrate", "migrate_send"] {
        let text = found[operation].as_str().expect(operation);
        assert!(text.contains("as soon as the run of job erp ends") && text.contains("gc erp --apply"), "{text}");
    }
    assert!(refused.contains("vmferry is replicating this VM"), "{refused}");
    let vm = world.source.record("VM", &world.vm).unwrap();
    assert_eq!(vm["blocked_operations"], json!({}));
    assert!(vm["allowed_operations"].as_array().unwrap().contains(&json!("migrate_send")), "clients offer it again");
    for (side, pool) in [("source", &world.source), ("target", &world.target)] {
        let snapshots = pool.records("VM").into_iter().filter(|vm| vm["is_a_snapshot"] == true);
        snapshots.for_each(|vm| assert_eq!(vm["blocked_operations"], json!({}), "a snapshot on the {side}"));
    }
    let standbys = world.target.records("VM").into_iter().filter(|vm| vm["blocked_operations"] != json!({}));
    standbys.for_each(|vm| assert!(vm["blocked_operations"]["migrate_send"].is_null(), "{vm:#?}"));
}

#[tokio::test]
async fn a_run_that_fails_lifts_its_block() {
    let world = World::new().await;
    world.source.inject(Fault { at: FaultPoint::Export, nth: 1, kind: FaultKind::CutAfter(MIB) });
    assert_eq!(world.run().await.outcome, Outcome::Failed);
    assert_eq!(blocked(&world), json!({}));
}

#[tokio::test]
async fn what_somebody_else_blocked_is_neither_overwritten_nor_lifted() {
    let world = World::new().await;
    let (session, vm) = source_vm(&world).await;
    let theirs = [("migrate_send", "VM migration is blocked during backup"), ("destroy", "do not touch")];
    for (operation, text) in theirs {
        let () = session.call("VM.add_to_blocked_operations", params![&vm, operation, text]).await.unwrap();
    }
    session.logout().await.unwrap();
    let before = blocked(&world);
    assert_eq!(world.run().await.outcome, Outcome::Succeeded);
    assert_eq!(blocked(&world), before);
    world.gc(true).await;
    assert_eq!(blocked(&world), before);
}

#[tokio::test]
async fn a_vm_that_is_being_migrated_is_skipped_and_replicated_afterwards() {
    let world = World::new().await;
    let (session, vm) = source_vm(&world).await;
    let hosts: Vec<(Ref<Host>, Host)> = session.get_all_records().await.unwrap();
    let options = BTreeMap::<String, String>::new();
    let fault = Fault { at: FaultPoint::Call("VM.pool_migrate".into()), nth: 1, kind: FaultKind::StallAfter(0) };
    world.source.inject(fault);
    let migration = session.call_async::<()>("VM.pool_migrate", params![&vm, &hosts[0].0, options]);
    let meanwhile = async {
        world.source.wait_until_stalled().await;
        let (plan, report) = (world.plan().await, world.run().await);
        world.source.clear_faults();
        (plan, report)
    };
    let (migrated, (plan, report)) = tokio::join!(migration, meanwhile);
    migrated.unwrap();
    session.logout().await.unwrap();

    let error = report.vms[0].error.as_ref().unwrap();
    assert!(error.contains("is being migrated (pool_migrate)"), "{error}");
    assert_eq!((report.outcome, report.vms[0].locked), (Outcome::Skipped, false), "no other run holds it");
    assert_eq!(plan.vms[0].error.as_ref(), Some(error));
    assert_eq!(blocked(&world), json!({}));
    let later = world.run().await;
    assert_eq!(later.outcome, Outcome::Succeeded, "{later:#?}");
    assert_eq!(world.target_content(&point_of(&later)), world.source_content());
}

/// A world with one recovery point, and what that holds.
async fn replicated() -> (World, String, Vec<String>) {
    let world = World::new().await;
    let point = point_of(&world.run().await);
    let content = world.source_content();
    (world, point, content)
}

/// Runs once more: the plan foretells how each disk travels and why, the new point equals the source, the old one is as it
/// was.
async fn next(
    world: &World,
    (point, content): (&String, &Vec<String>),
    how: &[(Kind, Option<FullReason>)],
) -> RunReport {
    let plan = world.plan().await;
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    let planned: Vec<_> = plan.vms[0].targets[0].disks.iter().map(|disk| (disk.kind, disk.full_reason)).collect();
    let moved: Vec<_> = disks(&report).iter().map(|disk| (disk.kind, disk.full_reason)).collect();
    assert_eq!((planned.as_slice(), moved.as_slice()), (how, how), "{report:#?}");
    assert_eq!(world.target_content(&point_of(&report)), world.source_content());
    assert_eq!(&world.target_content(point), content, "the point before is as it was");
    report
}

const DELTA: (Kind, Option<FullReason>) = (Kind::Delta, None);

fn full(reason: FullReason) -> (Kind, Option<FullReason>) {
    (Kind::Full, Some(reason))
}

/// The drive of a VM that a disk is in.
fn drive(world: &World, disk: &str) -> Ref<Vbd> {
    let disk = world.source.record("VDI", disk).unwrap();
    Ref::new(disk["VBDs"][0].as_str().unwrap())
}

async fn stop(session: &Session, vm: &Ref<Vm>) {
    let () = session.call_async("VM.clean_shutdown", params![vm]).await.unwrap();
}

#[tokio::test]
async fn a_disk_that_was_added_travels_whole_beside_the_deltas() {
    let (world, point, content) = replicated().await;
    let (session, vm) = source_vm(&world).await;
    let sr: String = session.call("SR.get_by_uuid", params![world.source.default_sr()]).await.unwrap();
    let disk: Ref<Vdi> = session.call("VDI.create", params![disk_record(&sr, 8 * MIB)]).await.unwrap();
    let _: Ref<Vbd> = session.call("VBD.create", params![vbd_record(vm.as_str(), disk.as_str())]).await.unwrap();
    session.logout().await.unwrap();
    world.source.write(&world.source.vm_disks(&world.vm)[2], MIB, b"new");
    next(&world, (&point, &content), &[DELTA, DELTA, full(FullReason::NewDisk)]).await;
}

#[tokio::test]
async fn a_disk_that_was_removed_or_marked_is_in_no_later_point() {
    for mark in [false, true] {
        let (world, point, content) = replicated().await;
        let (session, vm) = source_vm(&world).await;
        let data = world.source.vm_disks(&world.vm)[1].clone();
        stop(&session, &vm).await;
        if mark {
            let disk: Ref<Vdi> = session.by_uuid(&data).await.unwrap();
            let () = session.call("VDI.set_name_label", params![disk, "scratch [NOBAK]"]).await.unwrap();
        } else {
            let () = session.call("VBD.destroy", params![drive(&world, &data)]).await.unwrap();
        }
        session.logout().await.unwrap();
        let report = world.run().await;
        assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
        let moved: Vec<_> = disks(&report).iter().map(|disk| (disk.kind, disk.full_reason)).collect();
        assert_eq!(moved, [DELTA]);
        assert_eq!(world.target_content(&point_of(&report)), world.source_content()[..1]);
        assert_eq!(world.target_content(&point), content, "the point before still has both");
        let replica = only_target(&report).replica.as_ref().unwrap();
        assert_eq!(world.target.vm_disks(replica).len(), 1);
    }
}

#[tokio::test]
async fn a_disk_that_is_detached_after_the_snapshot_is_in_its_point_all_the_same() {
    let (world, point, content) = replicated().await;
    let (session, vm) = source_vm(&world).await;
    stop(&session, &vm).await;
    let disks_before = world.source.vm_disks(&world.vm);
    world.source.write(&disks_before[1], MIB, b"the last of it");
    let expected = world.source_content();
    // The last call on the snapshot before the VM is looked at again.
    let last = FaultPoint::Call("VM.set_name_label".to_owned());
    world.source.inject(Fault { at: last, nth: 1, kind: FaultKind::StallAfter(0) });
    let detached = async {
        world.source.wait_until_stalled().await;
        let () = session.call("VBD.destroy", params![drive(&world, &disks_before[0])]).await.unwrap();
        world.source.clear_faults();
    };
    let (report, ()) = tokio::join!(world.run(), detached);
    session.logout().await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    assert_eq!(world.target_content(&point_of(&report)), expected);
    assert_eq!(world.target_content(&point), content, "the point before is as it was");
}

#[tokio::test]
async fn a_disk_that_grew_travels_as_a_delta() {
    let (world, point, content) = replicated().await;
    let (session, vm) = source_vm(&world).await;
    let system = world.source.vm_disks(&world.vm)[0].clone();
    let disk: Ref<Vdi> = session.by_uuid(&system).await.unwrap();
    stop(&session, &vm).await;
    let () = session.call("VDI.resize", params![disk, 96 * MIB]).await.unwrap();
    session.logout().await.unwrap();
    world.source.write(&system, 90 * MIB, b"behind the old end");
    next(&world, (&point, &content), &[DELTA, DELTA]).await;
}

#[tokio::test]
async fn a_disk_that_shrank_because_its_vm_was_reverted_travels_whole() {
    let world = World::new().await;
    let (session, vm) = source_vm(&world).await;
    let before: Ref<Vm> = session.call_async("VM.snapshot", params![&vm, "before the disk grew"]).await.unwrap();
    stop(&session, &vm).await;
    let disk: Ref<Vdi> = session.by_uuid(&world.source.vm_disks(&world.vm)[0]).await.unwrap();
    let () = session.call("VDI.resize", params![disk, 96 * MIB]).await.unwrap();
    let point = point_of(&world.run().await);
    let content = world.source_content();
    let () = session.call_async("VM.revert", params![before]).await.unwrap();
    session.logout().await.unwrap();
    next(&world, (&point, &content), &[full(FullReason::DiskShrunk), DELTA]).await;
}

#[tokio::test]
async fn a_disk_that_moved_to_another_sr_is_another_disk_and_travels_whole() {
    let (world, point, content) = replicated().await;
    let (session, vm) = source_vm(&world).await;
    let data = world.source.vm_disks(&world.vm)[1].clone();
    let sr: String = session.call("SR.get_by_uuid", params![world.source.add_sr("fast", 1 << 40)]).await.unwrap();
    stop(&session, &vm).await;
    let disk: Ref<Vdi> = session.by_uuid(&data).await.unwrap();
    let moved: Ref<Vdi> = session.call_async("VDI.copy", params![&disk, &sr]).await.unwrap();
    let () = session.call("VBD.destroy", params![drive(&world, &data)]).await.unwrap();
    let _: Ref<Vbd> = session.call("VBD.create", params![vbd_record(vm.as_str(), moved.as_str())]).await.unwrap();
    let () = session.call_async("VDI.destroy", params![&disk]).await.unwrap();
    session.logout().await.unwrap();
    next(&world, (&point, &content), &[DELTA, full(FullReason::NewDisk)]).await;
}

#[tokio::test]
async fn a_drive_with_a_cd_is_no_disk() {
    let (world, point, content) = replicated().await;
    let (session, vm) = source_vm(&world).await;
    let sr: String = session.call("SR.get_by_uuid", params![world.source.default_sr()]).await.unwrap();
    let cd: Ref<Vdi> = session.call("VDI.create", params![disk_record(&sr, 2 * MIB)]).await.unwrap();
    let Value::Struct(mut record) = vbd_record(vm.as_str(), cd.as_str()) else { panic!("a record") };
    record.extend([("type", "CD"), ("mode", "RO")].map(|(key, text)| (key.to_owned(), text.into_value())));
    let _: Ref<Vbd> = session.call("VBD.create", params![Value::Struct(record)]).await.unwrap();
    session.logout().await.unwrap();
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    let moved: Vec<_> = disks(&report).iter().map(|disk| (disk.kind, disk.full_reason)).collect();
    assert_eq!(moved, [DELTA, DELTA]);
    assert_eq!(world.target_content(&point_of(&report)), world.source_content()[..2]);
    assert_eq!(world.target_content(&point), content);
    let replica = only_target(&report).replica.as_ref().unwrap();
    assert_eq!(world.target.record("VM", replica).unwrap()["VBDs"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_vm_without_disks_is_replicated() {
    let mut world = World::new().await;
    world.replace_vm(&[]);
    let first = world.run().await;
    assert_eq!(first.outcome, Outcome::Succeeded, "{first:#?}");
    let second = world.run().await;
    assert_eq!(second.outcome, Outcome::Succeeded, "{second:#?}");
    assert_eq!(only_target(&first).replica, only_target(&second).replica);
    assert!(world.target_content(&point_of(&second)).is_empty());
}

#[tokio::test]
async fn a_vm_that_was_stopped_or_suspended_is_replicated_and_stays_so() {
    let (world, point, content) = replicated().await;
    let (session, vm) = source_vm(&world).await;
    let () = session.call_async("VM.suspend", params![&vm]).await.unwrap();
    let report = next(&world, (&point, &content), &[DELTA, DELTA]).await;
    assert_eq!(world.source.record("VM", &world.vm).unwrap()["power_state"], "Suspended");
    assert!(report.vms[0].warnings.iter().any(|warning| warning.contains("is suspended")), "{report:#?}");
    let replica = world.target.record("VM", only_target(&report).replica.as_ref().unwrap()).unwrap();
    assert_eq!((&replica["power_state"], &replica["suspend_VDI"]), (&json!("Halted"), &json!("OpaqueRef:NULL")));

    let () = session.call_async("VM.resume", params![&vm, false, false]).await.unwrap();
    stop(&session, &vm).await;
    session.logout().await.unwrap();
    let report = next(&world, (&point, &content), &[DELTA, DELTA]).await;
    assert_eq!(world.source.record("VM", &world.vm).unwrap()["power_state"], "Halted");
    assert_eq!(report.vms[0].warnings, Vec::<String>::new());
}

#[tokio::test]
async fn what_a_vm_is_called_and_made_of_is_brought_up_to_date_in_place() {
    let (world, point, content) = replicated().await;
    let (session, vm) = source_vm(&world).await;
    let disk: Ref<Vdi> = session.by_uuid(&world.source.vm_disks(&world.vm)[0]).await.unwrap();
    stop(&session, &vm).await;
    let map = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let () = session.call("VM.set_name_label", params![&vm, "erp-db-2"]).await.unwrap();
    let () = session.call("VM.set_NVRAM", params![&vm, map("EFI-variables", "AAAA")]).await.unwrap();
    let () = session.call("VM.set_bios_strings", params![&vm, map("bios-vendor", "Xen")]).await.unwrap();
    let () = session.call("VM.set_tags", params![&vm, vec!["erp".to_owned(), "tier-1".to_owned()]]).await.unwrap();
    let () = session.call("VM.set_ha_restart_priority", params![&vm, "restart"]).await.unwrap();
    let () = session.call("VM.set_order", params![&vm, 7]).await.unwrap();
    let () = session.call("VM.set_start_delay", params![&vm, 30]).await.unwrap();
    let () = session.call("VDI.set_name_description", params![&disk, "boots"]).await.unwrap();
    session.logout().await.unwrap();

    for _ in 0..2 {
        let report = next(&world, (&point, &content), &[DELTA, DELTA]).await;
        let replica = only_target(&report).replica.as_ref().unwrap();
        let found = world.target.record("VM", replica).unwrap();
        assert_eq!(found["name_label"], "erp-db-2 [replica erp]");
        assert_eq!(found["NVRAM"], json!({ "EFI-variables": "AAAA" }));
        assert_eq!(found["bios_strings"], json!({ "bios-vendor": "Xen" }));
        assert_eq!(found["tags"], json!(["Continuous Replication", "HA disabled", "erp", "tier-1"]));
        assert_eq!(
            (&found["ha_restart_priority"], &found["order"], &found["start_delay"]),
            (&json!(""), &json!(7), &json!(30))
        );
        assert_eq!(found["other_config"]["vmferry:source-ha-restart-priority"], "restart");
        let disk = world.target.record("VDI", &world.target.vm_disks(replica)[0]).unwrap();
        assert_eq!(disk["name_description"], "boots");
    }
}

#[tokio::test]
async fn interfaces_follow_their_source_in_what_they_may_send_as_well() {
    let (world, point, content) = replicated().await;
    let (session, vm) = source_vm(&world).await;
    let found: Vec<(Ref<Vif>, Vif)> = session.get_all_records().await.unwrap();
    let (vif, record) = found.into_iter().find(|(_, vif)| vif.vm == vm).unwrap();
    let () = session.call("VIF.set_locking_mode", params![&vif, "locked"]).await.unwrap();
    let () = session.call("VIF.set_ipv4_allowed", params![&vif, vec!["192.0.2.7".to_owned()]]).await.unwrap();
    session.logout().await.unwrap();
    let report = next(&world, (&point, &content), &[DELTA, DELTA]).await;
    let replica = world.target.record("VM", only_target(&report).replica.as_ref().unwrap()).unwrap();
    let vifs = world.target.records("VIF").into_iter().filter(|vif| vif["VM"] == replica["$ref"]);
    let found: Vec<_> =
        vifs.map(|vif| (vif["MAC"].clone(), vif["locking_mode"].clone(), vif["ipv4_allowed"].clone())).collect();
    assert_eq!(found, [(json!(record.mac), json!("locked"), json!(["192.0.2.7"]))]);
}

/// What the only virtual TPM of a VM keeps; `None` without one.
async fn vtpm(session: &Session, vm: &str) -> Option<String> {
    let vm: Ref<Vm> = session.by_uuid(vm).await.unwrap();
    let found: Vec<Ref<()>> = session.call("VM.get_VTPMs", params![vm]).await.unwrap();
    assert!(found.len() < 2);
    let vtpm = found.first()?;
    Some(session.call("VTPM.get_contents", params![vtpm]).await.unwrap())
}

#[tokio::test]
async fn a_virtual_tpm_follows_its_source_and_each_point_keeps_its_own() {
    let (world, _, _) = replicated().await;
    let (session, vm) = source_vm(&world).await;
    let there = world.at_target().await;
    stop(&session, &vm).await;
    let tpm: Ref<()> = session.call("VTPM.create", params![&vm, false]).await.unwrap();
    let mut points = Vec::new();
    for keys in ["sealed keys", "other keys"] {
        let () = session.call("VTPM.set_contents", params![&tpm, keys]).await.unwrap();
        let report = world.run().await;
        assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
        assert_eq!(only_target(&report).warnings, Vec::<String>::new());
        assert_eq!(vtpm(&there, only_target(&report).replica.as_ref().unwrap()).await.as_deref(), Some(keys));
        points.push((point_of(&report), keys));
    }
    let () = session.call("VTPM.destroy", params![&tpm]).await.unwrap();
    let report = world.run().await;
    assert_eq!(vtpm(&there, only_target(&report).replica.as_ref().unwrap()).await, None);
    for (point, keys) in points {
        assert_eq!(vtpm(&there, &point).await.as_deref(), Some(keys));
    }
    session.logout().await.unwrap();
    there.logout().await.unwrap();
}

#[tokio::test]
async fn a_commit_that_failed_leaves_the_secrets_of_the_point_with_its_disks() {
    let world = World::new().await;
    let (session, vm) = source_vm(&world).await;
    let there = world.at_target().await;
    stop(&session, &vm).await;
    let tpm: Ref<()> = session.call("VTPM.create", params![&vm, false]).await.unwrap();
    let seal = async |keys: &str| {
        let () = session.call("VTPM.set_contents", params![&tpm, keys]).await.unwrap();
        let nvram = BTreeMap::from([("EFI-variables".to_owned(), keys.to_owned())]);
        let () = session.call("VM.set_NVRAM", params![&vm, nvram]).await.unwrap();
    };
    seal("sealed keys").await;
    let replica = only_target(&world.run().await).replica.clone().unwrap();
    seal("other keys").await;
    let kind = FaultKind::ApiError("SR_BACKEND_FAILURE_109".to_owned(), vec!["too long".to_owned()]);
    world.target.inject(Fault { at: FaultPoint::Call("VM.snapshot".into()), nth: 1, kind });
    let failed = world.run().await;
    assert_eq!(failed.outcome, Outcome::Failed, "{failed:#?}");
    assert_eq!(vtpm(&there, &replica).await.as_deref(), Some("sealed keys"));
    let record = world.target.record("VM", &replica).unwrap();
    assert_eq!(record["NVRAM"]["EFI-variables"], "sealed keys");
    session.logout().await.unwrap();
    there.logout().await.unwrap();
}

#[tokio::test]
async fn a_virtual_tpm_that_the_target_does_not_take_costs_a_warning_and_no_point() {
    let world = World::new().await;
    let (session, vm) = source_vm(&world).await;
    stop(&session, &vm).await;
    let _: Ref<()> = session.call("VTPM.create", params![&vm, false]).await.unwrap();
    session.logout().await.unwrap();
    let kind = FaultKind::ApiError("LICENCE_RESTRICTION".to_owned(), vec!["VTPM".to_owned()]);
    world.target.inject(Fault { at: FaultPoint::Call("VTPM.create".into()), nth: 1, kind });
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    let warnings = &only_target(&report).warnings;
    assert!(warnings.iter().any(|warning| warning.contains("virtual TPM") && warning.contains("VTPM")), "{warnings:?}");
}
