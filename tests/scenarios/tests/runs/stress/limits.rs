//! What is too large for XAPI's limits.

use super::Scene;
use vmferry_model::report::Outcome;
use vmferry_xapi::records::Vm;
use vmferry_xapi::{Ref, params};

#[tokio::test]
async fn a_vm_with_more_keys_than_a_call_may_carry_is_refused_before_anything_is_made() {
    let scene = Scene::new().await;
    let session = scene.world.at_source().await;
    let vm: Ref<Vm> = session.by_uuid(&scene.world.vm).await.unwrap();
    for part in ["a", "b"] {
        // Each write is below 300 KiB, the whole is not.
        session.add_to_other_config(&vm, &format!("notes-{part}"), &"x".repeat(200 << 10)).await.unwrap();
    }
    let failed = scene.world.run().await;
    assert_eq!(failed.outcome, Outcome::Failed, "{failed:#?}");
    let told = failed.vms[0].error.as_ref().expect("a reason");
    assert!(told.contains("VM erp-db has more keys and settings than the 300 KiB"), "{told}");
    scene.assert_first_point("too large");
    scene.world.assert_only_objects(1);

    session.remove_from_other_config(&vm, "notes-a").await.unwrap();
    session.logout().await.unwrap();
    scene.assert_succeeded("small again", &scene.world.run().await);
    scene.world.assert_tidy(2);
}

#[tokio::test]
async fn a_snapshot_that_was_given_more_keys_than_a_call_may_carry_can_still_be_removed() {
    let scene = Scene::new().await;
    let session = scene.world.at_source().await;
    let snapshots = scene.world.source.records("VM").into_iter().filter(|vm| vm["is_a_snapshot"] == true);
    for snapshot in snapshots {
        let snapshot = Ref::<Vm>::new(snapshot["$ref"].as_str().unwrap());
        for part in ["a", "b"] {
            let (key, value) = (format!("notes-{part}"), "x".repeat(200 << 10));
            session.call::<()>("VM.add_to_other_config", params![&snapshot, key, value]).await.unwrap();
        }
    }
    session.logout().await.unwrap();
    scene.assert_succeeded("with a large base", &scene.world.run().await);
    scene.world.assert_tidy(2);
}
