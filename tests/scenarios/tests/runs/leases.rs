//! Two runs never work on one VM at the same time.

use std::sync::Arc;
use vmferry_engine::{RunOptions, Silent};
use vmferry_model::report::Outcome;
use vmferry_scenarios::{World, point_of};
use xapi_sim::{Fault, FaultKind, FaultPoint};

#[tokio::test]
async fn a_run_that_is_still_going_makes_the_next_one_skip() {
    let world = World::new().await;
    world.source.inject(Fault { at: FaultPoint::Export, nth: 1, kind: FaultKind::StallAfter(1 << 20) });
    let second = async {
        world.source.wait_until_stalled().await;
        let report = world.run().await;
        world.source.clear_faults();
        report
    };
    let (first, second) = tokio::join!(world.run(), second);

    assert_eq!(first.outcome, Outcome::Succeeded, "{first:#?}");
    assert_eq!(second.outcome, Outcome::Skipped, "{second:#?}");
    assert!(second.vms[0].locked);
    assert!(second.vms[0].error.as_ref().unwrap().contains("is being worked on by"), "{second:#?}");
    assert_eq!(world.target_content(&point_of(&first)), world.source_content());
    world.assert_tidy(1);
}

#[tokio::test]
async fn a_lease_that_somebody_took_over_stops_the_run_before_its_commit() {
    let world = World::new().await;
    let first = world.run().await;
    world.source.inject(Fault { at: FaultPoint::Export, nth: 1, kind: FaultKind::StallAfter(100) });
    let thief = async {
        world.source.wait_until_stalled().await;
        let session = world.at_source().await;
        let vm = session.by_uuid::<vmferry_xapi::records::Vm>(&world.vm).await.unwrap();
        session.remove_from_other_config(&vm, "vmferry:lease").await.unwrap();
        session.add_to_other_config(&vm, "vmferry:lease", "somebody.1.2.3:9:9999999999").await.unwrap();
        session.logout().await.unwrap();
        world.source.clear_faults();
    };
    let (report, ()) = tokio::join!(world.run(), thief);

    assert_eq!(report.outcome, Outcome::Failed, "{report:#?}");
    assert!(report.vms[0].error.as_ref().unwrap().contains("was taken over"), "{report:#?}");
    assert_eq!(report.vms[0].targets[0].recovery_point, None);
    assert_eq!(world.target_content(&point_of(&first)), world.source_content());
}

#[tokio::test]
async fn a_holder_that_cannot_be_checked_is_believed_until_its_lease_expires() {
    use std::time::Duration;
    let world = World::new().await;
    world.run().await;
    let session = world.at_source().await;
    let vm = session.by_uuid::<vmferry_xapi::records::Vm>(&world.vm).await.unwrap();
    let expires = session.server_time().await.unwrap().as_second() + 60;
    let lease = format!("elsewhere.1.2.3:9:{expires}");
    session.add_to_other_config(&vm, "vmferry:lease", &lease).await.unwrap();
    session.logout().await.unwrap();

    let early = world.run().await;
    assert_eq!(early.outcome, Outcome::Skipped, "{early:#?}");
    assert!(early.vms[0].error.as_ref().unwrap().contains("elsewhere.1.2.3"), "{early:#?}");
    world.source.advance_clock(Duration::from_secs(61));
    let late = world.run().await;
    assert_eq!(late.outcome, Outcome::Succeeded, "{late:#?}");
    assert_eq!(world.target_content(&point_of(&late)), world.source_content());
    world.assert_tidy(2);
}

#[tokio::test]
async fn a_run_that_waits_goes_on_when_the_lease_is_free() {
    let world = World::new().await;
    let engine = world.engine();
    world.source.inject(Fault { at: FaultPoint::Export, nth: 1, kind: FaultKind::StallAfter(1 << 20) });
    let waiting = async {
        world.source.wait_until_stalled().await;
        let options = RunOptions { wait: true, ..RunOptions::default() };
        let policies = vmferry_engine::Policies::default();
        let run = engine.run(&world.job, &policies, &options, Arc::new(Silent));
        let release = async { world.source.clear_faults() };
        tokio::join!(run, release).0
    };
    let (first, second) = tokio::join!(world.run(), waiting);
    engine.close().await;
    assert_eq!((first.outcome, second.outcome), (Outcome::Succeeded, Outcome::Succeeded), "{second:#?}");
}
