//! Clocks that disagree: of the source, of the target, and of the machine that runs the job.

use super::Scene;
use std::time::Duration;
use vmferry_scenarios::point_of;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn pools_whose_clocks_are_hours_ahead_are_replicated_in_order() {
    for (source, target) in [(5, 0), (0, 5), (7, 3)] {
        let scene = Scene::new().await;
        let world = &scene.world;
        world.source.advance_clock(source * HOUR);
        world.target.advance_clock(target * HOUR);
        scene.assert_succeeded("ahead", &world.run().await);
        let report = world.run().await;
        scene.assert_succeeded("ahead, again", &report);
        world.assert_tidy(3);
        let points = world.points().await.remove(0).points;
        assert_eq!(points[0].id, point_of(&report), "the newest one is the first");
        assert!(points.is_sorted_by(|a, b| a.taken_at > b.taken_at), "{points:#?}");
        // A date is a moment of the source.
        let ahead = points[0].taken_at.duration_since(jiff::Timestamp::now()).as_secs_f64();
        assert!((ahead - f64::from(source) * 3600.0).abs() < 60.0, "{ahead} s, source {source} h ahead");
    }
}
