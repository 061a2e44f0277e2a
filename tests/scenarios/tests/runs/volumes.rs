//! Disks that are no VHD: of any number of sectors, on storage that does not tell what differs between two snapshots.

use jiff::SignedDuration;
use vmferry_engine::{Integrity, Nbd};
use vmferry_model::plan::{FullReason, Kind};
use vmferry_model::report::{DiskReport, Outcome, RunReport};
use vmferry_scenarios::{MIB, World, disks, only_target, point_of};
use vmferry_xapi::records::Network;
use vmferry_xapi::{Ref, params};
use xapi_sim::{DiskSpec, NbdPurpose, SimConfig, SrKind, VmSpec};

const KIB: u64 = 1 << 10;
const ODD: u64 = 5 * MIB + 512;

fn on(sr_kind: SrKind) -> SimConfig {
    SimConfig { sr_kind, nbd_purpose: Some(NbdPurpose::Nbd), ..SimConfig::default() }
}

/// A VM with disks of these sizes on volumes, each with something at its beginning and in its last sector.
async fn world(target: SrKind, sizes: &[u64]) -> World {
    let mut world = World::between(on(SrKind::Volumes), on(target)).await;
    world.replace_vm(sizes);
    for (disk, size) in world.source.vm_disks(&world.vm).iter().zip(sizes) {
        assert_eq!(world.source.record("VDI", disk).unwrap()["virtual_size"], *size, "the SR does not round");
        world.source.write(disk, 0, b"boot sector");
        world.source.write(disk, size - 512, &[0xaa; 512]);
    }
    world
}

/// The recovery point holds what the source holds, and zeroes behind that up to the next 2 MiB.
#[track_caller]
fn equal(world: &World, report: &RunReport) {
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    let copies = world.target.vm_disks(&point_of(report));
    for (disk, copy) in world.source.vm_disks(&world.vm).iter().zip(&copies) {
        let size = world.source.record("VDI", disk).unwrap()["virtual_size"].as_u64().unwrap();
        let rounded = size.next_multiple_of(2 * MIB);
        assert_eq!(world.target.record("VDI", copy).unwrap()["virtual_size"], rounded);
        let mut expected = world.source.read(disk, 0, size as usize);
        expected.resize(rounded as usize, 0);
        assert!(world.target.read(copy, 0, rounded as usize) == expected, "{report:#?}");
    }
}

async fn assert_verdict(world: &World, deep: bool, expected: &str) {
    let found = world.verify(deep).await;
    assert_eq!(found.replicas[0].verdict.to_string(), expected, "{found:#?}");
}

fn how(disk: &DiskReport) -> (Kind, Option<FullReason>, u64) {
    (disk.kind, disk.full_reason, disk.changed_bytes)
}

const SAME: (Kind, Option<FullReason>, u64) = (Kind::Resync, Some(FullReason::NoDifferences), 0);
const ONE_LEAF: (Kind, Option<FullReason>, u64) = (Kind::Resync, Some(FullReason::NoDifferences), 64 * KIB);

#[tokio::test]
async fn a_disk_of_any_size_is_replicated_rounded_up_and_then_by_what_differs() {
    for (target, sizes) in [
        (SrKind::Ext, &[ODD][..]),
        (SrKind::Ext, &[4 * MIB, ODD, 512]),
        (SrKind::Volumes, &[ODD]),
        (SrKind::Volumes, &[ODD, 2 * MIB - 512, 6 * MIB]),
    ] {
        let world = world(target, sizes).await;
        let odd = sizes.iter().position(|size| *size == ODD).unwrap();
        let disk = world.source.vm_disks(&world.vm)[odd].clone();
        let full = world.run().await;
        equal(&world, &full);
        assert!(disks(&full).iter().all(|disk| disk.kind == Kind::Full && disk.digest.is_some()), "{full:#?}");
        assert_verdict(&world, true, "intact").await;

        for (round, place) in [(1, ODD - 512), (2, 3 * MIB), (3, ODD - 1)] {
            world.source.write(&disk, place, &[round]);
            let resync = world.run().await;
            equal(&world, &resync);
            for (index, disk) in disks(&resync).iter().enumerate() {
                assert_eq!(how(disk), if index == odd { ONE_LEAF } else { SAME }, "{disk:#?}");
                assert!(disk.reason.contains("does not tell what changed"), "{disk:#?}");
                let tried = disk.notes.iter().any(|note| note.contains("not a vhd"));
                assert_eq!(tried, round == 1, "what is known is not tried again: {disk:#?}");
            }
            assert_verdict(&world, true, "intact").await;
        }
        let replicas = world.points().await;
        assert_eq!((replicas.len(), replicas[0].points.len()), (1, 4), "one replica goes on: {replicas:#?}");
        // Of volumes nobody tells whether they were written, short of reading them.
        assert_verdict(&world, false, if target == SrKind::Ext { "untouched" } else { "unknown" }).await;
        // Digests that are lost are made again from the source's snapshot.
        world.lose_digests();
        assert_verdict(&world, true, "intact").await;
    }
}

#[tokio::test]
async fn nbd_reads_a_volume_whose_size_is_rounded_and_differences_are_compared_all_the_same() {
    let mut world = world(SrKind::Ext, &[6 * MIB, ODD]).await;
    world.job.reading.nbd = Nbd::Always;
    let full = world.run().await;
    equal(&world, &full);
    let sources = |report: &RunReport| disks(report).iter().map(|disk| disk.source.clone()).collect::<Vec<_>>();
    assert_eq!(sources(&full), ["nbd", "export"]);
    assert!(disks(&full)[1].notes.iter().any(|note| note.contains("no multiple of 2 MiB")), "{full:#?}");
    let resync = world.run().await;
    equal(&world, &resync);
    assert_eq!((sources(&resync), how(&disks(&resync)[0])), (vec!["export".to_owned(); 2], SAME), "{resync:#?}");
}

#[tokio::test]
async fn damage_behind_the_end_of_the_source_and_before_it_is_found_and_mended() {
    for target in [SrKind::Ext, SrKind::Volumes] {
        let world = world(target, &[ODD, 2 * MIB]).await;
        for place in [ODD - 1, ODD + 4 * KIB] {
            world.run().await;
            let point = point_of(&world.run().await);
            let damaged = world.target.vm_disks(&point)[0].clone();
            let byte = world.target.read(&damaged, place, 1)[0];
            let record = world.target.record("VDI", &damaged).unwrap();
            world.target.write(record["sm_config"]["vhd-parent"].as_str().unwrap(), place, &[!byte]);
            let found = world.verify(true).await;
            let disk = &found.replicas[0].disks[0];
            assert_eq!((disk.verdict.to_string().as_str(), disk.different_bytes), ("damaged", Some(64 * KIB)));
            assert_eq!(disk.differences[0].offset, place / (64 * KIB) * 64 * KIB, "{found:#?}");

            let mended = world.run().await;
            equal(&world, &mended);
            let expected = (Kind::Resync, Some(FullReason::ReplicaDamaged), 64 * KIB);
            assert_eq!(how(&disks(&mended)[0]), expected, "{mended:#?}");
            assert_verdict(&world, true, "intact").await;
        }
    }
}

#[tokio::test]
async fn without_digests_one_run_finds_out_and_the_others_copy() {
    let mut world = world(SrKind::Ext, &[ODD]).await;
    world.job.integrity = Integrity::Structure;
    equal(&world, &world.run().await);
    let failed = world.run().await;
    assert_eq!(failed.outcome, Outcome::Failed, "{failed:#?}");
    let told = only_target(&failed).error.clone().unwrap();
    assert!(told.contains("not a vhd") && told.contains("the next run copies it"), "{told}");
    for round in 1..=2 {
        world.source.write(&world.source.vm_disks(&world.vm)[0], 3 * MIB, &[round]);
        let full = world.run().await;
        equal(&world, &full);
        assert_eq!((disks(&full)[0].kind, disks(&full)[0].full_reason), (Kind::Full, Some(FullReason::NoDifferences)));
    }
    let replicas = world.points().await;
    assert_eq!((replicas.len(), replicas[0].points.len()), (1, 3), "{replicas:#?}");
}

#[tokio::test]
async fn a_replica_on_volumes_that_was_unblocked_is_kept_and_another_goes_on() {
    let world = world(SrKind::Volumes, &[ODD]).await;
    let first = world.run().await;
    let replica = only_target(&first).replica.clone().unwrap();
    let session = world.at_target().await;
    let vm: Ref<vmferry_xapi::records::Vm> = session.by_uuid(&replica).await.unwrap();
    let blocked = std::collections::BTreeMap::<String, String>::new();
    let () = session.call("VM.set_blocked_operations", params![&vm, &blocked]).await.unwrap();
    session.logout().await.unwrap();
    let used = world.target.vm_disks(&replica)[0].clone();
    world.target.write(&used, MIB, b"somebody's work");

    let next = world.run().await;
    equal(&world, &next);
    assert_ne!(only_target(&next).replica.as_ref(), Some(&replica), "{next:#?}");
    assert_eq!(world.target.read(&used, MIB, 15), b"somebody's work");
}

#[tokio::test]
async fn a_qcow2_disk_is_compared_while_nobody_serves_nbd_and_tracked_again_a_day_later() {
    let source = SimConfig { sr_kind: SrKind::Nfs, ..SimConfig::default() };
    let mut world = World::between(source, SimConfig::default()).await;
    let disk = DiskSpec { size: 6 * MIB, image_format: Some("qcow2".to_owned()), ..DiskSpec::default() };
    world.vm = world.source.add_vm(VmSpec { name: "q".to_owned(), disks: vec![disk], ..VmSpec::default() });
    world.job.select.vms = vec![world.vm.clone()];
    world.job.reading.enable_cbt = true;
    let touch = |place| world.source.write(&world.source.vm_disks(&world.vm)[0], place, b"changed");
    touch(0);
    equal(&world, &world.run().await);
    touch(MIB);
    let compared = world.run().await;
    equal(&world, &compared);
    assert_eq!(how(&disks(&compared)[0]), ONE_LEAF, "{compared:#?}");

    let session = world.at_source().await;
    let network: Ref<Network> = session.by_uuid(&world.source.network()).await.unwrap();
    let () = session.call("network.add_purpose", params![&network, "nbd"]).await.unwrap();
    session.logout().await.unwrap();
    for (hours, kind, source) in [(23, Kind::Resync, "export"), (25, Kind::Delta, "nbd")] {
        touch(2 * MIB + hours);
        let report = world.run_after(SignedDuration::from_hours(hours as i64)).await;
        equal(&world, &report);
        assert_eq!((disks(&report)[0].kind, disks(&report)[0].source.as_str()), (kind, source), "{report:#?}");
    }
}
