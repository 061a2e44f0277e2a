//! Two simulated pools, a VM, a job between them, and the questions that every scenario asks.

pub mod live;
pub mod shelf;

use async_trait::async_trait;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use vmferry_engine::{
    Engine, GcOptions, GcReport, Integrity, Job, JobIds, Policies, Reading, ReplicaPoints, RunOptions, Selection,
    Silent, SnapshotMode, Target, Tuning, VerifyOptions, VerifyReport,
};
use vmferry_model::plan::JobPlan;
use vmferry_model::plugin::{Judgement, PluginError, PointView, Retention};
use vmferry_model::report::{DiskReport, RunReport, TargetReport};
use vmferry_store::Store;
use vmferry_xapi::records::{Vdi, Vm};
use vmferry_xapi::{Endpoint, IntoValue, Ref, Session, StreamNetwork, Trust, Value, params};
use xapi_sim::{DiskSpec, Sim, SimConfig, VmSpec};

/// One mebibyte.
pub const MIB: u64 = 1 << 20;

/// A source pool with one VM of two disks, a target pool, and a job.
pub struct World {
    /// Where the VM runs.
    pub source: Sim,
    /// Where the replica goes.
    pub target: Sim,
    /// uuid of the VM.
    pub vm: String,
    /// The job `erp`.
    pub job: Job,
    /// Who decides; nobody at first.
    pub policies: Policies,
    /// How long the pools may take to answer a call, if that is not to be the usual time.
    pub patience: Option<Duration>,
    /// Which network of the pools disk streams take.
    pub stream_network: StreamNetwork,
    store: Arc<Store>,
    folder: TempDir,
}

impl World {
    /// The world before the first run. The disks hold a little data each.
    pub async fn new() -> Self {
        Self::between(SimConfig::default(), SimConfig::default()).await
    }

    /// The same between pools of these kinds.
    pub async fn between(source: SimConfig, target: SimConfig) -> Self {
        let start = |name: &str, config| Sim::start(SimConfig { name: name.to_owned(), ..config });
        let source = start("prod", source).await.expect("a simulated pool");
        let target = start("dr", target).await.expect("a simulated pool");
        let vm = add_vm(&source, &[64 * MIB, 32 * MIB]);
        let disks = source.vm_disks(&vm);
        source.write(&disks[0], 0, b"boot sector of the system disk");
        source.write(&disks[0], 40 * MIB, &[0x5a; 100_000]);
        source.write(&disks[1], 7 * MIB, b"a row in a table");
        let job = job(&vm, &target.default_sr());
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = Arc::new(Store::open(folder.path()).await.expect("a store"));
        Self {
            source,
            target,
            vm,
            job,
            policies: Policies::default(),
            patience: None,
            stream_network: StreamNetwork::default(),
            store,
            folder,
        }
    }

    /// Replaces the VM by one with empty disks of these sizes.
    pub fn replace_vm(&mut self, disks: &[u64]) {
        self.vm = add_vm(&self.source, disks);
        self.job.select.vms = vec![self.vm.clone()];
    }

    /// Looks at the replicas of the job.
    pub async fn verify(&self, deep: bool) -> VerifyReport {
        let engine = self.engine();
        let options = VerifyOptions { only: None, deep };
        let report = engine.verify(&self.job, &options, &Silent).await.expect("a report");
        engine.close().await;
        report
    }

    /// Looks for what runs left, and puts it right if asked to.
    pub async fn gc(&self, apply: bool) -> GcReport {
        let engine = self.engine();
        let report = engine.gc(&self.job, &GcOptions { only: None, apply }).await.expect("a report");
        engine.close().await;
        report
    }

    /// The recovery points of the job.
    pub async fn points(&self) -> Vec<ReplicaPoints> {
        let engine = self.engine();
        let points = engine.points(&self.job, None).await.expect("points").replicas;
        engine.close().await;
        points
    }

    /// Destroys every snapshot of the source, as somebody who tidies up would.
    pub async fn lose_source_snapshots(&self) {
        let session = self.at_source().await;
        for vm in self.source.records("VM").iter().filter(|vm| vm["is_a_snapshot"] == true) {
            destroy_vm(&session, &self.source, vm["uuid"].as_str().expect("a uuid")).await;
        }
        session.logout().await.expect("logged out");
    }

    /// Removes the digest tables, as a lost state folder would.
    pub fn lose_digests(&self) {
        std::fs::remove_dir_all(self.digest_dir()).expect("removed");
    }

    /// A new engine: what a process that has just started has.
    pub fn engine(&self) -> Engine {
        let at = |sim: &Sim| {
            let endpoint = endpoint(sim).with_stream_network(self.stream_network.clone());
            match self.patience {
                Some(patience) => endpoint.with_rpc_timeout(patience),
                None => endpoint,
            }
        };
        let endpoints = BTreeMap::from([("prod".to_owned(), at(&self.source)), ("dr".to_owned(), at(&self.target))]);
        Engine::new(endpoints, self.store.clone(), self.folder.path().join("digests"))
    }

    /// Runs the job once, as a process of its own would.
    pub async fn run(&self) -> RunReport {
        self.run_with(&RunOptions::default()).await
    }

    /// Runs the job once, so long after now.
    pub async fn run_after(&self, time: jiff::SignedDuration) -> RunReport {
        let now = jiff::Timestamp::now() + time;
        self.run_with(&RunOptions { now: Some(now), ..RunOptions::default() }).await
    }

    async fn run_with(&self, options: &RunOptions) -> RunReport {
        let engine = self.engine();
        let report = engine.run(&self.job, &self.policies, options, Arc::new(Silent)).await;
        engine.close().await;
        report
    }

    /// Plans the job.
    pub async fn plan(&self) -> JobPlan {
        let engine = self.engine();
        let plan = engine.plan(&self.job, None).await.expect("a plan");
        engine.close().await;
        plan
    }

    /// A session of somebody else on the source.
    pub async fn at_source(&self) -> Session {
        Session::login(&endpoint(&self.source), "scenario").await.expect("login")
    }

    /// A session of somebody else on the target.
    pub async fn at_target(&self) -> Session {
        Session::login(&endpoint(&self.target), "scenario").await.expect("login")
    }

    /// The digests of the source's disks as they are now.
    pub fn source_content(&self) -> Vec<String> {
        self.source.vm_disks(&self.vm).iter().map(|disk| self.source.sha256(disk)).collect()
    }

    /// The digests of a target VM's disks: of a replica, a recovery point or a clone.
    pub fn target_content(&self, vm: &str) -> Vec<String> {
        self.target.vm_disks(vm).iter().map(|disk| self.target.sha256(disk)).collect()
    }

    /// Whether there are digest tables to lose.
    pub fn has_digests(&self) -> bool {
        self.digest_dir().exists()
    }

    /// How many digest tables there are, drafts included.
    pub fn digest_tables(&self) -> usize {
        let entries =
            |folder| std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
        entries(self.digest_dir()).map(|tenant| entries(tenant).count()).sum()
    }

    fn digest_dir(&self) -> std::path::PathBuf {
        self.folder.path().join("digests")
    }

    /// Nobody left anything: no task, no session, no dom0 attachment; and only the objects that `points` recovery points of
    /// one replica need.
    #[track_caller]
    pub fn assert_tidy(&self, points: usize) {
        for (name, pool) in [("source", &self.source), ("target", &self.target)] {
            let counts = pool.object_counts();
            let of = |class: &str| counts.get(class).copied().unwrap_or(0);
            assert_eq!(of("task"), 0, "tasks left on the {name}");
            assert_eq!(of("session"), 0, "sessions left on the {name}");
        }
        self.assert_only_objects(points);
    }

    /// There are only the objects that `points` recovery points of one replica need, and no dom0 attachment.
    #[track_caller]
    pub fn assert_only_objects(&self, points: usize) {
        for (name, pool, vms) in [("source", &self.source, 1 + 1), ("target", &self.target, 1 + points)] {
            let counts = pool.object_counts();
            let of = |class: &str| counts.get(class).copied().unwrap_or(0);
            let user_vms = pool.records("VM").iter().filter(|vm| vm["is_control_domain"] == false).count();
            assert_eq!(user_vms, vms, "VMs on the {name}: {:#?}", names(pool));
            assert_eq!(of("VDI"), 2 * vms, "disks on the {name}");
            assert_eq!(of("VBD"), 2 * vms, "attachments on the {name}");
        }
    }
}

/// Retention that keeps so many of the newest points.
pub struct Keep(pub usize);

#[async_trait]
impl Retention for Keep {
    async fn select(&self, points: &[PointView], _: jiff::Timestamp) -> Result<Vec<Judgement>, PluginError> {
        let drop = points.len().saturating_sub(self.0);
        Ok((0..points.len()).map(|age| Judgement { keep: age >= drop, rule: "newest".to_owned() }).collect())
    }
}

fn names(pool: &Sim) -> Vec<String> {
    pool.records("VM").iter().map(|vm| vm["name_label"].to_string()).collect()
}

/// A running VM with disks of these sizes, the first two called `system` and `data`.
fn add_vm(pool: &Sim, disks: &[u64]) -> String {
    let names = ["system", "data"].into_iter().chain(std::iter::repeat("more"));
    let disk = |(name, size): (&str, &u64)| DiskSpec { name: name.to_owned(), size: *size, ..DiskSpec::default() };
    pool.add_vm(VmSpec {
        name: "erp-db".to_owned(),
        disks: names.zip(disks).map(disk).collect(),
        running: true,
        tags: vec!["erp".to_owned()],
        other_config: vec![("auto_poweron".to_owned(), "true".to_owned())],
        vifs: 1,
    })
}

/// A VM that nobody replicates, with a little data.
pub fn bystander(pool: &Sim) -> String {
    let vm = add_vm(pool, &[8 * MIB]);
    pool.write(&pool.vm_disks(&vm)[0], 0, b"somebody else's");
    vm
}

/// As an administrator does it: the VM, then its disks.
pub async fn destroy_vm(session: &Session, pool: &Sim, vm: &str) {
    let disks = pool.vm_disks(vm);
    let vm: Ref<Vm> = session.by_uuid(vm).await.expect("the VM");
    session.call_async::<()>("VM.destroy", params![&vm]).await.expect("destroyed");
    for disk in disks {
        let disk: Ref<Vdi> = session.by_uuid(&disk).await.expect("the disk");
        session.call_async::<()>("VDI.destroy", params![&disk]).await.expect("destroyed");
    }
}

/// A record for `VDI.create`.
pub fn disk_record(sr: &str, size: u64) -> Value {
    let texts = [("name_label", "more"), ("SR", sr), ("type", "user")].map(|(key, text)| (key, text.into_value()));
    let flags = [("sharable", false), ("read_only", false)].map(|(key, flag)| (key, flag.into_value()));
    let rest = [("virtual_size", size.into_value()), ("other_config", Value::Struct(BTreeMap::new()))];
    record(texts.into_iter().chain(flags).chain(rest))
}

/// A record for `VBD.create`, at the next free device number.
pub fn vbd_record(vm: &str, disk: &str) -> Value {
    let texts = [
        ("VM", vm),
        ("VDI", disk),
        ("userdevice", "autodetect"),
        ("mode", "RW"),
        ("type", "Disk"),
        ("qos_algorithm_type", ""),
    ];
    let flags = [("bootable", false), ("empty", false)].map(|(key, flag)| (key, flag.into_value()));
    let maps = ["other_config", "qos_algorithm_params"].map(|key| (key, Value::Struct(BTreeMap::new())));
    record(texts.map(|(key, text)| (key, text.into_value())).into_iter().chain(flags).chain(maps))
}

fn record(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    Value::Struct(fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// A simulated pool on a free port.
pub async fn pool(name: &str) -> Sim {
    Sim::start(SimConfig { name: name.to_owned(), ..SimConfig::default() }).await.expect("a simulated pool")
}

/// How to log in to a simulated pool.
pub fn endpoint(sim: &Sim) -> Endpoint {
    let endpoint = Endpoint::parse(&sim.url()).expect("the simulator's URL").with_credentials("root", "password");
    match sim.certificate_sha256() {
        Some(pin) => endpoint.with_trust(Trust::parse_pin(&pin).expect("a pin")),
        None => endpoint,
    }
}

/// The job `erp` with one target `dr`.
pub fn job(vm: &str, sr: &str) -> Job {
    Job {
        name: "erp".to_owned(),
        tenant: "default".to_owned(),
        select: Selection { pool: "prod".to_owned(), vms: vec![vm.to_owned()], ..Selection::default() },
        targets: vec![Target {
            name: "dr".to_owned(),
            pool: "dr".to_owned(),
            srs: vec![sr.to_owned()],
            networks: BTreeMap::new(),
            required: true,
            throttles: Vec::new(),
        }],
        stores: Vec::new(),
        ids: JobIds::derived("default", "erp"),
        integrity: Integrity::Digest,
        reading: Reading::default(),
        snapshot: SnapshotMode::default(),
        throttles: Vec::new(),
        tuning: Tuning { lease_settle: Duration::from_millis(20), stall: Duration::from_secs(20), ..Tuning::default() },
    }
}

/// The only target of the only VM of a report.
#[track_caller]
pub fn only_target(report: &RunReport) -> &TargetReport {
    assert_eq!(report.vms.len(), 1, "{report:#?}");
    assert_eq!(report.vms[0].targets.len(), 1, "{report:#?}");
    &report.vms[0].targets[0]
}

/// The uuid of the recovery point that a run must have made.
#[track_caller]
pub fn point_of(report: &RunReport) -> String {
    only_target(report).recovery_point.clone().unwrap_or_else(|| panic!("no recovery point: {report:#?}"))
}

/// What one disk's stream must have taken, by the formula of XAPI's VHD streams.
pub fn vhd_stream_bytes(disk_size: u64, used_blocks: u64) -> u64 {
    const BLOCK: u64 = 2 * MIB;
    let entries = disk_size.div_ceil(BLOCK);
    2048 + (4 * entries).next_multiple_of(512) + used_blocks * (512 + BLOCK) + 512
}

/// The disks of a report's only target, by source disk.
#[track_caller]
pub fn disks(report: &RunReport) -> &[DiskReport] {
    &only_target(report).disks
}
