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
    world.lose_source_snapshots().await;
    world.lose_digests();

    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    for disk in disks(&report) {
        assert_eq!((disk.kind, disk.full_reason), (Kind::Full, Some(FullReason::BaseGoneOnSource)));
    }
    assert_eq!(world.target_content(&point_of(&report)), world.source_content());
    world.assert_tidy(2);
}

/// What `VM.revert` does to the keys: those of the snapshot stand on the live VM again.
async fn revert_keys(pool: &xapi_sim::Sim, session: &vmferry_xapi::Session, live: &str, snapshot: &str) {
    let keys: std::collections::BTreeMap<String, String> =
        serde_json::from_value(pool.record("VM", snapshot).unwrap()["other_config"].clone()).unwrap();
    let vm = session.by_uuid::<Vm>(live).await.unwrap();
    let () = session.call("VM.set_other_config", params![&vm, keys]).await.unwrap();
}

#[tokio::test]
async fn a_replica_that_was_reverted_to_an_older_point_is_kept() {
    let world = World::new().await;
    let first = world.run().await;
    let replica = only_target(&first).replica.clone().unwrap();
    world.source.write(&world.source.vm_disks(&world.vm)[0], 12 * MIB, b"a change");
    world.run().await;
    let session = world.at_target().await;
    revert_keys(&world.target, &session, &replica, &point_of(&first)).await;
    session.logout().await.unwrap();
    world.target.write(&world.target.vm_disks(&replica)[0], 3 * MIB, b"days of work");
    let kept = world.target_content(&replica);

    let third = world.run().await;
    assert_eq!(third.outcome, Outcome::Succeeded, "{third:#?}");
    assert_ne!(only_target(&third).replica.as_ref(), Some(&replica));
    assert_eq!(world.target_content(&replica), kept);
    assert_eq!(world.target_content(&point_of(&third)), world.source_content());
}

#[tokio::test]
async fn a_half_written_replica_that_somebody_unblocked_is_kept() {
    use xapi_sim::{Fault, FaultKind, FaultPoint};
    let world = World::new().await;
    let first = world.run().await;
    let replica = only_target(&first).replica.clone().unwrap();
    for disk in world.source.vm_disks(&world.vm) {
        world.source.write(&disk, 10 * MIB, &[9; 6 << 20]);
    }
    world.target.inject(Fault { at: FaultPoint::Import, nth: 1, kind: FaultKind::StallAfter(3 * MIB) });
    tokio::select! {
        report = world.run() => panic!("the run did not stall: {report:#?}"),
        () = world.target.wait_until_stalled() => {}
    }
    world.target.clear_faults();
    let session = world.at_target().await;
    let vm = session.by_uuid::<Vm>(&replica).await.unwrap();
    let text = world.target.record("VM", &replica).unwrap()["blocked_operations"]["start"].to_string();
    assert!(text.contains("half-written by vmferry; clone snapshot") && text.contains(&point_of(&first)), "{text}");
    for operation in ["start", "start_on"] {
        let () = session.call("VM.remove_from_blocked_operations", params![&vm, operation]).await.unwrap();
    }
    session.logout().await.unwrap();

    let second = world.run().await;
    assert_eq!(second.outcome, Outcome::Succeeded, "{second:#?}");
    assert_ne!(only_target(&second).replica.as_ref(), Some(&replica));
    assert!(world.target.record("VM", &replica).is_some(), "somebody may have worked on it");
    assert_eq!(world.target_content(&point_of(&second)), world.source_content());
}

#[tokio::test]
async fn a_source_that_was_reverted_to_our_snapshot_hands_our_keys_to_nobody() {
    use vmferry_xapi::Ref;
    let world = World::new().await;
    world.run().await;
    let snapshot = world.source.records("VM").into_iter().find(|vm| vm["is_a_snapshot"] == true).unwrap();
    let session = world.at_source().await;
    revert_keys(&world.source, &session, &world.vm, snapshot["uuid"].as_str().unwrap()).await;
    let vm = session.by_uuid::<Vm>(&world.vm).await.unwrap();
    let mine: Ref<Vm> = session.call_async("VM.snapshot", params![&vm, "before the upgrade"]).await.unwrap();
    let mine: String = session.call("VM.get_uuid", params![&mine]).await.unwrap();
    session.logout().await.unwrap();

    for _ in 0..2 {
        let report = world.run().await;
        assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
        assert!(disks(&report).iter().all(|disk| disk.kind == Kind::Delta), "{report:#?}");
        assert_eq!(world.target_content(&point_of(&report)), world.source_content());
    }
    assert!(world.source.record("VM", &mine).is_some(), "a snapshot of the user's is never ours");
}
