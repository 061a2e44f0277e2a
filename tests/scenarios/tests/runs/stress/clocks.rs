//! Clocks that disagree: of the source, of the target, and of the machine that runs the job.

use super::Scene;
use async_trait::async_trait;
use jiff::Timestamp;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vmferry_model::plugin::{Judgement, PluginError, PointView, Retention};
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
        let ahead = points[0].taken_at.duration_since(Timestamp::now()).as_secs_f64();
        assert!((ahead - f64::from(source) * 3600.0).abs() < 60.0, "{ahead} s, source {source} h ahead");
    }
}

/// Keeps everything, and remembers how old the newest point was said to be.
#[derive(Default)]
struct Ages(Mutex<Vec<jiff::SignedDuration>>);

#[async_trait]
impl Retention for Ages {
    async fn select(&self, points: &[PointView], now: Timestamp) -> Result<Vec<Judgement>, PluginError> {
        let newest = points.last().expect("the point of this run").taken_at;
        self.0.lock().unwrap().push(now.duration_since(newest));
        Ok(points.iter().map(|_| Judgement { keep: true, rule: "all".to_owned() }).collect())
    }
}

#[tokio::test]
async fn a_point_is_as_old_as_the_source_says_whatever_the_clock_here_says() {
    let mut scene = Scene::new().await;
    let ages = Arc::new(Ages::default());
    scene.world.policies.retention = Some(ages.clone());
    scene.world.source.advance_clock(9 * HOUR);
    scene.assert_succeeded("ahead", &scene.world.run().await);
    assert_eq!(*ages.0.lock().unwrap(), [jiff::SignedDuration::ZERO]);
}
