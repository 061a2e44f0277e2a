//! A copy becomes the base of any job, which is known by its uuids alone.

use crate::seed::with_copy;
use crate::xen_orchestra::rules::{self, Bases};
use serde_json::Value;
use uuid::Uuid;
use vmferry_engine::{EngineError, JobIds, SeedPair, SeedReport, Silent};
use vmferry_model::plan::Kind;
use vmferry_model::report::Outcome;
use vmferry_scenarios::{MIB, World, bystander, disks, only_target, point_of};
use vmferry_xapi::records::Vm;
use vmferry_xapi::{Ref, params};
use xapi_sim::Sim;

async fn with_pair() -> (World, SeedPair) {
    let (world, request) = with_copy().await;
    let pair = SeedPair {
        source: "prod".to_owned(),
        snapshot: request.snapshot,
        target: "dr".to_owned(),
        copy: request.copy,
        ids: JobIds { job: Uuid::from_u128(0x0a), schedule: Uuid::from_u128(0x0b) },
        tenant: "default".to_owned(),
    };
    (world, pair)
}

async fn adopt(world: &World, pair: &SeedPair) -> Result<SeedReport, EngineError> {
    let engine = world.engine();
    let report = engine.adopt_pair(pair, &Silent).await;
    engine.close().await;
    report
}

/// Everything a pool's users see, without what its storage keeps up to date by itself.
fn everything(pool: &Sim) -> Vec<Value> {
    let mut records: Vec<Value> = ["VM", "VDI", "VBD", "VIF"].iter().flat_map(|class| pool.records(class)).collect();
    for record in records.iter_mut().filter_map(Value::as_object_mut) {
        record
            .retain(|field, _| !["children", "parent", "physical_utilisation", "sm_config"].contains(&field.as_str()));
    }
    records
}

/// Takes a snapshot of a VM as a user would.
async fn snapshot_of(world: &World, vm: &str) -> String {
    let session = world.at_source().await;
    let vm: Ref<Vm> = session.by_uuid(vm).await.unwrap();
    let snapshot: Ref<Vm> = session.call_async("VM.snapshot", params![&vm, "by hand"]).await.unwrap();
    let uuid = session.call("VM.get_uuid", params![&snapshot]).await.unwrap();
    session.logout().await.unwrap();
    uuid
}

#[tokio::test]
async fn xen_orchestra_finds_a_base_for_every_disk() {
    let (world, pair) = with_pair().await;
    let report = adopt(&world, &pair).await.unwrap();
    assert!(report.disks.len() == 2 && report.disks.iter().all(|disk| disk.different_bytes == 0), "{report:#?}");

    let (job, sr) = (pair.ids.job.to_string(), world.target.default_sr());
    let held = world.target.vm_disks(&report.point);
    let bases = world.source.vm_disks(&pair.snapshot).into_iter().zip(held.clone());
    let wanted: Bases = world.source.vm_disks(&world.vm).into_iter().zip(bases).collect();
    assert_eq!(rules::bases(&world.source, &world.target, &world.vm, &job, &sr), wanted);
    assert!(held.iter().all(|disk| rules::continues_in_place(&world.target, disk)));
    let schedule = pair.ids.schedule.to_string();
    assert_eq!(rules::replicas(&world.target, &schedule, &sr, &world.vm), [report.point], "it is listed and pruned");
    let copy = world.target.record("VM", &pair.copy).unwrap();
    assert!(copy["blocked_operations"]["start_on"].as_str().unwrap().contains("start a clone"), "{copy:#}");
}

#[tokio::test]
async fn a_job_with_these_ids_goes_on_with_a_delta() {
    let (mut world, pair) = with_pair().await;
    let report = adopt(&world, &pair).await.unwrap();
    world.job.ids = pair.ids;
    world.source.write(&world.source.vm_disks(&world.vm)[0], 20 * MIB, &[3; 4096]);
    let first = world.run().await;
    assert_eq!(first.outcome, Outcome::Succeeded, "{first:#?}");
    assert!(disks(&first).iter().all(|disk| disk.kind == Kind::Delta), "{first:#?}");
    assert_eq!(disks(&first)[0].changed_bytes, 2 * MIB);
    assert_eq!(only_target(&first).replica.as_ref(), Some(&report.replica));
    assert_eq!(world.target_content(&point_of(&first)), world.source_content());
}

#[tokio::test]
async fn a_copy_that_differs_is_refused_with_what_differs_and_nothing_is_marked() {
    let (world, pair) = with_pair().await;
    world.target.write(&world.target.vm_disks(&pair.copy)[1], 9 * MIB, b"a byte that rotted on the truck");
    let before = (everything(&world.source), everything(&world.target));
    let error = adopt(&world, &pair).await.unwrap_err().to_string();
    assert!(error.contains("disk data of the copy differs") && error.contains("64.0 KiB from byte 9437184"), "{error}");
    let mut after = (everything(&world.source), everything(&world.target));
    // What is left is not where it was before: the lease wrote the keys anew.
    for records in [&mut after.0, &mut after.1] {
        records.retain(|record| record["name_label"] != "vmferry-seed");
    }
    assert_eq!(after, before);
}

#[tokio::test]
async fn arguments_that_do_not_fit_together_are_refused_with_a_sentence() {
    let (world, pair) = with_pair().await;
    let other = bystander(&world.source);
    let of_other = snapshot_of(&world, &other).await;
    let before = (everything(&world.source), everything(&world.target));
    let refused = async |pair: SeedPair, wanted: &str| {
        let error = adopt(&world, &pair).await.unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(wanted), "{error}");
        assert_eq!((everything(&world.source), everything(&world.target)), before);
    };
    refused(SeedPair { snapshot: world.vm.clone(), ..pair.clone() }, "is no snapshot; give the uuid of the snapshot")
        .await;
    refused(SeedPair { snapshot: of_other, ..pair.clone() }, "the copy has a disk").await;
    let swapped = SeedPair { snapshot: pair.copy.clone(), copy: pair.snapshot.clone(), ..pair.clone() };
    refused(swapped, "give the source's pool and snapshot first").await;
    refused(SeedPair { target: "prod".to_owned(), copy: world.vm.clone(), ..pair.clone() }, "is the source itself")
        .await;

    let session = world.at_target().await;
    let copy: Ref<Vm> = session.by_uuid(&pair.copy).await.unwrap();
    let record: Vm = session.get_record(&copy).await.unwrap();
    let () = session.call("VBD.destroy", params![&record.vbds[1]]).await.unwrap();
    session.logout().await.unwrap();
    let error = adopt(&world, &pair).await.unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("has no disk at device"), "{error}");
}

#[tokio::test]
async fn a_snapshot_of_another_vm_of_the_same_shape_is_told_by_its_content() {
    let (mut world, pair) = with_pair().await;
    world.replace_vm(&[64 * MIB, 32 * MIB]);
    let snapshot = snapshot_of(&world, &world.vm).await;
    let error = adopt(&world, &SeedPair { snapshot, ..pair }).await.unwrap_err();
    assert!(error.to_string().contains("was the copy made from this snapshot?"), "{error}");
}
