//! The ways in which disks are read and sent: each proven, each told, and free to change from run to run.

use jiff::SignedDuration;
use std::sync::Arc;
use vmferry_engine::{Integrity, Nbd, Throttle};
use vmferry_model::plan::{FullReason, Kind};
use vmferry_model::report::{DiskReport, Outcome, RunReport};
use vmferry_scenarios::{MIB, World, disks, only_target, point_of, vhd_stream_bytes};
use xapi_sim::{Fault, FaultKind, FaultPoint, NbdPurpose, SimConfig};

const KIB: u64 = 1 << 10;

/// A world whose source serves NBD and whose job tracks changes.
async fn tracked(purpose: NbdPurpose) -> World {
    let source = SimConfig { nbd_purpose: Some(purpose), ..SimConfig::default() };
    let mut world = World::between(source, SimConfig::default()).await;
    world.job.reading.enable_cbt = true;
    world
}

/// Writes 4 KiB at each of these places of the system disk.
fn touch(world: &World, places: &[u64], byte: u8) {
    let disk = &world.source.vm_disks(&world.vm)[0];
    for place in places {
        world.source.write(disk, *place, &[byte; 4 << 10]);
    }
}

#[track_caller]
fn succeeded(world: &World, report: &RunReport) {
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    assert_eq!(world.target_content(&point_of(report)), world.source_content(), "{report:#?}");
}

/// How the system disk travelled: kind, source, encoding.
fn way(report: &RunReport) -> (Kind, &str, &str) {
    let DiskReport { kind, source, encoding, .. } = &disks(report)[0];
    (*kind, source, encoding)
}

const FULL: (Kind, &str, &str) = (Kind::Full, "export", "vhd");
const DELTA_BY_EXPORT: (Kind, &str, &str) = (Kind::Delta, "export", "vhd");
const DELTA_BY_NBD: (Kind, &str, &str) = (Kind::Delta, "nbd", "chunked");
const RESYNC: (Kind, &str, &str) = (Kind::Resync, "export", "chunked");

#[tokio::test]
async fn changed_blocks_travel_as_64_kib_with_and_without_tls() {
    for purpose in [NbdPurpose::Nbd, NbdPurpose::InsecureNbd] {
        let world = tracked(purpose).await;
        let full = world.run().await;
        succeeded(&world, &full);
        assert_eq!(way(&full), FULL);
        // The first snapshot that knows what changed is the one after the first that was tracked.
        touch(&world, &[10 * MIB, 10 * MIB + 60 * KIB, 30 * MIB + 62 * KIB, 50 * MIB], 1);
        let delta = world.run().await;
        succeeded(&world, &delta);
        assert_eq!(way(&delta), DELTA_BY_NBD, "{delta:#?}");
        let disk = &disks(&delta)[0];
        // Three places in leaves of their own, one across the border of two.
        assert_eq!(disk.changed_bytes, 4 * 64 * KIB);
        // A header for each of the three ranges, and the end marker.
        assert_eq!(disk.bytes_sent, disk.changed_bytes + 4 * 12);
        assert!(disk.digest.is_some(), "{disk:#?}");
        let clear = disk.notes.iter().any(|note| note.contains("without TLS"));
        assert_eq!((clear, disk.notes.len()), (purpose == NbdPurpose::InsecureNbd, usize::from(clear)), "{disk:#?}");
        world.assert_tidy(2);
    }
}

#[tokio::test]
async fn scattered_4_kib_writes_cost_a_sixteenth_of_2_mib_blocks() {
    const DISK: u64 = 64 << 30;
    let mut world = tracked(NbdPurpose::Nbd).await;
    world.replace_vm(&[DISK]);
    let full = world.run().await;
    assert_eq!(full.outcome, Outcome::Succeeded, "{full:#?}");
    let places: Vec<u64> = (0..500).map(|n| n * 131 * MIB + n * 4 * KIB).collect();
    touch(&world, &places, 7);
    let delta = world.run().await;
    assert_eq!(delta.outcome, Outcome::Succeeded, "{delta:#?}");
    assert_eq!(way(&delta), DELTA_BY_NBD, "{delta:#?}");
    let sent = disks(&delta)[0].bytes_sent;
    let by_blocks = vhd_stream_bytes(DISK, places.len() as u64);
    assert!(sent * 16 <= by_blocks, "{sent} of {by_blocks}");
    let (from, to) = (&world.source.vm_disks(&world.vm)[0], &world.target.vm_disks(&point_of(&delta))[0]);
    for place in &places {
        let at = place.saturating_sub(KIB);
        assert_eq!(world.target.read(to, at, 8 << 10), world.source.read(from, at, 8 << 10), "byte {place}");
    }
    let verified = world.verify(true).await;
    assert_eq!(verified.replicas[0].verdict.to_string(), "intact", "{verified:#?}");
}

#[tokio::test]
async fn the_method_may_change_between_any_two_runs() {
    let mut world = tracked(NbdPurpose::Nbd).await;
    succeeded(&world, &world.run().await);
    let mut round = 0;
    let mut changed = |world: &World| {
        round += 1;
        touch(world, &[(7 * u64::from(round) % 60) * MIB], round);
    };
    for _ in 0..2 {
        changed(&world);
        let by_nbd = world.run().await;
        succeeded(&world, &by_nbd);
        assert_eq!(way(&by_nbd), DELTA_BY_NBD);

        changed(&world);
        world.job.reading.nbd = Nbd::Never;
        let by_export = world.run().await;
        succeeded(&world, &by_export);
        assert_eq!(way(&by_export), DELTA_BY_EXPORT);
        world.job.reading.nbd = Nbd::Auto;

        changed(&world);
        world.lose_source_snapshots().await;
        let resync = world.run().await;
        succeeded(&world, &resync);
        assert_eq!((way(&resync), disks(&resync)[0].full_reason), (RESYNC, Some(FullReason::BaseGoneOnSource)));
        assert_eq!(disks(&resync)[0].changed_bytes, 64 * KIB, "only what differs");

        changed(&world);
        world.job.reading.nbd = Nbd::Always;
        let always = world.run().await;
        succeeded(&world, &always);
        assert_eq!(way(&always), DELTA_BY_NBD);
        world.job.reading.nbd = Nbd::Auto;
    }
}

#[tokio::test]
async fn tracking_that_switched_itself_off_falls_back_and_says_so() {
    let mut world = tracked(NbdPurpose::Nbd).await;
    succeeded(&world, &world.run().await);
    for disk in world.source.vm_disks(&world.vm) {
        world.source.break_cbt(&disk);
    }
    world.job.reading.enable_cbt = false;
    touch(&world, &[10 * MIB], 1);
    let delta = world.run().await;
    succeeded(&world, &delta);
    assert_eq!(way(&delta), DELTA_BY_EXPORT);
    assert!(disks(&delta)[0].notes.iter().any(|note| note.contains("tracking")), "{delta:#?}");
}

#[tokio::test]
async fn without_a_network_for_nbd_it_falls_back_and_says_so() {
    let mut world = World::new().await;
    world.job.reading.enable_cbt = true;
    succeeded(&world, &world.run().await);
    touch(&world, &[10 * MIB], 1);
    let delta = world.run().await;
    succeeded(&world, &delta);
    assert_eq!(way(&delta), DELTA_BY_EXPORT);
    assert!(disks(&delta)[0].notes.iter().any(|note| note.contains("purpose")), "{delta:#?}");
}

#[tokio::test]
async fn a_full_copy_by_nbd_leaves_zeroes_out() {
    let mut world = tracked(NbdPurpose::Nbd).await;
    world.job.reading.nbd = Nbd::Always;
    let full = world.run().await;
    succeeded(&world, &full);
    assert_eq!(way(&full), (Kind::Full, "nbd", "chunked"));
    // A boot sector, and 100,000 bytes from a multiple of 64 KiB on.
    assert_eq!(disks(&full)[0].changed_bytes, 3 * 64 * KIB);
}

#[tokio::test]
async fn the_first_use_of_the_framing_is_read_back_and_remembered() {
    let world = tracked(NbdPurpose::Nbd).await;
    succeeded(&world, &world.run().await);
    let exports = |world: &World| {
        let calls = world.target.calls();
        world.target.clear_calls();
        calls.iter().filter(|call| call.contains("export_raw_vdi")).count()
    };
    exports(&world);
    let mut read = Vec::new();
    for round in 0..=2 {
        // A stream without data proves nothing.
        touch(&world, if round == 0 { &[] } else { &[10 * MIB] }, round);
        let delta = world.run().await;
        succeeded(&world, &delta);
        assert_eq!(way(&delta), DELTA_BY_NBD);
        read.push(exports(&world));
    }
    // Each run asks for both disks whether somebody wrote to them; until the framing is proven, both are read back as well.
    assert_eq!(read, [4, 4, 2]);
}

#[tokio::test]
async fn a_host_that_writes_something_else_gets_vhd_from_then_on() {
    let world = tracked(NbdPurpose::Nbd).await;
    succeeded(&world, &world.run().await);
    touch(&world, &[10 * MIB], 1);
    let before = world.source_content();
    // Whichever disk comes first: the other one's stream is shorter.
    for _ in 0..2 {
        world.target.inject(Fault { at: FaultPoint::Import, nth: 1, kind: FaultKind::FlipByte(12 + 5) });
    }
    let failed = world.run().await;
    assert_eq!(failed.outcome, Outcome::Failed, "{failed:#?}");
    let told = only_target(&failed).error.clone().unwrap();
    assert!(told.contains("read back") || told.contains("did not write what it was sent"), "{told}");

    world.target.clear_faults();
    let healed = world.run().await;
    succeeded(&world, &healed);
    assert_eq!(world.target_content(&point_of(&healed)), before);
    let disk = &disks(&healed)[0];
    assert_eq!((disk.kind, disk.encoding.as_str()), (Kind::Delta, "vhd"), "{disk:#?}");
    assert!(disk.notes.iter().any(|note| note.contains("chunked")), "{disk:#?}");
}

#[tokio::test]
async fn nbd_that_breaks_off_costs_a_run_and_no_base() {
    for kind in [FaultKind::CutAfter(100 * KIB), FaultKind::CutAfter(0)] {
        let mut world = tracked(NbdPurpose::Nbd).await;
        // The first connection is the system disk's then, and that is the one with something to read.
        world.job.tuning.disks_in_parallel = 1;
        let first = world.run().await;
        let content = world.source_content();
        touch(&world, &[0, 5 * MIB, 10 * MIB, 20 * MIB, 40 * MIB], 3);
        world.source.inject(Fault { at: FaultPoint::Nbd, nth: 1, kind: kind.clone() });
        let failed = world.run().await;
        assert_eq!(failed.outcome, Outcome::Failed, "{kind:?}: {failed:#?}");
        assert_eq!(world.target_content(&point_of(&first)), content);
        world.source.clear_faults();
        let healed = world.run().await;
        succeeded(&world, &healed);
        world.assert_tidy(2);
    }
}

#[tokio::test]
async fn nbd_that_broke_off_is_left_alone_for_a_day_and_the_disk_is_exported() {
    let world = tracked(NbdPurpose::Nbd).await;
    let hours = SignedDuration::from_hours;
    world.run().await;
    let cut_every_connection = || {
        for _ in 0..2 * world.job.reading.connections {
            world.source.inject(Fault { at: FaultPoint::Nbd, nth: 1, kind: FaultKind::CutAfter(0) });
        }
    };
    touch(&world, &[10 * MIB], 1);
    cut_every_connection();
    let failed = world.run().await;
    assert_eq!(failed.outcome, Outcome::Failed, "{failed:#?}");
    let why = only_target(&failed).error.clone().unwrap();

    let by_export = world.run_after(hours(23)).await;
    succeeded(&world, &by_export);
    assert_eq!(way(&by_export), DELTA_BY_EXPORT, "NBD would break off again");
    let note = &disks(&by_export)[0].notes[0];
    let began = format!("NBD broke off in the run of {:.0}: ", failed.started_at);
    assert!(note.starts_with(&began) && note.contains("; read by export until "), "{note}");
    let (_, reason) = why.split_once("the source").unwrap();
    assert!(note.contains(reason), "{note}: {why}");

    world.source.clear_faults();
    for after in [25, 26] {
        touch(&world, &[20 * MIB], after as u8);
        let by_nbd = world.run_after(hours(after)).await;
        succeeded(&world, &by_nbd);
        assert_eq!(way(&by_nbd), DELTA_BY_NBD);
        assert!(disks(&by_nbd)[0].notes.is_empty(), "{by_nbd:#?}");
    }
}

#[tokio::test]
async fn a_limit_holds_for_what_a_resync_reads_and_does_not_send() {
    const RATE: u64 = 8 * MIB;
    let mut world = World::new().await;
    world.run().await;
    world.lose_source_snapshots().await;
    world.job.throttles = vec![Arc::new(Throttle::new(|_| Some(RATE)))];
    let resync = world.run().await;
    succeeded(&world, &resync);
    assert_eq!((way(&resync), disks(&resync)[0].changed_bytes), (RESYNC, 0), "nothing is sent");
    // Three blocks of 2 MiB on two disks. An eighth of a second is free, and the last read of each may overdraw.
    let least = 0.8 * (3 * 2 * MIB - RATE / 8) as f64 / RATE as f64;
    let took = disks(&resync).iter().map(|disk| disk.seconds).fold(0.0, f64::max);
    assert!(took > least, "{took} s, not {least} s");
}

#[tokio::test]
async fn a_damaged_replica_is_found_and_mended_with_what_differs_alone() {
    let world = World::new().await;
    succeeded(&world, &world.run().await);
    assert_eq!(world.verify(false).await.replicas[0].verdict.to_string(), "untouched");
    assert_eq!(world.verify(true).await.replicas[0].verdict.to_string(), "intact");

    let point = only_target(&world.run().await).recovery_point.clone().unwrap();
    let damaged = world.target.vm_disks(&point)[0].clone();
    let byte = world.target.read(&damaged, 40 * MIB + 1234, 1)[0];
    // In the file that the point and the live disk share, as storage rots.
    let shared = world.target.record("VDI", &damaged).unwrap()["sm_config"]["vhd-parent"].as_str().unwrap().to_owned();
    world.target.write(&shared, 40 * MIB + 1234, &[!byte]);
    let found = world.verify(true).await;
    let replica = &found.replicas[0];
    assert_eq!(replica.verdict.to_string(), "damaged", "{found:#?}");
    assert_eq!(replica.disks[0].different_bytes, Some(64 * KIB));
    assert_eq!(replica.disks[0].differences[0].offset, 40 * MIB);
    assert_eq!(replica.disks[1].verdict.to_string(), "intact");
    let listed = world.points().await;
    assert!(listed[0].points[0].damaged && !listed[0].points[1].damaged, "{listed:#?}");

    let mended = world.run().await;
    succeeded(&world, &mended);
    let disk = &disks(&mended)[0];
    assert_eq!((disk.kind, disk.full_reason), (Kind::Resync, Some(FullReason::ReplicaDamaged)), "{mended:#?}");
    assert_eq!(disk.changed_bytes, 64 * KIB);
    assert_eq!(disks(&mended)[1].kind, Kind::Delta);
    assert_eq!(only_target(&mended).replica, replica.replica, "the same replica goes on");
    assert_eq!(world.verify(true).await.replicas[0].verdict.to_string(), "intact");

    touch(&world, &[10 * MIB], 1);
    let next = world.run().await;
    succeeded(&world, &next);
    assert_eq!(way(&next), DELTA_BY_EXPORT);
}

#[tokio::test]
async fn a_lost_base_costs_what_differs_and_not_a_full_copy() {
    let world = World::new().await;
    succeeded(&world, &world.run().await);
    world.lose_source_snapshots().await;
    touch(&world, &[10 * MIB, 30 * MIB], 9);
    let resync = world.run().await;
    succeeded(&world, &resync);
    assert_eq!(way(&resync), RESYNC);
    assert_eq!(disks(&resync)[0].changed_bytes, 2 * 64 * KIB);
    assert_eq!(disks(&resync)[1].changed_bytes, 0, "the other disk did not change");

    // Without digests there is nothing to compare with.
    world.lose_source_snapshots().await;
    world.lose_digests();
    let full = world.run().await;
    succeeded(&world, &full);
    assert_eq!(way(&full), FULL);
}

#[tokio::test]
async fn without_digests_plain_http_is_spliced_and_tls_is_not() {
    for tls in [false, true] {
        let config = || SimConfig { tls, ..SimConfig::default() };
        let mut world = World::between(config(), config()).await;
        world.job.integrity = Integrity::Structure;
        for round in 1..=2 {
            touch(&world, &[10 * MIB], round);
            let report = world.run().await;
            succeeded(&world, &report);
            let disk = &disks(&report)[0];
            assert_eq!(disk.engine, if tls { "lockstep" } else { "splice" }, "{disk:#?}");
            assert_eq!(disk.notes.iter().any(|note| note.contains("not plain TCP")), tls, "{disk:#?}");
            assert_eq!(disk.digest, None);
        }
        world.assert_tidy(2);
    }
}

#[tokio::test]
async fn a_best_effort_target_that_fails_does_not_count() {
    let mut world = World::new().await;
    let second_sr = world.target.add_sr("second", 1 << 40);
    let mut second = world.job.targets[0].clone();
    (second.name, second.srs, second.required) = ("cheap".to_owned(), vec![second_sr], false);
    world.job.targets.push(second);
    world.target.inject(Fault { at: FaultPoint::Import, nth: 1, kind: FaultKind::CutAfter(MIB) });
    let report = world.run().await;
    let failed = report.vms[0].targets.iter().find(|target| target.outcome == Outcome::Failed).unwrap();
    let expected = if failed.target == "cheap" { Outcome::Succeeded } else { Outcome::Failed };
    assert_eq!(report.outcome, expected, "{report:#?}");
    let others = report.vms[0].targets.iter().filter(|target| target.outcome == Outcome::Succeeded).count();
    assert_eq!(others, 1, "{report:#?}");
}
