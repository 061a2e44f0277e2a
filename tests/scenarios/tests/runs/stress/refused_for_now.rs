//! What a pool refuses for the moment: it has too many tasks, or a disk is held.

use super::Scene;
use vmferry_model::report::Outcome;
use vmferry_scenarios::only_target;
use xapi_sim::{Fault, FaultKind, FaultPoint};

fn refused(call: &str, nth: u32, code: &str, params: &[&str]) -> Fault {
    let params = params.iter().map(|param| (*param).to_owned()).collect();
    Fault { at: FaultPoint::Call(call.to_owned()), nth, kind: FaultKind::ApiError(code.to_owned(), params) }
}

#[tokio::test]
async fn a_pool_with_too_many_tasks_is_waited_for() {
    for call in ["VM.snapshot", "VDI.get_uuid", "VM.set_blocked_operations", "task.create", "VM.get_all_records"] {
        for on_target in [false, true] {
            let scene = Scene::new().await;
            scene.pool(on_target).inject(refused(call, 1, "TOO_MANY_PENDING_TASKS", &[]));
            scene.assert_succeeded(call, &scene.world.run().await);
            scene.world.assert_tidy(2);
        }
    }
}

#[tokio::test]
async fn a_disk_that_is_held_for_a_while_is_waited_for_in_all_three_forms_of_the_error() {
    let forms: [&[&str]; 3] = [&["OpaqueRef:disk", "destroy"], &["OpaqueRef:disk"], &[]];
    for form in forms {
        let scene = Scene::new().await;
        // The first base of the source goes at the end of this run.
        scene.world.source.inject(refused("VDI.destroy", 1, "VDI_IN_USE", form));
        scene.assert_succeeded("held", &scene.world.run().await);
        scene.world.assert_tidy(2);
    }
}

#[tokio::test]
async fn an_import_into_a_disk_that_is_held_fails_the_run_and_the_next_one_succeeds() {
    let forms: [&[&str]; 3] = [&["OpaqueRef:disk", "attach"], &["OpaqueRef:disk"], &[]];
    for form in forms {
        let scene = Scene::new().await;
        let kind = FaultKind::ApiError("VDI_IN_USE".to_owned(), form.iter().map(|text| (*text).to_owned()).collect());
        scene.world.target.inject(Fault { at: FaultPoint::Import, nth: 1, kind });
        let failed = scene.world.run().await;
        assert_eq!(failed.outcome, Outcome::Failed, "{failed:#?}");
        let told = only_target(&failed).error.as_ref().expect("a reason");
        assert!(told.contains("in use"), "{told}");
        scene.world.assert_tidy(1);
        scene.assert_succeeded("the next", &scene.world.run().await);
        scene.world.assert_tidy(2);
    }
}
