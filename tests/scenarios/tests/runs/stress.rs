//! Runs against pools that have a bad day: replies that get lost, a master that dies, sessions and tasks that are forgotten,
//! queues that are full, clocks that disagree, storage that is busy.

mod clocks;
mod crowds;
mod garbage_collection;
mod limits;
mod lost_replies;
mod masters;
mod refused_for_now;
mod sessions;
mod tasks;

use crate::kills::{assert_objects, points};
use vmferry_model::plan::Kind;
use vmferry_model::report::{Outcome, RunReport};
use vmferry_scenarios::{MIB, World, disks, point_of};
use xapi_sim::{Fault, FaultKind, FaultPoint, Sim, SimConfig};

/// A world that has one recovery point, and something new on the source.
struct Scene {
    world: World,
    /// The recovery point, and the digests of its disks.
    first: (String, Vec<String>),
}

impl Scene {
    async fn new() -> Self {
        Self::between(SimConfig::default(), SimConfig::default()).await
    }

    async fn between(source: SimConfig, target: SimConfig) -> Self {
        let world = World::between(source, target).await;
        let first = (point_of(&world.run().await), world.source_content());
        world.source.write(&world.source.vm_disks(&world.vm)[0], 10 * MIB, &[9; 5 << 20]);
        Self { world, first }
    }

    fn pool(&self, on_target: bool) -> &Sim {
        if on_target { &self.world.target } else { &self.world.source }
    }

    /// Lets a run stand still at the `nth` of these on one pool, and something `strike` there. False when the run has fewer of them;
    /// else what it told is there, and the next run is a delta and leaves nothing.
    async fn struck(
        &self,
        on_target: bool,
        at: FaultPoint,
        nth: u32,
        name: &str,
        strike: impl AsyncFnOnce(&Sim),
    ) -> bool {
        let pool = self.pool(on_target);
        pool.inject(Fault { at, nth, kind: FaultKind::StallAfter(0) });
        let mut run = Box::pin(self.world.run());
        let struck = tokio::select! {
            report = &mut run => {
                assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
                return false;
            }
            () = pool.wait_until_stalled() => {
                strike(pool).await;
                run.await
            }
        };
        let name = format!("{name} {nth} of the {}", if on_target { "target" } else { "source" });
        self.assert_honest(&name, &struck);
        let points_before = points(&self.world);
        self.assert_succeeded(&name, &self.world.run().await);
        assert_objects(&self.world, &name, points_before);
        true
    }

    /// Lets the next stream of a pool stand still in its middle.
    fn stall_stream(&self, on_target: bool) {
        let at = if on_target { FaultPoint::Import } else { FaultPoint::Export };
        self.pool(on_target).inject(Fault { at, nth: 1, kind: FaultKind::StallAfter(3 * MIB) });
    }

    /// A run has succeeded by a delta, and the point before is as it was.
    #[track_caller]
    fn assert_succeeded(&self, name: &str, report: &RunReport) {
        assert_eq!(report.outcome, Outcome::Succeeded, "{name}: {report:#?}");
        assert!(disks(report).iter().all(|disk| disk.kind == Kind::Delta), "{name}: {report:#?}");
        assert_eq!(self.world.target_content(&point_of(report)), self.world.source_content(), "{name}");
        self.assert_first_point(name);
    }

    /// A run that met something has told only what is there, and the point before is as it was.
    #[track_caller]
    fn assert_honest(&self, name: &str, report: &RunReport) {
        if report.outcome == Outcome::Succeeded {
            assert_eq!(self.world.target_content(&point_of(report)), self.world.source_content(), "{name}");
        }
        self.assert_first_point(name);
    }

    #[track_caller]
    fn assert_first_point(&self, name: &str) {
        let (point, content) = &self.first;
        assert_eq!(&self.world.target_content(point), content, "{name}: the first point is intact");
    }
}
