//! Each disk and target has a base of its own: the newest content that both sides hold and that a point proves.

use std::time::Duration;
use vmferry_engine::Target;
use vmferry_model::plan::{FullReason, Kind};
use vmferry_model::report::{DiskReport, Outcome, RunReport, TargetReport};
use vmferry_scenarios::{MIB, World, destroy_vm, disks, only_target, point_of};
use xapi_sim::{Fault, FaultKind, FaultPoint};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A world whose job also has a target on the source's own pool.
async fn with_local_target() -> World {
    let mut world = World::new().await;
    let sr = world.source.add_sr("second", 1 << 40);
    let local =
        Target { name: "local".to_owned(), pool: "prod".to_owned(), srs: vec![sr], ..world.job.targets[0].clone() };
    world.job.targets.push(local);
    world
}

fn touch(world: &World, byte: u8) {
    world.source.write(&world.source.vm_disks(&world.vm)[0], 10 * MIB, &[byte; 1 << 20]);
}

#[track_caller]
fn target<'a>(report: &'a RunReport, name: &str) -> &'a TargetReport {
    let found = report.vms[0].targets.iter().find(|target| target.target == name);
    found.unwrap_or_else(|| panic!("no target {name}: {report:#?}"))
}

#[track_caller]
fn assert_kind(target: &TargetReport, kind: Kind) {
    assert!(target.disks.len() == 2 && target.disks.iter().all(|disk| disk.kind == kind), "{target:#?}");
}

fn source_snapshots(world: &World) -> Vec<String> {
    let records = world.source.records("VM").into_iter();
    let snapshots =
        records.filter(|vm| vm["is_a_snapshot"] == true && vm["other_config"].get("xo:backup:sr").is_none());
    snapshots.map(|vm| vm["uuid"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_replica_in_the_pool_of_its_source_is_updated_by_deltas() {
    let mut world = with_local_target().await;
    world.job.targets.remove(0);
    let first = world.run().await;
    assert_kind(only_target(&first), Kind::Full);
    touch(&world, 1);
    let second = world.run().await;
    assert_eq!(second.outcome, Outcome::Succeeded, "{second:#?}");
    assert_kind(only_target(&second), Kind::Delta);
    assert_eq!(only_target(&first).replica, only_target(&second).replica);
    let point = point_of(&second);
    let found: Vec<String> = world.source.vm_disks(&point).iter().map(|disk| world.source.sha256(disk)).collect();
    assert_eq!(found, world.source_content());
}

#[tokio::test]
async fn a_target_that_was_away_for_a_week_goes_on_with_a_delta_from_its_own_base() {
    let world = with_local_target().await;
    let before = world.run().await;
    world.target.go_down();
    for day in 1..=7 {
        world.source.advance_clock(DAY);
        touch(&world, day);
        let report = world.run().await;
        assert_eq!(report.outcome, Outcome::Partial, "{report:#?}");
        assert_kind(target(&report, "local"), Kind::Delta);
        assert_eq!(source_snapshots(&world).len(), 2, "the base of either target and no other");
    }
    world.target.come_back();
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    for name in ["dr", "local"] {
        assert_kind(target(&report, name), Kind::Delta);
    }
    let base = |report: &RunReport, name| target(report, name).disks.iter().map(base_of).collect::<Vec<_>>();
    assert_ne!(base(&report, "dr"), base(&report, "local"));
    let point = |report: &RunReport| target(report, "dr").recovery_point.clone().unwrap();
    assert_eq!(world.target_content(&point(&report)), world.source_content());
    assert_ne!(world.target_content(&point(&before)), world.source_content());
    assert_eq!(source_snapshots(&world).len(), 1, "both have the same base again");
}

#[tokio::test]
async fn a_point_that_was_made_without_a_word_keeps_its_base_while_its_target_is_away() {
    let world = with_local_target().await;
    world.run().await;
    touch(&world, 1);
    let at = FaultPoint::Call("VM.get_uuid".to_owned());
    world.target.inject(Fault { at, nth: 1, kind: FaultKind::StallAfter(0) });
    let goes_away = async {
        world.target.wait_until_stalled().await;
        world.target.go_down();
        world.target.clear_faults();
    };
    let (second, ()) = tokio::join!(world.run(), goes_away);
    assert_eq!(second.outcome, Outcome::Partial, "{second:#?}");
    let unheard = source_snapshots(&world);
    touch(&world, 2);
    let third = world.run().await;
    assert_eq!(third.outcome, Outcome::Partial, "{third:#?}");
    assert!(unheard.iter().all(|snapshot| source_snapshots(&world).contains(snapshot)), "{third:#?}");

    world.target.come_back();
    touch(&world, 3);
    let fourth = world.run().await;
    assert_eq!(fourth.outcome, Outcome::Succeeded, "{fourth:#?}");
    assert_kind(target(&fourth, "dr"), Kind::Delta);
    assert!(target(&fourth, "dr").disks[0].reason.contains("the newest recovery point"), "{fourth:#?}");
    let point = target(&fourth, "dr").recovery_point.clone().unwrap();
    assert_eq!(world.target_content(&point), world.source_content());
    assert_eq!(source_snapshots(&world).len(), 1, "and nothing is kept for longer");
}

fn base_of(disk: &DiskReport) -> Option<String> {
    disk.base.clone()
}

#[tokio::test]
async fn one_of_three_targets_that_lost_everything_gets_a_full_copy_and_the_others_deltas() {
    let mut world = with_local_target().await;
    let sr = world.target.add_sr("third", 1 << 40);
    world.job.targets.push(Target { name: "third".to_owned(), srs: vec![sr], ..world.job.targets[0].clone() });
    let first = world.run().await;
    assert_eq!(first.outcome, Outcome::Succeeded, "{first:#?}");
    let lost = target(&first, "third");
    let session = world.at_target().await;
    for vm in [&lost.recovery_point, &lost.replica] {
        destroy_vm(&session, &world.target, vm.as_ref().unwrap()).await;
    }
    session.logout().await.unwrap();
    world.lose_digests();

    touch(&world, 1);
    let second = world.run().await;
    assert_eq!(second.outcome, Outcome::Succeeded, "{second:#?}");
    assert_kind(target(&second, "dr"), Kind::Delta);
    assert_kind(target(&second, "local"), Kind::Delta);
    assert_kind(target(&second, "third"), Kind::Full);
    let reasons = target(&second, "third").disks.iter().map(|disk| disk.full_reason);
    assert!(reasons.into_iter().all(|reason| reason == Some(FullReason::BaseGoneOnTarget)), "{second:#?}");
    let point = target(&second, "third").recovery_point.clone().unwrap();
    assert_eq!(world.target_content(&point), world.source_content());
}

#[tokio::test]
async fn a_base_that_is_gone_on_the_source_gives_way_to_an_older_one() {
    let world = with_local_target().await;
    world.run().await;
    // One target misses a run, so its older base stays on the source.
    world.target.go_down();
    touch(&world, 1);
    let second = world.run().await;
    world.target.come_back();
    let old = target(&second, "local").disks[0].base.clone();
    let session = world.at_source().await;
    let newest = source_snapshots(&world).into_iter().max_by_key(|uuid| {
        world.source.record("VM", uuid).unwrap()["snapshot_time"].as_str().unwrap().to_owned()
            + world.source.record("VM", uuid).unwrap()["other_config"]["xo:backup:datetime"].as_str().unwrap()
    });
    destroy_vm(&session, &world.source, &newest.unwrap()).await;
    session.logout().await.unwrap();

    touch(&world, 2);
    let third = world.run().await;
    assert_eq!(third.outcome, Outcome::Succeeded, "{third:#?}");
    for name in ["dr", "local"] {
        assert_kind(target(&third, name), Kind::Delta);
        assert_eq!(target(&third, name).disks[0].base, old, "{third:#?}");
    }
    assert!(target(&third, "local").disks[0].reason.contains("an older recovery point"), "{third:#?}");
    let point = target(&third, "dr").recovery_point.clone().unwrap();
    assert_eq!(world.target_content(&point), world.source_content());
}

#[tokio::test]
async fn a_recovery_point_that_somebody_destroyed_is_no_base_and_the_plan_says_what_is_done_instead() {
    let world = World::new().await;
    world.run().await;
    touch(&world, 1);
    let second = world.run().await;
    let session = world.at_target().await;
    destroy_vm(&session, &world.target, &point_of(&second)).await;
    session.logout().await.unwrap();

    touch(&world, 2);
    let plan = world.plan().await;
    let third = world.run().await;
    assert_eq!(third.outcome, Outcome::Succeeded, "{third:#?}");
    for (planned, disk) in plan.vms[0].targets[0].disks.iter().zip(disks(&third)) {
        assert_eq!((planned.kind, planned.full_reason), (disk.kind, disk.full_reason));
        assert_eq!((disk.kind, disk.full_reason), (Kind::Resync, Some(FullReason::BaseGoneOnTarget)), "{third:#?}");
    }
    assert_eq!(world.target_content(&point_of(&third)), world.source_content());
}
