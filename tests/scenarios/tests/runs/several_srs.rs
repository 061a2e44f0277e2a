//! A target of several SRs: where a new replica goes, that it stays there, and what a lost SR costs.

use crate::kills::{assert_objects, check_each, die_after_call, points};
use vmferry_engine::{CloneRequest, JobIds, SeedRequest, Silent};
use vmferry_model::plan::{FullReason, Kind};
use vmferry_model::report::{Outcome, RunReport};
use vmferry_scenarios::{MIB, World, disk_record, disks, only_target, point_of, vbd_record};
use vmferry_xapi::records::{Pbd, Sr, Vdi, Vm};
use vmferry_xapi::{Ref, params};
use xapi_sim::{DiskSpec, Fault, FaultKind, FaultPoint, Sim, VmSpec};

/// A world whose target has two SRs, and their uuids: the second has more room, so the replica goes there.
async fn two_srs() -> (World, [String; 2]) {
    let mut world = World::new().await;
    let srs = [world.target.add_sr("a", 400 * MIB), world.target.add_sr("b", 500 * MIB)];
    world.job.targets[0].srs = srs.to_vec();
    (world, srs)
}

/// uuid of the only SR that the disks of a target's VM are on.
#[track_caller]
fn sr_of(pool: &Sim, vm: &str) -> String {
    let srs = pool.records("SR");
    let sr_of = |disk: &String| {
        let disk = pool.record("VDI", disk).unwrap();
        srs.iter().find(|sr| sr["$ref"] == disk["SR"]).unwrap()["uuid"].as_str().unwrap().to_owned()
    };
    let mut found: Vec<String> = pool.vm_disks(vm).iter().map(sr_of).collect();
    found.dedup();
    assert_eq!(found.len(), 1, "a replica is whole on one SR");
    found.remove(0)
}

pub(crate) async fn set_plugged(world: &World, sr: &str, plugged: bool) {
    let session = world.at_target().await;
    let reference: Ref<Sr> = session.by_uuid(sr).await.unwrap();
    for (pbd, record) in session.get_all_records::<Pbd>().await.unwrap() {
        if record.sr == reference {
            let call = if plugged { "PBD.plug" } else { "PBD.unplug" };
            let () = session.call(call, params![pbd]).await.unwrap();
        }
    }
    session.logout().await.unwrap();
}

async fn forget(world: &World, sr: &str) {
    set_plugged(world, sr, false).await;
    let session = world.at_target().await;
    let reference: Ref<Sr> = session.by_uuid(sr).await.unwrap();
    let () = session.call("SR.forget", params![reference]).await.unwrap();
    session.logout().await.unwrap();
}

fn source_snapshots(world: &World) -> usize {
    world.source.records("VM").iter().filter(|vm| vm["is_a_snapshot"] == true).count()
}

/// A run that must not have taken a snapshot, and what its target says.
#[track_caller]
fn refused(world: &World, report: &RunReport, snapshots: usize) -> String {
    assert_eq!(report.outcome, Outcome::Failed, "{report:#?}");
    assert_eq!(source_snapshots(world), snapshots, "{report:#?}");
    only_target(report).error.clone().unwrap()
}

#[track_caller]
fn succeeded(world: &World, report: &RunReport, sr: &str, kind: Kind) {
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    assert!(disks(report).iter().all(|disk| disk.kind == kind), "{report:#?}");
    let point = point_of(report);
    assert_eq!(world.target_content(&point), world.source_content());
    assert_eq!(sr_of(&world.target, &point), sr);
    assert_eq!(sr_of(&world.target, only_target(report).replica.as_ref().unwrap()), sr);
    assert_eq!(world.target.record("VM", &point).unwrap()["other_config"]["xo:backup:sr"], sr);
    assert_eq!(source_snapshots(world), 1, "a target has one base, whichever SR it is on");
}

#[tokio::test]
async fn new_replicas_go_where_the_run_leaves_the_most_room_and_stay_there() {
    let mut world = World::new().await;
    let srs = [world.target.add_sr("a", 100 * MIB), world.target.add_sr("b", 90 * MIB)];
    world.job.targets[0].srs = srs.to_vec();
    let disk = DiskSpec { size: 40 * MIB, ..DiskSpec::default() };
    let add =
        |name: &str| world.source.add_vm(VmSpec { name: name.into(), disks: vec![disk.clone()], ..VmSpec::default() });
    world.job.select.vms = ["one", "two", "three", "four", "five"].map(add).to_vec();

    let plan = world.plan().await;
    assert_eq!(plan.vms.iter().filter(|vm| vm.targets[0].obstacles.is_empty()).count(), 4, "{plan:#?}");
    let report = world.run().await;
    let mut places = std::collections::BTreeMap::new();
    let mut refused = Vec::new();
    for vm in &report.vms {
        match &vm.targets[0].recovery_point {
            Some(point) => drop(places.insert(vm.vm.clone(), sr_of(&world.target, point))),
            None => refused.push(vm),
        }
    }
    let on = |sr: &String| places.values().filter(|place| *place == sr).count();
    assert_eq!((on(&srs[0]), on(&srs[1]), refused.len()), (2, 2, 1), "{report:#?}");
    let error = refused[0].targets[0].error.as_ref().unwrap();
    for part in ["needs about 40.0 MiB", "SR a (", "has 20.0 MiB left", "SR b (", "has 10.0 MiB left"] {
        assert!(error.contains(part), "{part}: {error}");
    }

    // Room for everybody elsewhere, and for the fifth alone it matters.
    let roomy = world.target.add_sr("c", 1 << 40);
    world.job.targets[0].srs.push(roomy.clone());
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    for vm in &report.vms {
        let target = &vm.targets[0];
        let (place, kind) = match places.get(&vm.vm) {
            Some(place) => (place, Kind::Delta),
            None => (&roomy, Kind::Full),
        };
        assert_eq!(&sr_of(&world.target, target.recovery_point.as_ref().unwrap()), place);
        assert_eq!(target.sr.as_ref(), Some(place), "the report names it");
        assert!(target.disks.iter().all(|disk| disk.kind == kind), "{vm:#?}");
    }
}

#[tokio::test]
async fn an_sr_that_no_host_is_connected_to_gets_no_new_replica() {
    let (world, [a, b]) = two_srs().await;
    set_plugged(&world, &b, false).await;
    let report = world.run().await;
    succeeded(&world, &report, &a, Kind::Full);
}

#[tokio::test]
async fn a_replica_whose_sr_is_full_stays_and_the_run_says_what_to_do() {
    let (mut world, [_, b]) = two_srs().await;
    let first = world.run().await;
    succeeded(&world, &first, &b, Kind::Full);
    world.job.targets[0].srs.push(world.target.add_sr("c", 1 << 40));
    let session = world.at_source().await;
    let vm: Ref<Vm> = session.by_uuid(&world.vm).await.unwrap();
    let sr: Ref<Sr> = session.by_uuid(&world.source.default_sr()).await.unwrap();
    let disk: Ref<Vdi> = session.call("VDI.create", params![disk_record(sr.as_str(), 600 * MIB)]).await.unwrap();
    let _: String = session.call("VBD.create", params![vbd_record(vm.as_str(), disk.as_str())]).await.unwrap();
    session.logout().await.unwrap();

    let report = world.run().await;
    let error = refused(&world, &report, 1);
    for part in ["SR b", &b, "MiB free", "free space there", "stays on its SR", "taken out of `srs`"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[tokio::test]
async fn an_sr_that_is_out_of_reach_costs_no_full_copy_until_it_is_taken_out() {
    let (mut world, [a, b]) = two_srs().await;
    let first = world.run().await;
    succeeded(&world, &first, &b, Kind::Full);
    set_plugged(&world, &b, false).await;
    let report = world.run().await;
    let error = refused(&world, &report, 1);
    assert!(error.contains("SR b") && error.contains("`xe pbd-plug`") && error.contains("take it out"), "{error}");
    let plan = world.plan().await;
    assert!(plan.vms[0].targets[0].obstacles[0].contains("take it out"), "{plan:#?}");
    set_plugged(&world, &b, true).await;
    let again = world.run().await;
    succeeded(&world, &again, &b, Kind::Delta);

    set_plugged(&world, &b, false).await;
    world.job.targets[0].srs = vec![a.clone()];
    let plan = world.plan().await;
    assert_eq!(plan.vms[0].targets[0].disks[0].full_reason, Some(FullReason::SrChanged), "{plan:#?}");
    let moved = world.run().await;
    succeeded(&world, &moved, &a, Kind::Full);

    // The list is changed back: the newest point goes on, and the other replica is told.
    set_plugged(&world, &b, true).await;
    world.job.targets[0].srs = vec![b.clone(), a.clone()];
    let back = world.run().await;
    succeeded(&world, &back, &a, Kind::Delta);
    let old = only_target(&first).replica.clone().unwrap();
    let warnings = &only_target(&back).warnings;
    assert!(
        warnings.iter().any(|text| text.contains(&old) && text.contains("2 older recovery points")),
        "{warnings:?}"
    );
    let listed: Vec<(String, usize)> =
        world.points().await.into_iter().filter_map(|replica| Some((replica.replica?, replica.points.len()))).collect();
    let new = only_target(&back).replica.clone().unwrap();
    assert_eq!(listed, [(new, 2), (old, 2)], "the one that goes on comes first");
    let verified = world.verify(true).await;
    assert!(verified.replicas.iter().all(|replica| replica.verdict.to_string() == "intact"), "{verified:#?}");
}

#[tokio::test]
async fn a_forgotten_sr_costs_no_full_copy_until_it_is_taken_out() {
    let (mut world, [a, b]) = two_srs().await;
    let first = world.run().await;
    succeeded(&world, &first, &b, Kind::Full);
    forget(&world, &b).await;
    for _ in 0..2 {
        let report = world.run().await;
        let error = refused(&world, &report, 1);
        assert!(error.contains(&b) && error.contains("not in pool dr any more") && error.contains("`srs`"), "{error}");
    }
    let gc = world.gc(true).await;
    assert!(gc.findings.iter().all(|finding| finding.pool != "prod"), "the base stays: {gc:#?}");

    // A VM that never was there is not held up.
    let bystander = vmferry_scenarios::bystander(&world.source);
    let vm = std::mem::replace(&mut world.job.select.vms, vec![bystander]);
    let report = world.run().await;
    let target = only_target(&report);
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    assert_eq!(sr_of(&world.target, target.recovery_point.as_ref().unwrap()), a);
    assert!(target.warnings.iter().any(|text| text.contains(&b) && text.contains("take it out")), "{target:#?}");

    world.job.select.vms = vm;
    world.job.targets[0].srs = vec![a.clone()];
    let plan = world.plan().await;
    assert_eq!(plan.vms[0].targets[0].disks[0].full_reason, Some(FullReason::SrChanged), "{plan:#?}");
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    assert_eq!(sr_of(&world.target, &point_of(&report)), a);
}

#[tokio::test]
async fn what_a_dead_run_left_on_an_sr_out_of_reach_waits_for_it_and_holds_nobody_up() {
    let (world, [a, b]) = two_srs().await;
    world.target.inject(Fault { at: FaultPoint::Import, nth: 1, kind: FaultKind::StallAfter(MIB) });
    tokio::select! {
        report = world.run() => panic!("the run did not stall: {report:#?}"),
        () = world.target.wait_until_stalled() => {}
    }
    world.target.clear_faults();
    let left = || {
        let on = |sr: &str| world.target.record("SR", sr).unwrap()["VDIs"].as_array().unwrap().len();
        on(&b)
    };
    assert_eq!(left(), 2);
    set_plugged(&world, &b, false).await;
    let report = world.run().await;
    succeeded(&world, &report, &a, Kind::Full);
    assert_eq!(left(), 2);
    set_plugged(&world, &b, true).await;
    let report = world.run().await;
    succeeded(&world, &report, &a, Kind::Delta);
    assert_eq!(left(), 0);
}

#[tokio::test]
async fn what_is_on_any_of_the_srs_is_cloned_adopted_and_put_right() {
    let (mut world, [a, b]) = two_srs().await;
    world.run().await;
    let engine = world.engine();
    let clone = engine.clone_point(&world.job, &CloneRequest::newest(&world.vm)).await.unwrap();
    engine.close().await;
    assert_eq!(sr_of(&world.target, &clone.vm), b);
    let session = world.at_target().await;
    let vm: Ref<Vm> = session.by_uuid(&clone.vm).await.unwrap();
    session.call_async::<()>("VM.hard_shutdown", params![&vm]).await.unwrap();
    session.logout().await.unwrap();

    // Another job adopts it, although a new replica of its own would go elsewhere.
    world.job.ids = JobIds::derived("default", "another");
    world.job.targets[0].srs = vec![a, b.clone(), world.target.add_sr("c", 1 << 40)];
    let session = world.at_source().await;
    let vm: Ref<Vm> = session.by_uuid(&world.vm).await.unwrap();
    let snapshot: Ref<Vm> = session.call_async("VM.snapshot", params![&vm, "by hand"]).await.unwrap();
    let snapshot: String = session.call("VM.get_uuid", params![&snapshot]).await.unwrap();
    session.logout().await.unwrap();
    let engine = world.engine();
    let seed = SeedRequest { snapshot, copy: clone.vm.clone(), target: None, for_others: false };
    let seeded = engine.adopt_seed(&world.job, &seed, &Silent).await.unwrap();
    engine.close().await;
    assert_eq!(world.target.record("VM", &seeded.point).unwrap()["other_config"]["xo:backup:sr"], b);
    let report = world.run().await;
    assert_eq!(only_target(&report).replica.as_ref(), Some(&clone.vm), "{report:#?}");
    assert!(disks(&report).iter().all(|disk| disk.kind == Kind::Delta), "{report:#?}");

    world.source.write(&world.source.vm_disks(&world.vm)[0], 10 * MIB, &[9; 6 << 20]);
    world.target.inject(Fault { at: FaultPoint::Import, nth: 1, kind: FaultKind::StallAfter(MIB) });
    tokio::select! {
        report = world.run() => panic!("the run did not stall: {report:#?}"),
        () = world.target.wait_until_stalled() => {}
    }
    world.target.clear_faults();
    let gc = world.gc(true).await;
    assert!(gc.problems.is_empty() && gc.count(vmferry_engine::Fate::Left) == 0, "{gc:#?}");
    assert!(gc.count(vmferry_engine::Fate::Done) > 0, "{gc:#?}");
    assert_eq!(sr_of(&world.target, &clone.vm), b);
}

/// Kills a first run after its `nth` call on one pool; by the time of the next one another SR has the most room.
async fn check(on_target: bool, nth: u32) -> bool {
    let (mut world, _) = two_srs().await;
    let name = format!("killed after call {nth} on the {}", if on_target { "target" } else { "source" });
    let died = die_after_call(&world, if on_target { &world.target } else { &world.source }, nth).await;
    let before = points(&world);
    world.job.targets[0].srs.push(world.target.add_sr("c", 1 << 40));
    let healed = world.run().await;
    assert_eq!(healed.outcome, Outcome::Succeeded, "{name}: {healed:#?}");
    assert_eq!(world.target_content(&point_of(&healed)), world.source_content(), "{name}");
    assert_objects(&world, &name, before);
    died
}

#[tokio::test]
async fn a_first_run_may_die_after_any_call_on_the_source() {
    check_each(20, async |nth| check(false, nth).await).await;
}

#[tokio::test]
async fn a_first_run_may_die_after_any_call_on_the_target() {
    check_each(20, async |nth| check(true, nth).await).await;
}
