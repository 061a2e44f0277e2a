//! A run that dies at any moment: the next one puts everything right and is a delta.

use vmferry_model::plan::Kind;
use vmferry_model::report::Outcome;
use vmferry_scenarios::{MIB, World, disks, point_of};
use xapi_sim::{Fault, FaultKind, FaultPoint, Sim};

/// Does something until the pool has done its `nth` call, then it is gone: its sockets close and nothing of it goes on. What came
/// of it, if it got to its end all the same, and false if it needs fewer calls.
pub(crate) async fn struck_after_call<T>(pool: &Sim, nth: u32, action: impl Future<Output = T>) -> (Option<T>, bool) {
    pool.clear_calls();
    pool.inject(Fault { at: FaultPoint::Call("*".to_owned()), nth, kind: FaultKind::StallAfter(0) });
    let done = tokio::select! {
        done = action => Some(done),
        () = pool.wait_until_stalled() => None,
    };
    pool.clear_faults();
    // Not every answer is waited for: that of a watcher of events may be one that nobody needs any more.
    let calls = pool.calls().iter().filter(|call| !call.contains(' ')).count();
    (done, calls >= nth as usize)
}

/// The same of a run, which succeeds if it gets to its end.
pub(crate) async fn die_after_call(world: &World, pool: &Sim, nth: u32) -> bool {
    let (report, died) = struck_after_call(pool, nth, world.run()).await;
    if let Some(report) = report {
        assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    }
    died
}

/// Kills a run after its `nth` call on one pool and checks what the next run, started at once, makes of it.
async fn check(on_target: bool, nth: u32, first_run_done: bool) -> bool {
    let world = World::new().await;
    let side = if on_target { "target" } else { "source" };
    let name = format!("killed after call {nth} on the {side}");
    let mut last = None;
    if first_run_done {
        let first = world.run().await;
        last = Some((point_of(&first), world.source_content()));
        let source_disks = world.source.vm_disks(&world.vm);
        world.source.write(&source_disks[0], 10 * MIB, &[9; 1 << 20]);
    }
    let died = die_after_call(&world, if on_target { &world.target } else { &world.source }, nth).await;
    assert_healed(&world, &name, last.as_ref()).await;
    died
}

/// After whatever happened the last point is intact (uuid and contents of its disks), and the next run, started at once, puts
/// everything right: by a delta, where there was a point.
pub(crate) async fn assert_healed(world: &World, name: &str, last: Option<&(String, Vec<String>)>) {
    if let Some((point, content)) = last {
        assert_eq!(&world.target_content(point), content, "{name}: the last point is intact");
    }
    let points_before = points(world);
    let healed = world.run().await;
    assert_eq!(healed.outcome, Outcome::Succeeded, "{name}: {healed:#?}");
    if last.is_some() {
        assert!(disks(&healed).iter().all(|disk| disk.kind == Kind::Delta), "{name}: {healed:#?}");
    }
    assert_eq!(world.target_content(&point_of(&healed)), world.source_content(), "{name}");
    if let Some((point, content)) = last {
        assert_eq!(&world.target_content(point), content, "{name}: the older point is intact");
    }
    // Tasks and sessions of the dead run are XAPI's to collect; objects are ours.
    assert_objects(world, name, points_before);
}

/// Checks each call, change or task of something, one at a time, until there are no more of them.
pub(crate) async fn check_each(more_than: u32, mut check: impl AsyncFnMut(u32) -> bool) {
    let mut nth = 1;
    while check(nth).await {
        nth += 1;
    }
    assert!(nth > more_than, "there are more than {nth}");
}

/// Recovery points, committed and whole.
pub(crate) fn points(world: &World) -> usize {
    let vms = world.target.records("VM");
    let committed = |vm: &&serde_json::Value| {
        vm["is_a_snapshot"] == true
            && vm["other_config"]["vmferry:state"].as_str().is_some_and(|state| state.starts_with("committed:"))
    };
    vms.iter().filter(committed).count()
}

#[track_caller]
pub(crate) fn assert_objects(world: &World, name: &str, points_before: usize) {
    let points = points(world);
    // What XAPI was asked for before the run died it may still do afterwards: a commit among it.
    assert!((points_before + 1..=points_before + 2).contains(&points), "{name}: {points_before} then {points} points");
    let source = world.source.record("VM", &world.vm).unwrap();
    assert_eq!(source["blocked_operations"], serde_json::json!({}), "{name}: the source may be migrated again");
    for (side, pool, vms) in [("source", &world.source, 2), ("target", &world.target, 1 + points)] {
        let found: Vec<String> = pool
            .records("VM")
            .iter()
            .filter(|vm| vm["is_control_domain"] == false)
            .map(|vm| vm["name_label"].to_string())
            .collect();
        assert_eq!(found.len(), vms, "{name}: VMs on the {side}: {found:#?}");
        assert_eq!(pool.object_counts()["VDI"], 2 * vms, "{name}: disks on the {side}");
        assert_eq!(pool.object_counts()["VBD"], 2 * vms, "{name}: attachments on the {side}");
    }
}

/// Tries every call of a run.
async fn at_every_call(on_target: bool, first_run_done: bool) {
    check_each(20, async |nth| check(on_target, nth, first_run_done).await).await;
}

#[tokio::test]
async fn a_delta_run_may_die_after_any_call_on_the_source() {
    at_every_call(false, true).await;
}

#[tokio::test]
async fn a_delta_run_may_die_after_any_call_on_the_target() {
    at_every_call(true, true).await;
}

#[tokio::test]
async fn a_first_run_may_die_after_any_call_on_the_source() {
    at_every_call(false, false).await;
}

#[tokio::test]
async fn a_first_run_may_die_after_any_call_on_the_target() {
    at_every_call(true, false).await;
}

#[tokio::test]
async fn a_run_may_die_in_the_middle_of_a_stream() {
    for at in [FaultPoint::Export, FaultPoint::Import] {
        let world = World::new().await;
        let first = world.run().await;
        let content = world.source_content();
        for disk in world.source.vm_disks(&world.vm) {
            world.source.write(&disk, 10 * MIB, &[9; 8 << 20]);
        }
        let pool = if at == FaultPoint::Export { &world.source } else { &world.target };
        pool.inject(Fault { at: at.clone(), nth: 1, kind: FaultKind::StallAfter(3 * MIB) });
        tokio::select! {
            report = world.run() => panic!("the run did not stall at {at:?}: {report:#?}"),
            () = pool.wait_until_stalled() => {}
        }
        pool.clear_faults();
        assert_eq!(world.target_content(&point_of(&first)), content);
        let healed = world.run().await;
        assert_eq!(healed.outcome, Outcome::Succeeded, "{at:?}: {healed:#?}");
        assert!(disks(&healed).iter().all(|disk| disk.kind == Kind::Delta), "{at:?}: {healed:#?}");
        assert_eq!(world.target_content(&point_of(&healed)), world.source_content(), "{at:?}");
        assert_objects(&world, &format!("{at:?}"), 1);
    }
}

#[tokio::test]
async fn a_run_that_rolls_back_may_itself_die_after_any_call_on_the_target() {
    // Rolling back is over by then; what follows is a delta run like any other.
    const CALLS_UNTIL_ROLLED_BACK: u32 = 80;
    for nth in 1..=CALLS_UNTIL_ROLLED_BACK {
        let world = World::new().await;
        let first = world.run().await;
        let content = world.source_content();
        for disk in world.source.vm_disks(&world.vm) {
            world.source.write(&disk, 10 * MIB, &[9; 6 << 20]);
        }
        world.target.inject(Fault { at: FaultPoint::Import, nth: 1, kind: FaultKind::StallAfter(3 * MIB) });
        tokio::select! {
            report = world.run() => panic!("the run did not stall: {report:#?}"),
            () = world.target.wait_until_stalled() => {}
        }
        world.target.clear_faults();

        let name = format!("rolling back, killed after call {nth}");
        let died = die_after_call(&world, &world.target, nth).await;
        assert_eq!(world.target_content(&point_of(&first)), content, "{name}");
        let points_before = points(&world);
        let healed = world.run().await;
        assert_eq!(healed.outcome, Outcome::Succeeded, "{name}: {healed:#?}");
        assert!(disks(&healed).iter().all(|disk| disk.kind == Kind::Delta), "{name}: {healed:#?}");
        assert_eq!(world.target_content(&point_of(&healed)), world.source_content(), "{name}");
        assert_objects(&world, &name, points_before);
        assert!(died, "{name}: a run that rolls back has more calls");
    }
}
