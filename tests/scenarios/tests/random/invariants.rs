//! What holds after every step, whatever it was.
//!
//! 1. Every recovery point holds what the source snapshot held that it claims to be a copy of.
//! 2. A run, however it ends, costs no base: a disk that could travel as a delta before it still can.
//! 3. What others made is as they left it.
//! 4. After an undisturbed run nothing of ours is left that nobody will clean, and the newest point starts.

use crate::life::Life;
use serde_json::Value;
use sha2::Digest as _;
use std::collections::{BTreeMap, BTreeSet};
use vmferry_engine::{CloneRequest, NetworkChoice};
use vmferry_model::report::{Outcome, RunReport};
use vmferry_model::target::StoredDisk;
use xapi_sim::Sim;

/// SHA-256 of every snapshot disk that the source ever had, by uuid. Snapshots do not change.
#[derive(Default)]
pub(crate) struct Known(BTreeMap<String, String>);

impl Known {
    pub(crate) fn learn(&mut self, source: &Sim) {
        for disk in source.records("VDI").iter().filter(|disk| disk["is_a_snapshot"] == true && disk["managed"] == true)
        {
            let uuid = text(&disk["uuid"]);
            self.0.entry(uuid.clone()).or_insert_with(|| source.sha256(&uuid));
        }
    }
}

/// An object of somebody else.
pub(crate) struct Foreign {
    pool: Sim,
    vm: String,
    looks: Value,
}

impl Foreign {
    pub(crate) fn new(pool: &Sim, vm: &str) -> Self {
        Self { pool: pool.clone(), vm: vm.to_owned(), looks: looks(pool, vm) }
    }
}

/// What of a VM is its owner's alone.
fn looks(pool: &Sim, vm: &str) -> Value {
    let record = pool.record("VM", vm).unwrap_or_default();
    let disks: Vec<Value> = pool
        .vm_disks(vm)
        .iter()
        .map(|disk| {
            let record = pool.record("VDI", disk).unwrap_or_default();
            let fields = ["name_label", "other_config", "virtual_size", "tags", "is_a_snapshot"];
            serde_json::json!([disk, pool.sha256(disk), fields.map(|field| record[field].clone())])
        })
        .collect();
    let fields = ["name_label", "name_description", "other_config", "power_state", "blocked_operations", "tags"];
    serde_json::json!([fields.map(|field| record[field].clone()), disks])
}

/// The bases before a run: source disk and target SR.
pub(crate) struct Before(BTreeSet<(String, String)>);

impl Life {
    pub(crate) async fn before(&self) -> Before {
        Before(self.bases().await)
    }

    /// Which disks could travel to which SR as a delta: the source still has the snapshot that a point is a copy of.
    async fn bases(&self) -> BTreeSet<(String, String)> {
        let world = &self.world;
        let snapshots: BTreeMap<String, String> = (world.source.records("VDI").iter())
            .filter(|disk| disk["is_a_snapshot"] == true && disk["type"] == "user")
            .map(|disk| (text(&disk["uuid"]), text(&disk["snapshot_of"])))
            .collect();
        let live: BTreeMap<String, String> = (world.source.vm_disks(&world.vm).into_iter())
            .map(|disk| (text(&world.source.record("VDI", &disk).unwrap()["$ref"]), disk))
            .collect();
        let mut bases = BTreeSet::new();
        for (target, disk) in self.point_disks().await {
            let of = snapshots.get(&content_key(&self.world.target, &disk)).and_then(|of| live.get(of));
            bases.extend(of.map(|live| (live.clone(), target)));
        }
        for (_, disk) in self.stored_disks() {
            let of = snapshots.get(&disk.content).and_then(|of| live.get(of));
            bases.extend(of.map(|live| (live.clone(), "shelf".to_owned())));
        }
        bases
    }

    /// The disks of all recovery points, with the names of their targets.
    async fn point_disks(&self) -> Vec<(String, String)> {
        let replicas = self.world.points().await;
        let on_pools = replicas.iter().filter(|replica| replica.replica.is_some());
        let points = on_pools.flat_map(|replica| replica.points.iter().map(|point| (&replica.target, &point.id)));
        points
            .flat_map(|(target, point)| {
                self.world.target.vm_disks(point).into_iter().map(|disk| (target.clone(), disk))
            })
            .collect()
    }

    /// The disks of the store's points.
    fn stored_disks(&self) -> Vec<(String, StoredDisk)> {
        let points = self.shelf.iter().flat_map(|shelf| shelf.stored());
        points.flat_map(|point| point.disks.into_iter().map(move |disk| (point.id.clone(), disk))).collect()
    }

    /// 1.
    pub(crate) async fn assert_points(&self, known: &Known) {
        for (point, disk) in self.stored_disks() {
            let expected = known.0.get(&disk.content);
            let found = self.shelf.as_ref().map(|shelf| sha256(&shelf.read_disk(&point, &disk.disk)));
            let StoredDisk { disk, content, .. } = disk;
            assert_eq!(
                found.as_ref(),
                expected,
                "disk {disk} of point {point} in the store is not the {content} that it claims"
            );
        }
        for (target, disk) in self.point_disks().await {
            let content = content_key(&self.world.target, &disk);
            let expected = known.0.get(&content);
            assert!(expected.is_some(), "disk {disk} on {target} claims {content}, which the source never had");
            let found = self.world.target.sha256(&disk);
            assert_eq!(Some(&found), expected, "disk {disk} on {target} is not the {content} that it claims to be");
        }
    }

    /// 1, and that a run that says so has brought each of its targets to the source's content.
    pub(crate) fn assert_report(&self, report: &RunReport, known: &Known) {
        let now: BTreeSet<String> = self.world.source_content().into_iter().collect();
        let targets = report.vms.iter().flat_map(|vm| &vm.targets);
        for target in targets.filter(|target| target.outcome == Outcome::Succeeded) {
            let point = target.recovery_point.as_ref().unwrap_or_else(|| panic!("a point: {report:#?}"));
            if target.target == "shelf" {
                let disks: Vec<_> = self.stored_disks().into_iter().filter(|(found, _)| found == point).collect();
                assert_eq!(disks.len(), self.world.source.vm_disks(&self.world.vm).len(), "{report:#?}");
                assert!(disks.iter().all(|(_, disk)| now.contains(&known.0[&disk.content])), "{report:#?}");
                continue;
            }
            let disks = self.world.target.vm_disks(point);
            assert_eq!(disks.len(), self.world.source.vm_disks(&self.world.vm).len(), "{report:#?}");
            for disk in disks {
                let content = &known.0[&content_key(&self.world.target, &disk)];
                assert!(now.contains(content), "disk {disk} of the new point is not the source's: {report:#?}");
            }
        }
    }

    /// 2.
    pub(crate) async fn assert_bases(&self, before: &Before) {
        let (after, live) = (self.bases().await, self.world.source.vm_disks(&self.world.vm));
        let lost: Vec<_> = before.0.difference(&after).filter(|(disk, _)| live.contains(disk)).collect();
        assert!(lost.is_empty(), "the run cost the base of {lost:?}");
    }

    /// 3.
    pub(crate) fn assert_untouched(&self, foreign: &[Foreign]) {
        for Foreign { pool, vm, looks: expected } in foreign {
            assert_eq!(&looks(pool, vm), expected, "VM {vm} is somebody else's");
        }
    }

    /// 4, first half.
    pub(crate) async fn assert_tidy(&self, foreign: &[Foreign]) {
        let world = &self.world;
        let replicas = world.points().await;
        let foreign: BTreeSet<&String> = foreign.iter().map(|foreign| &foreign.vm).collect();
        let points: Vec<_> = replicas.iter().flat_map(|replica| &replica.points).collect();
        let bases: BTreeSet<&String> = points.iter().map(|point| &point.source_snapshot).collect();
        let mut ours: BTreeSet<&String> = replicas.iter().filter_map(|replica| replica.replica.as_ref()).collect();
        ours.extend(points.iter().map(|point| &point.id));
        ours.insert(&world.vm);
        for (side, pool) in [("source", &world.source), ("target", &world.target)] {
            for vm in pool.records("VM").iter().filter(|vm| vm["is_control_domain"] == false) {
                let uuid = text(&vm["uuid"]);
                if foreign.contains(&uuid) {
                    continue;
                }
                let keys = &vm["other_config"];
                assert_eq!(keys.get("vmferry:lease"), None, "a lease on {uuid} on the {side}");
                let is_base = side == "source" && keys["vmferry:self"] == vm["uuid"] && bases.contains(&uuid);
                // A replica that somebody used is theirs to keep, also when its points are gone.
                // Whoever starts one takes its block off, whatever a run had written of it.
                let unblocked = vm["blocked_operations"].get("start").is_none();
                let used = vm["is_a_snapshot"] == false && (keys.get("vmferry:state").is_none() || unblocked);
                let what = serde_json::json!([vm["name_label"], vm["is_a_snapshot"], keys]);
                assert!(ours.contains(&uuid) || is_base || used, "VM {uuid} is left on the {side}: {what:#}");
            }
            for disk in pool.records("VDI").iter().filter(|disk| disk["managed"] == true) {
                let used = disk["VBDs"].as_array().is_some_and(|vbds| !vbds.is_empty());
                assert!(used, "disk {} on no VM is left on the {side}: {:#}", disk["uuid"], disk["other_config"]);
            }
        }
        let snapshots = world
            .source
            .records("VM")
            .iter()
            .filter(|vm| vm["is_a_snapshot"] == true)
            .filter(|vm| vm["other_config"]["vmferry:self"] == vm["uuid"])
            .count();
        let targets = world.job.targets.len() + world.job.stores.len();
        assert!(snapshots <= targets, "{snapshots} source snapshots for {targets} targets");
    }

    /// 4, second half.
    pub(crate) async fn assert_startable(&self) {
        let engine = self.world.engine();
        let request = CloneRequest { network: NetworkChoice::None, ..CloneRequest::newest(&self.world.vm) };
        let clone = engine.clone_point(&self.world.job, &request).await.expect("the newest point starts");
        engine.close().await;
        let mut expected = self.world.source_content();
        let mut found = self.world.target_content(&clone.vm);
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "the started clone is what the source was at the last run");
    }
}

fn sha256(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a disk of a recovery point claims to be.
fn content_key(target: &Sim, disk: &str) -> String {
    text(&target.record("VDI", disk).unwrap_or_default()["other_config"]["xo:backup:contentKey"])
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
