//! The whole of vmferry once between pools that environment variables name: real ones, or simulated ones that show that the
//! suite itself works.
//!
//! It makes a halted VM with two small disks on the source and removes everything that came of it, on both sides, also when it
//! fails. Everything carries one name that nobody else has.

use crate::{MIB, disk_record, record, vbd_record};
use anyhow::{Context as _, bail, ensure};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use uuid::Uuid;
use vmferry_disk::vhd::{BLOCK_SIZE, NewDisk, StreamPart, Writer};
use vmferry_engine::{
    CloneRequest, DoctorRequest, DoctorVerdict, Engine, Fate, GcOptions, Job, NetworkChoice, Policies, RunOptions,
    Silent, Verdict, VerifyOptions,
};
use vmferry_model::plan::Kind;
use vmferry_model::report::{Outcome, RunReport};
use vmferry_store::Store;
use vmferry_xapi::records::{Pool, Sr, Vbd, Vdi, Vm};
use vmferry_xapi::{ApiError, Endpoint, IntoValue, Record, Ref, Session, Trust, Value, params};

/// One of the two pools.
#[derive(Clone)]
pub struct Side {
    endpoint: Endpoint,
    /// uuid; the pool's default SR when absent.
    sr: Option<String>,
}

/// The pools to work between.
#[derive(Clone)]
pub struct Live {
    source: Side,
    target: Side,
}

impl Live {
    /// What the environment asks for; `None` if it names no pool.
    pub fn of(environment: impl Fn(&str) -> Option<String>) -> anyhow::Result<Option<Self>> {
        let side = |name: &str| -> anyhow::Result<Option<Side>> {
            let Some(url) = environment(name) else { return Ok(None) };
            let mut endpoint = Endpoint::parse(&url).with_context(|| name.to_owned())?;
            if let Some(pin) = environment(&format!("{name}_PIN")) {
                let pin = Trust::parse_pin(&pin).with_context(|| format!("{name}_PIN: 64 hexadecimal digits"))?;
                endpoint = endpoint.with_trust(pin);
            }
            Ok(Some(Side { endpoint, sr: environment(&format!("{name}_SR")) }))
        };
        match (side("VMFERRY_LIVE_SOURCE")?, side("VMFERRY_LIVE_TARGET")?) {
            (Some(source), Some(target)) => Ok(Some(Self { source, target })),
            (None, None) => Ok(None),
            _ => bail!("set both VMFERRY_LIVE_SOURCE and VMFERRY_LIVE_TARGET, or none of them"),
        }
    }

    /// Does everything once, tells each step to `tell`, and removes what it made.
    pub async fn run(&self, tell: &(dyn Fn(String) + Sync)) -> anyhow::Result<()> {
        let name = format!("vmferry-live-{}", Uuid::new_v4().simple());
        let source = Session::login(&self.source.endpoint, "vmferry-live").await.context("source")?;
        let target = Session::login(&self.target.endpoint, "vmferry-live").await.context("target")?;
        let worked = self.work(&name, &source, &target, tell).await;
        let mut removed = Ok(());
        for (side, session) in [("source", &source), ("target", &target)] {
            let outcome = remove_everything(session, &name).await;
            removed = removed.and(outcome.with_context(|| format!("something called {name} is left on the {side}")));
            // Not to log out leaves a session that the pool forgets after a day.
            let _ = session.logout().await;
        }
        worked.and(removed)
    }

    async fn work(
        &self,
        name: &str,
        source: &Session,
        target: &Session,
        tell: &(dyn Fn(String) + Sync),
    ) -> anyhow::Result<()> {
        let from = sr_of(source, self.source.sr.as_deref()).await.context("source")?;
        let to = sr_of(target, self.target.sr.as_deref()).await.context("target")?;
        let folder = tempfile::tempdir()?;
        let store = Arc::new(Store::open(folder.path()).await?);
        let pools = [("prod", &self.source), ("dr", &self.target)];
        let endpoints = pools.map(|(pool, side)| (pool.to_owned(), side.endpoint.clone()));
        let engine = Engine::new(BTreeMap::from(endpoints), store, folder.path().join("digests"));
        let worked = async {
            for (pool, sr) in [("prod", &from), ("dr", &to)] {
                doctor(&engine, pool, sr, tell).await?;
            }
            let (vm, disks) = make_vm(source, &from, name).await.context("the scratch VM")?;
            tell(format!("made VM {name} ({vm})"));
            let job = Job { name: name.to_owned(), ..crate::job(&vm, &to.1.uuid) };
            replicate(&engine, &job, &vm, source, &disks, tell).await
        };
        let worked = worked.await;
        engine.close().await;
        worked
    }
}

/// A storage repository and its record.
type Place = (Ref<Sr>, Sr);

async fn sr_of(session: &Session, uuid: Option<&str>) -> anyhow::Result<Place> {
    let sr = match uuid {
        Some(uuid) => session.by_uuid(uuid).await?,
        None => session.get_all_records::<Pool>().await?.into_iter().next().context("no pool")?.1.default_sr,
    };
    let record = session.get_record(&sr).await.context("no SR is named, and the pool has no default one")?;
    Ok((sr, record))
}

async fn doctor(engine: &Engine, pool: &str, sr: &Place, tell: &(dyn Fn(String) + Sync)) -> anyhow::Result<()> {
    let request = DoctorRequest { pool: pool.to_owned(), tenant: "default".to_owned(), sr: Some(sr.1.uuid.clone()) };
    let report = engine.doctor(&request, std::future::pending()).await?;
    for line in &report.lines {
        tell(format!("doctor {pool}: {:?} {:?}: {}", line.verdict, line.probe, line.seen));
    }
    let broken = report.lines.iter().filter(|line| line.needed && line.verdict != DoctorVerdict::Ok).count();
    ensure!(broken == 0, "{broken} things do not work on {pool} that a run needs; see above");
    Ok(())
}

/// A full copy, a delta, a look at every byte, a clone, and a look for garbage.
async fn replicate(
    engine: &Engine,
    job: &Job,
    vm: &str,
    source: &Session,
    disks: &[Ref<Vdi>],
    tell: &(dyn Fn(String) + Sync),
) -> anyhow::Result<()> {
    for (kind, content) in [(Kind::Full, None), (Kind::Delta, Some(0x5a))] {
        if let Some(byte) = content {
            write(source, &disks[0], &[(1, byte)]).await?;
        }
        let report = engine.run(job, &Policies::default(), &RunOptions::default(), Arc::new(Silent)).await;
        assert_run(&report, kind)?;
        tell(format!("run: {}", serde_json::to_string(&report)?));
    }
    let verified = engine.verify(job, &VerifyOptions { only: None, deep: true }, &Silent).await?;
    let intact = verified.replicas.iter().all(|replica| replica.verdict == Verdict::Intact);
    ensure!(intact && verified.replicas.len() == 1, "not intact: {verified:#?}");
    tell("verify --deep: intact".to_owned());
    let request = CloneRequest {
        network: NetworkChoice::None,
        start: false,
        name: Some(format!("{} clone", job.name)),
        ..CloneRequest::newest(vm)
    };
    let clone = engine.clone_point(job, &request).await?;
    ensure!(clone.disks.len() == disks.len(), "the clone has other disks: {clone:#?}");
    tell(format!("failover clone: {}", clone.vm));
    let found = engine.gc(job, &GcOptions { only: None, apply: true }).await?;
    ensure!(found.problems.is_empty() && found.count(Fate::Left) == 0, "gc left something: {found:#?}");
    tell(format!("gc: {} findings", found.findings.len()));
    Ok(())
}

fn assert_run(report: &RunReport, kind: Kind) -> anyhow::Result<()> {
    ensure!(report.outcome == Outcome::Succeeded, "the run did not succeed: {report:#?}");
    let mut disks = report.vms.iter().flat_map(|vm| &vm.targets).flat_map(|target| &target.disks);
    ensure!(disks.all(|disk| disk.kind == kind), "not every disk was a {kind:?}: {report:#?}");
    Ok(())
}

/// A halted VM with two disks that hold something.
async fn make_vm(session: &Session, sr: &Place, name: &str) -> anyhow::Result<(String, Vec<Ref<Vdi>>)> {
    let vm: Ref<Vm> = session.call("VM.create", params![vm_record(name)]).await?;
    let mut disks = Vec::new();
    for (size, blocks) in [(16 * MIB, vec![(0, 1), (5, 2)]), (8 * MIB, vec![(3, 3)])] {
        let mut disk = disk_record(sr.0.as_str(), size);
        if let Value::Struct(members) = &mut disk {
            members.insert("name_label".to_owned(), name.into_value());
        }
        let disk: Ref<Vdi> = session.call_async("VDI.create", params![disk]).await?;
        let _: Ref<Vbd> = session.call("VBD.create", params![vbd_record(vm.as_str(), disk.as_str())]).await?;
        write(session, &disk, &blocks).await?;
        disks.push(disk);
    }
    Ok((session.get_record(&vm).await?.uuid, disks))
}

fn vm_record(name: &str) -> Value {
    let texts = [
        ("name_label", name),
        ("name_description", "made by vmferry's tests, which remove it"),
        ("affinity", "OpaqueRef:NULL"),
        ("actions_after_shutdown", "destroy"),
        ("actions_after_reboot", "restart"),
        ("actions_after_crash", "restart"),
        ("PV_bootloader", ""),
        ("PV_kernel", ""),
        ("PV_ramdisk", ""),
        ("PV_args", ""),
        ("PV_bootloader_args", ""),
        ("PV_legacy_args", ""),
        ("HVM_boot_policy", "BIOS order"),
        ("PCI_bus", ""),
        ("recommendations", ""),
    ];
    let memory = ["memory_static_max", "memory_dynamic_max", "memory_dynamic_min", "memory_static_min"];
    let one = ["user_version", "VCPUs_max", "VCPUs_at_startup"];
    let maps = ["VCPUs_params", "HVM_boot_params", "platform", "other_config"];
    let members = texts.map(|(field, text)| (field, text.into_value())).into_iter();
    let members = members.chain(memory.map(|field| (field, (256 * MIB).into_value())));
    let members = members.chain(one.map(|field| (field, 1_u64.into_value())));
    let members = members.chain(maps.map(|field| (field, Value::Struct(BTreeMap::new()))));
    record(members.chain([("is_a_template", false.into_value())]))
}

/// Fills blocks of 2 MiB of a disk, each with one byte.
async fn write(session: &Session, disk: &Ref<Vdi>, blocks: &[(u32, u8)]) -> anyhow::Result<()> {
    let virtual_size = session.get_record(disk).await?.virtual_size;
    let disk_of = NewDisk { virtual_size, unique_id: Uuid::new_v4(), creator: *b"tap\0", parent: None };
    let numbers: Vec<u32> = blocks.iter().map(|(block, _)| *block).collect();
    let writer = Writer::new(&disk_of, &numbers)?;
    let mut stream = Vec::new();
    for part in writer.parts() {
        match part {
            StreamPart::Bytes(bytes) => stream.extend_from_slice(bytes),
            StreamPart::Disk { offset, length } => {
                let byte = blocks.iter().find(|(block, _)| u64::from(*block) * u64::from(BLOCK_SIZE) == offset);
                stream.resize(stream.len() + length as usize, byte.context("a block that was asked for")?.1);
            }
        }
    }
    let mut import = session.import_vdi(disk, stream.len() as u64, "vmferry: a disk of a test").await?;
    // After a failed write the end of the import tells the reason.
    let _ = import.write_all(&stream).await;
    Ok(import.finish().await?)
}

/// Destroys the VMs and disks that are called so: the name stands in those of snapshots, replicas and clones, too.
async fn remove_everything(session: &Session, name: &str) -> anyhow::Result<()> {
    for (vm, record) in session.get_all_records::<Vm>().await? {
        if record.name_label.contains(name) {
            destroyed(&record, session.call_async("VM.destroy", params![vm]).await)?;
        }
    }
    for (disk, record) in session.get_all_records::<Vdi>().await? {
        if record.managed && record.name_label.contains(name) {
            destroyed(&record, destroy_disk(session, &disk).await)?;
        }
    }
    Ok(())
}

/// A host keeps a disk for a while after a stream that broke, so it is asked again for about half a minute.
async fn destroy_disk(session: &Session, disk: &Ref<Vdi>) -> Result<(), vmferry_xapi::Error> {
    let mut pause = Duration::from_millis(100);
    loop {
        match session.call_async("VDI.destroy", params![disk]).await {
            Err(error) if matches!(error.api(), Some(ApiError::VdiInUse { .. })) && pause < Duration::from_secs(20) => {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            outcome => return outcome,
        }
    }
}

fn destroyed<T: Record + Debug>(record: &T, outcome: Result<(), vmferry_xapi::Error>) -> anyhow::Result<()> {
    outcome.with_context(|| format!("{} {}", T::CLASS, record.uuid()))
}
