//! Storage repositories, their connections, disks and drives.

use super::*;

record!(Sr, "SR");
record!(Pbd, "PBD");
record!(Vdi, "VDI");
record!(Vbd, "VBD");

/// A storage repository.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(remote = "Self", default)]
pub struct Sr {
    /// Its uuid.
    pub uuid: String,
    /// Its name.
    pub name_label: String,
    /// Its description.
    pub name_description: String,
    /// Its driver, such as `lvm`, `nfs`, `ext`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `user` for disks, `iso` for images of discs.
    pub content_type: String,
    /// Whether all hosts of the pool see it.
    pub shared: bool,
    /// Its size in bytes; 0 if its driver cannot tell. As fresh as the last scan.
    #[serde(deserialize_with = "decode::bytes")]
    pub physical_size: u64,
    /// Bytes in use; as fresh as the last scan.
    #[serde(deserialize_with = "decode::bytes")]
    pub physical_utilisation: u64,
    /// Bytes promised to disks.
    #[serde(deserialize_with = "decode::bytes")]
    pub virtual_allocation: u64,
    /// Its connections to hosts.
    #[serde(rename = "PBDs")]
    pub pbds: Vec<Ref<Pbd>>,
    /// Its disks, base copies included.
    #[serde(rename = "VDIs")]
    pub vdis: Vec<Ref<Vdi>>,
    /// Settings of its driver.
    pub sm_config: StringMap,
    /// Keys of clients.
    pub other_config: StringMap,
    /// Operations under way: task to operation.
    pub current_operations: StringMap,
    /// Labels.
    pub tags: Vec<String>,
    /// The whole record.
    #[serde(skip)]
    pub raw: BTreeMap<String, Value>,
}

impl Sr {
    /// Bytes that are free, as of the last scan.
    pub fn free(&self) -> u64 {
        self.physical_size.saturating_sub(self.physical_utilisation)
    }
}

/// The connection of a host to a storage repository.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(remote = "Self", default)]
pub struct Pbd {
    /// Its uuid.
    pub uuid: String,
    /// The host.
    pub host: Ref<Host>,
    /// The storage repository.
    #[serde(rename = "SR")]
    pub sr: Ref<Sr>,
    /// Whether it is in place.
    pub currently_attached: bool,
    /// How the host reaches the storage; may hold credentials of the storage.
    pub device_config: StringMap,
    /// Keys of clients.
    pub other_config: StringMap,
    /// The whole record.
    #[serde(skip)]
    pub raw: BTreeMap<String, Value>,
}

wire_enum! {
    /// What a disk is for.
    VdiType {
        /// A VM's disk. XAPI makes nothing of the difference to `system`.
        User = "user",
        /// A VM's disk.
        System = "system",
        /// Lost at the end of the VM.
        Ephemeral = "ephemeral",
        /// The memory of a suspended VM.
        Suspend = "suspend",
        /// A crash dump.
        Crashdump = "crashdump",
        /// State of high availability.
        HaStatefile = "ha_statefile",
        /// A copy of the pool's database.
        Metadata = "metadata",
        /// The log of the pool's database.
        RedoLog = "redo_log",
        /// Statistics.
        Rrd = "rrd",
        /// A cache.
        PvsCache = "pvs_cache",
        /// What is left of a disk whose data was destroyed: only its changed blocks are known.
        CbtMetadata = "cbt_metadata",
    }
}

wire_enum! {
    /// What happens to a disk when its VM starts.
    OnBoot {
        /// It stays as it is.
        Persist = "persist",
        /// It is reset; no snapshot of it is possible.
        Reset = "reset",
    }
}

/// A virtual disk, a snapshot of one, or a base copy (`managed` false).
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(remote = "Self", default)]
pub struct Vdi {
    /// Its uuid.
    pub uuid: String,
    /// Its name; `base copy` for what snapshots share.
    pub name_label: String,
    /// Its description.
    pub name_description: String,
    /// Where it is.
    #[serde(rename = "SR")]
    pub sr: Ref<Sr>,
    /// The drives that use it. A transfer makes one in the host's own domain for its time.
    #[serde(rename = "VBDs")]
    pub vbds: Vec<Ref<Vbd>>,
    /// Its size in bytes, which may be larger than asked for: drivers round up.
    #[serde(deserialize_with = "decode::bytes")]
    pub virtual_size: u64,
    /// Bytes on the storage for this node alone, not its parents; as fresh as the last scan.
    #[serde(deserialize_with = "decode::bytes")]
    pub physical_utilisation: u64,
    /// What it is for.
    #[serde(rename = "type")]
    pub kind: VdiType,
    /// Whether several VMs may write it; then it has no snapshots.
    pub sharable: bool,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// Keys of clients. Snapshots and clones inherit them.
    pub other_config: StringMap,
    /// Keys of the driver, such as `vhd-parent`.
    pub sm_config: StringMap,
    /// Keys its domain sees in xenstore.
    pub xenstore_data: StringMap,
    /// Whether it is a disk for users; a base copy is not.
    pub managed: bool,
    /// Whether the storage has lost it.
    pub missing: bool,
    /// Whether it is a snapshot.
    pub is_a_snapshot: bool,
    /// The disk this is a snapshot of; dangling once that is gone.
    pub snapshot_of: Ref<Self>,
    /// When the snapshot was taken; the epoch if it is none.
    pub snapshot_time: Timestamp,
    /// Its snapshots.
    pub snapshots: Vec<Ref<Self>>,
    /// Labels.
    pub tags: Vec<String>,
    /// Whether changed blocks are tracked.
    pub cbt_enabled: bool,
    /// What happens at the start of its VM.
    pub on_boot: OnBoot,
    /// Operations under way: task to operation.
    pub current_operations: StringMap,
    /// Its name on the storage.
    pub location: String,
    /// The whole record.
    #[serde(skip)]
    pub raw: BTreeMap<String, Value>,
}

wire_enum! {
    /// How a drive may use its disk.
    VbdMode {
        /// Read and write.
        ReadWrite = "RW",
        /// Read.
        ReadOnly = "RO",
    }
}

wire_enum! {
    /// What a drive is.
    VbdType {
        /// A disk.
        Disk = "Disk",
        /// A CD or DVD drive.
        Cd = "CD",
        /// A floppy drive.
        Floppy = "Floppy",
    }
}

/// A drive: the connection of a VM to a disk.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(remote = "Self", default)]
pub struct Vbd {
    /// Its uuid.
    pub uuid: String,
    /// The VM.
    #[serde(rename = "VM")]
    pub vm: Ref<Vm>,
    /// The disk; null for an empty drive.
    #[serde(rename = "VDI")]
    pub vdi: Ref<Vdi>,
    /// What the VM calls it, such as `xvda`; empty while it does not run.
    pub device: String,
    /// Its position, as digits.
    pub userdevice: String,
    /// Whether the VM may boot from it.
    pub bootable: bool,
    /// Whether it may be written.
    pub mode: VbdMode,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: VbdType,
    /// Whether it can be unplugged from a running VM.
    pub unpluggable: bool,
    /// Whether it has no disk in it.
    pub empty: bool,
    /// Keys of clients.
    pub other_config: StringMap,
    /// Whether the disk is attached now.
    pub currently_attached: bool,
    /// The kind of throttling, if any.
    pub qos_algorithm_type: String,
    /// Settings of the throttling.
    pub qos_algorithm_params: StringMap,
    /// The whole record.
    #[serde(skip)]
    pub raw: BTreeMap<String, Value>,
}
