//! Snapshots, on either side: taken on the source, and destroyed so that a crash in between leaves nothing unowned.

use crate::error::{RunError, chain};
use crate::inventory::{AttachedDisk, Inventory};
use crate::job::{Job, SnapshotMode};
use crate::keys::{self, Keys, State};
use crate::memory;
use crate::objects::{destroy_disk, make_from, replace_keys, set_keys};
use crate::view::{SourceSnapshot, SourceVm, TEMPORARY_SNAPSHOT};
use jiff::Timestamp;
use std::time::Duration;
use uuid::Uuid;
use vmferry_xapi::records::{PowerState, Vbd, Vdi, Vm};
use vmferry_xapi::{ApiError, Error, IntoValue, Ref, Session, Value, params};

const ONE_SECOND: Duration = Duration::from_secs(1);

/// A snapshot that this run took.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    pub(crate) reference: Ref<Vm>,
    pub(crate) record: Vm,
    pub(crate) taken_at: Timestamp,
    /// One per replicated disk, in the order of the source's disks; the VM's memory last, where it was kept.
    pub(crate) disks: Vec<TakenDisk>,
}

impl Taken {
    /// The image of the VM's memory, if it was kept.
    pub(crate) fn memory(&self) -> impl Iterator<Item = &TakenDisk> {
        self.disks.iter().filter(|disk| memory::is_image(&disk.of.record))
    }
}

/// A disk of the snapshot that this run took.
#[derive(Clone, Debug)]
pub(crate) struct TakenDisk {
    /// The live disk.
    pub(crate) of: AttachedDisk,
    pub(crate) vdi: Ref<Vdi>,
    /// Its uuid: the content key of what will be sent.
    pub(crate) uuid: String,
    /// Whether it knows what changed since the snapshot before.
    pub(crate) cbt_enabled: bool,
    /// The keys that it inherited.
    inherited: Keys,
}

impl TakenDisk {
    /// A disk of which a copy on media is all that is known.
    pub(crate) fn on_media(of: AttachedDisk, uuid: String) -> Self {
        Self::found(of, Ref::null(), uuid)
    }

    /// A disk that holds what a snapshot's disk held once.
    pub(crate) fn found(of: AttachedDisk, vdi: Ref<Vdi>, uuid: String) -> Self {
        Self { of, vdi, uuid, cbt_enabled: false, inherited: Keys::new() }
    }
}

/// Takes a snapshot of the VM, tags it as Xen Orchestra would, and gives it its name.
///
/// Recovery points are ordered by their date, which XAPI gives in whole seconds and which goes back when somebody sets a
/// clock back. So the date is never earlier than one second after `newest`, the newest one known.
pub(crate) async fn take(
    session: &Session,
    source: &SourceVm,
    job: &Job,
    mode: SnapshotMode,
    newest: Option<Timestamp>,
) -> Result<Taken, RunError> {
    let runs = source.record.power_state == PowerState::Running;
    let checkpoint = if mode == SnapshotMode::Memory && runs { checkpoint(session, source).await? } else { None };
    let reference = match checkpoint {
        Some(checkpoint) => checkpoint,
        None => {
            let ignored: Vec<Value> = source.ignored.iter().map(|disk| disk.vdi.clone().into_value()).collect();
            let mut arguments = params![&source.reference, TEMPORARY_SNAPSHOT];
            if !ignored.is_empty() {
                arguments.push(Value::Array(ignored));
            }
            make_from(session, &source.reference, "snapshot", arguments).await?
        }
    };
    match tag(session, source, job, newest, &reference).await {
        Ok(taken) => Ok(taken),
        Err(error) => {
            if let Err(left) = destroy(session, &reference).await {
                tracing::warn!(snapshot = %reference, error = %left, "snapshot could not be removed; the next run will");
            }
            Err(error)
        }
    }
}

/// A snapshot with the VM's memory; `None` if the VM does not run any more, so that it has none. XAPI snapshots the disks that are
/// not replicated as well: they go with the snapshot.
async fn checkpoint(session: &Session, source: &SourceVm) -> Result<Option<Ref<Vm>>, RunError> {
    let arguments = params![&source.reference, TEMPORARY_SNAPSHOT];
    match make_from(session, &source.reference, "checkpoint", arguments).await {
        Ok(checkpoint) => Ok(Some(checkpoint)),
        Err(Error::Api(ApiError::VmBadPowerState { .. })) => Ok(None),
        Err(error @ Error::Api(_)) if !error.leaves_outcome_open() => Err(RunError::Obstacles(vec![format!(
            "the VM's memory could not be kept: {}; see that its guest can be suspended (`xe vm-suspend`) and that the pool has a suspend \
             SR with room for its memory, or take snapshots of its disks alone (`snapshot = \"disks\"`, no tag `xo-memory-backup`)",
            chain(&error)
        )])),
        Err(error) => Err(error.into()),
    }
}

async fn tag(
    session: &Session,
    source: &SourceVm,
    job: &Job,
    newest: Option<Timestamp>,
    reference: &Ref<Vm>,
) -> Result<Taken, RunError> {
    let mut taken = read(session, source, reference).await?;
    if let Some((of, inherited)) = memory::image(session, &taken.record, source).await? {
        let (vdi, uuid) = (of.vdi.clone(), of.record.uuid.clone());
        taken.disks.push(TakenDisk { of, vdi, uuid, cbt_enabled: false, inherited });
    }
    taken.taken_at = newest.map_or(taken.taken_at, |newest| taken.taken_at.max(newest + ONE_SECOND));
    put_keys(session, source, job, &taken, None).await?;
    Ok(taken)
}

/// Reads a snapshot that has every replicated disk of its VM; its date is that of the pool.
pub(crate) async fn read(session: &Session, source: &SourceVm, reference: &Ref<Vm>) -> Result<Taken, RunError> {
    let mut record: Vm = session.get_record(reference).await?;
    give_back(&mut record, &source.record);
    let mut disks = Vec::with_capacity(source.disks.len());
    for vbd in &record.vbds {
        let vbd: Vbd = session.get_record(vbd).await?;
        if vbd.empty || vbd.vdi.is_null() {
            continue;
        }
        let vdi: Vdi = session.get_record(&vbd.vdi).await?;
        if let Some(of) = source.disks.iter().find(|disk| disk.vdi == vdi.snapshot_of) {
            let mut of = of.clone();
            // The disk may have grown since it was looked at.
            of.record.virtual_size = vdi.virtual_size;
            let (uuid, cbt_enabled) = (vdi.uuid, vdi.cbt_enabled);
            disks.push(TakenDisk { of, vdi: vbd.vdi.clone(), uuid, cbt_enabled, inherited: vdi.other_config });
        }
    }
    disks.sort_by_key(|disk| source.disks.iter().position(|of| of.vdi == disk.of.vdi));
    if disks.len() != source.disks.len() {
        return Err(RunError::Inconsistent {
            what: "snapshot of VM",
            object: source.record.uuid.clone(),
            why: format!(
                "it has {} of {} disks; was a disk attached or removed just now? The next run will see it",
                disks.len(),
                source.disks.len()
            ),
        });
    }
    let taken_at = record.snapshot_time;
    Ok(Taken { reference: reference.clone(), record, taken_at, disks })
}

/// XAPI takes from a snapshot what says how and when its VM starts; a replica has it from the VM.
fn give_back(snapshot: &mut Vm, vm: &Vm) {
    for field in ["order", "start_delay", "shutdown_delay"] {
        if let Some(value) = vm.raw.get(field) {
            snapshot.raw.insert(field.to_owned(), value.clone());
        }
    }
    snapshot.ha_restart_priority.clone_from(&vm.ha_restart_priority);
}

/// Makes a snapshot the job's own, by its keys and its name; where media carry it, one says so.
pub(crate) async fn put_keys(
    session: &Session,
    source: &SourceVm,
    job: &Job,
    taken: &Taken,
    seed: Option<Uuid>,
) -> Result<(), RunError> {
    let keys = source_keys(job, &source.record.uuid, taken.taken_at);
    for disk in &taken.disks {
        let mut own = own_keys(&disk.inherited, &keys, &disk.uuid);
        own.insert(keys::XO_CONTENT_KEY.to_owned(), disk.uuid.clone());
        replace_keys(session, &disk.vdi, &own).await?;
    }
    let mut own = own_keys(&taken.record.other_config, &keys, &taken.record.uuid);
    own.extend(seed.map(|media| (keys::SEED.to_owned(), media.to_string())));
    replace_keys(session, &taken.reference, &own).await?;
    let name = format!("[vmferry {}] {}", job.name, source.record.name_label);
    Ok(session.call("VM.set_name_label", params![&taken.reference, name]).await?)
}

/// The keys of a source snapshot whose transfer has not been confirmed yet.
fn source_keys(job: &Job, vm: &str, taken_at: Timestamp) -> Vec<(&'static str, String)> {
    vec![
        (keys::XO_DATETIME, keys::datetime(taken_at)),
        (keys::XO_JOB, job.ids.job.to_string()),
        (keys::XO_SCHEDULE, job.ids.schedule.to_string()),
        (keys::XO_VM, vm.to_owned()),
        (keys::XO_QCOW2_FIX, "true".to_owned()),
        (keys::JOB, job.ids.job.to_string()),
        (keys::TENANT, job.tenant.clone()),
        (keys::VM, vm.to_owned()),
    ]
}

/// The keys of a snapshot: what it inherited from its owner, without replication's. A VM that was reverted to one of our
/// snapshots carries that one's keys, and would hand them to every later one.
fn own_keys(inherited: &Keys, ours: &[(&'static str, String)], uuid: &str) -> Keys {
    let mut keys = keys::inheritable(inherited);
    keys.extend(ours.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    keys.insert(keys::SELF.to_owned(), uuid.to_owned());
    keys
}

/// Marks a snapshot as exported to `srs`, on the VM and its disks, with the number of deltas since the last full.
pub(crate) async fn mark_exported(
    session: &Session,
    snapshot: &Ref<Vm>,
    disks: &[Ref<Vdi>],
    srs: &[String],
    delta_chain_length: Option<u64>,
) -> Result<(), RunError> {
    let mut keys = vec![(keys::XO_EXPORTED, "true".to_owned())];
    keys.extend(delta_chain_length.map(|length| (keys::XO_DELTA_CHAIN_LENGTH, length.to_string())));
    for disk in disks {
        set_keys(session, disk, &keys, &[]).await?;
    }
    // Last, because a snapshot without it is taken for one that never arrived.
    keys.push((keys::EXPORTED_TO, srs.join(" ")));
    Ok(set_keys(session, snapshot, &keys, &[]).await?)
}

/// The source snapshots of a job that are nobody's base: not the newest one that some target of the job holds, on whichever of
/// its SRs (`targets` has those of each).
/// A target that failed or could not be reached keeps its snapshot, and so does one that media may still be on their way to. Of those
/// that are `unresolved` nobody knows yet whether they hold what they were last offered.
pub(crate) fn superfluous<'a>(
    snapshots: &'a [SourceSnapshot],
    targets: &[&[String]],
    unresolved: &[&[String]],
) -> Vec<&'a SourceSnapshot> {
    let on = |snapshot: &SourceSnapshot, srs: &[String]| snapshot.exported_to.iter().any(|sr| srs.contains(sr));
    let base_of = |srs: &&[String]| {
        snapshots.iter().filter(|snapshot| on(snapshot, srs)).max_by_key(|s| s.taken_at).map(|s| &s.uuid)
    };
    let bases: Vec<&String> = targets.iter().filter_map(base_of).collect();
    let has_newer = |srs: &[String], than: Timestamp| snapshots.iter().any(|s| s.taken_at >= than && on(s, srs));
    let on_its_way = |snapshot: &SourceSnapshot| {
        snapshot.seed.is_some() && !targets.iter().all(|srs| has_newer(srs, snapshot.taken_at))
    };
    let may_be_held = |snapshot: &SourceSnapshot| {
        let offered = |srs: &[String]| snapshot.offered_to.iter().any(|sr| srs.contains(sr));
        unresolved.iter().any(|srs| offered(srs) && !has_newer(srs, snapshot.taken_at))
    };
    let superfluous = |snapshot: &&SourceSnapshot| {
        !bases.contains(&&snapshot.uuid) && !on_its_way(snapshot) && !may_be_held(snapshot)
    };
    snapshots.iter().filter(superfluous).collect()
}

/// Destroys a snapshot VM and its disks. Both are marked first: what a crash leaves is finished by the next run.
/// Disks that hang on another VM as well are left alone.
pub(crate) async fn destroy(session: &Session, snapshot: &Ref<Vm>) -> Result<(), RunError> {
    let record: Vm = match session.get_record(snapshot).await {
        Err(Error::Api(ApiError::HandleInvalid { .. })) => return Ok(()),
        other => other?,
    };
    if let Some(text) = record.blocked_operations.get("destroy") {
        return Err(RunError::DestroyBlocked { snapshot: record.uuid, text: text.clone() });
    }
    let mut disks = Vec::new();
    for vbd in &record.vbds {
        let vbd: Vbd = session.get_record(vbd).await?;
        if vbd.vdi.is_null() {
            continue;
        }
        let disk: Vdi = session.get_record(&vbd.vdi).await?;
        if disk.is_a_snapshot && !hangs_elsewhere(session, &disk, snapshot).await? {
            disks.push((vbd.vdi.clone(), disk.uuid));
        }
    }
    if !record.suspend_vdi.is_null() {
        match session.get_record::<Vdi>(&record.suspend_vdi).await {
            // Somebody destroyed the image, which no snapshot keeps from it.
            Err(Error::Api(ApiError::HandleInvalid { .. })) => {}
            image => disks.push((record.suspend_vdi.clone(), image?.uuid)),
        }
    }
    let mark = |uuid: &str| [(keys::STATE, State::Pruning { object: uuid.to_owned() }.to_string())];
    set_keys(session, snapshot, &mark(&record.uuid), &[]).await?;
    for (disk, uuid) in &disks {
        set_keys(session, disk, &mark(uuid), &[]).await?;
    }
    let () = session.call_async("VM.destroy", params![snapshot]).await?;
    for (disk, _) in &disks {
        destroy_disk(session, disk).await?;
    }
    Ok(())
}

/// Whether a disk hangs on another VM than this one, control domains left out.
pub(crate) async fn hangs_elsewhere(session: &Session, disk: &Vdi, snapshot: &Ref<Vm>) -> Result<bool, Error> {
    for vbd in &disk.vbds {
        let vbd: Vbd = session.get_record(vbd).await?;
        let user: Vm = session.get_record(&vbd.vm).await?;
        if vbd.vm != *snapshot && !user.is_control_domain {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The number of deltas since the last full that the snapshot `uuid` records.
pub(crate) fn delta_chain_length(inventory: &Inventory, base_disk: &str) -> Option<u64> {
    let disk = inventory.vdis.values().find(|vdi| vdi.uuid == base_disk)?;
    disk.other_config.get(keys::XO_DELTA_CHAIN_LENGTH)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_goes_only_when_it_is_nobodys_base() {
        let snapshot = |second: i64, exported_to: &[&str]| SourceSnapshot {
            reference: Ref::new(second.to_string()),
            uuid: second.to_string(),
            taken_at: Timestamp::from_second(second).unwrap(),
            exported_to: exported_to.iter().map(|sr| (*sr).to_owned()).collect(),
            offered_to: Vec::new(),
            seed: None,
        };
        let snapshots = [snapshot(1, &["a", "b"]), snapshot(2, &["b"]), snapshot(3, &["a"]), snapshot(4, &["gone"])];
        let kept = |targets: &[&[&str]]| {
            let targets: Vec<Vec<String>> =
                targets.iter().map(|srs| srs.iter().map(|sr| (*sr).to_owned()).collect()).collect();
            let targets: Vec<&[String]> = targets.iter().map(Vec::as_slice).collect();
            let drop: Vec<&str> = superfluous(&snapshots, &targets, &[]).iter().map(|s| s.uuid.as_str()).collect();
            snapshots.iter().map(|s| s.uuid.as_str()).filter(|uuid| !drop.contains(uuid)).collect::<Vec<_>>()
        };
        assert_eq!(kept(&[&["a"], &["b"]]), ["2", "3"]);
        assert_eq!(kept(&[&["a"]]), ["3"]);
        assert_eq!(kept(&[&["a"], &["never reached"]]), ["3"]);
        assert_eq!(kept(&[&["a", "b"]]), ["3"], "one target with two SRs has one base");
        assert_eq!(kept(&[]), Vec::<&str>::new());
    }

    #[test]
    fn a_snapshot_on_media_stays_until_every_target_holds_something_as_new() {
        let snapshot = |second: i64, exported_to: &[&str], seed: bool| SourceSnapshot {
            reference: Ref::new(second.to_string()),
            uuid: second.to_string(),
            taken_at: Timestamp::from_second(second).unwrap(),
            exported_to: exported_to.iter().map(|sr| (*sr).to_owned()).collect(),
            offered_to: Vec::new(),
            seed: seed.then(|| "media".to_owned()),
        };
        let dropped = |snapshots: &[SourceSnapshot], targets: &[&str]| {
            let targets: Vec<[String; 1]> = targets.iter().map(|sr| [(*sr).to_owned()]).collect();
            let targets: Vec<&[String]> = targets.iter().map(|srs| srs.as_slice()).collect();
            superfluous(snapshots, &targets, &[]).iter().map(|s| s.uuid.clone()).collect::<Vec<_>>()
        };
        let on_its_way = [snapshot(1, &["a"], false), snapshot(2, &[], true), snapshot(3, &["a"], false)];
        assert_eq!(dropped(&on_its_way, &["a", "b"]), ["1"]);
        assert_eq!(dropped(&on_its_way, &["a"]), ["1", "2"]);
        let arrived_at_one = [snapshot(2, &["a"], true), snapshot(3, &["a"], false)];
        assert_eq!(dropped(&arrived_at_one, &["a", "b"]), Vec::<String>::new());
        assert_eq!(dropped(&[snapshot(2, &["a", "b"], true), snapshot(3, &["a", "b"], false)], &["a", "b"]), ["2"]);
    }
}
