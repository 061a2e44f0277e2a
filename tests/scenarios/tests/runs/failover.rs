//! Recovery points are cloned and started, looked at, and removed; the replica is as before.

use std::collections::BTreeMap;
use std::time::Duration;
use vmferry_engine::{CloneRequest, GuestCheck, GuestWait, NetworkChoice};
use vmferry_model::report::Outcome;
use vmferry_scenarios::{MIB, World, only_target, point_of};
use vmferry_xapi::records::{Network, Vm};
use vmferry_xapi::{IntoValue, Ref, Session, Value, params};
use xapi_sim::SimConfig;

/// The hardware addresses of a VM on the target.
fn macs(world: &World, vm: &str) -> Vec<String> {
    let vm = world.target.record("VM", vm).unwrap()["$ref"].clone();
    let own = world.target.records("VIF").into_iter().filter(|vif| vif["VM"] == vm);
    own.map(|vif| vif["MAC"].as_str().unwrap().to_owned()).collect()
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
    let clone = engine.clone_point(&world.job, &CloneRequest::newest(&world.vm)).await.unwrap();
    assert_eq!((clone.point, clone.started), (point_of(&second), true));
    assert_eq!(world.target_content(&clone.vm), second_content);
    let request =
        CloneRequest { point: Some(point_of(&first)), network: NetworkChoice::None, ..CloneRequest::newest(&world.vm) };
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
    // The one that is connected has the replica's address, and that is all there is to say.
    let [clash] = only_target(&third).warnings.as_slice() else { panic!("{third:#?}") };
    assert!(clash.contains("MAC") && clash.contains(&clone.vm), "{clash}");
}

#[tokio::test]
async fn failover_needs_the_target_pool_only() {
    let mut world = World::new().await;
    world.run().await;
    let content = world.source_content();
    let gone = std::mem::replace(&mut world.source, vmferry_scenarios::pool("empty").await);
    gone.stop().await;

    let engine = world.engine();
    let points = engine.points(&world.job, None).await.unwrap().replicas;
    assert_eq!((points.len(), points[0].points.len(), points[0].vm.as_str()), (1, 1, world.vm.as_str()));
    let clone = engine.clone_point(&world.job, &CloneRequest::newest(&world.vm)).await.unwrap();
    assert_eq!(world.target_content(&clone.vm), content);
    engine.close().await;
}

#[tokio::test]
async fn a_clone_that_somebody_made_by_hand_is_left_alone() {
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

#[tokio::test]
async fn a_clone_keeps_the_addresses_of_its_source_unless_it_is_asked_for_others() {
    let world = World::new().await;
    let report = world.run().await;
    let source = [world.source.records("VIF")[0]["MAC"].as_str().unwrap().to_owned()];
    assert_eq!(macs(&world, &point_of(&report)), source);

    let engine = world.engine();
    let same = engine.clone_point(&world.job, &CloneRequest::newest(&world.vm)).await.unwrap();
    assert_eq!(macs(&world, &same.vm), source);
    let error = engine.clone_point(&world.job, &CloneRequest::newest(&world.vm)).await.unwrap_err().to_string();
    assert!(error.contains(&source[0]) && error.contains("--new-macs"), "two with one address: {error}");
    let request = CloneRequest { new_macs: true, ..CloneRequest::newest(&world.vm) };
    let other = engine.clone_point(&world.job, &request).await.unwrap();
    assert_eq!(world.target.record("VM", &other.vm).unwrap()["power_state"], "Running");
    assert!(macs(&world, &other.vm).len() == 1 && macs(&world, &other.vm) != source);
    engine.close().await;
}

async fn network_called(session: &Session, name: &str) -> Ref<Network> {
    let record = Value::Struct(BTreeMap::from([
        ("name_label".to_owned(), name.into_value()),
        ("other_config".to_owned(), BTreeMap::<String, String>::new().into_value()),
    ]));
    session.call("network.create", params![record]).await.unwrap()
}

#[tokio::test]
async fn a_network_that_vanished_is_an_error_that_names_the_way_out() {
    let mut world = World::new().await;
    let session = world.at_target().await;
    let old = network_called(&session, "old lan").await;
    let mapped = world.source.network();
    world.job.targets[0].networks.insert(mapped, "old lan".to_owned());
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    let address = macs(&world, &point_of(&report));
    // XAPI destroys the interfaces of the replica and its points with it.
    let () = session.call("network.destroy", params![&old]).await.unwrap();
    let lab = network_called(&session, "lab").await;
    session.logout().await.unwrap();

    let engine = world.engine();
    let error = engine.clone_point(&world.job, &CloneRequest::newest(&world.vm)).await.unwrap_err().to_string();
    assert!(error.contains(&address[0]) && error.contains("--network"), "{error}");
    let request = CloneRequest { network: NetworkChoice::Named("lab".to_owned()), ..CloneRequest::newest(&world.vm) };
    let clone = engine.clone_point(&world.job, &request).await.unwrap();
    assert_eq!(macs(&world, &clone.vm), address);
    let vif = world.target.records("VIF").into_iter().find(|vif| vif["network"] == lab.as_str());
    assert!(vif.is_some_and(|vif| vif["currently_attached"] == true));
    engine.close().await;
}

#[tokio::test]
async fn a_boot_test_waits_for_the_guest_by_events_and_leaves_nothing() {
    let slow = SimConfig { hold_guests: true, ..SimConfig::default() };
    let world = World::between(SimConfig::default(), slow).await;
    let report = world.run().await;
    let engine = world.engine();
    let guest = |patience, check| Some(GuestWait { patience: Duration::from_millis(patience), check });
    let request = CloneRequest {
        network: NetworkChoice::None,
        guest: guest(60_000, GuestCheck::Metrics),
        remove_after: true,
        ..CloneRequest::newest(&world.vm)
    };
    let guest_boots = async {
        let session = world.at_target().await;
        let mut events = session.events(["vm"]);
        let vm = 'started: loop {
            for event in events.next(Duration::from_secs(10)).await.unwrap() {
                match event.record::<Vm>() {
                    Some(Ok((_, vm))) if vm.name_label.ends_with("(clone)") && vm.power_state.as_str() == "Running" => {
                        break 'started vm.uuid;
                    }
                    _ => {}
                }
            }
        };
        world.target.bring_up_guest(&vm);
        session.logout().await.unwrap();
    };
    let (clone, ()) = tokio::join!(engine.clone_point(&world.job, &request), guest_boots);
    let clone = clone.unwrap();
    let seen = clone.guest.unwrap();
    assert!(seen.up && seen.drivers && clone.started && clone.removed, "{seen:?}");
    assert_eq!(clone.point, point_of(&report));

    let silent = CloneRequest { guest: guest(200, GuestCheck::Reports), ..request };
    let clone = engine.clone_point(&world.job, &silent).await.unwrap();
    let error = clone.guest.unwrap().error.unwrap();
    assert!(error.contains("not up after 200ms") && error.contains("its VM is Running"), "{error}");
    assert!(clone.removed, "whatever became of the guest");
    engine.close().await;
    world.assert_tidy(1);
}

#[tokio::test]
async fn a_clone_starts_by_itself_only_on_request() {
    let world = World::new().await;
    let session = world.at_source().await;
    let vm = session.by_uuid::<Vm>(&world.vm).await.unwrap();
    let () = session.call("VM.set_ha_restart_priority", params![&vm, "restart"]).await.unwrap();
    session.logout().await.unwrap();
    world.run().await;
    let engine = world.engine();
    for auto_start in [false, true] {
        let request = CloneRequest { auto_start, network: NetworkChoice::None, ..CloneRequest::newest(&world.vm) };
        let clone = engine.clone_point(&world.job, &request).await.unwrap();
        let record = world.target.record("VM", &clone.vm).unwrap();
        assert_eq!(record["other_config"].get("auto_poweron").is_some(), auto_start);
        assert_eq!(record["ha_restart_priority"], if auto_start { "restart" } else { "" });
    }
    engine.close().await;
}
