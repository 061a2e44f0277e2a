//! Pool, host, VM and task.

use super::*;

record!(Pool, "pool");
record!(Host, "host");
record!(Vm, "VM");
record!(VmGuestMetrics, "VM_guest_metrics");
record!(Task, "task");

/// The pool. Each has exactly one record of it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(remote = "Self", default)]
pub struct Pool {
    /// Its uuid.
    pub uuid: String,
    /// Its name; empty for a pool of one host that nobody named.
    pub name_label: String,
    /// Its description.
    pub name_description: String,
    /// The host that answers calls.
    pub master: Ref<Host>,
    /// Where disks go if nobody says; may be null or dangling.
    #[serde(rename = "default_SR")]
    pub default_sr: Ref<Sr>,
    /// Keys of clients.
    pub other_config: StringMap,
    /// Whether high availability is on.
    pub ha_enabled: bool,
    /// Labels.
    pub tags: Vec<String>,
    /// The whole record.
    #[serde(skip)]
    pub raw: BTreeMap<String, Value>,
}

/// A host of a pool.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(remote = "Self", default)]
pub struct Host {
    /// Its uuid.
    pub uuid: String,
    /// Its name.
    pub name_label: String,
    /// Its DNS name.
    pub hostname: String,
    /// The address of its management interface.
    pub address: String,
    /// Versions by name, such as `product_brand`, `product_version`, `xapi_build`.
    pub software_version: StringMap,
    /// Whether VMs may start on it; off in maintenance mode.
    pub enabled: bool,
    /// Licence restrictions, such as `restrict_cbt`.
    pub license_params: StringMap,
    /// Keys of clients.
    pub other_config: StringMap,
    /// Its connections to storage repositories.
    #[serde(rename = "PBDs")]
    pub pbds: Vec<Ref<Pbd>>,
    /// Its network interfaces.
    #[serde(rename = "PIFs")]
    pub pifs: Vec<Ref<Pif>>,
    /// The whole record.
    #[serde(skip)]
    pub raw: BTreeMap<String, Value>,
}

wire_enum! {
    /// Power state of a VM.
    PowerState {
        /// Off.
        Halted = "Halted",
        /// Its processors stand still, its memory is in place.
        Paused = "Paused",
        /// On.
        Running = "Running",
        /// Its memory is on a disk.
        Suspended = "Suspended",
    }
}

wire_enum! {
    /// How a VM is virtualised.
    DomainType {
        /// Not told; the host derives it.
        Unspecified = "unspecified",
        /// Hardware virtualisation.
        Hvm = "hvm",
        /// Paravirtualisation.
        Pv = "pv",
        /// Paravirtualisation inside a hardware container.
        PvInPvh = "pv_in_pvh",
        /// Paravirtualisation on hardware.
        Pvh = "pvh",
    }
}

/// A VM, a template or a snapshot of a VM: XAPI has one class for the three.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(remote = "Self", default)]
pub struct Vm {
    /// Its uuid.
    pub uuid: String,
    /// Its name.
    pub name_label: String,
    /// Its description.
    pub name_description: String,
    /// Whether it runs. A snapshot is halted.
    pub power_state: PowerState,
    /// Whether it is a template; a snapshot is one, too.
    pub is_a_template: bool,
    /// Whether it is a template that came with the host.
    pub is_default_template: bool,
    /// Whether it is a snapshot.
    pub is_a_snapshot: bool,
    /// Whether it is the host's own domain.
    pub is_control_domain: bool,
    /// The VM this is a snapshot of; may be dangling.
    pub snapshot_of: Ref<Self>,
    /// When the snapshot was taken; the epoch if it is none.
    pub snapshot_time: Timestamp,
    /// What was true at the snapshot, such as `power-state-at-snapshot`.
    pub snapshot_info: StringMap,
    /// Its snapshots.
    pub snapshots: Vec<Ref<Self>>,
    /// The snapshot it was made from, or the one before it.
    pub parent: Ref<Self>,
    /// Snapshots and VMs that follow it.
    pub children: Vec<Ref<Self>>,
    /// Keys of clients. Snapshots and clones inherit them.
    pub other_config: StringMap,
    /// Operations that are refused, with the text given as the reason. Snapshots do not inherit them.
    pub blocked_operations: StringMap,
    /// Operations under way: task to operation.
    pub current_operations: StringMap,
    /// Operations that are possible now.
    pub allowed_operations: Vec<String>,
    /// Labels.
    pub tags: Vec<String>,
    /// Its drives.
    #[serde(rename = "VBDs")]
    pub vbds: Vec<Ref<Vbd>>,
    /// Its network interfaces.
    #[serde(rename = "VIFs")]
    pub vifs: Vec<Ref<Vif>>,
    /// The host it runs on.
    pub resident_on: Ref<Host>,
    /// The host it would like to run on.
    pub affinity: Ref<Host>,
    /// What its agent tells; null without one.
    pub guest_metrics: Ref<VmGuestMetrics>,
    /// The disk that holds its memory while it is suspended.
    #[serde(rename = "suspend_VDI")]
    pub suspend_vdi: Ref<Vdi>,
    /// `restart`, `best-effort` or empty: what high availability does with it.
    pub ha_restart_priority: String,
    /// Its start group.
    pub appliance: Ref<()>,
    /// Its place in the start order.
    pub order: i64,
    /// Seconds to wait after its start.
    pub start_delay: i64,
    /// Seconds to wait after its stop.
    pub shutdown_delay: i64,
    /// How it is virtualised.
    pub domain_type: DomainType,
    /// Its firmware's settings: `firmware`, `order` and so on.
    #[serde(rename = "HVM_boot_params")]
    pub hvm_boot_params: StringMap,
    /// UEFI variables and the like; may be large.
    #[serde(rename = "NVRAM")]
    pub nvram: StringMap,
    /// Strings of its BIOS.
    pub bios_strings: StringMap,
    /// Keys its domain sees in xenstore.
    pub xenstore_data: StringMap,
    /// Most memory it may have, in bytes.
    #[serde(deserialize_with = "decode::bytes")]
    pub memory_static_max: u64,
    /// Most processors it may have.
    #[serde(rename = "VCPUs_max")]
    pub vcpus_max: i64,
    /// The whole record, from which a VM can be made again.
    #[serde(skip)]
    pub raw: BTreeMap<String, Value>,
}

impl Vm {
    /// Whether it is a VM that somebody uses: no snapshot, no template, no control domain.
    pub fn is_real(&self) -> bool {
        !(self.is_a_snapshot || self.is_a_template || self.is_control_domain)
    }
}

/// What the agent in a VM tells.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(remote = "Self", default)]
pub struct VmGuestMetrics {
    /// Its uuid.
    pub uuid: String,
    /// The operating system: `name`, `distro`, `major` and so on.
    pub os_version: StringMap,
    /// Addresses by interface, such as `0/ip`.
    pub networks: StringMap,
    /// Whether the drivers are there.
    #[serde(rename = "PV_drivers_detected")]
    pub pv_drivers_detected: bool,
    /// When it was last told something.
    pub last_updated: Timestamp,
    /// Whether the agent is alive.
    pub live: bool,
    /// The whole record.
    #[serde(skip)]
    pub raw: BTreeMap<String, Value>,
}

wire_enum! {
    /// Where a task stands.
    TaskStatus {
        /// Under way.
        Pending = "pending",
        /// Done.
        Success = "success",
        /// Failed; `error_info` says why.
        Failure = "failure",
        /// About to be cancelled.
        Cancelling = "cancelling",
        /// Cancelled.
        Cancelled = "cancelled",
    }
}

/// Work that a pool does in the background.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(remote = "Self", default)]
pub struct Task {
    /// Its uuid.
    pub uuid: String,
    /// Its name.
    pub name_label: String,
    /// Where it stands.
    pub status: TaskStatus,
    /// From 0 to 1; 1 at any end, also at a failure.
    pub progress: f64,
    /// The result as the text of an XML-RPC value.
    pub result: String,
    /// Code and parameters of its failure.
    pub error_info: Vec<String>,
    /// When it was made.
    pub created: Timestamp,
    /// When it ended; the epoch until then.
    pub finished: Timestamp,
    /// The whole record.
    #[serde(skip)]
    pub raw: BTreeMap<String, Value>,
}
