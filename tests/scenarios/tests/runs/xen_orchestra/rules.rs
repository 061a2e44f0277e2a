//! What Xen Orchestra (6.3 and newer) looks for in the records of two pools.

use serde_json::Value;
use std::collections::BTreeMap;
use xapi_sim::Sim;

/// A delta that it would send: source disk to (source snapshot disk, disk on the target), by uuid.
pub(crate) type Bases = BTreeMap<String, (String, String)>;

fn key<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object["other_config"].get(key)?.as_str()
}

fn by_ref(pool: &Sim, class: &str, reference: &Value) -> Option<Value> {
    pool.records(class).into_iter().find(|record| record["$ref"] == *reference)
}

/// The VMs that a disk hangs on, the control domain left out.
fn users(pool: &Sim, disk: &Value) -> Vec<Value> {
    let vbds = disk["VBDs"].as_array().unwrap().iter().filter_map(|vbd| by_ref(pool, "VBD", vbd));
    vbds.filter_map(|vbd| by_ref(pool, "VM", &vbd["VM"])).filter(|vm| vm["is_control_domain"] == false).collect()
}

fn live_disks(pool: &Sim, vm: &str) -> Vec<Value> {
    pool.vm_disks(vm).iter().map(|disk| pool.record("VDI", disk).unwrap()).collect()
}

/// The disks of the job's snapshots of a VM: their keys, that each hangs on one snapshot that says the same, and that the disks
/// beside it are the job's as well.
fn job_snapshot_disks(pool: &Sim, vm: &str, job: &str) -> Vec<Value> {
    let live: Vec<Value> = live_disks(pool, vm).into_iter().map(|disk| disk["$ref"].clone()).collect();
    let mut candidates: Vec<Value> = pool.records("VDI");
    candidates.retain(|disk| {
        live.contains(&disk["snapshot_of"])
            && key(disk, "xo:backup:job") == Some(job)
            && key(disk, "xo:backup:vm") == Some(vm)
            && key(disk, "xo:copy_of").is_none()
    });
    in_step(pool, candidates)
}

/// Those that hang on nothing, or on one snapshot that carries their keys and only such disks.
fn in_step(pool: &Sim, candidates: Vec<Value>) -> Vec<Value> {
    let known: Vec<Value> = candidates.iter().map(|disk| disk["uuid"].clone()).collect();
    let fits = |disk: &Value| match users(pool, disk).as_slice() {
        [] => true,
        [vm] => {
            let same = |name| key(vm, name) == key(disk, name);
            let beside = pool.vm_disks(vm["uuid"].as_str().unwrap());
            vm["is_a_snapshot"] == true
                && ["xo:backup:datetime", "xo:backup:job", "xo:backup:vm"].into_iter().all(same)
                && beside.iter().all(|uuid| known.contains(&Value::from(uuid.as_str())))
        }
        _ => false,
    };
    candidates.into_iter().filter(|disk| fits(disk)).collect()
}

/// What the next run of `job` starts from: the newest exported snapshot of the source, as far as the SR has a snapshot disk
/// that names it.
pub(crate) fn bases(source: &Sim, target: &Sim, vm: &str, job: &str, sr: &str) -> Bases {
    let exported = job_snapshot_disks(source, vm, job)
        .into_iter()
        .filter(|disk| key(disk, "xo:backup:exported").is_some() && key(disk, "xo:backup:datetime").is_some());
    let mut by_date: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for disk in exported {
        by_date.entry(key(&disk, "xo:backup:datetime").unwrap().to_owned()).or_default().push(disk);
    }
    let newest = by_date.pop_last().map(|(_, disks)| disks).unwrap_or_default();
    let held = |base: &Value| {
        on_sr(target, sr).into_iter().find(|disk| {
            disk["is_a_snapshot"] == true
                && key(disk, "xo:backup:job") == Some(job)
                && key(disk, "xo:backup:vm") == Some(vm)
                && key(disk, "xo:copy_of") == base["uuid"].as_str()
        })
    };
    paired(source, vm, &newest, held)
}

/// What a second job, back from a replica to the pool of its source, starts from: any dated snapshot of the replica whose disks
/// hold the content of snapshot disks there.
pub(crate) fn failback_bases(from: &Sim, to: &Sim, replica: &str, sr: &str) -> Bases {
    let live: Vec<Value> = live_disks(from, replica).into_iter().map(|disk| disk["$ref"].clone()).collect();
    let mut candidates = from.records("VDI");
    candidates.retain(|disk| live.contains(&disk["snapshot_of"]) && key(disk, "xo:backup:datetime").is_some());
    let mut by_date: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for disk in in_step(from, candidates) {
        by_date.entry(key(&disk, "xo:backup:datetime").unwrap().to_owned()).or_default().push(disk);
    }
    let held = |base: &Value| {
        let content = key(base, "xo:backup:contentKey")?.to_owned();
        let matches =
            |disk: &Value| disk["is_a_snapshot"] == true && key(disk, "xo:backup:contentKey") == Some(&content);
        on_sr(to, sr).into_iter().find(|disk| matches(disk) && disk["snapshot_of"] != base["snapshot_of"])
    };
    let groups = by_date.values().rev().map(|group| paired(from, replica, group, held));
    groups.into_iter().find(|found| !found.is_empty()).unwrap_or_default()
}

fn paired(pool: &Sim, vm: &str, bases: &[Value], held: impl Fn(&Value) -> Option<Value>) -> Bases {
    let text = |value: &Value| value["uuid"].as_str().unwrap().to_owned();
    let of = |live: &Value| bases.iter().find(|base| base["snapshot_of"] == live["$ref"]);
    let found = live_disks(pool, vm).into_iter().filter_map(|live| {
        let base = of(&live)?;
        Some((text(&live), (text(base), text(&held(base)?))))
    });
    found.collect()
}

fn on_sr(pool: &Sim, sr: &str) -> Vec<Value> {
    let sr = pool.record("SR", sr).unwrap()["$ref"].clone();
    pool.records("VDI").into_iter().filter(|disk| disk["managed"] == true && disk["SR"] == sr).collect()
}

/// Whether the next run writes to the replica in place (otherwise it makes a new VM), as far as records tell: the live disk
/// of the base hangs on one halted VM.
pub(crate) fn continues_in_place(target: &Sim, base: &str) -> bool {
    let snapshot = target.record("VDI", base).unwrap();
    let Some(live) = by_ref(target, "VDI", &snapshot["snapshot_of"]) else { return false };
    match users(target, &live).as_slice() {
        [vm] => ["Halted", "Suspended"].contains(&vm["power_state"].as_str().unwrap()),
        _ => false,
    }
}

/// The replicas of a VM that retention counts and the interface lists, oldest first. `id` is the job's or the schedule's.
pub(crate) fn replicas(target: &Sim, id: &str, sr: &str, vm: &str) -> Vec<String> {
    let mut found: Vec<Value> = target.records("VM");
    found.retain(|object| {
        object["is_a_template"] == false
            && (key(object, "xo:backup:job") == Some(id) || key(object, "xo:backup:schedule") == Some(id))
            && key(object, "xo:backup:sr") == Some(sr)
            && key(object, "xo:backup:vm") == Some(vm)
            && (object["is_a_snapshot"] == true || object["blocked_operations"].get("start").is_some())
    });
    found.sort_by_key(|object| key(object, "xo:backup:datetime").unwrap_or_default().to_owned());
    found.iter().map(|object| object["uuid"].as_str().unwrap().to_owned()).collect()
}
