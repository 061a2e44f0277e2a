//! A call that was done and whose reply got lost: the run goes on or fails, and the next one finds everything in order.

use crate::kills::{assert_objects, points};
use vmferry_model::plan::Kind;
use vmferry_model::report::Outcome;
use vmferry_scenarios::{MIB, World, disks, point_of};
use xapi_sim::{Fault, FaultKind, FaultPoint};

/// Loses the reply to a run's `nth` change of one pool, and checks that run and what the next one makes of it. False when
/// the run needs fewer. (A read is simply repeated: a fact of the client.)
async fn check(on_target: bool, nth: u32, first_run_done: bool) -> bool {
    let world = World::new().await;
    let mut last = None;
    if first_run_done {
        last = Some((point_of(&world.run().await), world.source_content()));
        world.source.write(&world.source.vm_disks(&world.vm)[0], 10 * MIB, &[9; 1 << 20]);
    }
    let pool = if on_target { &world.target } else { &world.source };
    pool.inject(Fault { at: FaultPoint::Write, nth, kind: FaultKind::ReplyLost });
    let struck = world.run().await;
    if pool.clear_faults() > 0 {
        assert_eq!(struck.outcome, Outcome::Succeeded, "{struck:#?}");
        return false;
    }
    let name = format!("reply to change {nth} of the {} lost", if on_target { "target" } else { "source" });
    if struck.outcome == Outcome::Succeeded {
        assert_eq!(
            world.target_content(&point_of(&struck)),
            world.source_content(),
            "{name}: what is reported is there"
        );
    }
    if let Some((point, content)) = &last {
        assert_eq!(&world.target_content(point), content, "{name}: the last point is intact");
    }
    let points_before = points(&world);
    let healed = world.run().await;
    assert_eq!(healed.outcome, Outcome::Succeeded, "{name}: {healed:#?}");
    if first_run_done {
        assert!(disks(&healed).iter().all(|disk| disk.kind == Kind::Delta), "{name}: {healed:#?}");
    }
    assert_eq!(world.target_content(&point_of(&healed)), world.source_content(), "{name}");
    if let Some((point, content)) = &last {
        assert_eq!(&world.target_content(point), content, "{name}: the older point is intact");
    }
    assert_objects(&world, &name, points_before);
    true
}

/// Loses the reply to every change that a run makes, one at a time.
async fn at_every_change(on_target: bool, first_run_done: bool) {
    let mut nth = 1;
    while check(on_target, nth, first_run_done).await {
        nth += 1;
    }
    assert!(nth > 10, "a run changes more than {nth} times");
}

#[tokio::test]
async fn any_reply_of_the_source_to_a_delta_run_may_be_lost() {
    at_every_change(false, true).await;
}

#[tokio::test]
async fn any_reply_of_the_target_to_a_delta_run_may_be_lost() {
    at_every_change(true, true).await;
}

#[tokio::test]
async fn any_reply_of_the_source_to_a_first_run_may_be_lost() {
    at_every_change(false, false).await;
}

#[tokio::test]
async fn any_reply_of_the_target_to_a_first_run_may_be_lost() {
    at_every_change(true, false).await;
}
