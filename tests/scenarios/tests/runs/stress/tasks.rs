//! Tasks that vanish, and events that do not come.

use super::Scene;
use crate::kills::check_each;
use vmferry_model::report::{Outcome, RunReport};
use vmferry_scenarios::only_target;
use xapi_sim::{Fault, FaultKind, FaultPoint, Sim};

#[tokio::test]
async fn the_task_of_any_call_may_vanish() {
    for on_target in [false, true] {
        // Its work is done all the same.
        check_each(1, async |nth| {
            let at = FaultPoint::Call("Async.*".to_owned());
            let vanish = async |pool: &Sim| {
                pool.lose_tasks();
                pool.clear_faults();
            };
            Scene::new().await.struck(on_target, at, nth, "the task vanishes of call", vanish).await
        })
        .await;
    }
}

/// The task of one asynchronous call vanishes, and its work ends only after the run has asked how it goes.
async fn lose_task_of(scene: &Scene, pool: &Sim, call: &str, asked: &str) -> RunReport {
    pool.clear_calls();
    pool.inject(Fault { at: FaultPoint::Call(call.to_owned()), nth: 1, kind: FaultKind::StallAfter(0) });
    let losing = async {
        pool.wait_until_stalled().await;
        pool.lose_tasks();
        pool.wait_for_call(asked).await;
        pool.clear_faults();
    };
    tokio::join!(scene.world.run(), losing).0
}

#[tokio::test]
async fn a_commit_of_which_nobody_tells_the_end_is_settled_by_what_is_there() {
    let scene = Scene::new().await;
    let report = lose_task_of(&scene, &scene.world.target, "VM.snapshot", "VM.get_current_operations").await;
    scene.assert_succeeded("settled", &report);
    scene.world.assert_tidy(2);
}

#[tokio::test]
async fn a_source_snapshot_of_which_nobody_tells_the_end_is_no_snapshot_and_goes() {
    let scene = Scene::new().await;
    let report = lose_task_of(&scene, &scene.world.source, "VM.snapshot", "VM.get_current_operations").await;
    assert_eq!(report.outcome, Outcome::Failed, "{report:#?}");
    scene.assert_succeeded("the next", &scene.world.run().await);
    scene.world.assert_tidy(2);
}

#[tokio::test]
async fn a_clone_of_which_nobody_tells_the_end_is_not_lost() {
    let scene = Scene::new().await;
    scene.stall_stream(true);
    tokio::select! {
        report = scene.world.run() => panic!("the run did not stall: {report:#?}"),
        () = scene.world.target.wait_until_stalled() => {}
    }
    scene.world.target.clear_faults();
    // The next run rolls back what the dead one wrote.
    let report = lose_task_of(&scene, &scene.world.target, "VDI.clone", "VDI.get_current_operations").await;
    assert_eq!(report.outcome, Outcome::Failed, "{report:#?}");
    scene.assert_succeeded("the next", &scene.world.run().await);
    scene.world.assert_only_objects(2);
}

#[tokio::test]
async fn a_stream_whose_task_vanished_is_no_success() {
    for on_target in [false, true] {
        let scene = Scene::new().await;
        scene.stall_stream(on_target);
        let vanishing = async {
            let pool = scene.pool(on_target);
            pool.wait_until_stalled().await;
            pool.lose_tasks();
            pool.clear_faults();
        };
        let (report, ()) = tokio::join!(scene.world.run(), vanishing);
        assert_eq!(report.outcome, Outcome::Failed, "{report:#?}");
        let told = only_target(&report).error.as_ref().or(report.vms[0].error.as_ref()).expect("a reason");
        assert!(told.contains("vanished before its end was seen"), "{told}");
        scene.assert_honest("struck", &report);
        scene.world.assert_tidy(1);
        scene.assert_succeeded("the next", &scene.world.run().await);
        scene.world.assert_tidy(2);
    }
}

#[tokio::test]
async fn lost_events_cost_nothing() {
    for on_target in [false, true] {
        let scene = Scene::new().await;
        for nth in 1..=20 {
            let kind = FaultKind::ApiError("EVENTS_LOST".to_owned(), Vec::new());
            scene.pool(on_target).inject(Fault { at: FaultPoint::Call("event.from".to_owned()), nth, kind });
        }
        scene.assert_succeeded("without events", &scene.world.run().await);
        scene.world.assert_tidy(2);
    }
}
