//! What runs leave behind is found, explained and put right; what is somebody else's is explained and left alone.

use crate::kills::{assert_objects, die_after_call, points};
use std::collections::BTreeSet;
use vmferry_engine::{Fate, Finding, FindingKind, GcAct, GcReport, Target};
use vmferry_model::plan::Kind;
use vmferry_model::report::Outcome;
use vmferry_scenarios::{MIB, World, disks, only_target, point_of};
use vmferry_xapi::records::{Vdi, Vm};
use vmferry_xapi::{Ref, Session, params};
use xapi_sim::{Fault, FaultKind, FaultPoint, Sim};

/// Pool, class and uuid of every VM and disk that users see.
fn objects(world: &World) -> BTreeSet<(String, String, String)> {
    let mut found = BTreeSet::new();
    for (pool, sim) in [("prod", &world.source), ("dr", &world.target)] {
        for class in ["VM", "VDI"] {
            let records = sim.records(class).into_iter().filter(|record| record["managed"] != false);
            found.extend(records.map(|record| (pool.into(), class.into(), record["uuid"].as_str().unwrap().into())));
        }
    }
    found
}

/// The objects that gc says it removes.
fn named(report: &GcReport) -> BTreeSet<(String, String, String)> {
    let removed = report.findings.iter().filter(|finding| finding.act == GcAct::Remove && !finding.pool.is_empty());
    removed.map(|finding| (finding.pool.clone(), finding.class.clone(), finding.uuid.clone())).collect()
}

/// What is still to do.
fn to_do(report: &GcReport) -> Vec<&Finding> {
    report.findings.iter().filter(|finding| finding.act != GcAct::Keep && finding.fate != Fate::Done).collect()
}

/// A run that died after its `nth` call on one pool, in a world with one recovery point or none. `None` when a run needs
/// fewer calls.
async fn died(on_target: bool, nth: u32, first_run_done: bool) -> Option<World> {
    let world = World::new().await;
    if first_run_done {
        world.run().await;
        world.source.write(&world.source.vm_disks(&world.vm)[0], 10 * MIB, &[9; 1 << 20]);
    }
    let pool = if on_target { &world.target } else { &world.source };
    let died = die_after_call(&world, pool, nth).await;
    settled(&world.source).await;
    settled(&world.target).await;
    died.then_some(world)
}

/// Waits until the pool has done what it was asked for: what is asynchronous goes on without the one who asked.
async fn settled(pool: &Sim) {
    let is_under_way = |task: &serde_json::Value| {
        task["status"] == "pending" && task["name_label"].as_str().is_some_and(|name| name.starts_with("Async."))
    };
    while pool.records("task").iter().any(is_under_way) {
        tokio::task::yield_now().await;
    }
}

/// What a dead run leaves is named before the next run cleans it, and nothing else is.
async fn named_is_what_the_next_run_cleans(on_target: bool, nth: u32, first_run_done: bool) -> bool {
    let Some(world) = died(on_target, nth, first_run_done).await else { return false };
    let name = format!("killed after call {nth}, on the target: {on_target}");
    let before = objects(&world);
    let found = world.gc(false).await;
    assert_eq!(objects(&world), before, "{name}: looking changes nothing");
    let replaced: BTreeSet<String> = source_snapshots(&world).into_iter().chain(live_disks(&world)).collect();

    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{name}: {report:#?}");
    let cleaned: BTreeSet<_> = before.difference(&objects(&world)).cloned().collect();
    let named = named(&found);
    let unnamed = cleaned.difference(&named).filter(|(_, _, uuid)| !replaced.contains(uuid));
    assert_eq!(unnamed.count(), 0, "{name}: {cleaned:#?} and {found:#?}");
    assert!(named.is_subset(&cleaned), "{name}: {cleaned:#?} and {found:#?}");
    assert_eq!(to_do(&world.gc(false).await), Vec::<&Finding>::new(), "{name}");
    true
}

/// The disks of replicas: a run that takes a lease over lands on clones of them.
fn live_disks(world: &World) -> Vec<String> {
    let vms = world.target.records("VM").into_iter();
    let replicas = vms.filter(|vm| vm["is_a_snapshot"] == false && vm["is_control_domain"] == false);
    replicas.flat_map(|vm| world.target.vm_disks(vm["uuid"].as_str().unwrap())).collect()
}

/// Snapshots of the source and their disks: a run replaces them.
fn source_snapshots(world: &World) -> Vec<String> {
    let of = |class: &str| world.source.records(class).into_iter().filter(|record| record["is_a_snapshot"] == true);
    of("VM").chain(of("VDI")).map(|record| record["uuid"].as_str().unwrap().to_owned()).collect()
}

/// What a dead run leaves is cleaned without a run, and the next one is a delta.
async fn applied_leaves_nothing(on_target: bool, nth: u32, first_run_done: bool) -> bool {
    let Some(world) = died(on_target, nth, first_run_done).await else { return false };
    let name = format!("killed after call {nth}, on the target: {on_target}");
    let before = objects(&world);
    let points_before = points(&world);
    let applied = world.gc(true).await;
    assert_eq!(applied.problems, Vec::new(), "{name}");
    assert_eq!(to_do(&applied), Vec::<&Finding>::new(), "{name}");
    let removed: BTreeSet<_> = before.difference(&objects(&world)).cloned().collect();
    assert_eq!(removed, named(&applied), "{name}");
    let mut left = world.gc(false).await.findings;
    left.retain(|finding| finding.kind != FindingKind::Task);
    assert_eq!(left, Vec::new(), "{name}: nothing is left");

    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{name}: {report:#?}");
    let target = only_target(&report);
    assert_eq!((&report.vms[0].warnings, &target.warnings), (&Vec::new(), &Vec::new()), "{name}");
    if first_run_done {
        assert!(disks(&report).iter().all(|disk| disk.kind == Kind::Delta), "{name}: {report:#?}");
    }
    assert_eq!(world.target_content(&point_of(&report)), world.source_content(), "{name}");
    assert_objects(&world, &name, points_before);
    assert_eq!(world.digest_tables(), 2 * points(&world), "{name}: digest tables");
    true
}

macro_rules! at_every_call {
    ($($fact:ident: $check:ident($on_target:expr, $first_run_done:expr);)*) => {$(
        #[tokio::test]
        async fn $fact() {
            let mut nth = 1;
            while $check($on_target, nth, $first_run_done).await {
                nth += 1;
            }
            assert!(nth > 20, "a run has more calls than {nth}");
        }
    )*};
}

at_every_call! {
    gc_names_what_the_run_after_a_delta_that_died_on_the_source_cleans: named_is_what_the_next_run_cleans(false, true);
    gc_names_what_the_run_after_a_delta_that_died_on_the_target_cleans: named_is_what_the_next_run_cleans(true, true);
    gc_names_what_the_run_after_a_first_one_that_died_on_the_source_cleans: named_is_what_the_next_run_cleans(false, false);
    gc_names_what_the_run_after_a_first_one_that_died_on_the_target_cleans: named_is_what_the_next_run_cleans(true, false);
    gc_cleans_after_a_delta_that_died_on_the_source: applied_leaves_nothing(false, true);
    gc_cleans_after_a_delta_that_died_on_the_target: applied_leaves_nothing(true, true);
    gc_cleans_after_a_first_run_that_died_on_the_source: applied_leaves_nothing(false, false);
    gc_cleans_after_a_first_run_that_died_on_the_target: applied_leaves_nothing(true, false);
}
