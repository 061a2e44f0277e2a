//! Memory images: what a running VM had in its memory at the moment of its snapshot, kept as one more disk of the recovery point.
//!
//! XAPI calls such a snapshot a checkpoint: it suspends the VM, takes the snapshot, the suspend image among its disks, and resumes it.
//! The image travels whole each time, since its pages lie elsewhere in every one, and lands on a new disk that hangs on the replica,
//! read-only and last. So it is committed, rolled back, pruned and verified as any disk. No guest boots with it attached.

use crate::clone::disks_of;
use crate::error::{RunError, chain};
use crate::failover::OPERATION_LIMIT;
use crate::guest;
use crate::inventory::AttachedDisk;
use crate::keys::{self, Keys};
use crate::replica::{self, plugged_disk, plugged_interface};
use crate::view::SourceVm;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vmferry_xapi::records::{PowerState, Vbd, Vdi, Vif, Vm};
use vmferry_xapi::{Error, IntoValue, Ref, Session, Value, params};

/// Most bytes of a key of ours. A call carries 300 KiB, and XAPI copies keys with every disk.
const LARGEST_KEY: usize = 64 << 10;

/// Whether a disk is a memory image: the one that a run is about to send, one on a replica, or one of a recovery point.
pub(crate) fn is_image(disk: &Vdi) -> bool {
    disk.other_config.contains_key(keys::MEMORY)
}

/// What a copy of an image has to say as well; nothing for other disks.
pub(crate) fn key_of(disk: &Vdi) -> Option<(String, String)> {
    disk.other_config.get_key_value(keys::MEMORY).map(|(key, value)| (key.clone(), value.clone()))
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
    let memory = Suspended::of(checkpoint, source).to_key();
    let found = std::mem::replace(&mut record.other_config, Keys::from([(keys::MEMORY.to_owned(), memory)]));
    // On the target it is a disk like any other.
    record.raw.insert("type".to_owned(), "user".into_value());
    let vbd_record = attachment(&source.disks);
    Ok(Some((AttachedDisk { vbd: Ref::null(), vbd_record, vdi, record }, found)))
}

/// What XAPI asks of a VM that is made suspended, beside the image: the value of the image's key.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Suspended {
    /// The record that the VM was started with.
    last_booted_record: String,
    /// The processors that its guest knows.
    last_boot_cpu_flags: BTreeMap<String, String>,
    /// The name of each disk in the guest, by its device number.
    devices: BTreeMap<String, String>,
}

impl Suspended {
    fn of(checkpoint: &Vm, source: &SourceVm) -> Self {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        let flags = checkpoint.raw.get("last_boot_CPU_flags").and_then(Value::as_struct).into_iter().flatten();
        let device =
            |disk: &AttachedDisk| (disk.vbd_record.userdevice.clone(), text(disk.vbd_record.raw.get("device")));
        Self {
            last_booted_record: text(checkpoint.raw.get("last_booted_record")),
            last_boot_cpu_flags: flags.map(|(name, value)| (name.clone(), text(Some(value)))).collect(),
            devices: source.disks.iter().map(device).collect(),
        }
    }

    fn to_key(&self) -> String {
        let all = serde_json::to_string(self).unwrap_or_default();
        if all.len() <= LARGEST_KEY { all } else { "{}".to_owned() }
    }

    /// What an image says of its VM; `None` if that is not enough to resume it.
    fn from_key(image: &Vdi) -> Option<Self> {
        let read: Self = serde_json::from_str(image.other_config.get(keys::MEMORY)?).ok()?;
        (!read.last_booted_record.is_empty() && !read.last_boot_cpu_flags.is_empty()).then_some(read)
    }
}

/// Makes a suspended VM of a halted one with the same disks and interfaces, and resumes it from this image. The halted one is gone
/// afterwards; where the pool does not take the other, it is as before, and so is the image.
pub(crate) async fn resume(
    session: &Session,
    halted: &Ref<Vm>,
    image: &AttachedDisk,
    warnings: &mut Vec<String>,
) -> Result<Ref<Vm>, RunError> {
    let refused = |why: &str| RunError::Obstacles(vec![why.to_owned()]);
    let known = Suspended::from_key(&image.record).ok_or_else(|| {
        refused("the recovery point does not say with which record and processors its VM was started")
    })?;
    let record: Vm = session.get_record(halted).await?;
    if matches!(record.raw.get("VTPMs"), Some(Value::Array(found)) if !found.is_empty()) {
        return Err(refused("it has a virtual TPM, and XAPI gives none to a VM that is suspended"));
    }
    let mut wanted = replica::creation_record(&record, &record.name_label, &record.other_config);
    if let Value::Struct(fields) = &mut wanted {
        let suspended = [
            ("is_a_template", false.into_value()),
            ("power_state", "Suspended".into_value()),
            ("suspend_VDI", image.vdi.clone().into_value()),
            ("last_booted_record", known.last_booted_record.as_str().into_value()),
            ("last_boot_CPU_flags", known.last_boot_cpu_flags.clone().into_value()),
        ];
        fields.extend(suspended.map(|(field, value)| (field.to_owned(), value)));
    }
    let made: Ref<Vm> = session.call("VM.create", params![wanted]).await?;
    if let Err(error) = wake(session, &made, &record, &known).await {
        // It may run although nobody said so.
        if guest::settled(session, &made, OPERATION_LIMIT).await?.power_state != PowerState::Running {
            let () = session.call_async("VM.destroy", params![&made]).await?;
            return Err(error);
        }
    }
    if let Err(error) = session.call_async::<()>("VM.destroy", params![halted]).await {
        warnings.push(format!(
            "VM {} has the same disks as the one that was resumed, and could not be removed; do so with `xe vm-destroy`: {}",
            record.uuid,
            chain(&error)
        ));
    }
    Ok(made)
}

/// Gives a suspended VM the devices of a halted one, as they were when its memory was kept, and resumes it.
async fn wake(session: &Session, vm: &Ref<Vm>, halted: &Vm, known: &Suspended) -> Result<(), RunError> {
    replica::copy_bios_strings(session, vm, &Vm::default(), halted).await?;
    for disk in disks_of(session, halted).await? {
        let device = known.devices.get(&disk.vbd_record.userdevice).map_or("", String::as_str);
        let _: Ref<Vbd> = session.call("VBD.create", params![plugged_disk(vm, &disk, device)]).await?;
    }
    for vif in &halted.vifs {
        let vif: Vif = session.get_record(vif).await?;
        let _: Ref<Vif> = session.call("VIF.create", params![plugged_interface(vm, &vif)]).await?;
    }
    Ok(session.call_async("VM.resume", params![vm, false, false]).await?)
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

/// Takes the image off a VM that is about to boot, and says what it was. One of a replica is marked as a leftover.
pub(crate) async fn detach(session: &Session, vm: &Ref<Vm>) -> Result<Option<AttachedDisk>, RunError> {
    let found = disks_of(session, &session.get_record(vm).await?).await?;
    let stay: Vec<_> = found.iter().filter(|disk| !is_image(&disk.record)).map(|disk| (disk, &disk.vdi)).collect();
    replica::attach_disks(session, vm, &found, &stay).await?;
    Ok(found.into_iter().find(|disk| is_image(&disk.record)))
}
