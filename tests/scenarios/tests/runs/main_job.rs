//! The main job: full once, then only what changed, recovery points that equal their moment.

use vmferry_model::plan::{FullReason, Kind};
use vmferry_model::report::Outcome;
use vmferry_scenarios::{MIB, World, disks, only_target, point_of, vhd_stream_bytes};

#[tokio::test]
async fn the_first_run_is_a_full_copy_and_the_recovery_point_equals_the_source() {
    let world = World::new().await;
    let report = world.run().await;

    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    for disk in disks(&report) {
        assert_eq!((disk.kind, disk.full_reason), (Kind::Full, Some(FullReason::FirstRun)));
        assert_eq!(disk.bytes_sent, disk.bytes_read);
        assert_eq!(disk.engine, "lockstep");
        assert!(disk.digest.is_some());
    }
    assert_eq!(world.target_content(&point_of(&report)), world.source_content());
    world.assert_tidy(1);
}

#[tokio::test]
async fn later_runs_send_the_changed_blocks_and_nothing_else() {
    let world = World::new().await;
    let first = world.run().await;
    let before = world.source_content();

    let source_disks = world.source.vm_disks(&world.vm);
    world.source.write(&source_disks[0], 10 * MIB, b"one sector in a block of its own");
    world.source.write(&source_disks[0], 21 * MIB, &[7; 3 << 20]);
    let second = world.run().await;

    assert_eq!(second.outcome, Outcome::Succeeded, "{second:#?}");
    let [system, data] = disks(&second) else { panic!("{second:#?}") };
    assert_eq!((system.kind, data.kind), (Kind::Delta, Kind::Delta));
    assert_eq!(system.bytes_sent, vhd_stream_bytes(64 * MIB, 3));
    assert_eq!(system.changed_bytes, 3 * 2 * MIB);
    assert_eq!(data.bytes_sent, vhd_stream_bytes(32 * MIB, 0));
    assert_eq!(world.target_content(&point_of(&second)), world.source_content());
    assert_eq!(world.target_content(&point_of(&first)), before, "the older recovery point shows the older moment");
    assert_eq!(only_target(&first).replica, only_target(&second).replica, "one replica, updated in place");
    world.assert_tidy(2);
}

#[tokio::test]
async fn a_plan_says_beforehand_what_the_run_does() {
    let world = World::new().await;
    for _ in 0..3 {
        let plan = world.plan().await;
        let report = world.run().await;
        let planned = &plan.vms[0].targets[0].disks;
        let done = disks(&report);
        assert_eq!(planned.len(), done.len());
        for (planned, done) in planned.iter().zip(done) {
            assert_eq!(
                (&planned.disk, planned.kind, &planned.base, &planned.reason),
                (&done.disk, done.kind, &done.base, &done.reason)
            );
        }
    }
}
