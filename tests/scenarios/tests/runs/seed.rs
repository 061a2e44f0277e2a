//! A copy that somebody brought becomes the first recovery point, and the first run is a delta.

use vmferry_engine::{CloneRequest, EngineError, JobIds, SeedReport, SeedRequest, Silent};
use vmferry_model::plan::{FullReason, Kind};
use vmferry_model::report::Outcome;
use vmferry_scenarios::{MIB, World, disks, only_target, point_of};
use vmferry_xapi::records::Vm;
use vmferry_xapi::{Ref, params};
use xapi_sim::{Fault, FaultKind, FaultPoint};

/// A world whose target holds a copy of the VM that the job knows nothing of, made from a snapshot that a user took.
pub(crate) async fn with_copy() -> (World, SeedRequest) {
    let mut world = World::new().await;
    let session = world.at_source().await;
    let vm: Ref<Vm> = session.by_uuid(&world.vm).await.unwrap();
    let snapshot: Ref<Vm> = session.call_async("VM.snapshot", params![&vm, "before the truck left"]).await.unwrap();
    let snapshot: String = session.call("VM.get_uuid", params![&snapshot]).await.unwrap();
    session.logout().await.unwrap();

    // Whoever brings it, brings it by another way: here by another job, of which nothing is left but a clone.
    let ids = std::mem::replace(&mut world.job.ids, JobIds::derived("default", "truck"));
    world.run().await;
    let engine = world.engine();
    let clone = CloneRequest { start: false, ..CloneRequest::newest(&world.vm) };
    let copy = engine.clone_point(&world.job, &clone).await.unwrap().vm;
    engine.close().await;
    world.job.ids = ids;
    (world, SeedRequest { snapshot, copy, target: None, for_others: false })
}

async fn adopt(world: &World, request: &SeedRequest) -> Result<SeedReport, EngineError> {
    let engine = world.engine();
    let report = engine.adopt_seed(&world.job, request, &Silent).await;
    engine.close().await;
    report
}

#[tokio::test]
async fn a_copy_that_equals_the_snapshot_is_a_base() {
    let (world, request) = with_copy().await;
    let content = world.source_content();
    world.source.write(&world.source.vm_disks(&world.vm)[0], 20 * MIB, &[3; 4096]);
    let report = adopt(&world, &request).await.unwrap();
    assert!(report.disks.len() == 2 && report.disks.iter().all(|disk| disk.different_bytes == 0), "{report:#?}");
    assert_eq!(report.replica, request.copy);
    assert_eq!(world.target_content(&report.point), content);
    let copy = world.target.record("VM", &request.copy).unwrap();
    assert!(copy["blocked_operations"]["start"].as_str().unwrap().contains("vmferry failover clone"), "{copy:#}");
    assert!(world.points().await[0].points.iter().any(|point| point.id == report.point && !point.damaged));

    let first = world.run().await;
    assert_eq!(first.outcome, Outcome::Succeeded, "{first:#?}");
    assert!(disks(&first).iter().all(|disk| disk.kind == Kind::Delta), "{first:#?}");
    assert_eq!(disks(&first)[0].changed_bytes, 2 * MIB);
    assert_eq!(only_target(&first).replica.as_ref(), Some(&request.copy), "the copy goes on in place");
    assert_eq!(world.target_content(&point_of(&first)), world.source_content());
    assert!(disks(&first).iter().all(|disk| disk.digest.is_some()), "{first:#?}");
    assert!(world.source.record("VM", &request.snapshot).is_none(), "the job owns its bases, and has a newer one");
}

#[tokio::test]
async fn what_differs_is_told_and_sent_by_the_next_run_alone() {
    let (world, request) = with_copy().await;
    world.target.write(&world.target.vm_disks(&request.copy)[0], 9 * MIB, b"a byte that rotted on the truck");
    let report = adopt(&world, &request).await.unwrap();
    let differences: Vec<_> = report.disks.iter().map(|disk| (disk.different_bytes, disk.differences.len())).collect();
    assert_eq!(differences, [(64 << 10, 1), (0, 0)], "{report:#?}");
    assert_eq!(report.disks[0].differences[0].offset, 9 * MIB);
    assert!(world.points().await[0].points[0].damaged, "it is offered to nobody");

    let first = world.run().await;
    assert_eq!(first.outcome, Outcome::Succeeded, "{first:#?}");
    let [mended, delta] = disks(&first) else { panic!("{first:#?}") };
    assert_eq!((mended.kind, mended.full_reason), (Kind::Resync, Some(FullReason::ReplicaDamaged)), "{first:#?}");
    assert_eq!(mended.changed_bytes, 64 << 10);
    assert_eq!(delta.kind, Kind::Delta);
    assert_eq!(world.target_content(&point_of(&first)), world.source_content());
}

#[tokio::test]
async fn a_copy_that_does_not_fit_is_refused_with_its_reason_and_left_alone() {
    let (mut world, request) = with_copy().await;
    let refused = async |world: &World, request: &SeedRequest, wanted: &str| {
        let before = world.target.record("VM", &request.copy);
        let error = adopt(world, request).await.unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(wanted), "{error}");
        assert_eq!(world.target.record("VM", &request.copy), before);
    };
    let target = |target: &str| SeedRequest { target: Some(target.to_owned()), ..request.clone() };
    refused(&world, &target("nowhere"), "it has dr").await;
    refused(&world, &SeedRequest { snapshot: world.vm.clone(), ..request.clone() }, "give the uuid of a snapshot")
        .await;
    let replica = world.target.records("VM").into_iter().find(|vm| vm["other_config"]["vmferry:self"] == vm["uuid"]);
    let replica = replica.unwrap()["uuid"].as_str().unwrap().to_owned();
    refused(&world, &SeedRequest { copy: replica, ..request.clone() }, "adopt a clone of it").await;

    let session = world.at_target().await;
    let copy: Ref<Vm> = session.by_uuid(&request.copy).await.unwrap();
    session.call_async::<()>("VM.start", params![&copy, false, false]).await.unwrap();
    refused(&world, &request, "is running").await;
    session.call_async::<()>("VM.hard_shutdown", params![&copy]).await.unwrap();

    let other = world.target.add_sr("other", 1 << 40);
    let srs = std::mem::replace(&mut world.job.targets[0].srs, vec![other]);
    refused(&world, &request, "not on the target's SR").await;
    world.job.targets[0].srs = srs;

    let record: Vm = session.get_record(&copy).await.unwrap();
    let () = session.call("VBD.destroy", params![&record.vbds[1]]).await.unwrap();
    session.logout().await.unwrap();
    refused(&world, &request, "has no disk at device").await;
}

#[tokio::test]
async fn an_adoption_may_die_after_any_call_and_be_asked_for_again() {
    let mut nth = 1;
    loop {
        let (world, request) = with_copy().await;
        let copied = world.target_content(&request.copy);
        world.target.inject(Fault { at: FaultPoint::Call("*".to_owned()), nth, kind: FaultKind::StallAfter(0) });
        let died = tokio::select! {
            report = adopt(&world, &request) => {
                report.unwrap();
                false
            }
            () = world.target.wait_until_stalled() => true,
        };
        world.target.clear_faults();
        assert_eq!(world.target_content(&request.copy), copied, "killed after call {nth}: nobody writes to the copy");
        // It may have become the replica already; then there is nothing left to adopt.
        if world.points().await.is_empty() {
            adopt(&world, &request).await.unwrap_or_else(|error| panic!("killed after call {nth}: {error}"));
        }
        let first = world.run().await;
        assert_eq!(first.outcome, Outcome::Succeeded, "killed after call {nth}: {first:#?}");
        assert!(disks(&first).iter().all(|disk| disk.kind == Kind::Delta), "killed after call {nth}: {first:#?}");
        assert_eq!(world.target_content(&point_of(&first)), world.source_content());
        if !died {
            break;
        }
        nth += 3;
    }
    assert!(nth > 20, "an adoption has more calls than {nth}");
}
