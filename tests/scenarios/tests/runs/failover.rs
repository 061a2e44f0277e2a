//! Recovery points are cloned and started; the replica is as before.

use vmferry_engine::{CloneNetwork, CloneRequest};
use vmferry_model::report::Outcome;
use vmferry_scenarios::{MIB, World, only_target, point_of};

fn newest(world: &World) -> CloneRequest {
    CloneRequest {
        vm: world.vm.clone(),
        point: None,
        target: None,
        network: CloneNetwork::AsReplica,
        start: true,
        name: None,
    }
}

#[tokio::test]
async fn a_clone_of_any_recovery_point_starts_and_holds_its_moment() {
    let world = World::new().await;
    let first = world.run().await;
    let first_content = world.source_content();
    world.source.write(&world.source.vm_disks(&world.vm)[0], 12 * MIB, b"a change");
    let second = world.run().await;
    let second_content = world.source_content();

    let engine = world.engine();
    let clone = engine.clone_point(&world.job, &newest(&world)).await.unwrap();
    assert_eq!((clone.point, clone.started), (point_of(&second), true));
    assert_eq!(world.target_content(&clone.vm), second_content);
    let request = CloneRequest { point: Some(point_of(&first)), network: CloneNetwork::None, ..newest(&world) };
    let older = engine.clone_point(&world.job, &request).await.unwrap();
    assert_eq!(world.target_content(&older.vm), first_content);
    engine.close().await;

    let record = world.target.record("VM", &clone.vm).unwrap();
    assert_eq!(record["power_state"], "Running");
    assert_eq!(record["is_a_template"], false);
    let keys = record["other_config"].as_object().unwrap();
    assert!(keys.keys().all(|key| !key.starts_with("xo:") && !key.starts_with("vmferry:")), "{keys:?}");
    assert_eq!(world.target.record("VM", &older.vm).unwrap()["VIFs"].as_array().unwrap().len(), 0);

    // The clones are nobody's replica and disturb nothing.
    let third = world.run().await;
    assert_eq!(third.outcome, Outcome::Succeeded, "{third:#?}");
    assert_eq!(only_target(&third).replica, only_target(&second).replica);
    assert!(only_target(&third).warnings.is_empty(), "{third:#?}");
}

#[tokio::test]
async fn failover_needs_the_target_pool_only() {
    let mut world = World::new().await;
    world.run().await;
    let content = world.source_content();
    let gone = std::mem::replace(&mut world.source, vmferry_scenarios::pool("empty").await);
    gone.stop().await;

    let engine = world.engine();
    let points = engine.points(&world.job, None).await.unwrap();
    assert_eq!((points.len(), points[0].points.len(), points[0].vm.as_str()), (1, 1, world.vm.as_str()));
    let clone = engine.clone_point(&world.job, &newest(&world)).await.unwrap();
    assert_eq!(world.target_content(&clone.vm), content);
    engine.close().await;
}

#[tokio::test]
async fn a_clone_that_somebody_made_by_hand_is_left_alone() {
    use vmferry_xapi::{Ref, params, records::Vm};
    let world = World::new().await;
    let first = world.run().await;
    let session = world.at_target().await;
    for original in [point_of(&first), only_target(&first).replica.clone().unwrap()] {
        let vm = session.by_uuid::<Vm>(&original).await.unwrap();
        let _: Ref<Vm> = session.call_async("VM.clone", params![&vm, "mine"]).await.unwrap();
    }
    session.logout().await.unwrap();

    let second = world.run().await;
    assert_eq!(second.outcome, Outcome::Succeeded, "{second:#?}");
    assert!(only_target(&second).warnings.is_empty(), "{second:#?}");
    let mine = world.target.records("VM").into_iter().filter(|vm| vm["name_label"] == "mine").count();
    assert_eq!(mine, 2);
}
