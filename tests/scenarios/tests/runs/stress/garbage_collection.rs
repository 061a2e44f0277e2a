//! Storage that folds its chains while runs are at work on them, piece by piece.

use super::Scene;
use std::sync::Arc;
use vmferry_model::plan::Kind;
use vmferry_model::report::Outcome;
use vmferry_scenarios::{Keep, MIB, disks, point_of};
use xapi_sim::SimConfig;

#[tokio::test]
async fn chains_may_be_folded_at_any_moment_of_a_run() {
    let slow = || SimConfig { hold_gc: true, ..SimConfig::default() };
    let mut scene = Scene::between(slow(), slow()).await;
    scene.world.policies.retention = Some(Arc::new(Keep(2)));
    let world = &scene.world;
    let (mut folded, disk) = (0, world.source.vm_disks(&world.vm)[0].clone());
    for round in 0..8 {
        world.source.write(&disk, (10 + round) * MIB, &vec![round as u8 + 1; 3 << 20]);
        let folding = async {
            loop {
                folded += usize::from(world.source.collect_garbage_once());
                folded += usize::from(world.target.collect_garbage_once());
                // Either pool has answered something meanwhile.
                tokio::task::yield_now().await;
            }
        };
        let report = tokio::select! {
            report = world.run() => report,
            () = folding => unreachable!("it goes on as long as the run"),
        };
        assert_eq!(report.outcome, Outcome::Succeeded, "round {round}: {report:#?}");
        assert!(disks(&report).iter().all(|disk| disk.kind == Kind::Delta), "round {round}: {report:#?}");
        assert_eq!(world.target_content(&point_of(&report)), world.source_content(), "round {round}");
    }
    assert!(folded > 8, "{folded} pieces were folded");
    world.source.collect_garbage();
    world.target.collect_garbage();
    world.assert_tidy(2);
}
