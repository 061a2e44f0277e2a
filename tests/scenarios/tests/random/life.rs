//! The world of a schedule, and what may happen in it.

use crate::dice::Dice;
use crate::invariants::{Before, Foreign, Known};
use serde_json::Value;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vmferry_engine::{Integrity, Nbd};
use vmferry_model::report::{Outcome, RunReport};
use vmferry_scenarios::shelf::Shelf;
use vmferry_scenarios::{Keep, MIB, World, destroy_vm};
use vmferry_xapi::records::{Vbd, Vdi, Vm};
use vmferry_xapi::{Ref, Session, params};
use xapi_sim::{Fault, FaultKind, FaultPoint, NbdPurpose, Sim, SimConfig};

/// Calls that are worth losing; `*` is any.
const CALLS: [&str; 12] = [
    "*",
    "*",
    "*",
    "VM.snapshot",
    "VM.create",
    "VM.destroy",
    "VDI.create",
    "VDI.clone",
    "VDI.destroy",
    "VBD.create",
    "*.set_other_config",
    "*.add_to_other_config",
];

/// Calls of a store that may fail or never end.
const CALLS_OF_A_STORE: [&str; 6] = ["points", "write", "write", "commit", "abort", "delete"];

/// A run has about this many calls on a side.
const CALLS_OF_A_RUN: u64 = 140;

/// A step that can be made did happen; else the next one is tried.
type Done = Option<String>;

pub(crate) struct Life {
    pub(crate) world: World,
    /// A store among the job's targets.
    pub(crate) shelf: Option<Shelf>,
    dice: Dice,
    story: Arc<Mutex<Vec<String>>>,
    /// What every snapshot of the source held.
    known: Known,
    /// What others made, which nobody but they may touch.
    foreign: Vec<Foreign>,
    byte: u8,
}

impl Life {
    pub(crate) async fn new(mut dice: Dice, story: Arc<Mutex<Vec<String>>>) -> Self {
        let nbd_purpose = [None, Some(NbdPurpose::Nbd), Some(NbdPurpose::InsecureNbd)][dice.below(3) as usize];
        let source = SimConfig { nbd_purpose, ..SimConfig::default() };
        let mut world = World::between(source, SimConfig::default()).await;
        world.job.reading.enable_cbt = nbd_purpose.is_some();
        world.job.tuning.lease_settle = Duration::from_millis(5);
        if dice.one_in(2) {
            world.policies.retention = Some(Arc::new(Keep(1 + dice.below(3) as usize)));
        }
        let mut shelf = dice.one_in(2).then(|| Shelf::new(*dice.pick(&[64 << 10, 256 << 10, 1 << 20]).unwrap()));
        if dice.one_in(3) {
            shelf = shelf.map(Shelf::only_newest);
        }
        world.job.stores.extend(shelf.iter().map(|shelf| shelf.target("shelf")));
        let mut life = Self { world, shelf, dice, story, known: Known::default(), foreign: Vec::new(), byte: 0 };
        if life.dice.one_in(2) {
            life.add_target();
        }
        // Small disks: every point is read after every step.
        let (source, target) = (life.world.source.clone(), life.world.target.clone());
        life.adopt(&source, &vmferry_scenarios::bystander(&source));
        life.adopt(&target, &vmferry_scenarios::bystander(&target));
        life.world.replace_vm(&[8 * MIB, 4 * MIB]);
        life.guest_writes();
        life
    }

    /// One thing happens, and everything still holds.
    pub(crate) async fn step(&mut self) {
        let done = loop {
            let done = match self.dice.below(30) {
                0..=3 => self.clean_run().await,
                4..=8 => self.run_with_fault().await,
                9..=11 => self.run_that_dies().await,
                12..=14 => self.guest_writes(),
                15..=17 => self.administrator_changes_the_source().await,
                18 => self.hands_on_source_snapshots().await,
                19..=21 => self.hands_on_the_target().await,
                22 => self.settings_change(),
                23 | 24 => self.run_with_a_toolstack_restarted().await,
                25 | 26 => self.run_with_a_store_that_fails().await,
                27 => self.run_that_dies_in_the_store().await,
                28 => self.hands_on_the_store(),
                _ => self.time_passes(),
            };
            if let Some(done) = done {
                break done;
            }
        };
        self.tell(done);
        self.check().await;
    }

    /// Two undisturbed runs put everything right, and nothing is left over.
    pub(crate) async fn end(&mut self) {
        for _ in 0..2 {
            let done = self.clean_run().await.expect("a run");
            self.tell(done);
            self.check().await;
        }
        self.assert_tidy(&self.foreign).await;
        self.assert_startable().await;
        if let Some(shelf) = &self.shelf {
            self.world.gc(true).await;
            let disks: usize = shelf.stored().iter().map(|point| point.disks.len()).sum();
            assert_eq!(shelf.kept_disks(), disks, "the store keeps what belongs to no point");
        }
    }

    async fn check(&mut self) {
        self.learn();
        self.assert_points(&self.known).await;
        self.assert_untouched(&self.foreign);
    }

    fn learn(&mut self) {
        self.known.learn(&self.world.source);
    }

    fn tell(&self, done: String) {
        self.story.lock().unwrap_or_else(PoisonError::into_inner).push(done);
    }

    fn adopt(&mut self, pool: &Sim, vm: &str) {
        self.foreign.push(Foreign::new(pool, vm));
    }

    // Runs.

    async fn clean_run(&mut self) -> Done {
        let before = self.before().await;
        let report = self.world.run().await;
        assert_eq!(report.outcome, Outcome::Succeeded, "an undisturbed run succeeds: {report:#?}");
        self.judge(&report, &before).await;
        let ways: Vec<String> = report.vms[0]
            .targets
            .iter()
            .flat_map(|target| target.disks.iter().map(|disk| format!("{:?} by {}", disk.kind, disk.source)))
            .collect();
        Some(format!("a run: {}", ways.join(", ")))
    }

    async fn run_with_fault(&mut self) -> Done {
        let (side, pool) = self.side();
        let fault = Fault { at: self.place(side), nth: 1, kind: self.kind() };
        let fault = match fault.at {
            FaultPoint::Call(_) => Fault { nth: 1 + self.dice.below(CALLS_OF_A_RUN) as u32, ..fault },
            _ => Fault { nth: 1 + self.dice.below(2) as u32, ..fault },
        };
        let before = self.before().await;
        pool.inject(fault.clone());
        let report = self.world.run().await;
        pool.clear_faults();
        self.judge(&report, &before).await;
        Some(format!("a run with {fault:?} on the {side}: {:?}", report.outcome))
    }

    /// The process is gone in the middle of everything: its sockets close, and nothing of it goes on.
    async fn run_that_dies(&mut self) -> Done {
        let (side, pool, fault) = self.standstill();
        let before = self.before().await;
        pool.inject(fault.clone());
        let report = tokio::select! {
            report = self.world.run() => Some(report),
            () = pool.wait_until_stalled() => None,
        };
        pool.clear_faults();
        let end = self.judge_end(report.as_ref(), &before).await;
        Some(format!("a run {end} at {:?} number {} on the {side}", fault.at, fault.nth))
    }

    /// A toolstack ends in the middle of everything and starts again: sessions, tasks and what it was at are gone.
    async fn run_with_a_toolstack_restarted(&mut self) -> Done {
        let (side, pool, fault) = self.standstill();
        let (restarts, restarted) = self.side();
        let before = self.before().await;
        pool.inject(fault.clone());
        let strike = async {
            pool.wait_until_stalled().await;
            restarted.go_down();
            restarted.come_back();
            pool.clear_faults();
            std::future::pending().await
        };
        let report = tokio::select! {
            report = self.world.run() => report,
            () = strike => unreachable!("it waits for the run"),
        };
        pool.clear_faults();
        self.judge(&report, &before).await;
        Some(format!(
            "the {restarts} restarts at {:?} number {} on the {side}: {:?}",
            fault.at, fault.nth, report.outcome
        ))
    }

    async fn run_with_a_store_that_fails(&mut self) -> Done {
        let shelf = self.shelf.clone()?;
        let call = *self.dice.pick(&CALLS_OF_A_STORE)?;
        let fails = self.dice.one_in(2);
        let before = self.before().await;
        if fails {
            shelf.fail(call)
        } else {
            shelf.lose_answer(call)
        };
        let report = self.world.run().await;
        shelf.calm();
        self.judge(&report, &before).await;
        let what = if fails { "fails at" } else { "loses its answer to" };
        Some(format!("a run whose store {what} {call}: {:?}", report.outcome))
    }

    async fn run_that_dies_in_the_store(&mut self) -> Done {
        let shelf = self.shelf.clone()?;
        let (call, after) = (*self.dice.pick(&CALLS_OF_A_STORE)?, self.dice.one_in(2));
        let before = self.before().await;
        shelf.stall(call, after);
        let report = tokio::select! {
            report = self.world.run() => Some(report),
            () = shelf.wait_until_stalled() => None,
        };
        shelf.calm();
        let end = self.judge_end(report.as_ref(), &before).await;
        Some(format!("a run {end} {} {call} of its store", if after { "after" } else { "before" }))
    }

    /// Somebody tidies up in the store.
    fn hands_on_the_store(&mut self) -> Done {
        let shelf = self.shelf.clone()?;
        match self.dice.below(3) {
            0 => {
                shelf.clear();
                Some("the store is emptied".to_owned())
            }
            1 => {
                let point = self.dice.pick(&shelf.ids())?.clone();
                shelf.damage(&point);
                Some(format!("point {point} of the store is found damaged"))
            }
            _ => {
                let point = self.dice.pick(&shelf.ids())?.clone();
                shelf.forget_point(&point);
                Some(format!("point {point} of the store is lost"))
            }
        }
    }

    /// What became of a run that was to die, if it did not end before.
    async fn judge_end(&mut self, report: Option<&RunReport>, before: &Before) -> &'static str {
        match report {
            Some(report) => {
                self.judge(report, before).await;
                "ends before"
            }
            None => {
                self.learn();
                self.assert_bases(before).await;
                "dies"
            }
        }
    }

    async fn judge(&mut self, report: &RunReport, before: &Before) {
        self.learn();
        self.assert_report(report, &self.known);
        self.assert_bases(before).await;
    }

    /// Somewhere in a run, on either side.
    fn standstill(&mut self) -> (&'static str, Sim, Fault) {
        let (side, pool) = self.side();
        let at = self.place(side);
        let nth = match at {
            FaultPoint::Call(_) => 1 + self.dice.below(CALLS_OF_A_RUN) as u32,
            _ => 1,
        };
        let fault = Fault { at, nth, kind: FaultKind::StallAfter(self.dice.below(4 * MIB)) };
        (side, pool, fault)
    }

    fn side(&mut self) -> (&'static str, Sim) {
        if self.dice.one_in(2) { ("source", self.world.source.clone()) } else { ("target", self.world.target.clone()) }
    }

    fn place(&mut self, side: &str) -> FaultPoint {
        match (self.dice.below(4), side) {
            (0, "source") => FaultPoint::Export,
            (1, "source") => FaultPoint::Nbd,
            (0 | 1, _) => FaultPoint::Import,
            _ => FaultPoint::Call((*self.dice.pick(&CALLS).unwrap()).to_owned()),
        }
    }

    /// What may go wrong. Payload that is damaged on the way is the transport's to notice, so nothing is flipped.
    fn kind(&mut self) -> FaultKind {
        let bytes = self.dice.below(5 * MIB);
        match self.dice.below(10) {
            0 => FaultKind::CutAfter(bytes),
            1 => FaultKind::ResetAfter(bytes),
            2 => FaultKind::FailAfter(bytes),
            3 => FaultKind::Http500,
            4 => FaultKind::SrFull,
            5 => FaultKind::SessionLost,
            6 => FaultKind::CloseWithoutAnswer,
            7 => FaultKind::ApiError("VDI_IN_USE".to_owned(), Vec::new()),
            _ => FaultKind::ReplyLost,
        }
    }

    // The source lives on.

    fn guest_writes(&mut self) -> Done {
        let disks = self.world.source.vm_disks(&self.world.vm);
        for _ in 0..1 + self.dice.below(3) {
            let disk = self.dice.pick(&disks)?;
            self.byte = self.byte.wrapping_add(1);
            let size = self.world.source.record("VDI", disk)?["virtual_size"].as_u64().unwrap();
            let at = self.dice.below(size / 4096) * 4096;
            let length = ((1 + self.dice.below(40)) * 4096).min(size - at);
            self.world.source.write(disk, at, &vec![self.byte; length as usize]);
        }
        Some("the guest writes".to_owned())
    }

    async fn administrator_changes_the_source(&mut self) -> Done {
        let session = self.world.at_source().await;
        let vm: Ref<Vm> = session.by_uuid(&self.world.vm).await.unwrap();
        let done = self.change_source(&session, &vm).await;
        session.logout().await.unwrap();
        done
    }

    async fn change_source(&mut self, session: &Session, vm: &Ref<Vm>) -> Done {
        let disks = self.world.source.vm_disks(&self.world.vm);
        let disk = self.dice.pick(&disks).cloned();
        let reference = match &disk {
            Some(disk) => Some(session.by_uuid::<Vdi>(disk).await.unwrap()),
            None => None,
        };
        let running = self.world.source.record("VM", &self.world.vm)?["power_state"] == "Running";
        match self.dice.below(7) {
            0 if disks.len() < 4 => {
                self.add_disk(session, vm).await;
                Some("a disk is added".to_owned())
            }
            1 if disks.len() > 1 => {
                let record: Vdi = session.get_record(reference.as_ref()?).await.unwrap();
                for vbd in &record.vbds {
                    let attached: bool = session.call("VBD.get_currently_attached", params![vbd]).await.unwrap();
                    if attached {
                        session.call_async::<()>("VBD.unplug", params![vbd]).await.unwrap();
                    }
                    let () = session.call("VBD.destroy", params![vbd]).await.unwrap();
                }
                session.call_async::<()>("VDI.destroy", params![reference.as_ref()?]).await.unwrap();
                Some(format!("disk {} is removed", disk?))
            }
            2 if !running => {
                let size = self.world.source.record("VDI", disk.as_ref()?)?["virtual_size"].as_u64().unwrap();
                let size = i64::try_from(size + 2 * MIB * (1 + self.dice.below(4))).unwrap();
                session.call_async::<()>("VDI.resize", params![reference.as_ref()?, size]).await.unwrap();
                Some(format!("disk {} grows to {size}", disk?))
            }
            3 => {
                let name = format!("erp-db {}", self.dice.below(100));
                let () = session.call("VM.set_name_label", params![vm, name.as_str()]).await.unwrap();
                Some(format!("the VM is called {name}"))
            }
            4 => {
                let snapshot: Ref<Vm> =
                    session.call_async("VM.snapshot", params![vm, "before the upgrade"]).await.unwrap();
                let uuid: String = session.call("VM.get_uuid", params![&snapshot]).await.unwrap();
                let source = self.world.source.clone();
                self.adopt(&source, &uuid);
                Some(format!("a snapshot {uuid} of the user's"))
            }
            5 => {
                let snapshots: Vec<String> = snapshots_of(&self.world.source, vm.as_str());
                let uuid = self.dice.pick(&snapshots)?.clone();
                let snapshot: Ref<Vm> = session.by_uuid(&uuid).await.unwrap();
                session.call_async::<()>("VM.revert", params![&snapshot]).await.unwrap();
                Some(format!("the VM is reverted to {uuid}"))
            }
            6 => {
                match running {
                    true => session.call_async::<()>("VM.hard_shutdown", params![vm]).await.unwrap(),
                    false => session.call_async::<()>("VM.start", params![vm, false, false]).await.unwrap(),
                }
                Some(format!("the VM {}", if running { "stops" } else { "starts" }))
            }
            _ => None,
        }
    }

    async fn add_disk(&mut self, session: &Session, vm: &Ref<Vm>) {
        let sr = self.world.source.record("SR", &self.world.source.default_sr()).unwrap();
        let size = (2 + self.dice.below(6)) * MIB;
        let disk: Ref<Vdi> = session
            .call_async("VDI.create", params![vmferry_scenarios::disk_record(sr["$ref"].as_str().unwrap(), size)])
            .await
            .unwrap();
        let vbd = vmferry_scenarios::vbd_record(vm.as_str(), disk.as_str());
        let _: Ref<Vbd> = session.call("VBD.create", params![vbd]).await.unwrap();
    }

    // Hands that meddle with what is ours.

    async fn hands_on_source_snapshots(&mut self) -> Done {
        if self.dice.one_in(3) {
            let disks = self.world.source.vm_disks(&self.world.vm);
            let tracked = |disk: &&String| self.world.source.record("VDI", disk).unwrap()["cbt_enabled"] == true;
            disks.iter().filter(tracked).for_each(|disk| self.world.source.break_cbt(disk));
            return Some("changed-block tracking breaks on the source".to_owned());
        }
        let ours: Vec<Value> = self.world.source.records("VM").into_iter().filter(is_our_snapshot).collect();
        let snapshot = self.dice.pick(&ours)?["uuid"].as_str().unwrap().to_owned();
        let source = self.world.source.clone();
        destroy_vm(&self.world.at_source().await, &source, &snapshot).await;
        Some(format!("somebody destroys source snapshot {snapshot}"))
    }

    async fn hands_on_the_target(&mut self) -> Done {
        let session = self.world.at_target().await;
        let done = self.meddle(&session).await;
        session.logout().await.unwrap();
        done
    }

    async fn meddle(&mut self, session: &Session) -> Done {
        let replicas = self.world.points().await;
        let replica = self.dice.pick(&replicas)?;
        let (live, points) = (replica.replica.clone()?, &replica.points);
        let point = self.dice.pick(points).map(|point| point.id.clone())?;
        let target = self.world.target.clone();
        let vm: Ref<Vm> = session.by_uuid(&live).await.unwrap();
        let snapshot: Ref<Vm> = session.by_uuid(&point).await.unwrap();
        match self.dice.below(8) {
            0 => {
                let disks = target.vm_disks(&live);
                target.write(self.dice.pick(&disks)?, 4096, b"somebody's work");
                Some(format!("somebody writes to replica {live}"))
            }
            1 => {
                let running = target.record("VM", &live)?["power_state"] == "Running";
                if running {
                    session.call_async::<()>("VM.hard_shutdown", params![&vm]).await.unwrap();
                    return Some(format!("somebody stops replica {live}"));
                }
                for operation in ["start", "start_on"] {
                    let () = session.call("VM.remove_from_blocked_operations", params![&vm, operation]).await.unwrap();
                }
                session.call_async::<()>("VM.start", params![&vm, false, false]).await.unwrap();
                Some(format!("somebody starts replica {live}"))
            }
            2 => {
                destroy_vm(session, &target, &point).await;
                Some(format!("somebody destroys recovery point {point}"))
            }
            3 => {
                let clone: Ref<Vm> = session.call_async("VM.clone", params![&snapshot, "mine"]).await.unwrap();
                let uuid: String = session.call("VM.get_uuid", params![&clone]).await.unwrap();
                self.adopt(&target, &uuid);
                Some(format!("somebody clones recovery point {point} into {uuid}"))
            }
            4 => {
                let mine: Ref<Vm> = session.call_async("VM.snapshot", params![&vm, "mine"]).await.unwrap();
                let uuid: String = session.call("VM.get_uuid", params![&mine]).await.unwrap();
                self.adopt(&target, &uuid);
                Some(format!("somebody snapshots replica {live} into {uuid}"))
            }
            5 => {
                session.call_async::<()>("VM.revert", params![&snapshot]).await.unwrap();
                Some(format!("somebody reverts replica {live} to {point}"))
            }
            6 => {
                let () = session.call("VM.set_name_label", params![&vm, "renamed by somebody"]).await.unwrap();
                Some(format!("somebody renames replica {live}"))
            }
            _ => {
                for point in points {
                    destroy_vm(session, &target, &point.id).await;
                }
                if target.record("VM", &live)?["power_state"] == "Running" {
                    session.call_async::<()>("VM.hard_shutdown", params![&vm]).await.unwrap();
                }
                destroy_vm(session, &target, &live).await;
                Some(format!("somebody destroys replica {live} and all of its points"))
            }
        }
    }

    // What surrounds the runs.

    fn add_target(&mut self) {
        let mut second = self.world.job.targets[0].clone();
        second.name = "second".to_owned();
        second.srs = vec![self.world.target.add_sr("second", 1 << 40)];
        self.world.job.targets.push(second);
    }

    fn settings_change(&mut self) -> Done {
        match self.dice.below(4) {
            0 => {
                self.world.job.reading.nbd = *self.dice.pick(&[Nbd::Auto, Nbd::Always, Nbd::Never]).unwrap();
                Some(format!("disks are read by NBD {:?}", self.world.job.reading.nbd))
            }
            1 => {
                let digest = self.world.job.integrity == Integrity::Digest;
                self.world.job.integrity = if digest { Integrity::Structure } else { Integrity::Digest };
                Some(format!("integrity is {:?}", self.world.job.integrity))
            }
            2 if self.world.has_digests() => {
                self.world.lose_digests();
                Some("the digest tables are lost".to_owned())
            }
            3 if self.world.job.targets.len() == 1 => {
                self.add_target();
                Some("a second target".to_owned())
            }
            _ => None,
        }
    }

    fn time_passes(&mut self) -> Done {
        let minutes = 1 + self.dice.below(40);
        let (side, pool) = self.side();
        pool.advance_clock(Duration::from_secs(60 * minutes));
        Some(format!("{minutes} minutes pass on the {side}"))
    }
}

fn snapshots_of(pool: &Sim, vm: &str) -> Vec<String> {
    let of = |record: &Value| record["is_a_snapshot"] == true && record["snapshot_of"] == vm;
    pool.records("VM")
        .iter()
        .filter(|record| of(record))
        .map(|record| record["uuid"].as_str().unwrap().to_owned())
        .collect()
}

fn is_our_snapshot(vm: &Value) -> bool {
    vm["is_a_snapshot"] == true && vm["other_config"]["vmferry:self"] == vm["uuid"]
}
