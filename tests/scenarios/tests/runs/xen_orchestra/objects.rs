//! The objects that Xen Orchestra's replication leaves, one function per generation.

use std::collections::BTreeMap;
use uuid::Uuid;
use vmferry_scenarios::{MIB, World, disk_record, vbd_record};
use vmferry_xapi::records::{Sr, Vbd, Vdi, Vm};
use vmferry_xapi::{IntoValue, Record, Ref, Session, Value, params};
use xapi_sim::Sim;

pub(super) const CLONE_IT: &str = "Start operation for this vm is blocked, clone it if you want to use it.";
pub(super) const IMPORTING: &str = "Importing…";
const UNFINISHED: &str = "19700101T000000Z";

/// A job of Xen Orchestra that replicates the world's VM to the world's target.
pub(super) struct Xo<'w> {
    world: &'w World,
    source: Session,
    target: Session,
    pub(super) job: Uuid,
    pub(super) schedule: Uuid,
}

/// What one transfer left, by uuid.
#[derive(Clone, Debug)]
pub(super) struct Transfer {
    pub(super) source_snapshot: String,
    /// The replica VM.
    pub(super) replica: String,
    /// Its snapshot; generation 2 alone has one.
    pub(super) point: Option<String>,
}

/// How far a transfer comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// Keys and names are on, half of the data has not arrived.
    Importing,
    /// The keys of the end are on the replica, and its snapshot is not taken.
    Tagged,
    End,
}

impl<'w> Xo<'w> {
    /// The job under whose ids the world's job runs.
    pub(super) async fn before(world: &'w World) -> Self {
        Self::with_ids(world, world.job.ids.job, world.job.ids.schedule).await
    }

    /// Another job.
    pub(super) async fn beside(world: &'w World) -> Self {
        Self::with_ids(world, Uuid::new_v4(), Uuid::new_v4()).await
    }

    async fn with_ids(world: &'w World, job: Uuid, schedule: Uuid) -> Self {
        Self { world, source: world.at_source().await, target: world.at_target().await, job, schedule }
    }

    pub(super) async fn leave(self) {
        self.source.logout().await.unwrap();
        self.target.logout().await.unwrap();
    }

    /// A transfer of generation 2. `date` as the keys write it; `replica` is updated in place, or made.
    pub(super) async fn generation_2(&self, date: &str, replica: Option<&str>, until: Until) -> Transfer {
        let compact = date.replace(':', "");
        let source_snapshot = self.source_snapshot(date).await;
        let of: Ref<Vm> = self.source.by_uuid(&source_snapshot).await.unwrap();
        let record: Vm = self.source.get_record(&of).await.unwrap();
        let mut keys = record.other_config.clone();
        keys.extend(self.ids(&[("xo:copy_of", &source_snapshot), ("xo:backup:datetime", UNFINISHED)]));
        keys.insert("xo:backup:sr".to_owned(), self.world.target.default_sr());
        let vm = match replica {
            Some(replica) => {
                let vm: Ref<Vm> = self.target.by_uuid(replica).await.unwrap();
                self.set(&vm, "name_label", record.name_label.clone()).await;
                self.set(&vm, "other_config", keys).await;
                vm
            }
            None => self.create_vm(&record, &format!("[Importing…] {}", record.name_label), &keys).await,
        };
        self.block(&vm, IMPORTING).await;
        let replica: String = self.target.call("VM.get_uuid", params![&vm]).await.unwrap();
        let held = self.world.source.vm_disks(&source_snapshot);
        if self.world.target.vm_disks(&replica).is_empty() {
            for disk in &held {
                let record = disk_record(self.sr().await.as_str(), size(&self.world.source, disk));
                let vdi: Ref<Vdi> = self.target.call_async("VDI.create", params![record]).await.unwrap();
                self.put(&vdi, &self.ids(&[("xo:backup:vm", &source_snapshot)])).await;
                self.attach(&vm, &vdi).await;
            }
        }
        for (from, to) in held.iter().zip(self.world.target.vm_disks(&replica)) {
            let vdi: Ref<Vdi> = self.target.by_uuid(&to).await.unwrap();
            self.put(&vdi, &keys_of(&[("xo:copy_of", from), ("xo:backup:contentKey", from)])).await;
            let name = name_of(&self.world.source, from);
            self.set(&vdi, "name_label", format!("[Importing] {name}")).await;
            if until == Until::Importing {
                self.put(&vdi, &keys_of(&[("xo:import:task", "a task"), ("xo:import:length", "4711")])).await;
                copy(&self.world.source, from, &self.world.target, &to, 32 * MIB);
                continue;
            }
            copy(&self.world.source, from, &self.world.target, &to, u64::MAX);
            self.set(&vdi, "name_label", name).await;
        }
        let unfinished = Transfer { source_snapshot: source_snapshot.clone(), replica: replica.clone(), point: None };
        if until == Until::Importing {
            return unfinished;
        }
        self.set(&vm, "name_label", record.name_label.clone()).await;
        self.block(&vm, CLONE_IT).await;
        let sr = self.world.target.default_sr();
        self.tag(&self.target, &vm, &self.backup_keys(date, Some(&sr))).await;
        let mut tags = record.tags.clone();
        tags.push("Continuous Replication".to_owned());
        self.set(&vm, "tags", tags).await;
        let description =
            format!("{} -- last replication: {compact} 240 MiB read", record.raw["name_description"].as_str().unwrap());
        self.set(&vm, "name_description", description).await;
        if until == Until::Tagged {
            return unfinished;
        }
        let name = format!("erp-db - nightly / every night {compact}");
        let point: Ref<Vm> = self.target.call_async("VM.snapshot", params![&vm, name]).await.unwrap();
        self.set(&point, "is_a_template", false).await;
        for key in ["contentKey", "datetime", "includeNonNbdQcow2Fix", "job", "schedule", "vm"] {
            self.untag(&vm, &format!("xo:backup:{key}")).await;
        }
        self.untag(&vm, "xo:copy_of").await;
        self.exported(&source_snapshot, "1").await;
        let point: String = self.target.call("VM.get_uuid", params![&point]).await.unwrap();
        Transfer { point: Some(point), ..unfinished }
    }

    /// A transfer of generation 1: a VM of its own, on clones of the disks of `previous`.
    pub(super) async fn generation_1(&self, date: &str, previous: Option<&str>, until: Until) -> Transfer {
        let compact = date.replace(':', "");
        let source_snapshot = self.source_snapshot(date).await;
        let of: Ref<Vm> = self.source.by_uuid(&source_snapshot).await.unwrap();
        let record: Vm = self.source.get_record(&of).await.unwrap();
        let mut keys = record.other_config.clone();
        keys.insert("xo:copy_of".to_owned(), source_snapshot.clone());
        let vm = self.create_vm(&record, &format!("[Importing…] erp-db - nightly - ({compact})"), &keys).await;
        let replica: String = self.target.call("VM.get_uuid", params![&vm]).await.unwrap();
        let previous = previous.map(|vm| self.world.target.vm_disks(vm)).unwrap_or_default();
        for (index, from) in self.world.source.vm_disks(&source_snapshot).iter().enumerate() {
            let vdi: Ref<Vdi> = match previous.get(index) {
                Some(disk) => {
                    let disk: Ref<Vdi> = self.target.by_uuid(disk).await.unwrap();
                    self.target.call_async("VDI.clone", params![disk]).await.unwrap()
                }
                None => {
                    let record = disk_record(self.sr().await.as_str(), size(&self.world.source, from));
                    self.target.call_async("VDI.create", params![record]).await.unwrap()
                }
            };
            self.put(&vdi, &keys_of(&[("xo:copy_of", from)])).await;
            self.attach(&vm, &vdi).await;
            let to: String = self.target.call("VDI.get_uuid", params![&vdi]).await.unwrap();
            let most = if until == Until::Importing { 32 * MIB } else { u64::MAX };
            copy(&self.world.source, from, &self.world.target, &to, most);
            self.set(&vdi, "name_label", name_of(&self.world.source, from)).await;
        }
        if until == Until::End {
            self.set(&vm, "name_label", format!("erp-db - nightly - ({compact})")).await;
            self.block(&vm, CLONE_IT).await;
            let sr = self.world.target.default_sr();
            self.tag(&self.target, &vm, &self.backup_keys(date, Some(&sr))).await;
            self.exported(&source_snapshot, "0").await;
        }
        Transfer { source_snapshot, replica, point: None }
    }

    /// A transfer of generation 0.
    pub(super) async fn generation_0(&self) -> Transfer {
        let sr = self.world.target.default_sr();
        let live: Ref<Vm> = self.source.by_uuid(&self.world.vm).await.unwrap();
        let name = format!("XO_DELTA_EXPORT: Local storage ({sr})");
        let snapshot: Ref<Vm> = self.source.call_async("VM.snapshot", params![&live, name]).await.unwrap();
        let record: Vm = self.source.get_record(&snapshot).await.unwrap();
        let source_snapshot = record.uuid.clone();
        let mut keys = record.other_config.clone();
        keys.extend(keys_of(&[("xo:copy_of", &source_snapshot), ("xo:source_vm", &self.world.vm)]));
        keys.extend(keys_of(&[("xo:export_time", "20160301T00:00:00Z")]));
        let vm = self.create_vm(&record, "erp-db (20160301T000000Z)", &keys).await;
        let replica: String = self.target.call("VM.get_uuid", params![&vm]).await.unwrap();
        for from in self.world.source.vm_disks(&source_snapshot) {
            let record = disk_record(self.sr().await.as_str(), size(&self.world.source, &from));
            let vdi: Ref<Vdi> = self.target.call_async("VDI.create", params![record]).await.unwrap();
            self.put(&vdi, &keys_of(&[("xo:copy_of", &from)])).await;
            self.attach(&vm, &vdi).await;
            let to: String = self.target.call("VDI.get_uuid", params![&vdi]).await.unwrap();
            copy(&self.world.source, &from, &self.world.target, &to, u64::MAX);
        }
        self.block(&vm, CLONE_IT).await;
        self.source.set_other_config_key(&live, &format!("xo:base_delta:{sr}"), &source_snapshot).await.unwrap();
        Transfer { source_snapshot, replica, point: None }
    }

    /// The key that a run leaves on the source's pool when it dies while it waits for an event.
    pub(super) async fn barrier(&self) {
        let pool = self.world.source.records("pool")[0]["$ref"].as_str().unwrap().to_owned();
        let add = params![pool, "xo:barrier:x1y2z3", "1795000000000"];
        let () = self.source.call("pool.add_to_other_config", add).await.unwrap();
    }

    async fn source_snapshot(&self, date: &str) -> String {
        let live: Ref<Vm> = self.source.by_uuid(&self.world.vm).await.unwrap();
        let snapshot: Ref<Vm> =
            self.source.call_async("VM.snapshot", params![&live, "xo-backup-temp-snapshot-name"]).await.unwrap();
        let () = self.source.call("VM.set_is_a_template", params![&snapshot, false]).await.unwrap();
        self.tag(&self.source, &snapshot, &self.backup_keys(date, None)).await;
        let uuid: String = self.source.call("VM.get_uuid", params![&snapshot]).await.unwrap();
        for disk in self.world.source.vm_disks(&uuid) {
            let vdi: Ref<Vdi> = self.source.by_uuid(&disk).await.unwrap();
            self.source.set_other_config_key(&vdi, "xo:backup:contentKey", &disk).await.unwrap();
        }
        let () = self.source.call("VM.set_name_label", params![&snapshot, "[XO Backup nightly] erp-db"]).await.unwrap();
        uuid
    }

    /// Marks a source snapshot as exported and destroys the ones before it.
    async fn exported(&self, snapshot: &str, deltas: &str) {
        let vm: Ref<Vm> = self.source.by_uuid(snapshot).await.unwrap();
        let keys = keys_of(&[("xo:backup:deltaChainLength", deltas), ("xo:backup:exported", "true")]);
        self.tag(&self.source, &vm, &keys).await;
        let job = self.job.to_string();
        let older = self.world.source.records("VM").into_iter().filter(|vm| {
            vm["is_a_snapshot"] == true && vm["other_config"]["xo:backup:job"] == job.as_str() && vm["uuid"] != snapshot
        });
        for vm in older {
            let disks = self.world.source.vm_disks(vm["uuid"].as_str().unwrap());
            let vm: Ref<Vm> = Ref::new(vm["$ref"].as_str().unwrap());
            let () = self.source.call_async("VM.destroy", params![vm]).await.unwrap();
            for disk in disks {
                let disk: Ref<Vdi> = self.source.by_uuid(&disk).await.unwrap();
                let () = self.source.call_async("VDI.destroy", params![disk]).await.unwrap();
            }
        }
    }

    fn ids(&self, more: &[(&str, &str)]) -> BTreeMap<String, String> {
        let mut keys = keys_of(more);
        keys.insert("xo:backup:job".to_owned(), self.job.to_string());
        keys.insert("xo:backup:schedule".to_owned(), self.schedule.to_string());
        keys
    }

    fn backup_keys(&self, date: &str, sr: Option<&str>) -> BTreeMap<String, String> {
        let vm = self.world.vm.as_str();
        let fix = ("xo:backup:includeNonNbdQcow2Fix", "true");
        let mut keys = self.ids(&[("xo:backup:datetime", date), ("xo:backup:vm", vm), fix]);
        keys.extend(sr.map(|sr| ("xo:backup:sr".to_owned(), sr.to_owned())));
        keys
    }

    /// Sets keys on a VM and its disks.
    async fn tag(&self, session: &Session, vm: &Ref<Vm>, keys: &BTreeMap<String, String>) {
        for (key, value) in keys {
            session.set_other_config_key(vm, key, value).await.unwrap();
            for disk in disks_of(session, vm).await {
                session.set_other_config_key(&disk, key, value).await.unwrap();
            }
        }
    }

    /// Takes a key off a replica and its disks.
    async fn untag(&self, vm: &Ref<Vm>, key: &str) {
        self.target.remove_from_other_config(vm, key).await.unwrap();
        for disk in disks_of(&self.target, vm).await {
            self.target.remove_from_other_config(&disk, key).await.unwrap();
        }
    }

    async fn put<T: Record>(&self, object: &Ref<T>, keys: &BTreeMap<String, String>) {
        for (key, value) in keys {
            self.target.set_other_config_key(object, key, value).await.unwrap();
        }
    }

    async fn set<T: Record>(&self, object: &Ref<T>, field: &str, value: impl IntoValue) {
        let method = format!("{}.set_{field}", T::CLASS);
        let () = self.target.call(&method, params![object, value.into_value()]).await.unwrap();
    }

    async fn block(&self, vm: &Ref<Vm>, text: &str) {
        let blocked: BTreeMap<String, String> = keys_of(&[("start", text), ("start_on", text)]);
        self.set(vm, "blocked_operations", blocked).await;
    }

    async fn create_vm(&self, of: &Vm, name: &str, keys: &BTreeMap<String, String>) -> Ref<Vm> {
        let mut record = of.raw.clone();
        for (field, value) in [("affinity", "OpaqueRef:NULL"), ("name_label", name)] {
            record.insert(field.to_owned(), value.into_value());
        }
        record.insert("is_a_template".to_owned(), false.into_value());
        record.insert("other_config".to_owned(), keys.clone().into_value());
        self.target.call("VM.create", params![Value::Struct(record)]).await.unwrap()
    }

    async fn attach(&self, vm: &Ref<Vm>, vdi: &Ref<Vdi>) {
        let _: Ref<Vbd> = self.target.call("VBD.create", params![vbd_record(vm.as_str(), vdi.as_str())]).await.unwrap();
    }

    async fn sr(&self) -> Ref<Sr> {
        self.target.by_uuid(&self.world.target.default_sr()).await.unwrap()
    }
}

fn keys_of(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

async fn disks_of(session: &Session, vm: &Ref<Vm>) -> Vec<Ref<Vdi>> {
    let record: Vm = session.get_record(vm).await.unwrap();
    let mut disks = Vec::new();
    for vbd in &record.vbds {
        disks.push(session.call("VBD.get_VDI", params![vbd]).await.unwrap());
    }
    disks
}

fn size(pool: &Sim, disk: &str) -> u64 {
    pool.record("VDI", disk).unwrap()["virtual_size"].as_u64().unwrap()
}

fn name_of(pool: &Sim, disk: &str) -> String {
    pool.record("VDI", disk).unwrap()["name_label"].as_str().unwrap().to_owned()
}

/// Writes what differs, up to this offset.
fn copy(from_pool: &Sim, from: &str, to_pool: &Sim, to: &str, end: u64) {
    let mut at = 0;
    while at < size(from_pool, from).min(end) {
        let data = from_pool.read(from, at, MIB as usize);
        if to_pool.read(to, at, MIB as usize) != data {
            to_pool.write(to, at, &data);
        }
        at += MIB;
    }
}
