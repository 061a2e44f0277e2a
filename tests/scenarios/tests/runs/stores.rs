//! Targets that are stores: they get their part of a run as pools do, each from a base of its own.

use crate::kills::{check_each, die_after_call};
use async_trait::async_trait;
use std::sync::Arc;
use vmferry_engine::GcReport;
use vmferry_model::plan::{FullReason, Kind};
use vmferry_model::plugin::{Judgement, PluginError, PointView, Retention};
use vmferry_model::report::{Outcome, RunReport, TargetReport};
use vmferry_model::target::PointStore;
use vmferry_scenarios::shelf::Shelf;
use vmferry_scenarios::{Keep, MIB, World};
use xapi_sim::{NbdPurpose, SimConfig};

const KIB: u64 = 1 << 10;

/// A world whose job also keeps points on a shelf.
async fn with_shelf(shelf: &Shelf) -> World {
    let mut world = World::new().await;
    world.job.stores.push(shelf.target("shelf"));
    world
}

/// A world whose job keeps points on a shelf alone.
async fn only_shelf(shelf: &Shelf) -> World {
    let mut world = with_shelf(shelf).await;
    world.job.targets.clear();
    world
}

fn touch(world: &World, byte: u8) {
    world.source.write(&world.source.vm_disks(&world.vm)[0], 10 * MIB, &[byte; 4096]);
}

#[track_caller]
fn target<'a>(report: &'a RunReport, name: &str) -> &'a TargetReport {
    let found = report.vms[0].targets.iter().find(|target| target.target == name);
    found.unwrap_or_else(|| panic!("no target {name}: {report:#?}"))
}

#[track_caller]
fn succeeded(report: RunReport) -> RunReport {
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    report
}

#[track_caller]
fn assert_kind(target: &TargetReport, kind: Kind) {
    assert!(target.disks.len() == 2 && target.disks.iter().all(|disk| disk.kind == kind), "{target:#?}");
}

/// The newest point on the shelf is what the source's disks are now.
#[track_caller]
fn assert_holds_source(world: &World, shelf: &Shelf) {
    let point = shelf.ids().pop().expect("a point");
    for disk in world.source.vm_disks(&world.vm) {
        let stored = shelf.read_disk(&point, &disk);
        assert_eq!(stored, world.source.read(&disk, 0, stored.len()), "disk {disk}");
    }
}

fn source_snapshots(world: &World) -> usize {
    world.source.records("VM").iter().filter(|vm| vm["is_a_snapshot"] == true).count()
}

#[tokio::test]
async fn one_read_feeds_a_pool_and_a_store_and_both_hold_the_same_moment() {
    let shelf = Shelf::new(1 << 20);
    let world = with_shelf(&shelf).await;
    for (byte, kind) in [(0, Kind::Full), (1, Kind::Delta), (2, Kind::Delta)] {
        touch(&world, byte);
        world.source.clear_calls();
        let report = succeeded(world.run().await);
        assert_kind(target(&report, "dr"), kind);
        assert_kind(target(&report, "shelf"), kind);
        assert_eq!(target(&report, "shelf").disks[0].engine, "pooled");
        let reads = world.source.calls().iter().filter(|call| call.contains("/export_raw_vdi")).count();
        assert_eq!(reads, 2, "each disk is read once: {:#?}", world.source.calls());
        assert_holds_source(&world, &shelf);
        let replica = target(&report, "dr").recovery_point.clone().unwrap();
        assert_eq!(world.target_content(&replica), world.source_content());
        let roots = |name| target(&report, name).disks.iter().map(|disk| disk.digest.clone()).collect::<Vec<_>>();
        assert_eq!(roots("dr"), roots("shelf"));
        assert_eq!(target(&report, "shelf").recovery_point, shelf.ids().pop());
    }
    assert_eq!(source_snapshots(&world), 1, "one base for both");
}

#[tokio::test]
async fn a_job_may_have_stores_alone() {
    let shelf = Shelf::new(64 << 10);
    let world = only_shelf(&shelf).await;
    let plan = world.plan().await;
    assert_eq!(plan.vms[0].targets[0].disks[0].full_reason, Some(FullReason::FirstRun));
    succeeded(world.run().await);
    touch(&world, 1);
    let report = succeeded(world.run().await);
    assert_kind(target(&report, "shelf"), Kind::Delta);
    assert_holds_source(&world, &shelf);
    assert_eq!(source_snapshots(&world), 1);
    assert!(world.gc(false).await.findings.is_empty());
}

#[tokio::test]
async fn changed_blocks_are_read_in_whole_chunks_of_the_store() {
    let shelf = Shelf::new(256 << 10);
    let source = SimConfig { nbd_purpose: Some(NbdPurpose::InsecureNbd), ..SimConfig::default() };
    let mut world = World::between(source, SimConfig::default()).await;
    world.job.targets.clear();
    world.job.stores.push(shelf.target("shelf"));
    world.job.reading.enable_cbt = true;
    for byte in 0..4 {
        touch(&world, byte);
        let report = succeeded(world.run().await);
        assert_holds_source(&world, &shelf);
        if byte == 3 {
            let disk = &target(&report, "shelf").disks[0];
            assert_eq!((disk.source.as_str(), disk.kind), ("nbd", Kind::Delta), "{disk:#?}");
            assert_eq!(disk.changed_bytes, 256 * KIB, "4 KiB were written");
        }
    }
}

#[tokio::test]
async fn a_store_that_lost_everything_gets_a_full_copy_and_the_others_a_delta() {
    let shelf = Shelf::new(1 << 20);
    let world = with_shelf(&shelf).await;
    succeeded(world.run().await);
    shelf.clear();
    touch(&world, 1);
    let report = succeeded(world.run().await);
    assert_kind(target(&report, "dr"), Kind::Delta);
    assert_kind(target(&report, "shelf"), Kind::Full);
    let reason = target(&report, "shelf").disks[0].full_reason;
    assert_eq!(reason, Some(FullReason::BaseGoneOnTarget));
    assert_holds_source(&world, &shelf);
}

#[tokio::test]
async fn a_store_that_fails_costs_the_others_nothing_and_itself_no_base() {
    for call in ["write", "commit", "points"] {
        let shelf = Shelf::new(1 << 20);
        let world = with_shelf(&shelf).await;
        succeeded(world.run().await);
        touch(&world, 1);
        shelf.fail(call);
        let report = world.run().await;
        assert_eq!(report.outcome, Outcome::Partial, "{call}: {report:#?}");
        assert_kind(target(&report, "dr"), Kind::Delta);
        let error = target(&report, "shelf").error.clone().unwrap();
        assert!(error.contains("the shelf gave way"), "{call}: {error}");
        assert_eq!(
            (shelf.ids().len(), shelf.kept_disks()),
            (1, 2),
            "{call}: what it stored is gone, what it had is there"
        );
        touch(&world, 2);
        let report = succeeded(world.run().await);
        assert_kind(target(&report, "shelf"), Kind::Delta);
        assert_holds_source(&world, &shelf);
        assert_eq!(source_snapshots(&world), 1);
        assert!(world.gc(false).await.findings.is_empty(), "{call}");
    }
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_a_base_all_the_same() {
    let shelf = Shelf::new(1 << 20);
    let world = only_shelf(&shelf).await;
    succeeded(world.run().await);
    touch(&world, 1);
    shelf.lose_answer("commit");
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Failed, "{report:#?}");
    assert_eq!(shelf.ids().len(), 2, "the point is there");
    touch(&world, 2);
    let report = succeeded(world.run().await);
    let base = target(&report, "shelf").disks[0].base.clone();
    assert_eq!(target(&report, "shelf").disks[0].kind, Kind::Delta);
    assert_ne!(base, None);
    assert_holds_source(&world, &shelf);
    assert_eq!((shelf.ids().len(), source_snapshots(&world)), (3, 1));
}

#[tokio::test]
async fn a_damaged_point_is_no_base_and_an_older_one_is_where_the_store_can() {
    for only_newest in [false, true] {
        let shelf = if only_newest { Shelf::new(1 << 20).only_newest() } else { Shelf::new(1 << 20) };
        let world = only_shelf(&shelf).await;
        succeeded(world.run().await);
        shelf.damage(&shelf.ids()[0]);
        let verified = world.verify(true).await;
        assert_eq!(verified.replicas[0].verdict.to_string(), "damaged", "{verified:#?}");
        touch(&world, 1);
        let report = succeeded(world.run().await);
        let disk = &target(&report, "shelf").disks[0];
        assert_eq!((disk.kind, disk.full_reason), (Kind::Full, Some(FullReason::ReplicaDamaged)));
        assert_holds_source(&world, &shelf);
        assert_eq!(world.verify(false).await.replicas[0].verdict.to_string(), "intact");
    }
}

#[tokio::test]
async fn retention_goes_for_stores_as_for_replicas() {
    let shelf = Shelf::new(1 << 20);
    let mut world = only_shelf(&shelf).await;
    world.policies.retention = Some(Arc::new(Keep(2)));
    let mut first = None;
    for byte in 0..4 {
        touch(&world, byte);
        let report = succeeded(world.run().await);
        let point = target(&report, "shelf").recovery_point.clone().unwrap();
        if first.is_none() {
            let held = world.job.stores[0].store.hold(&point, true);
            held.await.unwrap();
            first = Some(point);
        }
    }
    let ids = shelf.ids();
    assert_eq!(ids.len(), 3, "two that the rule keeps, and the held one");
    assert_eq!(ids.first(), first.as_ref());
    let listed = world.points().await;
    assert_eq!((listed.len(), listed[0].state.to_string().as_str()), (1, "stored"));
    assert_eq!(listed[0].points.iter().map(|point| point.held).collect::<Vec<_>>(), [false, false, true]);
}

#[tokio::test]
async fn a_store_that_takes_nothing_for_a_while_has_not_stalled() {
    let shelf = Shelf::new(1 << 20);
    let mut world = only_shelf(&shelf).await;
    let patience = std::time::Duration::from_secs(1);
    (world.job.tuning.first_byte, world.job.tuning.stall) = (patience, patience);
    // More than is kept ready for it.
    world.source.write(&world.source.vm_disks(&world.vm)[0], 0, &vec![1; 16 * MIB as usize]);
    shelf.stall("write", false);
    let run = world.run();
    tokio::pin!(run);
    tokio::select! {
        report = &mut run => panic!("it did not stall: {report:#?}"),
        () = shelf.wait_until_stalled() => {}
    }
    // Longer than anybody else may take.
    let ended = tokio::time::timeout(3 * patience, &mut run).await;
    assert!(ended.is_err(), "it was given up: {ended:#?}");
    shelf.resume();
    succeeded(run.await);
    assert_holds_source(&world, &shelf);
}

#[tokio::test]
async fn a_store_whose_call_ended_and_left_its_thread_hanging_holds_up_nobody() {
    let shelf = Shelf::new(1 << 20);
    let mut world = with_shelf(&shelf).await;
    world.job.tuning.stall = std::time::Duration::from_secs(1);
    world.job.tuning.first_byte = world.job.tuning.stall;
    // More than is kept ready for it.
    world.source.write(&world.source.vm_disks(&world.vm)[0], 0, &vec![1; 16 * MIB as usize]);
    shelf.hang();
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Partial, "{report:#?}");
    assert_eq!(target(&report, "dr").outcome, Outcome::Succeeded);
    let told = target(&report, "shelf").error.clone().unwrap();
    assert!(told.contains("the shelf gave way"), "{told}");
}

/// Drops all that it may, and holds the oldest point of a shelf meanwhile.
struct HoldsMeanwhile(Shelf);

#[async_trait]
impl Retention for HoldsMeanwhile {
    async fn select(&self, points: &[PointView], _: jiff::Timestamp) -> Result<Vec<Judgement>, PluginError> {
        self.0.hold(&points[0].id, true).await?;
        Ok(vec![Judgement { keep: false, rule: "none".to_owned() }; points.len()])
    }
}

#[tokio::test]
async fn a_point_that_is_held_while_retention_decides_stays() {
    let shelf = Shelf::new(1 << 20);
    let mut world = only_shelf(&shelf).await;
    for byte in 0..2 {
        touch(&world, byte);
        succeeded(world.run().await);
    }
    world.policies.retention = Some(Arc::new(HoldsMeanwhile(shelf.clone())));
    let before = shelf.ids();
    touch(&world, 2);
    let report = succeeded(world.run().await);
    assert_eq!(target(&report, "shelf").pruned, [before[1].clone()]);
    assert_eq!(shelf.ids()[0], before[0], "it is held");
}

#[tokio::test]
async fn what_belongs_to_no_point_is_found_and_removed_by_gc() {
    let shelf = Shelf::new(1 << 20);
    let world = only_shelf(&shelf).await;
    succeeded(world.run().await);
    touch(&world, 1);
    succeeded(world.run().await);
    shelf.forget_point(&shelf.ids()[0]);
    let stored = |report: GcReport| {
        assert!(report.problems.is_empty(), "{report:#?}");
        report.findings.into_iter().filter(|finding| finding.class == "stored").count()
    };
    assert_eq!((stored(world.gc(false).await), shelf.kept_disks()), (2, 4), "it is only told");
    assert_eq!((stored(world.gc(true).await), shelf.kept_disks()), (2, 2));
    assert_holds_source(&world, &shelf);
}

/// After a run that died: the last point is as it was, and the next run puts everything right by a delta.
async fn assert_healed(world: &World, shelf: &Shelf, last: &(String, Vec<Vec<u8>>), name: &str) {
    let disks = world.source.vm_disks(&world.vm);
    let found: Vec<Vec<u8>> = disks.iter().map(|disk| shelf.read_disk(&last.0, disk)).collect();
    assert!(found == last.1, "{name}: the last point is intact");
    let healed = world.run().await;
    assert_eq!(healed.outcome, Outcome::Succeeded, "{name}: {healed:#?}");
    assert_kind(target(&healed, "shelf"), Kind::Delta);
    assert_holds_source(world, shelf);
    world.gc(true).await;
    assert_eq!(source_snapshots(world), 1, "{name}");
    assert_eq!(shelf.kept_disks(), 2 * shelf.ids().len(), "{name}: nothing that belongs to no point");
}

async fn one_point(shelf: &Shelf) -> (World, (String, Vec<Vec<u8>>)) {
    let world = only_shelf(shelf).await;
    succeeded(world.run().await);
    let point = shelf.ids().remove(0);
    let content = world.source.vm_disks(&world.vm).iter().map(|disk| shelf.read_disk(&point, disk)).collect();
    touch(&world, 1);
    (world, (point, content))
}

#[tokio::test]
async fn a_run_to_a_store_may_die_after_any_call_on_the_source() {
    check_each(20, async |nth| {
        let shelf = Shelf::new(1 << 20);
        let (world, last) = one_point(&shelf).await;
        let died = die_after_call(&world, &world.source, nth).await;
        assert_healed(&world, &shelf, &last, &format!("killed after call {nth}")).await;
        died
    })
    .await;
}

#[tokio::test]
async fn a_run_to_a_store_may_die_before_and_after_any_call_of_the_store() {
    for call in ["points", "write", "commit", "delete"] {
        for after in [false, true] {
            let shelf = Shelf::new(1 << 20);
            let (mut world, last) = one_point(&shelf).await;
            if call == "delete" {
                // A point that goes, and one more that does not.
                succeeded(world.run().await);
                touch(&world, 2);
                world.policies.retention = Some(Arc::new(Keep(2)));
            }
            shelf.stall(call, after);
            tokio::select! {
                report = world.run() => panic!("{call}: the run did not stall: {report:#?}"),
                () = shelf.wait_until_stalled() => {}
            }
            world.policies.retention = None;
            let name = format!("killed {} {call}", if after { "after" } else { "before" });
            match (call, after) {
                ("delete", true) => {
                    let healed = succeeded(world.run().await);
                    assert_kind(target(&healed, "shelf"), Kind::Delta);
                    assert_holds_source(&world, &shelf);
                }
                _ => assert_healed(&world, &shelf, &last, &name).await,
            }
        }
    }
}
