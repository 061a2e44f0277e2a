//! A snapshot whose destruction somebody blocked is somebody's to keep.

use std::sync::Arc;
use vmferry_model::report::{Outcome, RunReport};
use vmferry_scenarios::{Keep, MIB, World, only_target, point_of};
use vmferry_xapi::records::Vm;
use vmferry_xapi::{Session, params};

async fn block(session: &Session, vm: &str) {
    let vm = session.by_uuid::<Vm>(vm).await.unwrap();
    let () = session.call("VM.add_to_blocked_operations", params![&vm, "destroy", "mine"]).await.unwrap();
}

async fn unblock(session: &Session, vm: &str) {
    let vm = session.by_uuid::<Vm>(vm).await.unwrap();
    let () = session.call("VM.remove_from_blocked_operations", params![&vm, "destroy"]).await.unwrap();
}

async fn run(world: &World) -> RunReport {
    world.source.write(&world.source.vm_disks(&world.vm)[0], 10 * MIB, b"a change");
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    report
}

#[tokio::test]
async fn a_recovery_point_whose_destruction_is_blocked_is_held() {
    let mut world = World::new().await;
    world.policies.retention = Some(Arc::new(Keep(1)));
    let first = point_of(&run(&world).await);
    let session = world.at_target().await;
    block(&session, &first).await;
    let second = point_of(&run(&world).await);
    let third = run(&world).await;
    assert_eq!(only_target(&third).pruned, [second], "{third:#?}");
    let held = |points: &[vmferry_engine::ReplicaPoints]| {
        points[0].points.iter().map(|point| (point.id.clone(), point.held)).collect::<Vec<_>>()
    };
    assert_eq!(held(&world.points().await), [(point_of(&third), false), (first.clone(), true)]);

    unblock(&session, &first).await;
    session.logout().await.unwrap();
    let fourth = run(&world).await;
    assert!(only_target(&fourth).pruned.contains(&first), "{fourth:#?}");
    world.assert_tidy(1);
}

#[tokio::test]
async fn a_source_snapshot_whose_destruction_is_blocked_stays_and_runs_go_on_and_say_so() {
    let world = World::new().await;
    run(&world).await;
    let snapshots = || world.source.records("VM").into_iter().filter(|vm| vm["is_a_snapshot"] == true);
    let first = snapshots().next().unwrap()["uuid"].as_str().unwrap().to_owned();
    let session = world.at_source().await;
    block(&session, &first).await;
    for _ in 0..2 {
        let report = run(&world).await;
        let warnings = &report.vms[0].warnings;
        assert!(warnings.len() == 1 && warnings[0].contains(&first) && warnings[0].contains("mine"), "{warnings:#?}");
        assert_eq!(snapshots().count(), 2);
    }
    unblock(&session, &first).await;
    session.logout().await.unwrap();
    assert_eq!(run(&world).await.vms[0].warnings, Vec::<String>::new());
    world.assert_tidy(4);
}
