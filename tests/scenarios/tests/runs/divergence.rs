//! A replica that somebody used is never overwritten.

use vmferry_model::plan::Kind;
use vmferry_model::report::Outcome;
use vmferry_scenarios::{MIB, World, disks, only_target, point_of};
use vmferry_xapi::params;
use vmferry_xapi::records::Vm;

#[tokio::test]
async fn a_replica_that_was_written_to_is_kept_and_a_new_one_goes_on_with_a_delta() {
    let world = World::new().await;
    let first = world.run().await;
    let replica = only_target(&first).replica.clone().unwrap();
    world.target.write(&world.target.vm_disks(&replica)[0], 3 * MIB, b"somebody's work");
    let kept = world.target_content(&replica);

    world.source.write(&world.source.vm_disks(&world.vm)[0], 12 * MIB, b"a change");
    let second = world.run().await;

    assert_eq!(second.outcome, Outcome::Succeeded, "{second:#?}");
    assert_ne!(only_target(&second).replica.as_ref(), Some(&replica));
    assert!(only_target(&second).warnings.iter().any(|text| text.contains("was changed")), "{second:#?}");
    assert!(disks(&second).iter().all(|disk| disk.kind == Kind::Delta), "{second:#?}");
    assert_eq!(world.target_content(&point_of(&second)), world.source_content());
    assert_eq!(world.target_content(&replica), kept, "the diverged replica is as somebody left it");

    // From now on the new one is updated in place.
    let third = world.run().await;
    assert_eq!(only_target(&third).replica, only_target(&second).replica, "{third:#?}");
    assert!(only_target(&third).warnings.is_empty(), "{third:#?}");
}

#[tokio::test]
async fn a_replica_that_was_force_started_is_kept() {
    let world = World::new().await;
    let first = world.run().await;
    let replica = only_target(&first).replica.clone().unwrap();
    let session = world.at_target().await;
    let vm = session.by_uuid::<Vm>(&replica).await.unwrap();
    session.call_async::<()>("VM.start", params![&vm, false, false]).await.expect_err("a replica's start is blocked");
    for operation in ["start", "start_on"] {
        let () = session.call("VM.remove_from_blocked_operations", params![&vm, operation]).await.unwrap();
    }
    let () = session.call_async("VM.start", params![&vm, false, false]).await.unwrap();

    let second = world.run().await;
    assert_eq!(second.outcome, Outcome::Succeeded, "{second:#?}");
    assert!(only_target(&second).warnings.iter().any(|text| text.contains("it is running")), "{second:#?}");
    assert_eq!(world.target.record("VM", &replica).unwrap()["power_state"], "Running");
    assert_eq!(world.target_content(&point_of(&second)), world.source_content());
}

#[tokio::test]
async fn a_base_that_somebody_destroyed_means_a_full_copy_with_its_reason() {
    use vmferry_model::plan::FullReason;
    let world = World::new().await;
    world.run().await;
    let session = world.at_source().await;
    let snapshots = world.source.records("VM").into_iter().filter(|vm| vm["is_a_snapshot"] == true);
    for snapshot in snapshots {
        let disks = world.source.vm_disks(snapshot["uuid"].as_str().unwrap());
        let vm = session.by_uuid::<Vm>(snapshot["uuid"].as_str().unwrap()).await.unwrap();
        let () = session.call_async("VM.destroy", params![&vm]).await.unwrap();
        for disk in disks {
            let vdi = session.by_uuid::<vmferry_xapi::records::Vdi>(&disk).await.unwrap();
            let () = session.call_async("VDI.destroy", params![&vdi]).await.unwrap();
        }
    }
    session.logout().await.unwrap();

    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    for disk in disks(&report) {
        assert_eq!((disk.kind, disk.full_reason), (Kind::Full, Some(FullReason::BaseGoneOnSource)));
    }
    assert_eq!(world.target_content(&point_of(&report)), world.source_content());
    world.assert_tidy(2);
}
