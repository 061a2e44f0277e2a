//! Chains that Xen Orchestra made and we go on with, chains of ours that it goes on with, and what is neither's.

mod objects;
pub(crate) mod rules;

use jiff::Timestamp;
use objects::{CLONE_IT, Transfer, Until, Xo};
use serde_json::Value;
use std::sync::Arc;
use vmferry_engine::SnapshotMode;
use vmferry_model::plan::{FullReason, Kind};
use vmferry_model::report::{Outcome, RunReport};
use vmferry_scenarios::{Keep, MIB, World, disks, only_target, point_of};
use vmferry_xapi::records::{Vdi, Vm};
use vmferry_xapi::{Ref, params};
use xapi_sim::{Fault, FaultKind, FaultPoint, Sim};

const MONDAY: &str = "20260302T19:48:01Z";
const TUESDAY: &str = "20260303T19:48:02Z";
const WEDNESDAY: &str = "20260304T19:48:03Z";

fn change(world: &World, at: u64) {
    for disk in world.source.vm_disks(&world.vm) {
        world.source.write(&disk, at * MIB, format!("a change at {at}").as_bytes());
    }
}

/// The records of VMs with all that hangs on them, without what XAPI and the storage keep up to date by themselves.
fn everything_of(pool: &Sim, vms: &[&str]) -> Vec<Value> {
    let mut found = Vec::new();
    for vm in vms {
        let record = pool.record("VM", vm).unwrap_or_else(|| panic!("VM {vm} is gone"));
        for class in ["VBD", "VIF"] {
            found.extend(pool.records(class).into_iter().filter(|device| device["VM"] == record["$ref"]));
        }
        for disk in pool.vm_disks(vm) {
            found.push(pool.record("VDI", &disk).unwrap());
            found.push(pool.sha256(&disk).into());
        }
        found.push(record);
    }
    for record in found.iter_mut().filter_map(Value::as_object_mut) {
        record
            .retain(|field, _| !["children", "parent", "physical_utilisation", "sm_config"].contains(&field.as_str()));
    }
    found
}

#[track_caller]
fn assert_kind(report: &RunReport, kind: Kind, reason: Option<FullReason>) {
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    for disk in disks(report) {
        assert_eq!((disk.kind, disk.full_reason), (kind, reason), "{report:#?}");
    }
}

/// The source snapshot disks that a run's deltas started from.
fn bases_of(report: &RunReport) -> Vec<String> {
    disks(report).iter().filter_map(|disk| disk.base.clone()).collect()
}

#[track_caller]
fn assert_warns(report: &RunReport, parts: &[&str]) {
    let warnings = &only_target(report).warnings;
    assert!(warnings.iter().any(|text| parts.iter().all(|part| text.contains(part))), "{parts:?}: {warnings:#?}");
}

/// A world whose VM a generation-2 job has replicated on Monday and Tuesday.
async fn two_transfers() -> (World, Transfer, Transfer) {
    let world = World::new().await;
    let xo = Xo::before(&world).await;
    let first = xo.generation_2(MONDAY, None, Until::End).await;
    change(&world, 3);
    let second = xo.generation_2(TUESDAY, Some(&first.replica), Until::End).await;
    xo.leave().await;
    (world, first, second)
}

#[tokio::test]
async fn a_chain_of_snapshots_is_taken_over_with_a_delta_in_place() {
    let (world, first, second) = two_transfers().await;
    let older = first.point.unwrap();
    let at_first = world.target_content(&older);
    let kept = world.source.vm_disks(&second.source_snapshot);
    let source_snapshot = everything_of(&world.source, &[&second.source_snapshot]);
    change(&world, 12);

    let report = world.run().await;
    assert_kind(&report, Kind::Delta, None);
    assert_eq!(bases_of(&report), kept);
    assert_eq!(only_target(&report).replica, Some(second.replica.clone()), "the same VM goes on");
    assert_eq!(world.target_content(&point_of(&report)), world.source_content());
    assert_eq!(world.target_content(&older), at_first);
    assert_warns(&report, &["which Xen Orchestra made without digests", &second.source_snapshot]);
    assert_eq!(everything_of(&world.source, &[&second.source_snapshot]), source_snapshot, "Xen Orchestra's");

    let points = &world.points().await[0].points;
    assert_eq!(
        points.iter().map(|point| point.origin.as_str()).collect::<Vec<_>>(),
        ["vmferry", "xen-orchestra", "xen-orchestra"]
    );
    change(&world, 14);
    let next = world.run().await;
    assert_kind(&next, Kind::Delta, None);
    assert!(only_target(&next).warnings.is_empty(), "{next:#?}");
    assert_eq!(world.target_content(&point_of(&next)), world.source_content());
}

#[tokio::test]
async fn what_xen_orchestra_wrote_wrong_is_found_by_comparing_with_the_source_and_mended() {
    let (world, _, second) = two_transfers().await;
    let disk = &world.target.vm_disks(second.point.as_ref().unwrap())[0];
    let shared = world.target.record("VDI", disk).unwrap()["sm_config"]["vhd-parent"].as_str().unwrap().to_owned();
    world.target.write(&shared, 40 * MIB, b"a block of another day");
    let report = world.run().await;
    assert_kind(&report, Kind::Delta, None);
    assert_warns(&report, &["`vmferry verify --deep` compares"]);

    let found = world.verify(true).await;
    assert_eq!(found.replicas[0].disks[0].verdict.to_string(), "damaged", "{found:#?}");
    let mended = world.run().await;
    assert_eq!(
        (disks(&mended)[0].kind, disks(&mended)[0].full_reason),
        (Kind::Resync, Some(FullReason::ReplicaDamaged))
    );
    assert_eq!(world.target_content(&point_of(&mended)), world.source_content());
    assert_eq!(world.verify(true).await.replicas[0].verdict.to_string(), "intact");
}

#[tokio::test]
async fn a_snapshot_whose_marks_disagree_is_no_recovery_point() {
    let (world, first, second) = two_transfers().await;
    let session = world.at_target().await;
    let disk: Ref<Vdi> = session.by_uuid(&world.target.vm_disks(second.point.as_ref().unwrap())[1]).await.unwrap();
    session.set_other_config_key(&disk, "xo:backup:datetime", "19700101T000000Z").await.unwrap();
    session.logout().await.unwrap();

    let points = world.points().await.remove(0).points;
    assert_eq!(points.iter().map(|point| &point.id).collect::<Vec<_>>(), [first.point.as_ref().unwrap()]);
    let report = world.run().await;
    assert_kind(&report, Kind::Full, Some(FullReason::BaseGoneOnSource));
    assert_eq!(world.target_content(&point_of(&report)), world.source_content());
}

#[tokio::test]
async fn a_run_that_fails_on_a_taken_over_chain_costs_nothing() {
    let (world, _, second) = two_transfers().await;
    change(&world, 12);
    world.target.inject(Fault { at: FaultPoint::Import, nth: 2, kind: FaultKind::CutAfter(1 << 20) });
    let failed = world.run().await;
    assert_eq!(failed.outcome, Outcome::Failed, "{failed:#?}");
    world.target.clear_faults();

    let report = world.run().await;
    assert_kind(&report, Kind::Delta, None);
    assert_eq!(bases_of(&report), world.source.vm_disks(&second.source_snapshot));
    assert_eq!(only_target(&report).replica, Some(second.replica));
    assert_eq!(world.target_content(&point_of(&report)), world.source_content());
}

#[tokio::test]
async fn a_replica_that_an_unfinished_update_left_is_kept_and_a_delta_starts_from_its_newest_snapshot() {
    for until in [Until::Importing, Until::Tagged] {
        let (world, _, second) = two_transfers().await;
        change(&world, 5);
        let xo = Xo::before(&world).await;
        let third = xo.generation_2(WEDNESDAY, Some(&second.replica), until).await;
        xo.leave().await;
        let left = everything_of(&world.target, &[&second.replica]);
        change(&world, 12);

        let report = world.run().await;
        assert_kind(&report, Kind::Delta, None);
        assert_eq!(bases_of(&report), world.source.vm_disks(&second.source_snapshot), "not Wednesday's");
        assert_ne!(only_target(&report).replica, Some(second.replica.clone()));
        assert_warns(&report, &[&second.replica, "a run of Xen Orchestra that was not finished"]);
        assert_eq!(world.target_content(&point_of(&report)), world.source_content());
        assert_eq!(everything_of(&world.target, &[&second.replica]), left);
        assert!(world.source.record("VM", &third.source_snapshot).is_some());
    }
}

#[tokio::test]
async fn a_snapshot_that_somebody_took_of_an_unfinished_update_is_no_recovery_point() {
    let (world, _, second) = two_transfers().await;
    change(&world, 5);
    let xo = Xo::before(&world).await;
    xo.generation_2(WEDNESDAY, Some(&second.replica), Until::Tagged).await;
    xo.leave().await;
    let replica_disk = &world.target.vm_disks(&second.replica)[0];
    world.target.write(replica_disk, 9 * MIB, b"somebody looked whether it starts");
    let session = world.at_target().await;
    let vm: Ref<Vm> = session.by_uuid(&second.replica).await.unwrap();
    let _: Ref<Vm> = session.call_async("VM.snapshot", params![&vm, "before I go on"]).await.unwrap();
    session.logout().await.unwrap();

    let report = world.run().await;
    assert_eq!(bases_of(&report), world.source.vm_disks(&second.source_snapshot), "{report:#?}");
    assert_eq!(world.target_content(&point_of(&report)), world.source_content());
}

#[tokio::test]
async fn what_xen_orchestra_did_not_finish_is_no_base_and_the_full_copy_says_so() {
    let world = World::new().await;
    let xo = Xo::before(&world).await;
    for generation in [1, 2] {
        let left = match generation {
            1 => xo.generation_1(MONDAY, None, Until::Importing).await,
            _ => xo.generation_2(TUESDAY, None, Until::Importing).await,
        };
        let before = everything_of(&world.target, &[&left.replica]);
        let planned = world.plan().await.vms.remove(0).targets.remove(0).disks;
        assert!(planned.iter().all(|disk| disk.full_reason == Some(FullReason::XoUnfinished)), "{planned:#?}");
        if generation == 2 {
            let report = world.run().await;
            assert_kind(&report, Kind::Full, Some(FullReason::XoUnfinished));
            assert_warns(&report, &[&left.replica, "was not finished"]);
            assert_eq!(world.target_content(&point_of(&report)), world.source_content());
        }
        assert_eq!(everything_of(&world.target, &[&left.replica]), before);
    }
    xo.leave().await;
}

#[tokio::test]
async fn one_vm_per_transfer_is_no_base_because_nobody_tells_whether_its_disks_were_written() {
    let world = World::new().await;
    let xo = Xo::before(&world).await;
    let first = xo.generation_1(MONDAY, None, Until::End).await;
    change(&world, 3);
    let second = xo.generation_1(TUESDAY, Some(&first.replica), Until::End).await;
    change(&world, 4);
    let third = xo.generation_1(WEDNESDAY, Some(&second.replica), Until::Importing).await;
    xo.leave().await;
    let all = [first.replica.as_str(), &second.replica, &third.replica];
    let before = everything_of(&world.target, &all);

    let report = world.run().await;
    assert_kind(&report, Kind::Full, Some(FullReason::XoVmPerRun));
    assert!(disks(&report)[0].reason.contains("nothing proves that nobody wrote"), "{report:#?}");
    assert_warns(&report, &[&second.replica, "A run of the job by Xen Orchestra 6.3 or newer"]);
    assert_warns(&report, &[&third.replica, "was not finished"]);
    assert_eq!(world.target_content(&point_of(&report)), world.source_content());
    assert_eq!(everything_of(&world.target, &all), before);
    assert!(world.source.record("VM", &second.source_snapshot).is_some());

    let next = world.run().await;
    assert_kind(&next, Kind::Delta, None);
    assert!(only_target(&next).warnings.is_empty(), "told once: {next:#?}");
}

#[tokio::test]
async fn a_legacy_chain_is_no_base_and_its_keys_do_not_pass_to_ours() {
    let world = World::new().await;
    let xo = Xo::before(&world).await;
    let left = xo.generation_0().await;
    xo.leave().await;
    let before = everything_of(&world.target, &[&left.replica]);

    let report = world.run().await;
    assert_kind(&report, Kind::Full, Some(FullReason::XoLegacy));
    assert_warns(&report, &[&left.replica, "older than 5.17"]);
    assert_eq!(everything_of(&world.target, &[&left.replica]), before);
    let replica = world.target.record("VM", only_target(&report).replica.as_ref().unwrap()).unwrap();
    let legacy = |keys: &Value| keys.as_object().unwrap().keys().any(|key| key.starts_with("xo:base_delta"));
    assert!(!legacy(&replica["other_config"]));
    assert!(
        legacy(&world.source.record("VM", &world.vm).unwrap()["other_config"]),
        "the source's are not ours to remove"
    );
}

#[tokio::test]
async fn a_base_whose_data_xen_orchestra_purged_means_a_full_copy_that_says_so() {
    let world = World::new().await;
    let session = world.at_source().await;
    for disk in world.source.vm_disks(&world.vm) {
        let disk: Ref<Vdi> = session.by_uuid(&disk).await.unwrap();
        session.call_async::<()>("VDI.enable_cbt", params![disk]).await.unwrap();
    }
    let xo = Xo::before(&world).await;
    let left = xo.generation_2(MONDAY, None, Until::End).await;
    xo.leave().await;
    let disks = world.source.vm_disks(&left.source_snapshot);
    let vm: Ref<Vm> = session.by_uuid(&left.source_snapshot).await.unwrap();
    session.call_async::<()>("VM.destroy", params![vm]).await.unwrap();
    for disk in disks {
        let disk: Ref<Vdi> = session.by_uuid(&disk).await.unwrap();
        session.call_async::<()>("VDI.data_destroy", params![disk]).await.unwrap();
    }
    session.logout().await.unwrap();

    let report = world.run().await;
    assert_kind(&report, Kind::Full, Some(FullReason::BasePurged));
    assert_eq!(world.target_content(&point_of(&report)), world.source_content());
}

#[tokio::test]
async fn xen_orchestra_finds_a_delta_the_replicas_and_the_way_back_in_our_chain() {
    let world = World::new().await;
    let first = world.run().await;
    change(&world, 12);
    let second = world.run().await;
    let (job, schedule) = (world.job.ids.job.to_string(), world.job.ids.schedule.to_string());
    let sr = world.target.default_sr();
    let replica = only_target(&second).replica.clone().unwrap();
    let snapshot = world.source.records("VM").into_iter().find(|vm| vm["is_a_snapshot"] == true).unwrap();
    let at_source = world.source.vm_disks(snapshot["uuid"].as_str().unwrap());
    let at_target = world.target.vm_disks(&point_of(&second));
    let pairs = |live: Vec<String>, bases: &[String], held: &[String]| -> rules::Bases {
        let pairs = bases.iter().cloned().zip(held.iter().cloned());
        live.into_iter().zip(pairs).collect()
    };

    let bases = rules::bases(&world.source, &world.target, &world.vm, &job, &sr);
    assert_eq!(bases, pairs(world.source.vm_disks(&world.vm), &at_source, &at_target));
    assert!(at_target.iter().all(|disk| rules::continues_in_place(&world.target, disk)));
    let points = [point_of(&first), point_of(&second)];
    for id in [&job, &schedule] {
        assert_eq!(rules::replicas(&world.target, id, &sr, &world.vm), points, "oldest first, and not the live VM");
    }
    let back = rules::failback_bases(&world.target, &world.source, &replica, &world.source.default_sr());
    assert_eq!(back, pairs(world.target.vm_disks(&replica), &at_target, &at_source));
    for vm in [&world.vm, &replica] {
        let pool = if *vm == replica { &world.target } else { &world.source };
        let keys = pool.record("VM", vm).unwrap()["other_config"].clone();
        assert_eq!(keys.get("xo:backup:job"), None, "a snapshot that a user takes must not look like one of the job's");
    }
}

#[tokio::test]
async fn xen_orchestra_finds_a_delta_in_our_chain_whose_points_hold_memory() {
    let mut world = World::new().await;
    world.job.snapshot = SnapshotMode::Memory;
    let points = [point_of(&world.run().await), point_of(&world.run().await)];
    let (job, sr) = (world.job.ids.job.to_string(), world.target.default_sr());
    let snapshot = world.source.records("VM").into_iter().find(|vm| vm["is_a_snapshot"] == true).unwrap();
    let at_source = world.source.vm_disks(snapshot["uuid"].as_str().unwrap());
    // The image hangs behind the disks.
    let at_target = world.target.vm_disks(&points[1]);
    let pairs = at_source.into_iter().zip(at_target.iter().cloned());
    let expected: rules::Bases = world.source.vm_disks(&world.vm).into_iter().zip(pairs).collect();
    assert_eq!(rules::bases(&world.source, &world.target, &world.vm, &job, &sr), expected);
    assert!(at_target.iter().all(|disk| rules::continues_in_place(&world.target, disk)));
    assert_eq!(rules::replicas(&world.target, &job, &sr, &world.vm), points);
}

#[tokio::test]
async fn a_chain_goes_from_us_to_xen_orchestra_and_back_with_deltas_in_one_replica() {
    let world = World::new().await;
    let first = world.run().await;
    let replica = only_target(&first).replica.clone().unwrap();
    change(&world, 3);
    let xo = Xo::before(&world).await;
    let theirs = xo.generation_2(&tomorrow(), Some(&replica), Until::End).await;
    xo.leave().await;
    assert_eq!(world.target_content(theirs.point.as_ref().unwrap()), world.source_content());
    let blocked = world.target.record("VM", &replica).unwrap()["blocked_operations"]["start"].clone();
    assert_eq!(blocked, CLONE_IT);

    change(&world, 12);
    let second = world.run().await;
    assert_kind(&second, Kind::Delta, None);
    assert_eq!(bases_of(&second), world.source.vm_disks(&theirs.source_snapshot));
    assert_eq!(only_target(&second).replica.as_ref(), Some(&replica));
    assert_eq!(world.target_content(&point_of(&second)), world.source_content());
    let (job, sr) = (world.job.ids.job.to_string(), world.target.default_sr());
    let newest = rules::replicas(&world.target, &job, &sr, &world.vm).pop();
    assert_eq!(newest, Some(point_of(&second)), "also where Xen Orchestra's clock is ahead");
    let bases = rules::bases(&world.source, &world.target, &world.vm, &job, &sr);
    assert!(bases.values().all(|(_, held)| world.target.vm_disks(&point_of(&second)).contains(held)), "{bases:?}");
}

/// A date that is later than the run's clock.
fn tomorrow() -> String {
    let at = Timestamp::now() + jiff::SignedDuration::from_hours(24);
    at.strftime("%Y%m%dT%H:%M:%SZ").to_string()
}

#[tokio::test]
async fn the_chain_of_another_job_beside_ours_is_never_touched() {
    let mut world = World::new().await;
    world.policies.retention = Some(Arc::new(Keep(1)));
    let theirs = Xo::beside(&world).await;
    let first = theirs.generation_2(MONDAY, None, Until::End).await;
    let second = theirs.generation_2(TUESDAY, Some(&first.replica), Until::End).await;
    let old = theirs.generation_1(WEDNESDAY, None, Until::End).await;
    let half = theirs.generation_2("20260305T19:48:04Z", None, Until::Importing).await;
    theirs.barrier().await;
    let (points, leftovers) = ([first.point.unwrap(), second.point.unwrap()], [old.replica, half.replica]);
    let targets: Vec<&str> = points.iter().chain(&leftovers).chain([&first.replica]).map(String::as_str).collect();
    let sources = [old.source_snapshot.as_str(), half.source_snapshot.as_str()];
    let look = || {
        (everything_of(&world.target, &targets), everything_of(&world.source, &sources), world.source.records("pool"))
    };
    let before = look();

    for run in 0..3 {
        let report = world.run().await;
        assert_kind(
            &report,
            if run == 0 { Kind::Full } else { Kind::Delta },
            (run == 0).then_some(FullReason::FirstRun),
        );
        assert_eq!(only_target(&report).pruned.len(), usize::from(run > 0));
        change(&world, 10 + run);
    }
    world.target.inject(Fault { at: FaultPoint::Import, nth: 1, kind: FaultKind::CutAfter(1 << 20) });
    assert_eq!(world.run().await.outcome, Outcome::Failed);
    assert_eq!(look(), before);
    theirs.leave().await;
}

#[tokio::test]
async fn retention_counts_the_points_that_xen_orchestra_made_and_finishes_what_a_kill_left_of_one() {
    let (mut world, first, second) = two_transfers().await;
    let point = first.point.unwrap();
    let session = world.at_target().await;
    let vm: Ref<Vm> = session.by_uuid(&point).await.unwrap();
    session.set_other_config_key(&vm, "vmferry:state", &format!("pruning:{point}")).await.unwrap();
    session.logout().await.unwrap();
    world.policies.retention = Some(Arc::new(Keep(1)));

    let report = world.run().await;
    assert_kind(&report, Kind::Delta, None);
    assert_eq!(only_target(&report).pruned, [second.point.unwrap()]);
    assert!(world.target.record("VM", &point).is_none());
    assert_eq!(world.points().await[0].points.len(), 1);
}
