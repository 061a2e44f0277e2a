//! Whatever changes on the source VM between two runs, or during one, is in the next recovery point; the one before stays as
//! it was.

use serde_json::json;
use vmferry_model::report::Outcome;
use vmferry_scenarios::{MIB, World, point_of};
use vmferry_xapi::records::{Host, Vm};
use vmferry_xapi::{Ref, Session, params};
use xapi_sim::{Fault, FaultKind, FaultPoint};

/// A session on the source, and the VM there.
async fn source_vm(world: &World) -> (Session, Ref<Vm>) {
    let session = world.at_source().await;
    let vm = session.by_uuid(&world.vm).await.unwrap();
    (session, vm)
}

fn blocked(world: &World) -> serde_json::Value {
    world.source.record("VM", &world.vm).unwrap()["blocked_operations"].clone()
}

#[tokio::test]
async fn during_a_run_the_vm_cannot_be_migrated_and_after_it_it_can() {
    let world = World::new().await;
    world.source.inject(Fault { at: FaultPoint::Export, nth: 1, kind: FaultKind::StallAfter(MIB) });
    let operator = async {
        world.source.wait_until_stalled().await;
        let found = blocked(&world);
        let (session, vm) = source_vm(&world).await;
        let hosts: Vec<(Ref<Host>, Host)> = session.get_all_records().await.unwrap();
        let options = std::collections::BTreeMap::<String, String>::new();
        let refused = session.call::<()>("VM.pool_migrate", params![&vm, &hosts[0].0, options]).await.unwrap_err();
        session.logout().await.unwrap();
        world.source.clear_faults();
        (found, refused.to_string())
    };
    let (report, (found, refused)) = tokio::join!(world.run(), operator);

    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    for operation in ["pool_migrate", "migrate_send"] {
        let text = found[operation].as_str().expect(operation);
        assert!(text.contains("as soon as the run of job erp ends") && text.contains("gc erp --apply"), "{text}");
    }
    assert!(refused.contains("vmferry is replicating this VM"), "{refused}");
    let vm = world.source.record("VM", &world.vm).unwrap();
    assert_eq!(vm["blocked_operations"], json!({}));
    assert!(vm["allowed_operations"].as_array().unwrap().contains(&json!("migrate_send")), "clients offer it again");
    for (side, pool) in [("source", &world.source), ("target", &world.target)] {
        let snapshots = pool.records("VM").into_iter().filter(|vm| vm["is_a_snapshot"] == true);
        snapshots.for_each(|vm| assert_eq!(vm["blocked_operations"], json!({}), "a snapshot on the {side}"));
    }
    let standbys = world.target.records("VM").into_iter().filter(|vm| vm["blocked_operations"] != json!({}));
    standbys.for_each(|vm| assert!(vm["blocked_operations"]["migrate_send"].is_null(), "{vm:#?}"));
}

#[tokio::test]
async fn a_run_that_fails_lifts_its_block() {
    let world = World::new().await;
    world.source.inject(Fault { at: FaultPoint::Export, nth: 1, kind: FaultKind::CutAfter(MIB) });
    assert_eq!(world.run().await.outcome, Outcome::Failed);
    assert_eq!(blocked(&world), json!({}));
}

#[tokio::test]
async fn what_somebody_else_blocked_is_neither_overwritten_nor_lifted() {
    let world = World::new().await;
    let (session, vm) = source_vm(&world).await;
    let theirs = [("migrate_send", "VM migration is blocked during backup"), ("destroy", "do not touch")];
    for (operation, text) in theirs {
        let () = session.call("VM.add_to_blocked_operations", params![&vm, operation, text]).await.unwrap();
    }
    session.logout().await.unwrap();
    let before = blocked(&world);
    assert_eq!(world.run().await.outcome, Outcome::Succeeded);
    assert_eq!(blocked(&world), before);
    world.gc(true).await;
    assert_eq!(blocked(&world), before);
}

#[tokio::test]
async fn a_vm_that_is_being_migrated_is_skipped_and_replicated_afterwards() {
    let world = World::new().await;
    let (session, vm) = source_vm(&world).await;
    let hosts: Vec<(Ref<Host>, Host)> = session.get_all_records().await.unwrap();
    let options = std::collections::BTreeMap::<String, String>::new();
    let fault = Fault { at: FaultPoint::Call("VM.pool_migrate".into()), nth: 1, kind: FaultKind::StallAfter(0) };
    world.source.inject(fault);
    let migration = session.call_async::<()>("VM.pool_migrate", params![&vm, &hosts[0].0, options]);
    let meanwhile = async {
        world.source.wait_until_stalled().await;
        let (plan, report) = (world.plan().await, world.run().await);
        world.source.clear_faults();
        (plan, report)
    };
    let (migrated, (plan, report)) = tokio::join!(migration, meanwhile);
    migrated.unwrap();
    session.logout().await.unwrap();

    let error = report.vms[0].error.as_ref().unwrap();
    assert!(error.contains("is being migrated (pool_migrate)"), "{error}");
    assert_eq!((report.outcome, report.vms[0].locked), (Outcome::Skipped, false), "no other run holds it");
    assert_eq!(plan.vms[0].error.as_ref(), Some(error));
    assert_eq!(blocked(&world), json!({}));
    let later = world.run().await;
    assert_eq!(later.outcome, Outcome::Succeeded, "{later:#?}");
    assert_eq!(world.target_content(&point_of(&later)), world.source_content());
}
