//! Everything a pool is, behind one lock: database, storage, sessions, armed faults.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::calls::cbt;
use crate::config::{NbdPurpose, SimConfig, SrKind, SrSpec};
use crate::db::{Db, Fields, Row};
use crate::error::{ApiError, ApiResult};
use crate::fault::Faults;
use crate::storage::cbt::ChangeLogs;
use crate::storage::node::{NodeId, Nodes};
use crate::value::{NULL_REF, Value, datetime};

/// Sessions that nobody used for so long are gone.
const SESSION_TIMEOUT: SignedDuration = SignedDuration::from_hours(24);
/// Completed tasks are collected after 65 minutes …
const TASK_TIMEOUT: SignedDuration = SignedDuration::from_secs(3900);
/// … and at most so many tasks are kept.
const MAX_TASKS: usize = 200;

pub(crate) struct State {
    pub(crate) db: Db,
    pub(crate) nodes: Nodes,
    /// The file behind each VDI, base copies included.
    pub(crate) disks: BTreeMap<String, NodeId>,
    /// What was written to the disks whose changes are tracked.
    pub(crate) changes: ChangeLogs,
    /// What each VTPM keeps; no record shows it.
    pub(crate) vtpm_contents: BTreeMap<String, String>,
    /// When each session was last used.
    pub(crate) sessions: BTreeMap<String, Timestamp>,
    pub(crate) faults: Faults,
    pub(crate) calls: Vec<String>,
    pub(crate) username: String,
    pub(crate) password: String,
    pub(crate) master_address: Option<String>,
    pub(crate) hold_gc: bool,
    pub(crate) hold_guests: bool,
    pub(crate) certificate_pem: String,
    pub(crate) pool: String,
    /// Reference of the master.
    pub(crate) master: String,
    /// Never empty; the first master comes first.
    pub(crate) hosts: Vec<Host>,
    pub(crate) network: String,
    pub(crate) replication_network: Option<String>,
    /// Address of the host, and what came in there.
    pub(crate) arrivals: Vec<(IpAddr, String)>,
    pub(crate) default_sr: String,
    /// How far the pool's clock runs ahead of the real one.
    clock_ahead: SignedDuration,
}

/// Where a host is to be reached.
pub(crate) struct Place {
    /// What `host.address` says.
    pub(crate) address: String,
    /// Scheme and address of its XAPI.
    pub(crate) url: String,
    pub(crate) nbd: SocketAddr,
    /// A second address, on the network for replication.
    pub(crate) second: Option<IpAddr>,
}

pub(crate) struct Host {
    pub(crate) reference: String,
    pub(crate) dom0: String,
    pub(crate) url: String,
    pub(crate) nbd: SocketAddr,
}

/// The place of a host in the pool; 0 is the first master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostNumber(pub(crate) usize);

/// `fields! { "name_label" => "x" }`: the fields of a record.
macro_rules! fields {
    ($($name:expr => $value:expr),* $(,)?) => {
        $crate::db::Fields::from([$(($name.to_owned(), $crate::value::Value::from($value))),*])
    };
}
pub(crate) use fields;

impl State {
    /// A pool with a host at each of these places, their control domains, one network, and one SR.
    pub(crate) fn new(config: &SimConfig, places: &[Place], certificate_pem: String) -> ApiResult<Self> {
        let mut state = Self {
            db: Db::default(),
            nodes: Nodes::default(),
            disks: BTreeMap::new(),
            changes: ChangeLogs::default(),
            vtpm_contents: BTreeMap::new(),
            sessions: BTreeMap::new(),
            faults: Faults::default(),
            calls: Vec::new(),
            username: config.username.clone(),
            password: config.password.clone(),
            master_address: config.master_address.clone(),
            hold_gc: config.hold_gc,
            hold_guests: config.hold_guests,
            certificate_pem,
            pool: NULL_REF.to_owned(),
            master: NULL_REF.to_owned(),
            hosts: Vec::new(),
            network: NULL_REF.to_owned(),
            replication_network: None,
            arrivals: Vec::new(),
            default_sr: NULL_REF.to_owned(),
            clock_ahead: SignedDuration::ZERO,
        };
        for kind in SrKind::ALL {
            state.add_driver(kind)?;
        }
        state.network = state.db.insert(
            "network",
            fields! {
                "name_label" => "Pool-wide network associated with eth0",
                "bridge" => "xenbr0",
                "MTU" => 1500,
                "managed" => true,
                "purpose" => Value::strings(config.nbd_purpose.map(NbdPurpose::as_str)),
            },
        )?;
        if config.replication_network {
            let fields = fields! { "name_label" => "replication", "bridge" => "xenbr1", "MTU" => 9000 };
            state.replication_network = Some(state.db.insert("network", fields)?);
        }
        for (number, place) in places.iter().enumerate() {
            state.add_host(number, place, config.restrict_cbt)?;
        }
        let sr = SrSpec { name: "Local storage".to_owned(), size: config.sr_size, kind: config.sr_kind, host: None };
        let sr = state.add_sr(&sr)?;
        state.pool = state.db.insert(
            "pool",
            fields! {
                "name_label" => config.name.as_str(),
                "master" => state.master.as_str(),
                "default_SR" => sr.as_str(),
                "suspend_image_SR" => sr.as_str(),
            },
        )?;
        state.default_sr = sr;
        Ok(state)
    }

    fn add_driver(&mut self, kind: SrKind) -> ApiResult<()> {
        let mut features = SM_FEATURES.to_vec();
        if kind.tracks_changes() {
            features.push(cbt::FEATURE);
        }
        let fields = fields! {
            "type" => kind.as_str(),
            "name_label" => kind.as_str().to_uppercase(),
            "version" => "3.0",
            "required_api_version" => "1.0",
            "driver_filename" => format!("/opt/xensource/sm/{}SR", kind.as_str().to_uppercase()),
            "supported_image_formats" => Value::strings(kind.image_formats().iter().copied()),
            "capabilities" => Value::strings(features.iter().copied()),
            "features" => Value::map(features.iter().map(|feature| (*feature, 1))),
        };
        self.db.insert("SM", fields).map(|_| ())
    }

    pub(crate) fn sr_kind(&self, sr: &str) -> ApiResult<SrKind> {
        let kind = self.db.get("SR", sr)?.str("type");
        let known = SrKind::ALL.into_iter().find(|known| known.as_str() == kind);
        known.ok_or_else(|| ApiError::new("SR_UNKNOWN_DRIVER", [kind]))
    }

    /// The record of the driver of an SR.
    pub(crate) fn driver(&self, sr: &str) -> ApiResult<&Row> {
        let kind = self.db.get("SR", sr)?.str("type");
        let driver = self.db.table("SM").map(|(_, row)| row).find(|row| row.str("type") == kind);
        driver.ok_or_else(|| ApiError::new("SR_UNKNOWN_DRIVER", [kind]))
    }

    pub(crate) fn host(&self, number: HostNumber) -> &Host {
        &self.hosts[number.0]
    }

    pub(crate) fn is_master(&self, number: HostNumber) -> bool {
        self.host(number).reference == self.master
    }

    pub(crate) fn master_host(&self) -> &Host {
        // The master is one of the hosts, of which there is always one.
        self.hosts.iter().find(|host| host.reference == self.master).unwrap_or(&self.hosts[0])
    }

    /// Makes another host the master.
    pub(crate) fn change_master(&mut self, number: usize) -> ApiResult<()> {
        let host = self.hosts.get(number).ok_or_else(|| ApiError::internal(format!("no host {number}")))?;
        self.master.clone_from(&host.reference);
        let (pool, master) = (self.pool.clone(), self.master.clone());
        self.db.set("pool", &pool, "master", master)
    }

    /// Forgets all sessions.
    pub(crate) fn lose_sessions(&mut self) {
        for session in self.sessions.keys().cloned().collect::<Vec<_>>() {
            self.close_session(&session);
        }
    }

    /// Forgets all tasks; what they stand for goes on.
    pub(crate) fn lose_tasks(&mut self) {
        let tasks: Vec<String> = self.db.table("task").map(|(task, _)| task.clone()).collect();
        for task in tasks {
            let _ = self.db.remove("task", &task);
        }
    }

    /// Whether a host has the SR plugged.
    pub(crate) fn sees(&self, host: &str, sr: &str) -> bool {
        let mut pbds = self.db.table("PBD").map(|(_, pbd)| pbd);
        pbds.any(|pbd| pbd.str("host") == host && pbd.str("SR") == sr && pbd.bool("currently_attached"))
    }

    fn add_host(&mut self, number: usize, place: &Place, restrict_cbt: bool) -> ApiResult<()> {
        let now = datetime(self.now());
        let metrics = self.db.insert(
            "host_metrics",
            fields! { "live" => true, "memory_total" => 64 << 30, "memory_free" => 60 << 30, "last_updated" => now },
        )?;
        let name = format!("host{}", number + 1);
        let host = self.db.insert(
            "host",
            fields! {
                "name_label" => name.as_str(),
                "hostname" => name.as_str(),
                "address" => place.address.as_str(),
                "enabled" => true,
                "metrics" => metrics,
                "API_version_major" => 2,
                "API_version_minor" => 21,
                "API_version_vendor" => "XenSource",
                "edition" => "xcp-ng",
                "https_only" => false,
                "license_params" => Value::map([
                    ("restrict_cbt", if restrict_cbt { "true" } else { "false" }),
                    ("expiry", "20991231T23:00:00Z"),
                ]),
                "software_version" => Value::map([
                    ("product_version", "8.3.0"),
                    ("product_brand", "XCP-ng"),
                    ("platform_version", "3.4.0"),
                    ("xapi", "26.17"),
                    ("xapi_build", "26.17.0"),
                    ("build_number", "simulated"),
                    ("hostname", "localhost"),
                ]),
            },
        )?;
        let dom0_metrics = self.db.insert("VM_metrics", fields! { "memory_actual" => 4 << 30, "VCPUs_number" => 4 })?;
        let dom0 = self.db.insert(
            "VM",
            fields! {
                "name_label" => format!("Control domain on host: {name}"),
                "is_control_domain" => true,
                "power_state" => "Running",
                "resident_on" => host.as_str(),
                "affinity" => host.as_str(),
                "metrics" => dom0_metrics,
                "domid" => 0,
                "memory_static_max" => 4 << 30,
                "memory_dynamic_max" => 4 << 30,
                "memory_dynamic_min" => 4 << 30,
                "memory_static_min" => 4 << 30,
            },
        )?;
        self.db.set("host", &host, "control_domain", dom0.as_str())?;
        self.db.insert(
            "PIF",
            fields! {
                "device" => "eth0",
                "network" => self.network.as_str(),
                "host" => host.as_str(),
                "MAC" => format!("00:16:3e:00:00:{:02x}", number + 1),
                "MTU" => 1500,
                "VLAN" => -1,
                "physical" => true,
                "currently_attached" => true,
                "management" => true,
                "managed" => true,
                "ip_configuration_mode" => "Static",
                "IP" => place.nbd.ip().to_string(),
                "netmask" => "255.255.255.0",
            },
        )?;
        if let (Some(network), Some(ip)) = (&self.replication_network, place.second) {
            let fields = fields! {
                "device" => "eth1",
                "network" => network.as_str(),
                "host" => host.as_str(),
                "MAC" => format!("00:16:3e:00:01:{:02x}", number + 1),
                "MTU" => 9000,
                "VLAN" => -1,
                "physical" => true,
                "currently_attached" => true,
                "managed" => true,
                "ip_configuration_mode" => "Static",
                "IP" => ip.to_string(),
                "netmask" => "255.255.255.0",
            };
            self.db.insert("PIF", fields)?;
        }
        if number == 0 {
            self.master.clone_from(&host);
        }
        self.hosts.push(Host { reference: host, dom0, url: place.url.clone(), nbd: place.nbd });
        Ok(())
    }

    /// An SR, plugged at the hosts that see it.
    pub(crate) fn add_sr(&mut self, spec: &SrSpec) -> ApiResult<String> {
        let hosts: Vec<String> = match spec.host {
            None => self.hosts.iter().map(|host| host.reference.clone()).collect(),
            Some(number) => {
                let host = self.hosts.get(number).ok_or_else(|| ApiError::internal(format!("no host {number}")))?;
                vec![host.reference.clone()]
            }
        };
        let sr = self.db.insert(
            "SR",
            fields! {
                "name_label" => spec.name.as_str(),
                "type" => spec.kind.as_str(),
                "content_type" => "user",
                "physical_size" => i64::try_from(spec.size).unwrap_or(i64::MAX),
                "shared" => hosts.len() > 1,
            },
        )?;
        for host in hosts {
            let pbd = fields! { "SR" => sr.as_str(), "host" => host, "currently_attached" => true };
            self.db.insert("PBD", pbd)?;
        }
        Ok(sr)
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::now().checked_add(self.clock_ahead).unwrap_or(Timestamp::MAX)
    }

    pub(crate) fn advance_clock(&mut self, by: Duration) {
        let by = SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX);
        self.clock_ahead = self.clock_ahead.saturating_add(by);
    }

    pub(crate) fn open_session(&mut self, originator: &str) -> ApiResult<String> {
        let now = self.now();
        let session = self.db.insert(
            "session",
            fields! {
                "this_host" => self.master.as_str(),
                "is_local_superuser" => true,
                "auth_user_name" => self.username.as_str(),
                "originator" => originator,
                "last_active" => datetime(now),
                "validation_time" => datetime(now),
            },
        )?;
        self.sessions.insert(session.clone(), now);
        Ok(session)
    }

    pub(crate) fn close_session(&mut self, session: &str) {
        self.sessions.remove(session);
        // A session that is not there any more is closed all the same.
        let _ = self.db.remove("session", session);
    }

    /// What a toolstack that starts again does not know any more: sessions, tasks, and operations in progress.
    pub(crate) fn forget_what_is_not_kept(&mut self) {
        self.sessions.clear();
        for class in ["session", "task"] {
            let references: Vec<String> = self.db.table(class).map(|(reference, _)| reference.clone()).collect();
            // They have just been seen there.
            references.iter().for_each(|reference| drop(self.db.remove(class, reference)));
        }
        for class in ["VM", "VDI"] {
            let busy = |(_, row): &(&String, &crate::db::Row)| !row.map("current_operations").is_empty();
            let busy: Vec<String> = self.db.table(class).filter(busy).map(|(reference, _)| reference.clone()).collect();
            for reference in busy {
                let none = Value::map(std::iter::empty::<(&str, &str)>());
                let _ = self.db.set(class, &reference, "current_operations", none);
            }
        }
    }

    /// Refreshes a session in use; refuses one that was closed or forgotten.
    pub(crate) fn use_session(&mut self, session: &str) -> ApiResult<()> {
        let now = self.now();
        match self.sessions.get_mut(session) {
            Some(last) if now.duration_since(*last) < SESSION_TIMEOUT => {
                *last = now;
                Ok(())
            }
            Some(_) => {
                self.close_session(session);
                Err(ApiError::session_invalid(session))
            }
            None => Err(ApiError::session_invalid(session)),
        }
    }

    pub(crate) fn create_task(&mut self, label: &str, description: &str) -> ApiResult<String> {
        let now = self.now();
        self.collect_tasks(now);
        let host = self.master.clone();
        self.db.create_task(label, description, &host, now)
    }

    pub(crate) fn finish_task(&mut self, task: &str, outcome: Result<String, &ApiError>) {
        let now = self.now();
        self.db.finish_task(task, outcome, now);
    }

    fn collect_tasks(&mut self, now: Timestamp) {
        let finished = |row: &crate::db::Row| match row.str("status") {
            "pending" | "cancelling" => None,
            _ => crate::value::parse_datetime(row.str("finished")),
        };
        let mut done: Vec<(Timestamp, String)> =
            self.db.table("task").filter_map(|(task, row)| Some((finished(row)?, task.clone()))).collect();
        done.sort();
        let mut surplus = self.db.count("task").saturating_sub(MAX_TASKS - 1);
        for (at, task) in done {
            if surplus == 0 && now.duration_since(at) < TASK_TIMEOUT {
                break;
            }
            surplus = surplus.saturating_sub(1);
            let _ = self.db.remove("task", &task);
        }
    }

    /// The members of a record given to `create`, checked and completed as XAPI does: unknown and read-only members are
    /// ignored, a missing one without default is an internal error.
    pub(crate) fn record_fields(class: &str, record: BTreeMap<String, Value>) -> ApiResult<Fields> {
        let class = crate::schema::SCHEMA.class(class).ok_or_else(|| ApiError::unknown_method(class))?;
        let mut record = record;
        let mut fields = Fields::new();
        for field in class.fields.iter().filter(|field| field.access != crate::schema::Access::Ro) {
            match record.remove(&field.name) {
                Some(value) => {
                    fields.insert(field.name.clone(), field.kind.coerce(&field.name, value)?);
                }
                None if field.required() => {
                    let text = format!("Failure(\"{}: the member {} is not present in rpc\")", class.name, field.name);
                    return Err(ApiError::internal(text));
                }
                None => {}
            }
        }
        Ok(fields)
    }
}

const SM_FEATURES: [&str; 14] = [
    "SR_PROBE",
    "SR_UPDATE",
    "SR_STATS",
    "VDI_CREATE",
    "VDI_DELETE",
    "VDI_ATTACH",
    "VDI_DETACH",
    "VDI_CLONE",
    "VDI_SNAPSHOT",
    "VDI_RESIZE",
    "VDI_MIRROR",
    "VDI_GENERATE_CONFIG",
    "VDI_UPDATE",
    "VDI_INTRODUCE",
];
