//! Makes a recovery point: the one act before which there is none.
//!
//! The live replica gets the point's keys, is snapshotted, and loses them again. The snapshot inherits the keys in the
//! same act that makes it, so a recovery point is either there with all its keys or not there.

use crate::error::{RunError, chain};
use crate::interfaces;
use crate::job::Job;
use crate::keys::{self, Keys, State};
use crate::lane::Lane;
use crate::memory;
use crate::objects::{destroy_disk, make_from, replace_keys, set_keys};
use crate::reconcile::importing_keys;
use crate::replica::{self, StartBlock};
use crate::snapshot::{Taken, TakenDisk};
use crate::view::{Identity, Point, SourceVm};
use crate::vtpm::{self, Vtpm};
use vmferry_xapi::records::{Vdi, Vm};
use vmferry_xapi::{Error, Ref, params};

/// What a commit needs to know about the source.
pub(crate) struct Committing<'a> {
    pub(crate) job: &'a Job,
    pub(crate) identity: &'a Identity,
    pub(crate) source: &'a SourceVm,
    pub(crate) taken: &'a Taken,
}

/// Commits a lane whose disks have all arrived. On failure the last recovery point is as it was, and the next run
/// rolls the live disks back. `vtpms` are those of the source, or why they could not be read.
pub(crate) async fn commit(
    lane: &mut Lane<'_>,
    this: &Committing<'_>,
    vtpms: &Result<Vec<Vtpm>, Error>,
) -> Result<(), RunError> {
    if let Some(lease) = &lane.lease {
        lease.check().await?;
    }
    let session = lane.session.clone();
    let continued = lane.continued().cloned();
    let live = match &continued {
        Some(replica) => {
            replica::refresh(&session, &replica.reference, &replica.record, &this.taken.record).await?;
            let name = replica::replica_name(this.job, &this.source.record);
            if replica.record.name_label != name {
                let () = session.call("VM.set_name_label", params![&replica.reference, name]).await?;
            }
            replica.reference.clone()
        }
        None => create(lane, this).await?,
    };
    let record: Vm = session.get_record(&live).await?;
    replica::copy_bios_strings(&session, &live, &record, &this.taken.record).await?;
    sync_vtpms(lane, vtpms, &live, &record).await;
    let found = continued.as_ref().map_or(&[][..], |replica| &replica.disks);
    let wanted: Vec<_> = this.taken.disks.iter().map(|disk| &disk.of).zip(&lane.landed).collect();
    let detached = replica::attach_disks(&session, &live, found, &wanted).await?;
    replica::sync_interfaces(&session, &live, &record, &lane.interfaces).await?;

    put_keys(lane, this, &live, &record).await?;
    let name = format!(
        "{} - {} {}",
        this.source.record.name_label,
        this.job.name,
        keys::compact_datetime(this.taken.taken_at)
    );
    lane.commit_begun = true;
    let made = match make_from(&session, &live, "snapshot", params![&live, name]).await {
        // It may be there, which is proven by its keys and disks as well as by an answer.
        Err(error) if error.leaves_outcome_open() => made_point(lane, this).await.ok_or(error),
        made => made,
    };
    let point: Ref<Vm> = match made {
        Ok(point) => point,
        Err(error) => {
            // The keys of a point must not wait on the live VM for the next snapshot that somebody takes of it.
            let importing = |keys: &mut Keys| {
                keys.insert(keys::STATE.to_owned(), State::Importing.to_string());
            };
            if let Err(left) = lane.change_live_keys(&live, importing).await {
                tracing::warn!(replica = record.uuid, error = %left, "the replica still carries the keys of a recovery point");
            }
            return Err(error.into());
        }
    };
    let point_uuid: String = session.call("VM.get_uuid", params![&point]).await?;
    set_keys(&session, &point, &[], &[keys::LEASE, keys::SELF]).await?;
    // XAPI makes snapshots templates, and Xen Orchestra neither lists nor prunes replicas that are. Some licences forbid it.
    if let Err(error) = session.call::<()>("VM.set_is_a_template", params![&point, false]).await {
        tracing::warn!(point = point_uuid, %error, "the recovery point is still a template: Xen Orchestra will not list it");
    }

    lane.observe(this.identity).await?;
    let listed = lane.view.points().any(|known| known.uuid == point_uuid);
    if !listed {
        return Err(RunError::Inconsistent {
            what: "recovery point",
            object: point_uuid,
            why: "it does not carry all its disks and keys after the commit; the next run starts from the one before"
                .to_owned(),
        });
    }
    lane.committed = Some((record.uuid.clone(), point_uuid));
    tidy(lane, this.job, this.identity, &live).await?;
    for disk in found.iter().filter(|disk| detached.contains(&disk.vdi)) {
        if disk.record.other_config.get(keys::JOB) == Some(&this.job.ids.job.to_string()) {
            destroy_disk(&session, &disk.vdi).await?;
        }
    }
    Ok(())
}

/// The recovery point that this run asked for, if it is there.
async fn made_point(lane: &mut Lane<'_>, this: &Committing<'_>) -> Option<Ref<Vm>> {
    lane.observe(this.identity).await.ok()?;
    let made = |point: &&Point| point.source_snapshot == this.taken.record.uuid;
    lane.view.points().find(made).map(|point| point.reference.clone())
}

/// Makes the replica VM: a template, which nobody can start, until its start is blocked.
async fn create(lane: &mut Lane<'_>, this: &Committing<'_>) -> Result<Ref<Vm>, RunError> {
    let session = lane.session.clone();
    let mut keys = replica::inherited_keys(&this.taken.record, &this.source.record);
    keys.extend(importing_keys(this.job, this.identity, &lane.sr_record.uuid));
    let name = replica::replica_name(this.job, &this.source.record);
    let record = replica::creation_record(&this.taken.record, &name, &keys);
    let live: Ref<Vm> = session.call("VM.create", params![record]).await?;
    let block = StartBlock::HalfWritten { job: &this.job.name, last_point: None };
    replica::block_start(&session, &live, block).await?;
    let () = session.call("VM.set_is_a_template", params![&live, false]).await?;
    let uuid: String = session.call("VM.get_uuid", params![&live]).await?;
    set_keys(&session, &live, &[(keys::SELF, uuid)], &[]).await?;
    Ok(live)
}

/// A replica without the newest virtual TPM is better than none, so what goes wrong here is told and stops nothing.
async fn sync_vtpms(lane: &mut Lane<'_>, vtpms: &Result<Vec<Vtpm>, Error>, live: &Ref<Vm>, record: &Vm) {
    let error = match vtpms {
        Ok(wanted) => vtpm::sync(&lane.session, live, record, wanted).await.err().map(|error| chain(&error)),
        Err(error) => Some(chain(error)),
    };
    if let Some(error) = error {
        lane.warnings.push(format!(
            "the recovery point does not have the VM's virtual TPM as it is now, so its guest may ask for the recovery key of its disks: {error}"
        ));
    }
}

/// Puts the keys of the recovery point on the live VM and its disks, from where its snapshot inherits them.
async fn put_keys(lane: &Lane<'_>, this: &Committing<'_>, live: &Ref<Vm>, record: &Vm) -> Result<(), RunError> {
    let point = point_keys(this, &lane.sr_record.uuid);
    for (index, (disk, vdi)) in this.taken.disks.iter().zip(&lane.landed).enumerate() {
        let found: Vdi = lane.session.get_record(vdi).await?;
        let mut keys = live_disk_keys(this.job, this.identity, &lane.sr_record.uuid, disk, &found.uuid);
        keys.extend(point.clone());
        keys.insert(keys::XO_COPY_OF.to_owned(), disk.uuid.clone());
        keys.insert(keys::XO_CONTENT_KEY.to_owned(), disk.uuid.clone());
        if let Some(root) = lane.disks.get(index).and_then(|report| report.digest.as_ref()) {
            keys.insert(keys::DIGEST.to_owned(), keys::digest_value(&disk.uuid, root));
        }
        replace_keys(&lane.session, vdi, &keys).await?;
        replica::refresh_disk(&lane.session, vdi, &found, &disk.of.record).await?;
    }
    let state = State::Committed { live: record.uuid.clone(), source_snapshot: this.taken.record.uuid.clone() };
    let mut keys = replica::inherited_keys(&this.taken.record, &this.source.record);
    keys.extend(live_keys(this.job, this.identity, &lane.sr_record.uuid, &record.uuid));
    keys.extend(point);
    keys.insert(keys::STATE.to_owned(), state.to_string());
    keys.insert(keys::XO_COPY_OF.to_owned(), this.taken.record.uuid.clone());
    keys.insert(keys::DISKS.to_owned(), this.taken.disks.len().to_string());
    keys.insert(keys::INTERFACES.to_owned(), interfaces::record_of(&lane.interfaces));
    lane.change_live_keys(live, |found| *found = keys).await
}

/// What only a recovery point carries; it does not stay on the live objects.
const OF_A_POINT: [&str; 11] = [
    keys::XO_DATETIME,
    keys::XO_JOB,
    keys::XO_SCHEDULE,
    keys::XO_VM,
    keys::XO_QCOW2_FIX,
    keys::XO_CONTENT_KEY,
    keys::XO_COPY_OF,
    keys::DIGEST,
    keys::DISKS,
    keys::INTERFACES,
    keys::STATE,
];

/// Takes the recovery point's keys off the live objects again and says that the replica is whole.
pub(crate) async fn tidy(lane: &Lane<'_>, job: &Job, identity: &Identity, live: &Ref<Vm>) -> Result<(), RunError> {
    tidy_disks(lane, job, live).await?;
    let off = |keys: &mut Keys| {
        take_off_point_keys(keys);
        keys.insert(keys::VM.to_owned(), identity.vm.clone());
    };
    lane.change_live_keys(live, off).await?;
    Ok(replica::block_start(&lane.session, live, StartBlock::Standby { job: &job.name }).await?)
}

/// Takes a recovery point's keys, the state among them, off the keys of a live object.
pub(crate) fn take_off_point_keys(keys: &mut Keys) {
    keys.retain(|key, _| !OF_A_POINT.contains(&key.as_str()));
}

/// The same for the live disks.
pub(crate) async fn tidy_disks(lane: &Lane<'_>, job: &Job, live: &Ref<Vm>) -> Result<(), RunError> {
    let session = &lane.session;
    let record: Vm = session.get_record(live).await?;
    for vbd in &record.vbds {
        let vdi: Ref<Vdi> = session.call("VBD.get_VDI", params![vbd]).await?;
        if vdi.is_null() {
            continue;
        }
        let disk: Vdi = session.get_record(&vdi).await?;
        if disk.other_config.get(keys::JOB) == Some(&job.ids.job.to_string()) {
            set_keys(session, &vdi, &[], &OF_A_POINT).await?;
        }
    }
    Ok(())
}

/// The keys that make a snapshot a recovery point, for us and for Xen Orchestra.
pub(crate) fn point_keys(this: &Committing<'_>, sr: &str) -> Keys {
    Keys::from([
        (keys::XO_DATETIME.to_owned(), keys::datetime(this.taken.taken_at)),
        (keys::XO_JOB.to_owned(), this.job.ids.job.to_string()),
        (keys::XO_SCHEDULE.to_owned(), this.job.ids.schedule.to_string()),
        (keys::XO_VM.to_owned(), this.identity.vm.clone()),
        (keys::XO_SR.to_owned(), sr.to_owned()),
        (keys::XO_QCOW2_FIX.to_owned(), "true".to_owned()),
    ])
}

/// The keys that stay on the live replica.
pub(crate) fn live_keys(job: &Job, identity: &Identity, sr: &str, uuid: &str) -> Keys {
    Keys::from([
        (keys::JOB.to_owned(), job.ids.job.to_string()),
        (keys::TENANT.to_owned(), job.tenant.clone()),
        (keys::VM.to_owned(), identity.vm.clone()),
        (keys::SELF.to_owned(), uuid.to_owned()),
        (keys::XO_SR.to_owned(), sr.to_owned()),
    ])
}

/// The keys that stay on a live replica disk.
pub(crate) fn live_disk_keys(job: &Job, identity: &Identity, sr: &str, disk: &TakenDisk, uuid: &str) -> Keys {
    let mut keys = keys::inheritable(&disk.of.record.other_config);
    keys.extend(live_keys(job, identity, sr, uuid));
    keys.insert(keys::DISK.to_owned(), disk.of.record.uuid.clone());
    keys.insert(keys::CONTENT.to_owned(), disk.uuid.clone());
    keys.extend(memory::key_of(&disk.of.record));
    keys
}
