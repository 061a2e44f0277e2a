//! A run that fails costs nothing: the last recovery point stays, the base stays, and the next run is a delta.

use vmferry_model::plan::Kind;
use vmferry_model::report::Outcome;
use vmferry_scenarios::{MIB, World, disks, only_target, point_of, vhd_stream_bytes};
use xapi_sim::{Fault, FaultKind, FaultPoint};

/// Strikes one delta run, then lets the next one pass.
async fn check(name: &str, at: FaultPoint, kind: FaultKind, on_target: bool) {
    let world = World::new().await;
    let first = world.run().await;
    let first_content = world.source_content();
    let source_disks = world.source.vm_disks(&world.vm);
    world.source.write(&source_disks[0], 10 * MIB, &[9; 5 << 20]);
    world.source.write(&source_disks[1], 20 * MIB, &[9; 5 << 20]);

    let pool = if on_target { &world.target } else { &world.source };
    pool.inject(Fault { at, nth: 1, kind });
    let failed = world.run().await;
    pool.clear_faults();
    assert_eq!(failed.outcome, Outcome::Failed, "{name}: {failed:#?}");
    let told = only_target(&failed).error.clone().or_else(|| failed.vms[0].error.clone());
    assert!(told.is_some_and(|text| text.len() > 10), "{name}: {failed:#?}");
    assert_eq!(world.target_content(&point_of(&first)), first_content, "{name}: the last point is intact");
    // The failed run has put right what it could reach: both sides hold what they held before it.
    world.assert_tidy(1);
    assert_eq!(world.digest_tables(), 2, "{name}: digest tables of the point's disks alone");
    let replica = only_target(&failed).replica.as_ref().expect("a replica");
    assert_eq!(world.target_content(replica), first_content, "{name}: the replica is its last point again");

    let healed = world.run().await;
    assert_eq!(healed.outcome, Outcome::Succeeded, "{name}: {healed:#?}");
    assert!(disks(&healed).iter().all(|disk| disk.kind == Kind::Delta), "{name}: {healed:#?}");
    assert_eq!(world.target_content(&point_of(&healed)), world.source_content(), "{name}");
    assert_eq!(world.target_content(&point_of(&first)), first_content, "{name}");
    world.assert_tidy(2);
}

#[tokio::test]
async fn a_cut_export_is_a_failure_wherever_it_is_cut() {
    for bytes in [0, 100, 2_048, 3_000, 2 * MIB, 4 * MIB + 5_000] {
        // The untouched check also exports, but on the target.
        check(&format!("export cut after {bytes}"), FaultPoint::Export, FaultKind::CutAfter(bytes), false).await;
    }
}

#[tokio::test]
async fn a_cut_import_is_a_failure_wherever_it_is_cut() {
    for bytes in [0, 100, 3_000, 2 * MIB, 4 * MIB + 5_000] {
        check(&format!("import cut after {bytes}"), FaultPoint::Import, FaultKind::CutAfter(bytes), true).await;
    }
}

#[tokio::test]
async fn a_damaged_export_is_a_failure_wherever_what_it_says_of_itself_is_damaged() {
    // Payload is the transport's to protect: XAPI's streams carry no checksum of it. Either disk changes in three blocks.
    let last_footer = vhd_stream_bytes(64 * MIB, 3) - 512;
    for (name, byte) in [
        ("first footer", 40),
        ("header", 512 + 8),
        ("table entry of an absent block", 2048 + 3),
        ("table entry of a block", 2048 + 4 * 11 + 3),
        ("last footer", last_footer + 40),
    ] {
        check(&format!("damaged {name}"), FaultPoint::Export, FaultKind::FlipByte(byte), false).await;
    }
}

#[tokio::test]
async fn an_http_error_at_either_end_is_a_failure() {
    check("export 500", FaultPoint::Export, FaultKind::Http500, false).await;
    check("import 500", FaultPoint::Import, FaultKind::Http500, true).await;
}

#[tokio::test]
async fn an_error_that_only_the_task_tells_is_a_failure() {
    let error = || FaultKind::ApiError("VDI_IO_ERROR".to_owned(), vec!["Device I/O errors".to_owned()]);
    check("export task", FaultPoint::Export, error(), false).await;
    check("import task", FaultPoint::Import, error(), true).await;
}

#[tokio::test]
async fn a_full_storage_repository_is_a_failure() {
    check("SR full", FaultPoint::Import, FaultKind::SrFull, true).await;
}

#[tokio::test]
async fn a_lost_session_is_recovered_from() {
    for on_target in [false, true] {
        let world = World::new().await;
        world.run().await;
        let pool = if on_target { &world.target } else { &world.source };
        for nth in [2, 10, 20] {
            pool.inject(Fault { at: FaultPoint::Call("*".to_owned()), nth, kind: FaultKind::SessionLost });
            let report = world.run().await;
            assert_eq!(report.outcome, Outcome::Succeeded, "call {nth}: {report:#?}");
            assert_eq!(world.target_content(&point_of(&report)), world.source_content());
        }
    }
}

#[tokio::test]
async fn one_target_that_fails_does_not_stop_the_other() {
    let mut world = World::new().await;
    let second_sr = world.target.add_sr("second", 1 << 40);
    let mut second = world.job.targets[0].clone();
    second.name = "dr2".to_owned();
    second.srs = vec![second_sr];
    world.job.targets.push(second);
    let full = world.run().await;
    assert_eq!(full.outcome, Outcome::Succeeded, "{full:#?}");

    let source_disks = world.source.vm_disks(&world.vm);
    world.source.write(&source_disks[0], 10 * MIB, &[9; 5 << 20]);
    world.target.inject(Fault { at: FaultPoint::Import, nth: 1, kind: FaultKind::CutAfter(3 * MIB) });
    let partial = world.run().await;
    assert_eq!(partial.outcome, Outcome::Partial, "{partial:#?}");
    let (failed, succeeded): (Vec<_>, Vec<_>) =
        partial.vms[0].targets.iter().partition(|target| target.outcome == Outcome::Failed);
    assert_eq!((failed.len(), succeeded.len()), (1, 1), "{partial:#?}");

    // Each target goes on from its own base.
    world.source.write(&source_disks[0], 30 * MIB, &[8; 1 << 20]);
    let healed = world.run().await;
    assert_eq!(healed.outcome, Outcome::Succeeded, "{healed:#?}");
    for target in &healed.vms[0].targets {
        assert!(target.disks.iter().all(|disk| disk.kind == Kind::Delta), "{healed:#?}");
        let point = target.recovery_point.as_ref().unwrap();
        assert_eq!(world.target_content(point), world.source_content(), "{}", target.target);
    }
    let bases: Vec<_> = healed.vms[0].targets.iter().map(|target| target.disks[0].base.clone()).collect();
    assert_ne!(bases[0], bases[1], "the failed target kept its older base");
}

#[tokio::test]
async fn what_a_failed_run_left_is_told_in_one_warning() {
    let world = World::new().await;
    world.target.inject(Fault { at: FaultPoint::Import, nth: 1, kind: FaultKind::CutAfter(MIB) });
    let failed = world.run().await;
    assert_eq!(failed.outcome, Outcome::Failed, "{failed:#?}");
    let warnings = &only_target(&failed).warnings;
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    assert!(warnings[0].contains("system (") && warnings[0].contains("data ("), "{warnings:#?}");
}
