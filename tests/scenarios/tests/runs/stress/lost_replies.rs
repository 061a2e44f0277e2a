//! A call that was done and whose reply got lost: the run goes on or fails, and the next one finds everything in order.

use crate::kills::{assert_healed, check_each};
use vmferry_model::report::Outcome;
use vmferry_scenarios::{MIB, World, point_of};
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
    assert_healed(&world, &name, last.as_ref()).await;
    true
}

/// Loses the reply to every change that a run makes, one at a time.
async fn at_every_change(on_target: bool, first_run_done: bool) {
    check_each(10, async |nth| check(on_target, nth, first_run_done).await).await;
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
