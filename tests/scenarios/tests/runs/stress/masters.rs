//! The master of a pool dies, or hands its role over, while a run is at work.

use super::Scene;
use crate::kills::check_each;
use std::sync::Arc;
use vmferry_engine::{Policies, RunOptions, Silent};
use vmferry_model::report::Outcome;
use vmferry_scenarios::only_target;
use xapi_sim::{FaultPoint, Sim, SimConfig};

fn two_hosts() -> SimConfig {
    SimConfig { hosts: 2, ..SimConfig::default() }
}

async fn scene() -> Scene {
    Scene::between(two_hosts(), two_hosts()).await
}

/// The other host takes over; what the dead one had in memory is gone.
async fn fail_over(pool: &Sim) {
    pool.change_master(1);
    pool.lose_sessions();
    pool.lose_tasks();
    pool.shut_down_host(0).await;
    pool.clear_faults();
}

/// The master dies when it has done any one of a delta run's changes, before it answers.
async fn at_every_change(on_target: bool) {
    check_each(10, async |nth| {
        scene().await.struck(on_target, FaultPoint::Write, nth, "the master dies in change", fail_over).await
    })
    .await;
}

#[tokio::test]
async fn the_master_of_the_source_may_die_in_any_change_of_a_delta_run() {
    at_every_change(false).await;
}

#[tokio::test]
async fn the_master_of_the_target_may_die_in_any_change_of_a_delta_run() {
    at_every_change(true).await;
}

#[tokio::test]
async fn a_master_that_dies_under_a_stream_fails_the_run_and_the_same_process_goes_on_at_the_new_one() {
    for on_target in [false, true] {
        let scene = scene().await;
        let name = format!("on the target: {on_target}");
        // One process, which knows the dead host's address and no other from its configuration.
        let engine = scene.world.engine();
        let (policies, options) = (Policies::default(), RunOptions::default());
        let run = || engine.run(&scene.world.job, &policies, &options, Arc::new(Silent));
        scene.stall_stream(on_target);
        let dying = async {
            scene.pool(on_target).wait_until_stalled().await;
            fail_over(scene.pool(on_target)).await;
        };
        let (failed, ()) = tokio::join!(run(), dying);
        assert_eq!(failed.outcome, Outcome::Failed, "{name}: {failed:#?}");
        assert!(only_target(&failed).error.is_some(), "{name}: {failed:#?}");
        scene.assert_first_point(&name);
        scene.world.assert_only_objects(1);

        scene.assert_succeeded(&name, &run().await);
        engine.close().await;
        // Nor is the dead host asked first for ever: sessions begin at a host that is known from before.
        scene.assert_succeeded(&name, &run().await);
        engine.close().await;
        scene.world.assert_tidy(3);
    }
}

#[tokio::test]
async fn a_master_that_hands_over_while_streams_run_costs_nothing() {
    for on_target in [false, true] {
        let scene = scene().await;
        scene.stall_stream(on_target);
        let handing_over = async {
            let pool = scene.pool(on_target);
            pool.wait_until_stalled().await;
            pool.change_master(1);
            pool.lose_sessions();
            pool.clear_faults();
        };
        let (report, ()) = tokio::join!(scene.world.run(), handing_over);
        scene.assert_succeeded("handed over", &report);
        scene.world.assert_tidy(2);
    }
}

#[tokio::test]
async fn a_change_of_master_does_not_hide_a_run_from_another_of_the_same_process() {
    let scene = scene().await;
    scene.stall_stream(true);
    let second = async {
        let (source, target) = (&scene.world.source, &scene.world.target);
        target.wait_until_stalled().await;
        source.change_master(1);
        source.lose_sessions();
        let report = scene.world.run().await;
        target.clear_faults();
        report
    };
    let (first, second) = tokio::join!(scene.world.run(), second);
    assert_eq!(second.outcome, Outcome::Skipped, "{second:#?}");
    scene.assert_succeeded("the first", &first);
}
