//! What runs leave behind is found, explained and put right; what is somebody else's is explained and left alone.

use crate::kills::{assert_objects, check_each, die_after_call, points};
use std::collections::BTreeSet;
use vmferry_engine::{Fate, Finding, FindingKind, GcAct, GcReport, JobIds, Target};
use vmferry_model::plan::Kind;
use vmferry_model::report::Outcome;
use vmferry_scenarios::{MIB, World, bystander, disks, only_target, point_of};
use vmferry_xapi::records::{Vdi, Vm};
use vmferry_xapi::{Ref, params};
use xapi_sim::{DiskSpec, Fault, FaultKind, FaultPoint, Sim, VmSpec};

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
pub(crate) async fn settled(pool: &Sim) {
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
            check_each(20, async |nth| $check($on_target, nth, $first_run_done).await).await;
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

/// The findings about one object, by its uuid.
fn about<'a>(report: &'a GcReport, uuid: &str) -> Vec<(FindingKind, GcAct, &'a str)> {
    let about = report.findings.iter().filter(|finding| finding.uuid == uuid);
    about.map(|finding| (finding.kind, finding.act, finding.why.as_str())).collect()
}

/// Exactly one finding about the object, and what it says.
#[track_caller]
fn only_finding<'a>(report: &'a GcReport, uuid: &str, kind: FindingKind, act: GcAct) -> &'a str {
    match about(report, uuid).as_slice() {
        [(found, will, why)] if (*found, *will) == (kind, act) => why,
        other => panic!("{uuid}: {other:?} in {report:#?}"),
    }
}

/// Starts a run and lets it die in the middle of an import.
async fn die_in_an_import(world: &World) {
    for disk in world.source.vm_disks(&world.vm) {
        world.source.write(&disk, 10 * MIB, &[9; 6 << 20]);
    }
    world.target.inject(Fault { at: FaultPoint::Import, nth: 1, kind: FaultKind::StallAfter(MIB) });
    tokio::select! {
        report = world.run() => panic!("the run did not stall: {report:#?}"),
        () = world.target.wait_until_stalled() => {}
    }
    world.target.clear_faults();
}

#[tokio::test]
async fn what_is_somebody_elses_is_explained_and_left_alone() {
    let mut world = World::new().await;
    let report = world.run().await;
    let (replica, point) = (only_target(&report).replica.clone().unwrap(), point_of(&report));

    // Another job with a replica of the same VM on the same SR.
    let erp = (world.job.name.clone(), world.job.ids);
    world.job.name = "other".to_owned();
    world.job.ids = JobIds::derived("default", "other");
    let others_replica = only_target(&world.run().await).replica.clone().unwrap();
    (world.job.name, world.job.ids) = erp;

    let session = world.at_target().await;
    let mine: Ref<Vm> = {
        let point: Ref<Vm> = session.by_uuid(&point).await.unwrap();
        session.call_async("VM.clone", params![&point, "mine"]).await.unwrap()
    };
    let mine: String = session.call("VM.get_uuid", params![&mine]).await.unwrap();
    let my_disk: Ref<Vdi> = {
        let live: Ref<Vdi> = session.by_uuid(&world.target.vm_disks(&replica)[0]).await.unwrap();
        session.call_async("VDI.clone", params![&live]).await.unwrap()
    };
    let my_disk: String = session.call("VDI.get_uuid", params![&my_disk]).await.unwrap();
    session.logout().await.unwrap();
    let sr = world.target.default_sr();
    let of_xo = [("xo:backup:job", "a job of its own"), ("xo:backup:sr", &sr), ("xo:backup:vm", &world.vm)];
    let xo = world.target.add_vm(VmSpec {
        name: "erp-db - kept by Xen Orchestra".to_owned(),
        disks: vec![DiskSpec { size: 8 * MIB, ..DiskSpec::default() }],
        other_config: of_xo.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec(),
        ..VmSpec::default()
    });

    let before = objects(&world);
    let applied = world.gc(true).await;
    assert_eq!(objects(&world), before);
    assert_eq!((to_do(&applied), &applied.problems), (Vec::new(), &Vec::new()));
    only_finding(&applied, &mine, FindingKind::Copy, GcAct::Keep);
    only_finding(&applied, &my_disk, FindingKind::Copy, GcAct::Keep);
    let why = only_finding(&applied, &others_replica, FindingKind::Foreign, GcAct::Keep);
    assert!(why.contains(&JobIds::derived("default", "other").job.to_string()), "{why}");
    let why = only_finding(&applied, &xo, FindingKind::Foreign, GcAct::Keep);
    assert!(why.contains("Xen Orchestra"), "{why}");
    assert_eq!(about(&applied, &replica), Vec::new(), "nothing is wrong with the replica");
}

#[tokio::test]
async fn a_target_that_cannot_be_asked_keeps_the_bases() {
    let mut world = World::new().await;
    world.run().await;
    die_in_an_import(&world).await;
    let far = Target { name: "far".to_owned(), pool: "far".to_owned(), ..world.job.targets[0].clone() };
    world.job.targets.push(far);
    let snapshots = source_snapshots(&world);

    let applied = world.gc(true).await;
    assert_eq!(source_snapshots(&world), snapshots);
    assert!(applied.problems.iter().any(|problem| problem.target.as_deref() == Some("far")), "{applied:#?}");
    let kept = applied.findings.iter().find(|finding| finding.kind == FindingKind::UnconfirmedSnapshot).unwrap();
    assert_eq!(kept.act, GcAct::Keep, "{applied:#?}");
    assert!(kept.why.contains("target far could not be asked"), "{applied:#?}");

    world.job.targets.pop();
    let applied = world.gc(true).await;
    assert_eq!((to_do(&applied), &applied.problems), (Vec::new(), &Vec::new()));
    assert_eq!(source_snapshots(&world).len(), snapshots.len() / 2, "the base of the recovery point is left");
    let report = world.run().await;
    assert!(disks(&report).iter().all(|disk| disk.kind == Kind::Delta), "{report:#?}");
}

#[tokio::test]
async fn a_vm_that_is_not_selected_any_more_keeps_its_replica_and_loses_what_is_unfinished() {
    let mut world = World::new().await;
    let report = world.run().await;
    die_in_an_import(&world).await;
    world.job.select.vms = vec![bystander(&world.source)];

    let applied = world.gc(true).await;
    assert_eq!((to_do(&applied), &applied.problems), (Vec::new(), &Vec::new()));
    let replica = only_target(&report).replica.clone().unwrap();
    let told = about(&applied, &replica);
    let kept = told.iter().find(|(kind, ..)| *kind == FindingKind::UnselectedReplica).unwrap();
    assert!(kept.1 == GcAct::Keep && kept.2.contains("select it again"), "{applied:#?}");
    assert!(told.iter().any(|(kind, ..)| *kind == FindingKind::HalfWrittenReplica), "{applied:#?}");
    assert_eq!(points(&world), 1);
    let left = world.gc(false).await;
    assert!(left.findings.iter().all(|finding| finding.act == GcAct::Keep), "{left:#?}");
}

#[tokio::test]
async fn a_vm_that_left_the_job_after_a_kill_may_be_migrated_again() {
    let mut world = World::new().await;
    let at = FaultPoint::Call("network.get_all_records".to_owned());
    world.source.inject(Fault { at, nth: 1, kind: FaultKind::StallAfter(0) });
    tokio::select! {
        report = world.run() => panic!("the run did not stall: {report:#?}"),
        () = world.source.wait_until_stalled() => {}
    }
    world.source.clear_faults();
    let vm = || world.source.record("VM", &world.vm).unwrap();
    assert!(vm()["blocked_operations"].get("migrate_send").is_some());
    let left = world.vm.clone();
    world.job.select.vms = vec![bystander(&world.source)];
    let applied = world.gc(true).await;
    assert_eq!((to_do(&applied), &applied.problems), (Vec::new(), &Vec::new()), "{applied:#?}");
    let vm = world.source.record("VM", &left).unwrap();
    assert_eq!(vm["blocked_operations"], serde_json::json!({}));
    assert!(vm["other_config"].get("vmferry:lease").is_none());
}

#[tokio::test]
async fn of_a_vm_that_is_gone_everything_that_could_restore_it_is_kept() {
    let world = World::new().await;
    let report = world.run().await;
    let session = world.at_source().await;
    let vm: Ref<Vm> = session.by_uuid(&world.vm).await.unwrap();
    let () = session.call_async("VM.hard_shutdown", params![&vm]).await.unwrap();
    let () = session.call_async("VM.destroy", params![&vm]).await.unwrap();
    session.logout().await.unwrap();

    let before = objects(&world);
    let applied = world.gc(true).await;
    assert_eq!(objects(&world), before);
    let replica = only_target(&report).replica.clone().unwrap();
    let why = only_finding(&applied, &replica, FindingKind::UnselectedReplica, GcAct::Keep);
    assert!(why.contains("may be all that is left"), "{why}");
    assert!(applied.findings.iter().any(|finding| finding.kind == FindingKind::LastSnapshot), "{applied:#?}");
}

#[tokio::test]
async fn an_expired_lease_goes_where_its_holder_can_write_nothing() {
    let world = World::new().await;
    let report = world.run().await;
    let replica = only_target(&report).replica.clone().unwrap();
    for (session, vm) in [(world.at_source().await, &world.vm), (world.at_target().await, &replica)] {
        let vm: Ref<Vm> = session.by_uuid(vm).await.unwrap();
        session.add_to_other_config(&vm, "vmferry:lease", "elsewhere.1.2.3:9:1").await.unwrap();
        session.logout().await.unwrap();
    }

    let applied = world.gc(true).await;
    only_finding(&applied, &world.vm, FindingKind::DeadLease, GcAct::PutRight);
    // To the live disks of the replica he might write; who takes this one over lands on clones.
    only_finding(&applied, &replica, FindingKind::DeadLease, GcAct::Keep);
    let lease = |pool: &Sim, vm| pool.record("VM", vm).unwrap()["other_config"].get("vmferry:lease").cloned();
    assert_eq!(lease(&world.source, &world.vm), None);
    assert_eq!(lease(&world.target, &replica).unwrap(), "elsewhere.1.2.3:9:1");
}
