//! Sessions that end before their time.

use super::Scene;
use xapi_sim::{Fault, FaultKind, FaultPoint};

#[tokio::test]
async fn a_session_may_expire_in_the_middle_of_a_transfer() {
    for on_target in [false, true] {
        let scene = Scene::new().await;
        scene.stall_stream(on_target);
        let expiry = async {
            let pool = scene.pool(on_target);
            pool.wait_until_stalled().await;
            pool.lose_sessions();
            pool.clear_faults();
        };
        // The stream was let in when it began; only the next call finds the session gone.
        let (report, ()) = tokio::join!(scene.world.run(), expiry);
        scene.assert_succeeded("expired", &report);
        scene.world.assert_tidy(2);
    }
}

#[tokio::test]
async fn a_stream_that_finds_its_session_gone_fails_the_run_and_nothing_else() {
    for at in [FaultPoint::Export, FaultPoint::Import] {
        let scene = Scene::new().await;
        let pool = scene.pool(at == FaultPoint::Import);
        pool.inject(Fault { at: at.clone(), nth: 1, kind: FaultKind::SessionLost });
        let report = scene.world.run().await;
        scene.assert_honest("struck", &report);
        scene.assert_succeeded("the next", &scene.world.run().await);
    }
}
