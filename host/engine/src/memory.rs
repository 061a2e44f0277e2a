//! Memory images: what a running VM had in its memory at the moment of its snapshot, kept as one more disk of the recovery point.
//!
//! XAPI calls such a snapshot a checkpoint: it suspends the VM, takes the snapshot, the suspend image among its disks, and resumes it.
//! The image travels whole each time, since its pages lie elsewhere in every one, and lands on a new disk that hangs on the replica,
//! read-only and last. So it is committed, rolled back, pruned and verified as any disk. No guest boots with it attached.

use crate::clone::disks_of;
use crate::error::RunError;
use crate::inventory::AttachedDisk;
use crate::keys::{self, Keys};
use crate::replica::attach_disks;
use crate::view::SourceVm;
use std::collections::BTreeMap;
use vmferry_xapi::records::{Vbd, Vdi, Vm};
use vmferry_xapi::{Error, IntoValue, Ref, Session, Value};

/// Whether a disk is a memory image: the one that a run is about to send, one on a replica, or one of a recovery point.
pub(crate) fn is_image(disk: &Vdi) -> bool {
    disk.other_config.contains_key(keys::MEMORY)
}

/// The image of a checkpoint as one more disk of its VM, and the keys that it has now; `None` where XAPI kept none.
pub(crate) async fn image(
    session: &Session,
    checkpoint: &Vm,
    source: &SourceVm,
) -> Result<Option<(AttachedDisk, Keys)>, Error> {
    let vdi = checkpoint.suspend_vdi.clone();
    if vdi.is_null() {
        return Ok(None);
    }
    let mut record: Vdi = session.get_record(&vdi).await?;
    record.name_label = format!("Memory of {}", source.record.name_label);
    let found = std::mem::replace(&mut record.other_config, Keys::from([(keys::MEMORY.to_owned(), "true".to_owned())]));
    // On the target it is a disk like any other.
    record.raw.insert("type".to_owned(), "user".into_value());
    let vbd_record = attachment(&source.disks);
    Ok(Some((AttachedDisk { vbd: Ref::null(), vbd_record, vdi, record }, found)))
}

/// How an image hangs on a replica: on the last number below 16 that no disk of the source has, which every kind of guest has.
fn attachment(disks: &[AttachedDisk]) -> Vbd {
    let is_free = |number: &u32| disks.iter().all(|disk| disk.vbd_record.userdevice != number.to_string());
    let device = (0..16).rev().chain(16..).find(is_free).unwrap_or_default().to_string();
    let raw = BTreeMap::from([
        ("userdevice".to_owned(), device.as_str().into_value()),
        ("bootable".to_owned(), false.into_value()),
        ("mode".to_owned(), "RO".into_value()),
        ("other_config".to_owned(), Value::Struct(BTreeMap::new())),
        ("qos_algorithm_type".to_owned(), "".into_value()),
        ("qos_algorithm_params".to_owned(), Value::Struct(BTreeMap::new())),
        ("unpluggable".to_owned(), true.into_value()),
    ]);
    Vbd { userdevice: device, raw, ..Vbd::default() }
}

/// Takes the images off a VM that is about to boot. One of a replica is marked as a leftover. Says which came off.
pub(crate) async fn detach(session: &Session, vm: &Ref<Vm>) -> Result<Vec<Ref<Vdi>>, RunError> {
    let found = disks_of(session, &session.get_record(vm).await?).await?;
    let stay: Vec<_> = found.iter().filter(|disk| !is_image(&disk.record)).map(|disk| (disk, &disk.vdi)).collect();
    Ok(attach_disks(session, vm, &found, &stay).await?)
}
