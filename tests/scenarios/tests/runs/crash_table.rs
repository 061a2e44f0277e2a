//! The crash table of ARCHITECTURE.md: every line of a run meets every fault. What that leaves is looked at and written into
//! the table; what the next run makes of it is the same everywhere, and is checked.

use crate::gc::settled;
use crate::kills::points;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use vmferry_engine::{CloneRequest, FindingKind, NetworkChoice};
use vmferry_model::plan::Kind;
use vmferry_model::report::{Outcome, RunReport};
use vmferry_scenarios::{Keep, MIB, World, bystander, disks, point_of};
use xapi_sim::{Fault, FaultKind, FaultPoint, Sim};

/// Where a run is when the fault strikes: an asynchronous call has been taken and not yet done, any other call is done and
/// not yet answered, a stream is in its middle.
#[derive(Clone, Copy)]
struct Line {
    name: &'static str,
    on: Side,
    at: At,
    nth: u32,
    run: Which,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    /// There is no recovery point yet.
    First,
    /// Two recovery points are there, and the older one is pruned at the end.
    Later,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Target,
}
use Side::{Source, Target};

#[derive(Clone, Copy)]
enum At {
    Call(&'static str),
    /// In a stream, behind so many bytes.
    Export(u64),
    Import(u64),
}
use At::{Call, Export, Import};

const fn line(name: &'static str, on: Side, at: At, nth: u32) -> Line {
    Line { name, on, at, nth, run: Which::Later }
}

const fn first(name: &'static str, on: Side, at: At) -> Line {
    Line { name, on, at, nth: 1, run: Which::First }
}

const LINES: [Line; 27] = [
    line("1 lease of the VM", Source, Call("VM.add_to_other_config"), 1),
    line("1 lease of the replica", Target, Call("VM.add_to_other_config"), 1),
    line("2 observe: is the replica untouched", Target, Export(100), 1),
    line("4 pre-flight, 5 plan", Source, Call("network.get_all_records"), 1),
    line("6 snapshot, being taken", Source, Call("VM.snapshot"), 1),
    line("6 snapshot, before its keys", Source, Call("VBD.get_record"), 1),
    line("6 snapshot, its disks have keys", Source, Call("VDI.set_other_config"), 2),
    line("6 snapshot, after its keys", Source, Call("VM.set_name_label"), 1),
    line("7 landing, start blocked", Target, Call("VM.set_blocked_operations"), 1),
    line("7 landing, a disk marked", Target, Call("VDI.set_other_config"), 1),
    line("7 transfer, reading", Source, Export(3 * MIB), 1),
    line("7 transfer, writing", Target, Import(3 * MIB), 1),
    line("8 verify", Target, Call("VM.get_record"), 1),
    line("9 commit, keys on the replica", Target, Call("VM.set_other_config"), 2),
    line("9 commit, `VM.snapshot` being done", Target, Call("VM.snapshot"), 1),
    line("9 commit, after `VM.snapshot`", Target, Call("VM.get_uuid"), 1),
    line("9 commit, keys off the replica", Target, Call("VM.set_other_config"), 4),
    line("10 advance, a disk marked", Source, Call("VDI.set_other_config"), 3),
    line("10 advance, the snapshot marked", Source, Call("VM.set_other_config"), 3),
    line("10 advance, old snapshot being destroyed", Source, Call("VM.destroy"), 1),
    line("11 retain, a point being destroyed", Target, Call("VM.destroy"), 1),
    line("11 retain, its disks being destroyed", Target, Call("VDI.destroy"), 1),
    line("12 leases given back", Source, Call("VM.remove_from_other_config"), 1),
    first("first run, 7 landing, a disk being made", Target, Call("VDI.create")),
    first("first run, 9 commit, the VM made", Target, Call("VM.create")),
    first("first run, 9 commit, a disk attached", Target, Call("VBD.create")),
    first("first run, 9 commit, `VM.snapshot` being done", Target, Call("VM.snapshot")),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Struck {
    /// `kill -9`: its sockets close and nothing of it goes on.
    Killed,
    /// The source's host is gone, and with it what it was at; it is back for the next run.
    SourceLost,
    TargetLost,
    /// Nothing comes back from either side. The pools go on.
    NetworkLost,
    /// The pool on which the line is ends and starts its toolstack.
    ToolstackRestarted,
}
use Struck::{Killed, NetworkLost, SourceLost, TargetLost, ToolstackRestarted};

const FAULTS: [Struck; 5] = [Killed, SourceLost, TargetLost, NetworkLost, ToolstackRestarted];

/// Longer than any answer takes on a busy machine, and the time of a lost network.
const PATIENCE: Duration = Duration::from_secs(5);

/// Worlds at a time: a run that lost a pool mostly waits.
const AT_A_TIME: usize = 72;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_strikes_at_any_line_of_a_run_the_next_one_is_a_delta_and_nothing_is_left() {
    let permits = Arc::new(Semaphore::new(AT_A_TIME));
    let mut cells = JoinSet::new();
    for (row, line) in LINES.into_iter().enumerate() {
        for fault in FAULTS {
            let permits = Arc::clone(&permits);
            cells.spawn(async move {
                let _permit = permits.acquire().await.unwrap();
                ((row, fault), strike(line, fault).await)
            });
        }
    }
    let found: BTreeMap<_, _> = cells.join_all().await.into_iter().collect();
    let table = table(&found);
    let written = include_str!("../../../../ARCHITECTURE.md");
    assert!(written.contains(&table), "the crash table in ARCHITECTURE.md is not what was found:\n\n{table}");
}

fn table(found: &BTreeMap<(usize, Struck), String>) -> String {
    let mut table =
        "| Line of the run | killed | source lost | target lost | network lost | toolstack restarted |\n".to_owned();
    table += "| --- | --- | --- | --- | --- | --- |\n";
    for (row, line) in LINES.iter().enumerate() {
        let cells: Vec<&str> = FAULTS.iter().map(|fault| found[&(row, *fault)].as_str()).collect();
        table += &format!("| {} | {} |\n", line.name, cells.join(" | "));
    }
    table
}

/// Strikes one run, looks at what is left, checks it and what the next run makes of it.
async fn strike(line: Line, fault: Struck) -> String {
    let name = format!("{} × {fault:?}", line.name);
    let mut world = World::new().await;
    world.policies.retention = Some(Arc::new(Keep(2)));
    let strangers =
        [(world.source.clone(), bystander(&world.source)), (world.target.clone(), bystander(&world.target))];
    let looks = || strangers.iter().map(|(pool, vm)| looks(pool, vm)).collect::<Vec<_>>();
    let untouched = looks();
    let mut last = None;
    if line.run == Which::Later {
        world.run().await;
        write(&world, 1);
        last = Some((point_of(&world.run().await), world.source_content()));
    }
    write(&world, 2);

    let report = struck_run(&mut world, line, fault, &name).await;
    if let Some(report) = &report {
        let made = report.vms[0].targets.iter().any(|target| target.recovery_point.is_some());
        assert!(made || report.outcome != Outcome::Succeeded, "{name}: {report:#?}");
    }
    let left = left(&world, last.as_ref().map(|(point, _)| point));
    if let Some((point, content)) = &last {
        assert_eq!(&world.target_content(point), content, "{name}: the last point is intact");
        assert_starts(&world, &name).await;
    }

    let points = points(&world);
    let healed = world.run().await;
    assert_eq!(healed.outcome, Outcome::Succeeded, "{name}: {healed:#?}");
    if points > 0 {
        assert!(disks(&healed).iter().all(|disk| disk.kind == Kind::Delta), "{name}: {healed:#?}");
    }
    assert_eq!(world.target_content(&point_of(&healed)), world.source_content(), "{name}");
    let source = world.source.record("VM", &world.vm).unwrap();
    assert_eq!(source["blocked_operations"], serde_json::json!({}), "{name}: the VM may be migrated again");
    let mut findings = world.gc(false).await.findings;
    findings.retain(|finding| finding.kind != FindingKind::Task);
    assert_eq!(findings, Vec::new(), "{name}: nothing is left");
    for (side, pool, vms) in [("source", &world.source, 2), ("target", &world.target, 1 + 2.min(points + 1))] {
        // The bystander has one disk.
        assert_eq!(user_vms(pool), vms + 1, "{name}: VMs on the {side}");
        assert_eq!(pool.object_counts()["VDI"], 2 * vms + 1, "{name}: disks on the {side}");
    }
    assert_eq!(looks(), untouched, "{name}: what is somebody else's is as it was");
    left
}

fn write(world: &World, byte: u8) {
    for disk in world.source.vm_disks(&world.vm) {
        world.source.write(&disk, 10 * MIB, &vec![byte; 6 << 20]);
    }
}

/// Runs up to the line, and lets the fault strike there. The report of a run that lives.
async fn struck_run(world: &mut World, line: Line, fault: Struck, name: &str) -> Option<RunReport> {
    if fault == NetworkLost {
        world.patience = Some(PATIENCE);
        (world.job.tuning.stall, world.job.tuning.first_byte) = (PATIENCE, PATIENCE);
    }
    let (source, target) = (world.source.clone(), world.target.clone());
    let pool = if line.on == Source { &source } else { &target };
    let (at, bytes) = match line.at {
        Call(method) => (FaultPoint::Call(method.to_owned()), 0),
        Export(bytes) => (FaultPoint::Export, bytes),
        Import(bytes) => (FaultPoint::Import, bytes),
    };
    pool.inject(Fault { at, nth: line.nth, kind: FaultKind::StallAfter(bytes) });
    let mut run = Box::pin(world.run());
    tokio::select! {
        report = &mut run => panic!("{name}: the run ended before that: {report:#?}"),
        () = pool.wait_until_stalled() => {}
    }
    let report = match fault {
        Killed => {
            drop(run);
            pool.clear_faults();
            None
        }
        SourceLost => Some(without(&[&source], Sim::go_down, pool, run).await),
        TargetLost => Some(without(&[&target], Sim::go_down, pool, run).await),
        NetworkLost => Some(without(&[&source, &target], Sim::go_silent, pool, run).await),
        ToolstackRestarted => {
            pool.go_down();
            pool.come_back();
            pool.clear_faults();
            Some(run.await)
        }
    };
    world.patience = None;
    for pool in [&source, &target] {
        settled(pool).await;
    }
    report
}

/// Ends the run without these pools, which are back afterwards.
async fn without(pools: &[&Sim], go: impl Fn(&Sim), stalled: &Sim, run: impl Future<Output = RunReport>) -> RunReport {
    pools.iter().for_each(|pool| go(pool));
    stalled.clear_faults();
    let report = run.await;
    pools.iter().for_each(|pool| pool.come_back());
    report
}

/// What is there that a run which ends well does not leave.
fn left(world: &World, last: Option<&String>) -> String {
    let mut left = Vec::new();
    let source = world.source.record("VM", &world.vm).unwrap();
    let lease = |vm: &Value| vm["other_config"].get("vmferry:lease").is_some();
    let target_vms = world.target.records("VM");
    let live: Vec<&Value> = target_vms
        .iter()
        .filter(|vm| vm["is_a_snapshot"] == false && vm["other_config"].get("vmferry:vm").is_some())
        .collect();
    let leases = [(lease(&source), "VM"), (live.iter().any(|vm| lease(vm)), "replica")];
    let leases: Vec<&str> = leases.iter().filter(|(held, _)| *held).map(|(_, what)| *what).collect();
    match leases.as_slice() {
        [] => {}
        [one] => left.push(format!("lease of {one}")),
        _ => left.push("leases".to_owned()),
    }
    // With the lease it is what the table says.
    if source["blocked_operations"].get("migrate_send").is_some() && !lease(&source) {
        left.push("migration blocked".to_owned());
    }
    let snapshots = world.source.records("VM").into_iter().filter(|vm| vm["is_a_snapshot"] == true);
    let mut bases = 0;
    for snapshot in snapshots {
        let keys = &snapshot["other_config"];
        if keys["vmferry:state"].as_str().is_some_and(|state| state.starts_with("pruning:")) {
            left.push("source snapshot half destroyed".to_owned());
        } else if keys.get("vmferry:self") != Some(&snapshot["uuid"]) {
            left.push("source snapshot without keys".to_owned());
        } else if keys.get("vmferry:exported-to").is_none() {
            left.push("source snapshot without a target".to_owned());
        } else {
            bases += 1;
        }
    }
    match (bases, last) {
        (1, Some(_)) | (0, None) => {}
        (0, Some(_)) => left.push("NO BASE".to_owned()),
        (bases, _) => left.push(format!("{bases} bases")),
    }
    for vm in &live {
        let keys = &vm["other_config"];
        match keys["vmferry:state"].as_str() {
            Some("importing") => left.push("replica half written".to_owned()),
            Some(state) if state.starts_with("committed:") => left.push("keys of a point on the replica".to_owned()),
            _ => {}
        }
        let protected = vm["is_a_template"] == true || vm["blocked_operations"].get("start").is_some();
        assert!(protected, "a replica may be started: {vm:#}");
    }
    let snapshots: Vec<&Value> = target_vms.iter().filter(|vm| vm["is_a_snapshot"] == true).collect();
    let state = |vm: &Value, state: &str| {
        vm["other_config"]["vmferry:state"].as_str().is_some_and(|found| found.starts_with(state))
    };
    let date = |vm: &Value| vm["other_config"]["xo:backup:datetime"].as_str().unwrap_or_default().to_owned();
    let newest = snapshots.iter().filter(|point| state(point, "committed:")).max_by_key(|point| date(point));
    if newest.is_some_and(|newest| newest["uuid"].as_str() != last.map(String::as_str)) {
        left.push("**the new point**".to_owned());
    }
    if snapshots.iter().any(|point| state(point, "pruning:")) {
        left.push("point half destroyed".to_owned());
    }
    for (side, pool) in [("source", &world.source), ("target", &world.target)] {
        let loose = |disk: &Value| disk["managed"] == true && disk["VBDs"].as_array().is_some_and(Vec::is_empty);
        if pool.records("VDI").iter().any(loose) {
            left.push(format!("loose disks on the {side}"));
        }
    }
    if left.is_empty() { "nothing".to_owned() } else { left.join("; ") }
}

/// The newest point starts as a clone, which needs the target alone.
async fn assert_starts(world: &World, name: &str) {
    let newest = CloneRequest::newest(&world.vm);
    let request = CloneRequest { network: NetworkChoice::None, remove_after: true, ..newest };
    let engine = world.engine();
    let clone = engine.clone_point(&world.job, &request).await;
    assert!(clone.as_ref().is_ok_and(|clone| clone.started), "{name}: {clone:?}");
    engine.close().await;
}

fn user_vms(pool: &Sim) -> usize {
    pool.records("VM").iter().filter(|vm| vm["is_control_domain"] == false).count()
}

fn looks(pool: &Sim, vm: &str) -> (Value, Vec<String>) {
    (pool.record("VM", vm).unwrap(), pool.vm_disks(vm).iter().map(|disk| pool.sha256(disk)).collect())
}
