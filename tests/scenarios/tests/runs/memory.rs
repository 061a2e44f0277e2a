//! Memory images: what a VM had in its memory travels with its disks, is committed with them, and never boots as one of them.

use crate::kills::{check_each, die_after_call, points};
use serde_json::{Value, json};
use vmferry_engine::{CloneRequest, NetworkChoice, SnapshotMode, StartRequest};
use vmferry_model::plan::Kind;
use vmferry_model::report::Outcome;
use vmferry_scenarios::{MIB, World, disks, point_of};
use vmferry_xapi::records::{Vdi, Vm};
use vmferry_xapi::{Ref, params};
use xapi_sim::{Fault, FaultKind, FaultPoint, Sim};

async fn world() -> World {
    let mut world = World::new().await;
    world.job.snapshot = SnapshotMode::Memory;
    world
}

/// What a memory image begins with: who it is of, and what is never the same twice.
fn image(pool: &Sim, vdi: &str) -> Vec<u8> {
    pool.read(vdi, 0, 8192)
}

/// The image that the source keeps.
fn source_image(world: &World) -> Vec<u8> {
    let images: Vec<Value> = world.source.records("VDI").into_iter().filter(|vdi| vdi["type"] == "suspend").collect();
    assert_eq!(images.len(), 1, "{images:#?}");
    image(&world.source, images[0]["uuid"].as_str().unwrap())
}

/// The disks of a target VM that are its guest's, and those that are memory.
fn told_apart(world: &World, vm: &str) -> (Vec<String>, Vec<String>) {
    let is_memory = |disk: &String| {
        let keys = &world.target.record("VDI", disk).unwrap()["other_config"];
        keys.get("vmferry:memory").is_some()
    };
    let (memory, disks) = world.target.vm_disks(vm).into_iter().partition(is_memory);
    (disks, memory)
}

#[track_caller]
fn assert_point(world: &World, point: &str, content: &[String], memory: &[u8], name: &str) {
    let (disks, images) = told_apart(world, point);
    let found: Vec<String> = disks.iter().map(|disk| world.target.sha256(disk)).collect();
    assert_eq!(found, content, "{name}: the disks");
    assert_eq!(images.len(), 1, "{name}");
    assert_eq!(image(&world.target, &images[0]), memory, "{name}: the memory");
}

/// The source has its VM and one checkpoint; the target a replica and its points; each with its image.
#[track_caller]
fn assert_only_objects(world: &World, points: usize, name: &str) {
    let of = |pool: &Sim, class| pool.object_counts().get(class).copied().unwrap_or(0);
    let vms = |pool: &Sim| pool.records("VM").iter().filter(|vm| vm["is_control_domain"] == false).count();
    assert_eq!((vms(&world.source), of(&world.source, "VDI"), of(&world.source, "VBD")), (2, 5, 4), "{name}: source");
    let copies = 1 + points;
    let found = (vms(&world.target), of(&world.target, "VDI"), of(&world.target, "VBD"));
    assert_eq!(found, (copies, 3 * copies, 3 * copies), "{name}: target");
}

fn write(world: &World) {
    world.source.write(&world.source.vm_disks(&world.vm)[0], 10 * MIB, &[9; 1 << 20]);
}

#[tokio::test]
async fn the_memory_of_a_running_vm_is_a_disk_of_its_recovery_point() {
    let world = world().await;
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    assert_eq!(report.vms[0].warnings, Vec::<String>::new());
    let point = point_of(&report);
    assert_point(&world, &point, &world.source_content(), &source_image(&world), "the point");
    assert!(source_image(&world).starts_with(format!("memory of {}", world.vm).as_bytes()));
    assert_eq!(world.source.record("VM", &world.vm).unwrap()["power_state"], "Running");
    let attachments: Vec<(Value, Value, Value)> = world
        .target
        .records("VBD")
        .iter()
        .map(|vbd| (vbd["userdevice"].clone(), vbd["mode"].clone(), vbd["bootable"].clone()))
        .filter(|(device, ..)| device == "15")
        .collect();
    assert_eq!(attachments, vec![(json!("15"), json!("RO"), json!(false)); 2]);
    let listed = &world.points().await[0].points[0];
    assert_eq!((listed.disks, listed.memory), (2, true));
    assert_only_objects(&world, 1, "after a run");
    assert_eq!(world.gc(false).await.findings, Vec::new());
    let verified = world.verify(true).await;
    assert!(verified.replicas[0].error.is_none() && verified.replicas[0].disks.len() == 3, "{verified:#?}");
}

#[tokio::test]
async fn a_later_run_sends_deltas_of_the_disks_and_all_of_the_memory() {
    let world = world().await;
    let first = point_of(&world.run().await);
    let (content, memory) = (world.source_content(), source_image(&world));
    write(&world);
    let second = world.run().await;
    assert_eq!(second.outcome, Outcome::Succeeded, "{second:#?}");
    let kinds: Vec<Kind> = disks(&second).iter().map(|disk| disk.kind).collect();
    assert_eq!(kinds, [Kind::Delta, Kind::Delta, Kind::Full]);
    assert_point(&world, &first, &content, &memory, "the first point");
    assert_point(&world, &point_of(&second), &world.source_content(), &source_image(&world), "the second point");
    assert_ne!(source_image(&world), memory);
    assert_only_objects(&world, 2, "after two runs");
    let snapshots = world.source.records("VM").into_iter().filter(|vm| vm["is_a_snapshot"] == true);
    let disk =
        world.source.records("VDI").into_iter().find(|vdi| vdi["is_a_snapshot"] == true && vdi["type"] != "suspend");
    assert_eq!(snapshots.count(), 1);
    assert_eq!(disk.unwrap()["other_config"]["xo:backup:deltaChainLength"], "1");
}

#[tokio::test]
async fn a_later_run_without_memory_takes_the_image_off_the_replica() {
    let mut world = world().await;
    world.run().await;
    world.job.snapshot = SnapshotMode::Disks;
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    assert_eq!(world.target_content(&point_of(&report)), world.source_content());
    assert!(disks(&report).iter().all(|disk| disk.kind == Kind::Delta), "{report:#?}");
    let points: Vec<bool> = world.points().await[0].points.iter().map(|point| point.memory).collect();
    assert_eq!(points, [false, true]);
    assert_eq!((world.source.object_counts()["VDI"], world.target.object_counts()["VDI"]), (4, 2 + 2 + 3));
    assert_eq!(world.gc(false).await.findings, Vec::new());
}

#[tokio::test]
async fn a_vm_may_ask_for_it_by_xen_orchestras_tag() {
    let world = World::new().await;
    let session = world.at_source().await;
    let vm: Ref<Vm> = session.by_uuid(&world.vm).await.unwrap();
    let () = session.call("VM.add_tags", params![&vm, "xo-memory-backup"]).await.unwrap();
    session.logout().await.unwrap();
    let report = world.run().await;
    assert_point(&world, &point_of(&report), &world.source_content(), &source_image(&world), "tagged");
}

#[tokio::test]
async fn a_vm_that_is_off_has_no_memory_to_keep() {
    let world = world().await;
    let session = world.at_source().await;
    let vm: Ref<Vm> = session.by_uuid(&world.vm).await.unwrap();
    let () = session.call_async("VM.clean_shutdown", params![&vm]).await.unwrap();
    session.logout().await.unwrap();
    let report = world.run().await;
    assert_eq!(world.target_content(&point_of(&report)), world.source_content());
    world.assert_tidy(1);
}

#[tokio::test]
async fn a_vm_that_went_off_just_now_has_none_either() {
    let world = world().await;
    let kind =
        FaultKind::ApiError("VM_BAD_POWER_STATE".to_owned(), vec![world.vm.clone(), "running".into(), "halted".into()]);
    world.source.inject(Fault { at: FaultPoint::Call("VM.checkpoint".to_owned()), nth: 1, kind });
    let report = world.run().await;
    assert_eq!(world.target_content(&point_of(&report)), world.source_content());
    world.assert_tidy(1);
}

#[tokio::test]
async fn a_disk_that_is_not_replicated_is_not_sent_and_its_snapshot_goes_with_the_checkpoint() {
    let world = world().await;
    let session = world.at_source().await;
    let scratch: Ref<Vdi> = session.by_uuid(&world.source.vm_disks(&world.vm)[1]).await.unwrap();
    let () = session.call("VDI.set_name_label", params![&scratch, "scratch [NOBAK]"]).await.unwrap();
    session.logout().await.unwrap();
    world.run().await;
    let (disks, memory) = told_apart(&world, &point_of(&world.run().await));
    assert_eq!((disks.len(), memory.len()), (1, 1));
    assert_eq!(world.source.object_counts()["VDI"], 2 + 3, "the VM's, and those of one checkpoint");
    assert_eq!(world.gc(false).await.findings, Vec::new());
}

#[tokio::test]
async fn a_checkpoint_whose_image_somebody_destroyed_is_a_base_and_goes_like_any_other() {
    let world = world().await;
    world.run().await;
    let image = world.source.records("VDI").into_iter().find(|vdi| vdi["type"] == "suspend").unwrap();
    let session = world.at_source().await;
    let image: Ref<Vdi> = session.by_uuid(image["uuid"].as_str().unwrap()).await.unwrap();
    let () = session.call_async("VDI.destroy", params![&image]).await.unwrap();
    session.logout().await.unwrap();
    let report = world.run().await;
    assert_eq!((report.outcome, report.vms[0].warnings.len()), (Outcome::Succeeded, 0), "{report:#?}");
    assert!(disks(&report)[..2].iter().all(|disk| disk.kind == Kind::Delta), "{report:#?}");
    assert_only_objects(&world, 2, "after the next run");
}

#[tokio::test]
async fn a_vm_that_cannot_be_suspended_is_told_what_to_do() {
    let world = world().await;
    let kind = FaultKind::ApiError("VM_NO_SUSPEND_SR".to_owned(), vec![world.vm.clone()]);
    world.source.inject(Fault { at: FaultPoint::Call("VM.checkpoint".to_owned()), nth: 1, kind });
    let report = world.run().await;
    let error = report.vms[0].error.as_ref().unwrap();
    assert!(error.contains("VM_NO_SUSPEND_SR") && error.contains("snapshot = \"disks\""), "{error}");
    assert_eq!(world.source.object_counts()["VDI"], 2);
}

#[tokio::test]
async fn a_clone_boots_without_the_image() {
    let world = world().await;
    let report = world.run().await;
    let engine = world.engine();
    let clone = engine.clone_point(&world.job, &CloneRequest::newest(&world.vm)).await.unwrap();
    engine.close().await;
    assert_eq!((clone.started, clone.disks.len()), (true, 2));
    assert_eq!(world.target_content(&clone.vm), world.source_content());
    assert_eq!(world.target.object_counts()["VDI"], 3 + 3 + 2, "the clone's image is destroyed");
    assert_point(&world, &point_of(&report), &world.source_content(), &source_image(&world), "the point");
}

fn resumed_clone(world: &World) -> CloneRequest {
    CloneRequest { resume: true, ..CloneRequest::newest(&world.vm) }
}

#[tokio::test]
async fn a_clone_may_go_on_from_the_memory() {
    let world = world().await;
    let report = world.run().await;
    let replica = report.vms[0].targets[0].replica.clone().unwrap();
    world.target.clear_calls();
    let engine = world.engine();
    let clone = engine.clone_point(&world.job, &resumed_clone(&world)).await.unwrap();
    engine.close().await;
    assert_eq!((clone.started, clone.disks.len(), clone.warnings), (true, 2, Vec::new()));
    let calls = world.target.calls();
    assert!(calls.iter().any(|call| call == "Async.VM.resume") && calls.iter().all(|call| call != "Async.VM.start"));
    let vm = world.target.record("VM", &clone.vm).unwrap();
    assert_eq!((&vm["power_state"], &vm["is_a_template"]), (&json!("Running"), &json!(false)));
    assert!(vm["other_config"].as_object().unwrap().keys().all(|key| !key.starts_with("vmferry:")), "{vm:#}");
    assert_eq!(world.target_content(&clone.vm), world.source_content());
    let devices = |class, field: &str| -> Vec<Value> {
        let plugged = world.target.records(class).into_iter().filter(|one| one["currently_attached"] == true);
        let mut found: Vec<Value> = plugged.map(|one| one[field].clone()).collect();
        found.sort_by_key(Value::to_string);
        found
    };
    assert_eq!(devices("VBD", "device"), ["xvda", "xvdb"]);
    let mac = world.source.records("VIF")[0]["MAC"].clone();
    assert_eq!(devices("VIF", "MAC"), [mac]);
    let vms = world.target.records("VM").into_iter().filter(|vm| vm["is_control_domain"] == false).count();
    assert_eq!((vms, world.target.object_counts()["VDI"]), (3, 3 + 3 + 2), "the halted clone and the image are gone");
    assert_point(&world, &point_of(&report), &world.source_content(), &source_image(&world), "the point");
    assert_eq!(told_apart(&world, &replica).1.len(), 1, "the replica is as before");
    assert_eq!(world.run().await.outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn a_clone_that_the_pool_does_not_resume_is_left_halted_and_told() {
    for method in ["VM.create", "VM.resume"] {
        let world = world().await;
        world.run().await;
        let kind = FaultKind::ApiError("VM_INCOMPATIBLE_WITH_THIS_HOST".to_owned(), vec![world.vm.clone()]);
        world.target.inject(Fault { at: FaultPoint::Call(method.to_owned()), nth: 1, kind });
        let engine = world.engine();
        let clone = engine.clone_point(&world.job, &resumed_clone(&world)).await.unwrap();
        engine.close().await;
        assert!(!clone.started && clone.warnings[0].contains("VM_INCOMPATIBLE_WITH_THIS_HOST"), "{clone:#?}");
        assert_eq!(world.target.record("VM", &clone.vm).unwrap()["power_state"], "Halted");
        assert_eq!(world.target_content(&clone.vm), world.source_content());
        let vms = world.target.records("VM").into_iter().filter(|vm| vm["is_control_domain"] == false).count();
        assert_eq!((vms, world.target.object_counts()["VDI"]), (3, 3 + 3 + 2), "{method}");
    }
}

#[tokio::test]
async fn nothing_is_resumed_where_there_is_no_memory() {
    let world = World::new().await;
    world.run().await;
    let engine = world.engine();
    let error = engine.clone_point(&world.job, &resumed_clone(&world)).await.unwrap_err().to_string();
    engine.close().await;
    assert!(error.contains("does not hold the memory") && error.contains("--resume"), "{error}");
    world.assert_only_objects(1);
}

fn start_request(world: &World) -> StartRequest {
    StartRequest {
        vm: world.vm.clone(),
        point: None,
        target: None,
        network: NetworkChoice::AsReplica,
        force: true,
        auto_start: false,
    }
}

#[tokio::test]
async fn a_replica_is_started_without_the_image() {
    let world = world().await;
    world.run().await;
    let engine = world.engine();
    let started = engine.start_replica(&world.job, &start_request(&world)).await.unwrap();
    engine.close().await;
    assert_eq!(started.warnings, Vec::<String>::new());
    assert_eq!(world.target_content(&started.vm), world.source_content());
    assert_eq!(world.target.object_counts()["VDI"], 2 + 3, "the replica's image is destroyed");
}

#[tokio::test]
async fn a_replica_that_could_not_be_started_is_whole_again_after_the_next_run() {
    let world = world().await;
    world.run().await;
    let kind = FaultKind::ApiError("HOST_NOT_ENOUGH_FREE_MEMORY".to_owned(), vec!["1".into(), "0".into()]);
    world.target.inject(Fault { at: FaultPoint::Call("VM.start".to_owned()), nth: 1, kind });
    let engine = world.engine();
    engine.start_replica(&world.job, &start_request(&world)).await.unwrap_err();
    engine.close().await;
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    assert!(disks(&report)[..2].iter().all(|disk| disk.kind == Kind::Delta), "{report:#?}");
    assert_point(&world, &point_of(&report), &world.source_content(), &source_image(&world), "the point");
    assert_only_objects(&world, 2, "after the next run");
}

/// Kills a failover after its `nth` call on the target; another one boots the point without the image.
async fn check_start(nth: u32) -> bool {
    let world = world().await;
    let name = format!("failover killed after call {nth}");
    let point = point_of(&world.run().await);
    world.target.inject(Fault { at: FaultPoint::Call("*".to_owned()), nth, kind: FaultKind::StallAfter(0) });
    let (engine, request) = (world.engine(), start_request(&world));
    let died = tokio::select! {
        started = engine.start_replica(&world.job, &request) => { started.expect("started"); false }
        () = world.target.wait_until_stalled() => true,
    };
    world.target.clear_faults();
    let engine = world.engine();
    let started = engine.start_replica(&world.job, &request).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    engine.close().await;
    assert_eq!(world.target_content(&started.vm), world.source_content(), "{name}");
    assert_eq!(world.target.record("VM", &started.vm).unwrap()["power_state"], "Running", "{name}");
    assert_point(&world, &point, &world.source_content(), &source_image(&world), &name);
    assert_eq!(world.target.object_counts()["VDI"], 2 + 3, "{name}");
    died
}

#[tokio::test]
async fn a_failover_may_die_after_any_call() {
    check_each(25, check_start).await;
}

/// Kills a memory run after its `nth` call on one pool and checks what the next run makes of it.
async fn check(on_target: bool, nth: u32) -> bool {
    let world = world().await;
    let name = format!("killed after call {nth} on the {}", if on_target { "target" } else { "source" });
    let first = point_of(&world.run().await);
    let (content, memory) = (world.source_content(), source_image(&world));
    write(&world);
    let died = die_after_call(&world, if on_target { &world.target } else { &world.source }, nth).await;
    assert_point(&world, &first, &content, &memory, &name);
    let before = points(&world);
    let healed = world.run().await;
    assert_eq!(healed.outcome, Outcome::Succeeded, "{name}: {healed:#?}");
    assert!(disks(&healed)[..2].iter().all(|disk| disk.kind == Kind::Delta), "{name}: {healed:#?}");
    assert_point(&world, &point_of(&healed), &world.source_content(), &source_image(&world), &name);
    assert_point(&world, &first, &content, &memory, &name);
    let now = points(&world);
    assert!((before + 1..=before + 2).contains(&now), "{name}: {before} then {now} points");
    assert_only_objects(&world, now, &name);
    died
}

#[tokio::test]
async fn a_run_may_die_after_any_call_on_the_source() {
    check_each(25, async |nth| check(false, nth).await).await;
}

#[tokio::test]
async fn a_run_may_die_after_any_call_on_the_target() {
    check_each(40, async |nth| check(true, nth).await).await;
}
