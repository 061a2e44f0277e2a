//! Disks beyond VHD's 2 TiB: what they hold moves, and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use vmferry_engine::{EngineError, RestoreReport, RestoreRequest, RestoreTo, Silent};
use vmferry_model::plan::{FullReason, Kind};
use vmferry_model::report::{DiskReport, Outcome, RunReport};
use vmferry_scenarios::shelf::Shelf;
use vmferry_scenarios::{MIB, World, disks, only_target, point_of};
use xapi_sim::{DiskSpec, Fault, FaultKind, FaultPoint, NbdPurpose, Sim, SimConfig, SrKind, SrSpec, VmSpec};

const KIB: u64 = 1 << 10;
const TIB: u64 = 1 << 40;
const DISK: u64 = 3 * TIB;
/// Where the disk holds 100 KiB of data each: six times two clusters of 64 KiB.
const PLACES: [u64; 6] = [0, 700 * MIB, TIB + 5 * MIB, 2 * TIB - 64 * KIB, 2 * TIB + 123 * MIB, DISK - 128 * KIB];
const DATA: u64 = 2 * 64 * KIB * PLACES.len() as u64;

fn pool(qcow2_streams: bool) -> SimConfig {
    SimConfig { nbd_purpose: Some(NbdPurpose::InsecureNbd), qcow2_streams, ..SimConfig::default() }
}

fn large_sr(pool: &Sim) -> String {
    pool.add_sr_with(SrSpec { name: "large".into(), size: 16 * TIB, kind: SrKind::Nfs, ..SrSpec::default() })
}

/// A VM with one disk of 3 TiB, whose exports the source's host may know as qcow2.
pub(crate) async fn world(qcow2_streams: bool) -> World {
    let mut world = World::between(pool(qcow2_streams), pool(true)).await;
    let (sr, image_format) = (Some(large_sr(&world.source)), Some("qcow2".to_owned()));
    let disk = DiskSpec { name: "files".into(), size: DISK, sr, image_format, ..DiskSpec::default() };
    world.vm = world.source.add_vm(VmSpec {
        name: "file-server".into(),
        disks: vec![disk],
        running: true,
        ..VmSpec::default()
    });
    world.job.select.vms = vec![world.vm.clone()];
    world.job.targets[0].srs = vec![large_sr(&world.target)];
    for (place, byte) in PLACES.into_iter().zip(1..) {
        touch(&world, place, byte, 100 * KIB);
    }
    world
}

fn touch(world: &World, place: u64, byte: u8, length: u64) {
    world.source.write(&world.source.vm_disks(&world.vm)[0], place, &vec![byte; length as usize]);
}

/// The recovery point holds what the source does, around every place that was ever written and elsewhere.
#[track_caller]
fn succeeded(world: &World, report: &RunReport, touched: &[u64]) {
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    let (from, to) = (&world.source.vm_disks(&world.vm)[0], &world.target.vm_disks(&point_of(report))[0]);
    let untouched = [MIB, 600 * MIB, TIB - MIB, 2 * TIB + MIB, DISK - 10 * MIB];
    for place in PLACES.iter().chain(touched).chain(&untouched) {
        let at = place.saturating_sub(64 * KIB);
        let length = (256 * KIB).min(DISK - at) as usize;
        assert!(world.target.read(to, at, length) == world.source.read(from, at, length), "byte {place}");
    }
}

fn disk(report: &RunReport) -> &DiskReport {
    &disks(report)[0]
}

#[track_caller]
fn moved(report: &RunReport, kind: Kind, read: u64, changed: u64) {
    let disk = disk(report);
    assert_eq!((disk.kind, disk.source.as_str(), disk.encoding.as_str()), (kind, "nbd", "chunked"), "{disk:#?}");
    assert_eq!((disk.changed_bytes, disk.digest.is_some()), (changed, true), "{disk:#?}");
    assert!((read..read + 1024).contains(&disk.bytes_read), "{disk:#?}");
    assert!(disk.bytes_sent < changed + 1024, "{disk:#?}");
}

async fn verdict(world: &World, deep: bool) -> String {
    world.verify(deep).await.replicas[0].verdict.to_string()
}

#[tokio::test]
async fn what_3_tib_hold_moves_as_a_full_copy_a_delta_and_a_resync() {
    let mut world = world(true).await;
    world.job.reading.enable_cbt = true;
    let full = world.run().await;
    succeeded(&world, &full, &[]);
    moved(&full, Kind::Full, DATA, DATA);
    assert_eq!(verdict(&world, false).await, "untouched");

    let touched = [3 * MIB, 2 * TIB + 7 * MIB, DISK - 1];
    touch(&world, touched[0], 7, 1);
    touch(&world, touched[1], 8, 1);
    touch(&world, touched[2], 9, 1);
    let delta = world.run().await;
    succeeded(&world, &delta, &touched);
    moved(&delta, Kind::Delta, 3 * 64 * KIB, 3 * 64 * KIB);
    assert!(only_target(&delta).warnings.is_empty(), "{delta:#?}");

    // One new cluster, and one that became zeroes.
    world.lose_source_snapshots().await;
    touch(&world, 2 * TIB + 9 * MIB, 5, 1);
    touch(&world, 2 * TIB + 7 * MIB, 0, 1);
    let resync = world.run().await;
    succeeded(&world, &resync, &[2 * TIB + 7 * MIB, 2 * TIB + 9 * MIB]);
    // The byte at the end was in a cluster that held data before.
    moved(&resync, Kind::Resync, DATA + 3 * 64 * KIB, 2 * 64 * KIB);
    assert_eq!(disk(&resync).full_reason, Some(FullReason::BaseGoneOnSource));
    assert_eq!(verdict(&world, true).await, "intact");
}

/// A point of 3 TiB comes back as a new VM from a pool and from a store.
async fn restored(world: &World, target: &str) -> Result<RestoreReport, EngineError> {
    let engine = world.engine();
    let to = RestoreTo::NewVm {
        pool: "dr".to_owned(),
        sr: Some(world.job.targets[0].srs[0].clone()),
        networks: BTreeMap::new(),
        name: Some(format!("from {target}")),
    };
    let request = RestoreRequest { vm: world.vm.clone(), point: None, target: Some(target.to_owned()), to };
    let report = engine.restore(&world.job, &request, Arc::new(Silent)).await;
    engine.close().await;
    report
}

#[tokio::test]
async fn what_3_tib_hold_comes_back_from_a_pool_and_from_a_store() {
    let shelf = Shelf::new(1 << 20);
    let mut world = world(true).await;
    world.job.stores.push(shelf.target("shelf"));
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    for target in ["dr", "shelf"] {
        let report = restored(&world, target).await.unwrap();
        assert!(report.disks[0].proven, "{report:#?}");
        let from = world.source.vm_disks(&world.vm).remove(0);
        let to = world.target.vm_disks(&report.restored.unwrap()).remove(0);
        for place in PLACES {
            let (at, length) = (place.saturating_sub(64 * KIB), (192 * KIB) as usize);
            assert!(world.target.read(&to, at, length) == world.source.read(&from, at, length), "{target}: {place}");
        }
    }
}

#[tokio::test]
async fn a_host_that_writes_something_else_than_3_tib_it_is_sent_restores_nothing() {
    let shelf = Shelf::new(1 << 20);
    let mut world = world(true).await;
    world.job.stores.push(shelf.target("shelf"));
    world.job.targets.clear();
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    world.job.targets = World::new().await.job.targets;
    world.job.targets[0].srs = vec![large_sr(&world.target)];
    let before = world.target.records("VDI").len();
    world.target.inject(Fault { at: FaultPoint::Import, nth: 1, kind: FaultKind::FlipByte(100_000) });
    for remembered in [false, true] {
        let refused = restored(&world, "shelf").await.unwrap_err().to_string();
        let why = if remembered { "wrote something else than it was sent" } else { "did not write what it was sent" };
        assert!(refused.contains(why), "{refused}");
        assert_eq!(world.target.records("VDI").len(), before);
    }
}

#[tokio::test]
async fn without_changed_block_tracking_the_host_tells_which_clusters_differ() {
    let world = world(true).await;
    succeeded(&world, &world.run().await, &[]);
    let touched = [0, TIB + 5 * MIB, 2 * TIB + 7 * MIB];
    for place in touched {
        touch(&world, place, 0xee, 1);
    }
    // Written, and the same as before.
    touch(&world, PLACES[4], 5, 1);
    let delta = world.run().await;
    succeeded(&world, &delta, &touched);
    moved(&delta, Kind::Delta, 3 * 64 * KIB, 3 * 64 * KIB);
    assert!(disk(&delta).notes.iter().any(|note| note.contains("asked which clusters differ")), "{delta:#?}");
}

#[tokio::test]
async fn a_damaged_byte_is_found_and_mended_with_its_cluster_alone() {
    let world = world(true).await;
    let first = world.run().await;
    let damaged = world.target.vm_disks(&point_of(&first))[0].clone();
    let shared = world.target.record("VDI", &damaged).unwrap()["sm_config"]["vhd-parent"].as_str().unwrap().to_owned();
    // One in the data, one where the source has nothing at all.
    let places = [2 * TIB + 123 * MIB, 2 * TIB + 500 * MIB];
    for place in places {
        world.target.write(&shared, place + 17, b"rot");
    }
    let found = world.verify(true).await;
    let disk = &found.replicas[0].disks[0];
    assert_eq!((found.replicas[0].verdict.to_string().as_str(), disk.different_bytes), ("damaged", Some(128 * KIB)));
    assert_eq!(disk.differences.iter().map(|found| found.offset).collect::<Vec<_>>(), places, "{found:#?}");

    let mended = world.run().await;
    succeeded(&world, &mended, &places);
    moved(&mended, Kind::Resync, DATA + 64 * KIB, 128 * KIB);
    assert_eq!(verdict(&world, true).await, "intact");
}

#[tokio::test]
async fn a_target_that_cannot_take_the_framing_fails_alone() {
    let mut world = world(true).await;
    // The other target is in the source's own pool.
    let mut other = world.job.targets[0].clone();
    (other.name, other.pool, other.srs) = ("near".into(), "prod".into(), vec![large_sr(&world.source)]);
    world.job.targets.push(other);
    world.source.inject(Fault { at: FaultPoint::Import, nth: 1, kind: FaultKind::FlipByte(12 + 5) });
    for (round, told) in [(1, "did not write what it was sent"), (2, "wrote something else than it was sent")] {
        touch(&world, 2 * TIB + round * MIB, 3, 1);
        let report = world.run().await;
        let [far, near] = report.vms[0].targets.as_slice() else { panic!("{report:#?}") };
        assert_eq!((far.outcome, near.outcome), (Outcome::Succeeded, Outcome::Failed), "{report:#?}");
        let error = near.error.as_ref().unwrap();
        assert!(error.contains(told), "{error}");
        assert!(round == 1 || error.contains("larger than the") && error.contains("another version"), "{error}");
        let point = far.recovery_point.as_ref().unwrap();
        assert_eq!(world.target.read(&world.target.vm_disks(point)[0], 2 * TIB + round * MIB, 1), [3]);
    }
}

#[tokio::test]
async fn a_replica_that_was_written_elsewhere_and_put_back_is_found_by_verify() {
    let world = world(true).await;
    let first = world.run().await;
    let replica = only_target(&first).replica.clone().unwrap();
    let live = world.target.vm_disks(&replica)[0].clone();
    world.target.write(&live, 2 * TIB + 40 * MIB, b"somebody's work");
    assert_eq!(verdict(&world, false).await, "changed");
}

#[tokio::test]
async fn no_run_waits_for_a_host_to_compare_a_replica_and_none_writes_in_place() {
    let world = world(true).await;
    let first = world.run().await;
    let live = |report| world.target.vm_disks(only_target(report).replica.as_ref().unwrap());
    let before = live(&first);
    touch(&world, 2 * TIB, 1, 1);
    world.target.clear_calls();
    let second = world.run().await;
    succeeded(&world, &second, &[2 * TIB]);
    assert!(!world.target.calls().iter().any(|call| call == "GET /export_raw_vdi"), "{:#?}", world.target.calls());
    assert_eq!(only_target(&second).replica, only_target(&first).replica);
    assert_ne!(live(&second), before, "a clone of the recovery point goes on");
}

#[tokio::test]
async fn where_a_target_does_not_tell_whether_it_was_written_that_is_said() {
    let world = world(true).await;
    world.run().await;
    let refusal = FaultKind::ApiError("VDI_IO_ERROR".into(), vec!["Device I/O errors".into()]);
    world.target.inject(Fault { at: FaultPoint::Export, nth: 1, kind: refusal });
    let verified = world.verify(false).await;
    let (verdict, error) = (verified.replicas[0].verdict.to_string(), verified.replicas[0].error.clone().unwrap());
    assert!(verdict == "unknown" && error.contains("was written is not known"), "{verified:#?}");
}

#[tokio::test]
async fn where_a_host_does_not_tell_where_data_is_all_of_the_disk_is_read_and_that_is_said() {
    let world = world(false).await;
    // Reading 3 TiB would take its time; where it begins is enough.
    world.source.inject(Fault { at: FaultPoint::Nbd, nth: 1, kind: FaultKind::CutAfter(16 * MIB) });
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Failed, "{report:#?}");
    let told = only_target(&report).error.clone().unwrap();
    assert!(told.contains("the whole disk is read") && told.contains("404"), "{told}");
}
