//! Targets that lack different parts of a disk: it is read once, and each gets its part.

use jiff::SignedDuration;
use std::sync::Arc;
use std::time::Duration;
use vmferry_disk::transfer::Throttle;
use vmferry_engine::{Integrity, Target};
use vmferry_model::plan::Kind;
use vmferry_model::report::{DiskReport, Outcome, RunReport};
use vmferry_scenarios::shelf::Shelf;
use vmferry_scenarios::{MIB, World};
use xapi_sim::{Fault, FaultKind, FaultPoint, NbdPurpose, SimConfig, SrKind};

use crate::several_srs::set_plugged;

const KIB: u64 = 1 << 10;
/// Of an export that is broken off behind its head as much leaves the source as a socket takes.
const SLACK: u64 = 7 * MIB;

/// A world with a second target, which is away for one run that writes `first`; then both are there, and `second` was written.
async fn one_was_away(world: World, first: impl Fn(&World), second: impl Fn(&World)) -> World {
    let (world, sr) = with_second_target(world);
    assert_eq!(world.run().await.outcome, Outcome::Succeeded);
    set_plugged(&world, &sr, false).await;
    first(&world);
    world.source.advance_clock(Duration::from_secs(60 * 60));
    assert_eq!(world.run().await.outcome, Outcome::Partial);
    set_plugged(&world, &sr, true).await;
    second(&world);
    world.source.clear_calls();
    world
}

fn with_second_target(mut world: World) -> (World, String) {
    let sr = world.target.add_sr("second", 1 << 40);
    let second = Target { name: "second".to_owned(), srs: vec![sr.clone()], ..world.job.targets[0].clone() };
    world.job.targets.push(second);
    (world, sr)
}

fn second_sr(world: &World) -> String {
    world.job.targets[1].srs[0].clone()
}

fn write(world: &World, at: u64, length: u64, byte: u8) {
    world.source.write(&world.source.vm_disks(&world.vm)[0], at, &vec![byte; length as usize]);
}

/// The report on the disk that is written to.
#[track_caller]
fn disk<'a>(report: &'a RunReport, name: &str) -> &'a DiskReport {
    let found = report.vms[0].targets.iter().find(|target| target.target == name);
    &found.unwrap_or_else(|| panic!("no target {name}: {report:#?}")).disks[0]
}

/// The run, after which every target has to hold what the source holds, and how many bytes the source pool gave for it.
async fn run(world: &World) -> (RunReport, u64) {
    let before = world.source.moved_bytes();
    let report = world.run().await;
    let read = world.source.moved_bytes() - before;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    for target in report.vms[0].targets.iter().filter(|target| target.target != "shelf") {
        let point = target.recovery_point.clone().unwrap_or_else(|| panic!("{target:#?}"));
        assert_eq!(world.target_content(&point), world.source_content(), "{target:#?}");
    }
    (report, read)
}

#[tokio::test]
async fn deltas_from_different_bases_are_one_export_from_the_older() {
    let world = one_was_away(
        World::new().await,
        |world| write(world, 50 * MIB, 4 * MIB, 1),
        |world| write(world, 10 * MIB, 20 * MIB, 2),
    )
    .await;
    let (report, read) = run(&world).await;
    assert!(read < 24 * MIB + SLACK, "{read} bytes left the source");
    let (dr, second) = (disk(&report, "dr"), disk(&report, "second"));
    assert_eq!([dr.kind, second.kind], [Kind::Delta; 2]);
    assert_eq!([dr.changed_bytes, second.changed_bytes], [20 * MIB, 24 * MIB]);
    assert!((20 * MIB..21 * MIB).contains(&dr.bytes_sent) && second.bytes_sent > 24 * MIB, "{report:#?}");
    assert_eq!(dr.bytes_read, second.bytes_read);
    assert!(dr.digest.is_some() && dr.digest == second.digest);
    let (next, _) = run(&world).await;
    assert_eq!([disk(&next, "dr").changed_bytes, disk(&next, "second").changed_bytes], [0, 0]);
}

/// A world whose source tells changes in 64 KiB.
async fn with_cbt() -> World {
    let source = SimConfig { nbd_purpose: Some(NbdPurpose::InsecureNbd), ..SimConfig::default() };
    let mut world = World::between(source, SimConfig::default()).await;
    world.job.reading.enable_cbt = true;
    // The first run enables tracking, and the second one's snapshot has what to start from.
    assert_eq!(world.run().await.outcome, Outcome::Succeeded);
    assert_eq!(world.run().await.outcome, Outcome::Succeeded);
    world
}

#[tokio::test]
async fn changed_blocks_of_several_bases_are_read_once_by_nbd() {
    let world = one_was_away(
        with_cbt().await,
        |world| write(world, 50 * MIB, 64 * KIB, 1),
        |world| {
            write(world, 10 * MIB, 64 * KIB, 2);
            write(world, 50 * MIB + 64 * KIB, 64 * KIB, 3);
        },
    )
    .await;
    let (report, read) = run(&world).await;
    assert_eq!(read, 192 * KIB);
    let (dr, second) = (disk(&report, "dr"), disk(&report, "second"));
    assert_eq!([dr.source.as_str(), second.source.as_str()], ["nbd"; 2]);
    assert_eq!([dr.changed_bytes, second.changed_bytes], [128 * KIB, 192 * KIB]);
    assert!((128 * KIB..129 * KIB).contains(&dr.bytes_sent), "{dr:#?}");
    assert!(dr.digest.is_some() && dr.digest == second.digest);
    assert!(!world.source.calls().iter().any(|call| call.contains("/export_raw_vdi")));
}

/// Blocks that were written and are zero again are in the delta, and not in the full copy.
#[tokio::test]
async fn a_new_target_gets_a_full_copy_and_the_other_its_delta_of_the_same_read() {
    let mut world = World::new().await;
    write(&world, 20 * MIB, 20 * MIB, 1);
    assert_eq!(world.run().await.outcome, Outcome::Succeeded);
    (world, _) = with_second_target(world);
    write(&world, 20 * MIB, 4 * MIB, 0);
    write(&world, 30 * MIB, 4 * MIB, 2);
    let (report, read) = run(&world).await;
    let (dr, new) = (disk(&report, "dr"), disk(&report, "second"));
    assert_eq!([dr.kind, new.kind], [Kind::Delta, Kind::Full]);
    assert_eq!(dr.changed_bytes, 8 * MIB);
    assert!((8 * MIB..9 * MIB).contains(&dr.bytes_sent), "{dr:#?}");
    assert!(new.bytes_sent > 22 * MIB, "{new:#?}");
    assert!(read < new.bytes_read + SLACK, "{read} bytes left the source");
    assert!(dr.digest.is_some() && dr.digest == new.digest);
}

#[tokio::test]
async fn a_store_gets_whole_chunks_of_a_read_that_it_shares() {
    let shelf = Shelf::new(256 << 10);
    let mut world = with_cbt().await;
    world.job.stores.push(shelf.target("shelf"));
    let world =
        one_was_away(world, |world| write(world, 50 * MIB, 64 * KIB, 1), |world| write(world, 10 * MIB, 64 * KIB, 2))
            .await;
    let (report, read) = run(&world).await;
    // The other 64 KiB, which the second target lacks, are in no chunk of the store's.
    assert_eq!(read, 256 * KIB + 64 * KIB);
    let stored = disk(&report, "shelf");
    assert_eq!((stored.changed_bytes, stored.engine.as_str()), (256 * KIB, "pooled"));
    // It starts from the same content as this one.
    assert_eq!(disk(&report, "dr").changed_bytes, 256 * KIB);
    assert_eq!(disk(&report, "second").changed_bytes, 128 * KIB);
    let point = shelf.ids().pop().expect("a point");
    for disk in world.source.vm_disks(&world.vm) {
        let found = shelf.read_disk(&point, &disk);
        assert_eq!(found, world.source.read(&disk, 0, found.len()), "disk {disk}");
    }
}

#[tokio::test]
async fn who_fails_costs_the_others_of_the_same_read_nothing() {
    let world = one_was_away(
        World::new().await,
        |world| write(world, 50 * MIB, 4 * MIB, 1),
        |world| write(world, 10 * MIB, 20 * MIB, 2),
    )
    .await;
    // The imports of the two targets begin in either order, and either may fail.
    world.target.inject(Fault { at: FaultPoint::Import, nth: 1, kind: FaultKind::ResetAfter(3 * MIB) });
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Partial, "{report:#?}");
    world.target.clear_faults();
    let good = report.vms[0].targets.iter().find(|target| target.error.is_none()).expect("one that did not fail");
    let point = good.recovery_point.clone().unwrap();
    assert_eq!(world.target_content(&point), world.source_content());
    run(&world).await;
}

#[tokio::test]
async fn after_a_read_that_broke_off_each_target_is_read_for_alone_for_a_day() {
    let mut world = one_was_away(
        World::new().await,
        |world| write(world, 50 * MIB, 4 * MIB, 1),
        |world| write(world, 10 * MIB, 20 * MIB, 2),
    )
    .await;
    // Behind the export that is looked at for what the newer base lacks.
    world.job.tuning.disks_in_parallel = 1;
    world.source.inject(Fault { at: FaultPoint::Export, nth: 2, kind: FaultKind::ResetAfter(12 * MIB) });
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Failed, "{report:#?}");
    world.source.clear_faults();
    // Both start from different bases in the next run as well.
    for (hours, alone) in [(1, true), (25, false)] {
        let (world, report) = (&world, world.run_after(SignedDuration::from_hours(hours)).await);
        assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
        let notes: Vec<&String> = ["dr", "second"].iter().flat_map(|name| &disk(&report, name).notes).collect();
        let told = notes.iter().filter(|note| note.contains("each is read for alone until")).count();
        assert_eq!(told, if alone { 2 } else { 0 }, "{notes:#?}");
        set_plugged(world, &second_sr(world), false).await;
        write(world, 10 * MIB, MIB, 3);
        assert_eq!(world.run_after(SignedDuration::from_hours(hours)).await.outcome, Outcome::Partial);
        set_plugged(world, &second_sr(world), true).await;
        write(world, 10 * MIB, MIB, 4);
    }
}

/// Its target's disk takes nothing, so nobody wants the whole.
#[tokio::test]
async fn nothing_is_read_for_a_target_that_cannot_take_it() {
    let mut world = World::new().await;
    write(&world, 20 * MIB, 24 * MIB, 1);
    assert_eq!(world.run().await.outcome, Outcome::Succeeded);
    (world, _) = with_second_target(world);
    write(&world, 30 * MIB, 2 * MIB, 2);
    world.job.tuning.disks_in_parallel = 1;
    world.target.inject(Fault { at: FaultPoint::Import, nth: 1, kind: FaultKind::Http500 });
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Partial, "{report:#?}");
    let dr = disk(&report, "dr");
    assert_eq!((dr.kind, dr.changed_bytes), (Kind::Delta, 2 * MIB));
    assert!(dr.bytes_read < 3 * MIB, "{dr:#?}");
    world.target.clear_faults();
    run(&world).await;
}

#[tokio::test]
async fn what_is_not_known_without_a_read_is_a_read_of_its_own_and_the_report_says_why() {
    let source = SimConfig { sr_kind: SrKind::Volumes, ..SimConfig::default() };
    let world = World::between(source, SimConfig::default()).await;
    assert_eq!(world.run().await.outcome, Outcome::Succeeded);
    let (world, _) = with_second_target(world);
    write(&world, 30 * MIB, 64 * KIB, 2);
    let (report, _) = run(&world).await;
    let (dr, second) = (disk(&report, "dr"), disk(&report, "second"));
    assert_eq!((dr.kind, dr.changed_bytes, second.kind), (Kind::Resync, 64 * KIB, Kind::Full));
    let why = "it was not read together with what other targets lack: the transfer failed on the host";
    assert!(dr.notes.iter().any(|note| note.starts_with(why)), "{dr:#?}");
}

/// The slow link is that of who gets little.
#[tokio::test]
async fn a_link_is_limited_by_what_goes_over_it() {
    let mut world = World::new().await;
    write(&world, 20 * MIB, 24 * MIB, 1);
    assert_eq!(world.run().await.outcome, Outcome::Succeeded);
    (world, _) = with_second_target(world);
    world.job.integrity = Integrity::Structure;
    world.job.targets[0].throttles = vec![Arc::new(Throttle::new(|_| Some(1 << 20)))];
    write(&world, 30 * MIB, 2 * MIB, 2);
    let (report, _) = run(&world).await;
    let new = disk(&report, "second");
    assert!(new.bytes_sent > 24 * MIB && new.seconds < 15.0, "24 MiB at 1 MiB a second would take 24: {new:#?}");
    let note = "not spliced: targets get different parts of what is read";
    assert!(new.digest.is_none() && new.notes.iter().any(|told| told == note), "{new:#?}");
}
