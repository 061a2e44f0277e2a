//! A recovery point of any target comes back: as a new VM, as what differs from one that is there, or as files.

use crate::gc::settled;
use crate::kills::{check_each, struck_after_call};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use vmferry_engine::{EngineError, FindingKind, GcAct, ImageFormat, RestoreReport, RestoreRequest, RestoreTo, Silent};
use vmferry_model::report::Outcome;
use vmferry_model::target::PointStore;
use vmferry_scenarios::shelf::Shelf;
use vmferry_scenarios::{MIB, World, vbd_record};
use xapi_sim::{Fault, FaultKind, FaultPoint};

/// A world whose job keeps points on a pool and on a shelf, after two runs.
async fn two_points(shelf: &Shelf) -> World {
    let mut world = World::new().await;
    world.job.stores.push(shelf.target("shelf"));
    for byte in [1, 2] {
        touch(&world, byte);
        let report = world.run().await;
        assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    }
    world
}

fn touch(world: &World, byte: u8) {
    world.source.write(&world.source.vm_disks(&world.vm)[0], 10 * MIB, &[byte; 100_000]);
}

async fn restore(
    world: &World,
    target: &str,
    point: Option<String>,
    to: RestoreTo,
) -> Result<RestoreReport, EngineError> {
    let engine = world.engine();
    let request = RestoreRequest { vm: world.vm.clone(), point, target: Some(target.to_owned()), to };
    let done = engine.restore(&world.job, &request, Arc::new(Silent)).await;
    engine.close().await;
    done
}

/// Drives a restore until it reads from the shelf, which waits then.
async fn until_it_reads<T>(shelf: &Shelf, restored: impl Future<Output = T> + Unpin) {
    shelf.stall("read", false);
    tokio::select! {
        _ = restored => panic!("it did not stall"),
        () = shelf.wait_until_stalled() => {}
    }
}

fn new_vm(pool: &str) -> RestoreTo {
    RestoreTo::NewVm { pool: pool.to_owned(), sr: None, networks: BTreeMap::new(), name: None }
}

#[tokio::test]
async fn a_point_of_any_target_becomes_a_vm_like_its_source() {
    let shelf = Shelf::new(1 << 20);
    let world = two_points(&shelf).await;
    let then = world.source_content();
    touch(&world, 3);
    for target in ["shelf", "dr"] {
        let report = restore(&world, target, None, new_vm("dr")).await.unwrap();
        let vm = report.restored.clone().unwrap();
        assert!(report.disks.iter().all(|disk| disk.proven), "{report:#?}");
        assert_eq!(world.target_content(&vm), then, "{target}");
        let record = world.target.record("VM", &vm).unwrap();
        assert_eq!(record["name_label"], "erp-db", "{target}");
        assert_eq!(record["is_a_template"], false);
        assert_eq!(record["tags"], serde_json::json!(["erp"]), "{target}");
        let keys = record["other_config"].as_object().unwrap();
        assert!(!keys.keys().any(|key| key.starts_with("vmferry:") || key.starts_with("xo:")), "{target}: {keys:#?}");
        assert_eq!(record["VIFs"].as_array().unwrap().len(), 1, "{target}");
        assert!(!keys.contains_key("auto_poweron"), "it starts when somebody says so");
    }
    assert!(world.gc(false).await.findings.is_empty(), "what was restored is its owner's");
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
}

#[tokio::test]
async fn an_older_point_comes_back_by_its_name() {
    let shelf = Shelf::new(1 << 20);
    let world = two_points(&shelf).await;
    let older = shelf.ids().remove(0);
    let report = restore(&world, "shelf", Some(older.clone()), new_vm("prod")).await.unwrap();
    assert_eq!(report.point, older);
    let vm = report.restored.unwrap();
    let disk = &world.source.vm_disks(&vm)[0];
    assert_eq!(world.source.read(disk, 10 * MIB, 4), [1; 4]);
}

#[tokio::test]
async fn onto_the_original_only_what_differs_is_written_and_what_it_was_is_kept() {
    let shelf = Shelf::new(1 << 20);
    let world = two_points(&shelf).await;
    let then = world.source_content();
    world.source.write(&world.source.vm_disks(&world.vm)[0], 30 * MIB, &[9; 4096]);
    let now = world.source_content();
    for target in ["shelf", "dr"] {
        let onto = || RestoreTo::Onto { pool: "prod".to_owned(), vm: world.vm.clone() };
        let running = restore(&world, target, None, onto()).await.unwrap_err().to_string();
        assert!(running.contains("shut it down first"), "{running}");
        let session = world.at_source().await;
        let vm: vmferry_xapi::Ref<vmferry_xapi::records::Vm> = session.by_uuid(&world.vm).await.unwrap();
        let () = session.call_async("VM.clean_shutdown", vmferry_xapi::params![&vm]).await.unwrap();
        let report = restore(&world, target, None, onto()).await.unwrap();
        assert_eq!(world.source_content(), then, "{target}");
        assert!(report.disks.iter().all(|disk| disk.proven), "{report:#?}");
        let written: u64 = report.disks.iter().map(|disk| disk.bytes_written).sum();
        assert!(written < 5 * MIB, "{target}: {written} bytes were written for 4 KiB");
        let kept = report.safety_snapshot.clone().unwrap();
        let kept: Vec<String> = world.source.vm_disks(&kept).iter().map(|disk| world.source.sha256(disk)).collect();
        assert_eq!(kept, now, "{target}");
        let () = session.call_async("VM.start", vmferry_xapi::params![&vm, false, false]).await.unwrap();
        session.logout().await.unwrap();
        world.source.write(&world.source.vm_disks(&world.vm)[0], 30 * MIB, &[9; 4096]);
    }
}

#[tokio::test]
async fn what_a_restore_that_broke_off_leaves_cannot_be_started_or_is_nothing() {
    let shelf = Shelf::new(1 << 20);
    let world = two_points(&shelf).await;
    let before = world.target.object_counts();
    shelf.fail("read");
    let error = restore(&world, "shelf", None, new_vm("dr")).await.unwrap_err().to_string();
    assert!(error.contains("the shelf gave way"), "{error}");
    assert_eq!(world.target.object_counts()["VM"], before["VM"]);
    assert_eq!(world.target.object_counts()["VDI"], before["VDI"]);

    let session = world.at_source().await;
    let vm: vmferry_xapi::Ref<vmferry_xapi::records::Vm> = session.by_uuid(&world.vm).await.unwrap();
    let () = session.call_async("VM.clean_shutdown", vmferry_xapi::params![&vm]).await.unwrap();
    touch(&world, 7);
    shelf.fail("read");
    let onto = RestoreTo::Onto { pool: "prod".to_owned(), vm: world.vm.clone() };
    restore(&world, "shelf", None, onto.clone()).await.unwrap_err();
    let start = session.call_async::<()>("VM.start", vmferry_xapi::params![&vm, false, false]).await;
    assert!(start.unwrap_err().to_string().contains("half restored"));
    restore(&world, "shelf", None, onto).await.unwrap();
    let () = session.call_async("VM.start", vmferry_xapi::params![&vm, false, false]).await.unwrap();
    session.logout().await.unwrap();
}

/// What a restore that died after its `nth` call on the pool leaves goes by `gc`, or is the whole VM.
async fn gc_removes_what_a_dead_restore_left(nth: u32) -> bool {
    let shelf = Shelf::new(1 << 20);
    let world = two_points(&shelf).await;
    let then = world.source_content();
    let before = users_objects(&world);
    let restored = restore(&world, "shelf", None, new_vm("dr"));
    let (_, struck) = struck_after_call(&world.target, nth, restored).await;
    settled(&world.target).await;
    let name = format!("killed after call {nth}");
    let is_new = |vm: &&serde_json::Value| {
        !before.contains(vm["uuid"].as_str().unwrap()) && vm["other_config"].get("vmferry:restoring").is_none()
    };
    let found = world.gc(false).await;
    if let Some(vm) = world.target.records("VM").iter().find(is_new) {
        assert_eq!(world.target_content(vm["uuid"].as_str().unwrap()), then, "{name}: what is not marked is whole");
        assert_eq!(found.findings, Vec::new(), "{name}: it is its owner's");
        return struck;
    }
    let told = found.findings.iter().filter(|found| found.act == GcAct::Remove);
    let told: BTreeSet<String> = told.map(|found| found.uuid.clone()).collect();
    let left: BTreeSet<String> = users_objects(&world).difference(&before).cloned().collect();
    assert_eq!(told, left, "{name}: {found:#?}");
    let applied = world.gc(true).await;
    assert_eq!(applied.problems, Vec::new(), "{name}");
    assert_eq!(users_objects(&world), before, "{name}: nothing is left, and nothing else is gone");
    struck
}

/// uuids of the VMs and disks of the target that users see.
fn users_objects(world: &World) -> BTreeSet<String> {
    let of = |class: &str| world.target.records(class).into_iter().filter(|record| record["managed"] != false);
    of("VM").chain(of("VDI")).map(|record| record["uuid"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn what_a_restore_that_died_after_any_call_left_goes_by_gc() {
    check_each(20, gc_removes_what_a_dead_restore_left).await;
}

#[tokio::test]
async fn gc_leaves_a_restore_that_is_under_way_alone() {
    let shelf = Shelf::new(1 << 20);
    let world = two_points(&shelf).await;
    let restored = restore(&world, "shelf", None, new_vm("dr"));
    tokio::pin!(restored);
    until_it_reads(&shelf, &mut restored).await;
    let report = world.gc(true).await;
    let found = report.findings.iter().filter(|found| found.kind != FindingKind::Task);
    let held: Vec<_> = found.map(|found| (found.kind, found.act)).collect();
    assert_eq!(held, [(FindingKind::HeldLease, GcAct::Keep)], "{report:#?}");
    assert!(report.problems.iter().all(|problem| problem.locked), "{report:#?}");
    shelf.resume();
    let vm = restored.await.unwrap().restored.unwrap();
    assert_eq!(world.target_content(&vm), world.source_content());
}

#[tokio::test]
async fn a_pool_that_breaks_the_import_off_has_nothing_left() {
    let shelf = Shelf::new(1 << 20);
    let world = two_points(&shelf).await;
    let before = world.target.object_counts();
    world.target.inject(Fault { at: FaultPoint::Import, nth: 1, kind: FaultKind::CutAfter(MIB) });
    restore(&world, "shelf", None, new_vm("dr")).await.unwrap_err();
    for class in ["VM", "VDI", "VBD"] {
        assert_eq!(world.target.object_counts()[class], before[class], "{class}");
    }
}

#[tokio::test]
async fn a_damaged_point_is_not_restored_and_the_one_before_is() {
    let shelf = Shelf::new(1 << 20);
    let world = two_points(&shelf).await;
    let ids = shelf.ids();
    shelf.damage(&ids[1]);
    let error = restore(&world, "shelf", Some(ids[1].clone()), new_vm("dr")).await.unwrap_err().to_string();
    assert!(error.contains("is damaged"), "{error}");
    let report = restore(&world, "shelf", None, new_vm("dr")).await.unwrap();
    assert_eq!(report.point, ids[0], "the newest that is sound");
}

#[tokio::test]
async fn a_store_that_gives_back_something_else_is_found_out() {
    let shelf = Shelf::new(1 << 20);
    let world = two_points(&shelf).await;
    let point = shelf.ids()[1].clone();
    let disk = world.source.vm_disks(&world.vm)[0].clone();
    shelf.corrupt(&point, &disk, 10 * MIB);
    let error = restore(&world, "shelf", None, new_vm("dr")).await.unwrap_err().to_string();
    assert!(error.contains("the recovery point says"), "{error}");
}

#[tokio::test]
async fn files_that_are_there_stay_and_one_that_was_left_half_way_has_another_name() {
    let shelf = Shelf::new(1 << 20);
    let world = two_points(&shelf).await;
    let folder = tempfile::tempdir().unwrap();
    let files = || {
        let mut files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    };
    let to = || RestoreTo::Files { folder: folder.path().to_owned(), format: ImageFormat::Raw };
    until_it_reads(&shelf, Box::pin(restore(&world, "shelf", None, to()))).await;
    assert!(files().iter().all(|file| file.extension().unwrap() == "part"), "{:?}", files());
    // What was killed lets go of its file when its task is looked at next.
    while std::fs::File::open(&files()[0]).unwrap().try_lock().is_err() {
        tokio::task::yield_now().await;
    }
    shelf.calm();
    restore(&world, "shelf", None, to()).await.unwrap();
    let whole = files();
    assert_eq!(whole.len(), 2, "{whole:?}");
    let content = std::fs::read(&whole[0]).unwrap();
    let refused = restore(&world, "shelf", None, to()).await.unwrap_err().to_string();
    assert!(refused.contains("is there already"), "{refused}");
    assert_eq!((files(), std::fs::read(&whole[0]).unwrap()), (whole, content));
}

#[tokio::test]
async fn a_point_is_held_while_it_is_restored() {
    let shelf = Shelf::new(1 << 20);
    let world = two_points(&shelf).await;
    let restored = restore(&world, "shelf", None, new_vm("dr"));
    tokio::pin!(restored);
    until_it_reads(&shelf, &mut restored).await;
    let held = || shelf.stored().iter().map(|point| point.held).collect::<Vec<_>>();
    assert_eq!(held(), [false, true]);
    shelf.resume();
    let report = restored.await.unwrap();
    assert_eq!((held(), report.warnings), (vec![false, false], Vec::new()));

    shelf.hold(&report.point, true).await.unwrap();
    restore(&world, "shelf", None, new_vm("dr")).await.unwrap();
    assert_eq!(held(), [false, true], "an operator's hold stays");
}

#[tokio::test]
async fn a_target_out_of_reach_is_told_and_the_others_are_there() {
    let shelf = Shelf::new(1 << 20);
    let mut world = two_points(&shelf).await;
    let engine = world.engine();
    let gone = std::mem::replace(&mut world.target, vmferry_scenarios::pool("empty").await);
    gone.stop().await;
    let points = engine.points(&world.job, None).await.unwrap();
    let targets = |names: Vec<&String>| names.into_iter().cloned().collect::<Vec<String>>();
    assert_eq!(targets(points.replicas.iter().map(|found| &found.target).collect()), ["shelf"]);
    assert_eq!(targets(points.problems.iter().map(|silent| &silent.target).collect()), ["dr"]);
    let options = vmferry_engine::VerifyOptions { only: None, deep: false };
    let verified = engine.verify(&world.job, &options, &Silent).await.unwrap();
    assert_eq!((verified.replicas.len(), verified.problems.len()), (1, 1), "{verified:#?}");
    let request = RestoreRequest { vm: world.vm.clone(), point: None, target: None, to: new_vm("prod") };
    let report = engine.restore(&world.job, &request, Arc::new(Silent)).await.unwrap();
    assert_eq!(report.target, "shelf");
    assert!(report.warnings.iter().any(|warning| warning.contains("not every pool was asked")), "{report:#?}");
    engine.close().await;
}

#[tokio::test]
async fn disks_that_changed_places_get_their_own_content() {
    let shelf = Shelf::new(1 << 20);
    let mut world = World::new().await;
    world.replace_vm(&[8 * MIB, 8 * MIB]);
    world.job.stores.push(shelf.target("shelf"));
    let disks = world.source.vm_disks(&world.vm);
    for (disk, byte) in disks.iter().zip(1..) {
        world.source.write(disk, MIB, &[byte; 4096]);
    }
    assert_eq!(world.run().await.outcome, Outcome::Succeeded);
    let session = world.at_source().await;
    let vm: vmferry_xapi::Ref<vmferry_xapi::records::Vm> = session.by_uuid(&world.vm).await.unwrap();
    let () = session.call_async("VM.clean_shutdown", vmferry_xapi::params![&vm]).await.unwrap();
    // The first disk goes, and the second takes its place.
    let record: vmferry_xapi::records::Vm = session.get_record(&vm).await.unwrap();
    let second = world.source.record("VDI", &disks[1]).unwrap()["$ref"].as_str().unwrap().to_owned();
    for vbd in &record.vbds {
        let () = session.call("VBD.destroy", vmferry_xapi::params![vbd]).await.unwrap();
    }
    let drive = vbd_record(vm.as_str(), &second);
    let _: String = session.call("VBD.create", vmferry_xapi::params![drive]).await.unwrap();
    session.logout().await.unwrap();
    let onto = RestoreTo::Onto { pool: "prod".to_owned(), vm: world.vm.clone() };
    let refused = restore(&world, "shelf", None, onto).await.unwrap_err().to_string();
    assert!(refused.contains("restore to a new VM instead"), "{refused}");
    assert_eq!(world.source.read(&disks[1], MIB, 1), [2], "its content is not the other's");
}

#[tokio::test]
async fn files_hold_the_disks_byte_by_byte() {
    let shelf = Shelf::new(1 << 20);
    let world = two_points(&shelf).await;
    let folder = tempfile::tempdir().unwrap();
    for target in ["shelf", "dr"] {
        for format in [ImageFormat::Raw, ImageFormat::Qcow2] {
            let folder = folder.path().join(format!("{target} {format:?}"));
            let to = RestoreTo::Files { folder: folder.clone(), format };
            let report = restore(&world, target, None, to).await.unwrap();
            for (file, disk) in report.disks.iter().zip(world.source.vm_disks(&world.vm)) {
                assert!(file.proven && Path::new(&file.to).starts_with(&folder), "{file:#?}");
                if format == ImageFormat::Raw {
                    let found = std::fs::read(&file.to).unwrap();
                    assert_eq!(found, world.source.read(&disk, 0, found.len()));
                }
            }
        }
    }
}
