//! A simulated XAPI pool that real clients can talk to.
//!
//! It behaves on the wire as a pool does, odd parts included: XML-RPC and JSON-RPC, sessions, tasks, `event.from`, records
//! with defaults and back references from the data model, VHD chains with base copies, changed block tracking,
//! `/export_raw_vdi`, `/import_raw_vdi`, `/export` and `/import` with their answers that come before anything is known, an NBD server for each
//! host. Behind it stands a control side for tests, as library calls and as a port of its own: it writes as a guest
//! would, tells the digest of a disk, and injects faults.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> anyhow::Result<()> {
//! use xapi_sim::{DiskSpec, Sim, SimConfig, VmSpec};
//!
//! let sim = Sim::start(SimConfig::default()).await?;
//! let disk = DiskSpec { size: 16 << 20, ..DiskSpec::default() };
//! let vm = sim.add_vm(VmSpec { name: "web".into(), disks: vec![disk], running: true, ..VmSpec::default() });
//! let disk = &sim.vm_disks(&vm)[0];
//! sim.write(disk, 4096, b"written by the guest");
//! println!("log in at {} as root with the password \"password\"", sim.url());
//! sim.stop().await;
//! # Ok(()) }
//! ```
//!
//! The layers, from the outside in: `server` (routes), `rpc`, `transfer` and `nbd` (one request), `calls` (what a call
//! does), `state` with `db` and `storage`; `wire` holds the encodings, `schema` the data model, `control` what tests do.
//!
//! Garbage collection is done at once, or where it is held, when and as far as a test says so.
//!
//! Not simulated: imports of qcow2; of XVA old checksums, compression, memory, and redirects of an export.

mod admin;
mod calls;
mod config;
mod control;
mod core;
mod db;
mod error;
mod fault;
mod nbd;
mod rpc;
mod schema;
mod server;
mod state;
mod storage;
mod tls;
mod transfer;
mod value;
mod wire;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use crate::config::{DiskSpec, NbdPurpose, SimConfig, SrKind, SrSpec, VmSpec};
pub use crate::fault::{Fault, FaultKind, FaultPoint};

use crate::core::{Core, Goal};
use crate::state::{HostNumber, Place, State};
use crate::tls::HostCertificate;

/// One simulated pool. A handle: clones are the same pool.
///
/// The calls that name a VM or disk by uuid panic when there is none, and when a file cannot be read: they
/// are for tests, where that is a mistake of the test.
#[derive(Clone)]
pub struct Sim {
    core: Arc<Core>,
    admin_url: Option<String>,
    certificate_sha256: Option<String>,
    certificate_pem: Option<String>,
    /// One for each host, then that of the control port.
    stop: Arc<Vec<watch::Sender<bool>>>,
}

impl Sim {
    /// Starts the pool and serves it until [`stop`](Self::stop) or the end of the runtime.
    pub async fn start(config: SimConfig) -> anyhow::Result<Self> {
        let certificate = HostCertificate::generate()?;
        let (mut places, mut listeners) = (Vec::new(), Vec::new());
        for number in 0..config.hosts.max(1) {
            let xapi = bind(address_of(config.listen, number)).await?;
            let nbd = bind(address_of(config.nbd_listen, number)).await?;
            let (xapi_at, nbd_at) = (xapi.local_addr()?, nbd.local_addr()?);
            let mut place = place(xapi_at, nbd_at, config.tls);
            listeners.push((HostNumber(number), xapi, nbd));
            if config.replication_network {
                let last = u8::try_from(number + 2).context("more hosts than addresses")?;
                let second = IpAddr::from([127, 0, 0, last]);
                place.second = Some(second);
                let (xapi, nbd) = (SocketAddr::new(second, xapi_at.port()), SocketAddr::new(second, nbd_at.port()));
                listeners.push((HostNumber(number), bind(xapi).await?, bind(nbd).await?));
            }
            places.push(place);
        }
        let state = State::new(&config, &places, certificate.pem.clone())?;
        let core = Arc::new(Core::new(state, &config));
        let mut stops = Vec::new();
        for (host, xapi, nbd) in listeners {
            let stop = watch::Sender::new(false);
            let tls = config.tls.then(|| certificate.acceptor.clone());
            tokio::spawn(server::serve(core.clone(), host, xapi, tls, stop.subscribe()));
            tokio::spawn(nbd::serve(core.clone(), host, nbd, certificate.acceptor.clone(), stop.subscribe()));
            stops.push(stop);
        }

        let stop = watch::Sender::new(false);
        let admin_url = match config.admin_listen {
            Some(listen) => {
                let listener = bind(listen).await?;
                let url = format!("http://{}", listener.local_addr()?);
                tokio::spawn(admin::serve(core.clone(), listener, stop.subscribe()));
                Some(url)
            }
            None => None,
        };
        stops.push(stop);
        Ok(Self {
            core,
            admin_url,
            certificate_sha256: config.tls.then_some(certificate.sha256),
            certificate_pem: config.tls.then_some(certificate.pem),
            stop: Arc::new(stops),
        })
    }

    /// Where the XAPI of the master is: scheme, address, port.
    pub fn url(&self) -> String {
        self.core.with(|state| state.master_host().url.clone())
    }

    /// Where the XAPI of each host is, the first master first.
    pub fn host_urls(&self) -> Vec<String> {
        self.core.with(|state| state.hosts.iter().map(|host| host.url.clone()).collect())
    }

    /// Where the NBD server of each host is, the first master first.
    pub fn nbd_addresses(&self) -> Vec<SocketAddr> {
        self.core.with(|state| state.hosts.iter().map(|host| host.nbd).collect())
    }

    /// Where the control port is, if it was asked for.
    pub fn admin_url(&self) -> Option<String> {
        self.admin_url.clone()
    }

    /// Hex of the SHA-256 of the host certificate, where XAPI is served with TLS.
    pub fn certificate_sha256(&self) -> Option<String> {
        self.certificate_sha256.clone()
    }

    /// The host certificate, where XAPI is served with TLS. NBD tells it in `VDI.get_nbd_info`.
    pub fn certificate_pem(&self) -> Option<String> {
        self.certificate_pem.clone()
    }

    /// Closes the ports and every connection. Other handles still see the pool's objects.
    pub async fn stop(self) {
        for stop in self.stop.iter() {
            stop.send_replace(true);
        }
        // The servers hold a receiver each until they have gone.
        for stop in self.stop.iter() {
            stop.closed().await;
        }
    }

    /// Closes the ports of one host and every connection to it, as if its power had failed; the number is its place in
    /// [`host_urls`](Self::host_urls). Tasks of its transfers stay pending.
    pub async fn shut_down_host(&self, number: usize) {
        self.stop[number].send_replace(true);
        self.stop[number].closed().await;
    }

    /// Makes another host the master; the number is its place in [`host_urls`](Self::host_urls). Sessions and tasks stay
    /// unless they are lost as well.
    #[track_caller]
    pub fn change_master(&self, number: usize) {
        self.expect(|state| Ok(state.change_master(number)?));
    }

    /// Forgets all sessions, as a master does that starts.
    pub fn lose_sessions(&self) {
        self.core.with(State::lose_sessions);
    }

    /// Forgets all tasks, as a master does that starts. What they stand for goes on, and nobody is told how it ends.
    pub fn lose_tasks(&self) {
        self.core.with(State::lose_tasks);
    }

    /// The pool's uuid.
    pub fn pool(&self) -> String {
        self.core.with(|state| control::uuid_of(state, "pool", &state.pool))
    }

    /// The uuid of the SR that the pool was made with.
    pub fn default_sr(&self) -> String {
        self.core.with(|state| control::uuid_of(state, "SR", &state.default_sr))
    }

    /// The uuid of the network that the pool was made with.
    pub fn network(&self) -> String {
        self.core.with(|state| control::uuid_of(state, "network", &state.network))
    }

    /// The uuid of the network of the hosts' second addresses, if they have any.
    pub fn replication_network(&self) -> Option<String> {
        self.core.with(|state| Some(control::uuid_of(state, "network", state.replication_network.as_ref()?)))
    }

    /// At which addresses of the hosts calls, transfers and NBD connections came in so far, in order: `POST`, `GET`, `PUT`, `NBD`.
    pub fn arrivals(&self) -> Vec<(IpAddr, String)> {
        self.core.with(|state| state.arrivals.clone())
    }

    /// Adds an SR of so many bytes, attached to all hosts; returns its uuid.
    pub fn add_sr(&self, name: &str, physical_size: u64) -> String {
        self.add_sr_with(SrSpec { name: name.to_owned(), size: physical_size, ..SrSpec::default() })
    }

    /// Adds an SR; returns its uuid.
    #[track_caller]
    pub fn add_sr_with(&self, spec: SrSpec) -> String {
        self.expect(|state| control::add_sr(state, &spec))
    }

    /// Adds a VM; returns its uuid.
    #[track_caller]
    pub fn add_vm(&self, spec: VmSpec) -> String {
        self.expect(|state| control::add_vm(state, &spec))
    }

    /// Adds so many VMs with two disks each, which are nothing but their records.
    #[track_caller]
    pub fn add_crowd(&self, vms: usize) {
        self.expect(|state| control::add_crowd(state, vms));
    }

    /// The uuids of a VM's disks, by user device.
    #[track_caller]
    pub fn vm_disks(&self, vm_uuid: &str) -> Vec<String> {
        self.expect(|state| control::vm_disks(state, vm_uuid))
    }

    /// Writes as the guest would; also while its VM runs.
    #[track_caller]
    pub fn write(&self, vdi_uuid: &str, offset: u64, data: &[u8]) {
        self.expect(|state| control::write(state, vdi_uuid, offset, data));
    }

    /// Lets the guest of a running VM be up; needed only where the configuration holds guests.
    #[track_caller]
    pub fn bring_up_guest(&self, vm_uuid: &str) {
        self.expect(|state| control::bring_up_guest(state, vm_uuid));
    }

    /// Loses the change log of a tracked disk, as a crash of its host does: tracking is off from then on, and an alert
    /// `VDI_CBT_METADATA_INCONSISTENT` says so. Its snapshots keep their logs.
    #[track_caller]
    pub fn break_cbt(&self, vdi_uuid: &str) {
        self.expect(|state| control::break_cbt(state, vdi_uuid));
    }

    /// Reads what the guest would see.
    #[track_caller]
    pub fn read(&self, vdi_uuid: &str, offset: u64, length: usize) -> Vec<u8> {
        self.expect(|state| control::read(state, vdi_uuid, offset, length))
    }

    /// Hex of the SHA-256 of a disk's whole content.
    #[track_caller]
    pub fn sha256(&self, vdi_uuid: &str) -> String {
        self.expect(|state| control::sha256(state, vdi_uuid))
    }

    /// Arms a fault.
    pub fn inject(&self, fault: Fault) {
        self.core.with(|state| state.faults.arm(fault));
    }

    /// Disarms every fault and lets go what is stalled by one. Says how many had not struck yet.
    pub fn clear_faults(&self) -> usize {
        self.core.clear_faults()
    }

    /// The toolstack ends, and with it every connection, call and transfer, done or not; sessions and tasks are forgotten. New
    /// connections end at once, until [`come_back`](Self::come_back).
    pub fn go_down(&self) {
        self.core.go_down();
    }

    /// The network is lost: connections stay and nothing comes back on them, until [`come_back`](Self::come_back). The pool
    /// itself goes on.
    pub fn go_silent(&self) {
        self.core.go_silent();
    }

    /// Clients reach the pool again. Connections from before do not go on.
    pub fn come_back(&self) {
        self.core.come_back();
    }

    /// Resolves when some transfer in progress has moved at least so many bytes of its body.
    pub async fn wait_for_transfer_bytes(&self, bytes: u64) {
        self.core.transfers.wait(Goal::Bytes(bytes)).await;
    }

    /// Bytes that the bodies of all transfers and the payload of NBD have moved so far. What waits in a socket has moved.
    pub fn moved_bytes(&self) -> u64 {
        self.core.transfers.total()
    }

    /// Resolves when a transfer or call is stalled by a fault.
    pub async fn wait_until_stalled(&self) {
        self.core.transfers.wait(Goal::Stalled).await;
    }

    /// How many records each class has, classes without any left out. `VDI` counts the disks that users see, `VDI base copies` the
    /// hidden ones. The control domain is a VM; an open export or import has a VBD.
    pub fn object_counts(&self) -> BTreeMap<String, usize> {
        self.core.with(|state| control::object_counts(state))
    }

    /// The record of one object as JSON-RPC shows it, with its reference as `$ref`.
    pub fn record(&self, class: &str, uuid: &str) -> Option<serde_json::Value> {
        self.records(class).into_iter().find(|record| record["uuid"] == uuid)
    }

    /// The records of all objects of a class.
    pub fn records(&self, class: &str) -> Vec<serde_json::Value> {
        self.core.with(|state| control::records(state, class))
    }

    /// The methods called so far, in order, and the transfers as `GET /export_raw_vdi`, `PUT /import_raw_vdi` and
    /// `NBD EXPORT_NAME`.
    pub fn calls(&self) -> Vec<String> {
        self.core.with(|state| state.calls.clone())
    }

    /// Resolves when a method was called, now or before.
    pub async fn wait_for_call(&self, method: &str) {
        self.core.wait_for_call(method).await;
    }

    /// Forgets the calls so far.
    pub fn clear_calls(&self) {
        self.core.with(|state| state.calls.clear());
    }

    /// Puts the pool's clock, which otherwise follows the real one, ahead.
    pub fn advance_clock(&self, by: Duration) {
        self.core.with(|state| state.advance_clock(by));
    }

    /// Folds chains and drops unused base copies; needed only where the configuration holds garbage collection.
    #[track_caller]
    pub fn collect_garbage(&self) {
        self.expect(|state| Ok(calls::vdi::collect_garbage(state)?));
    }

    /// Does one piece of what [`collect_garbage`](Self::collect_garbage) does; false when nothing is left to do.
    #[track_caller]
    pub fn collect_garbage_once(&self) -> bool {
        self.expect(|state| Ok(calls::vdi::collect_garbage_once(state)?))
    }

    #[track_caller]
    fn expect<T>(&self, work: impl FnOnce(&mut State) -> anyhow::Result<T>) -> T {
        match self.core.with(work) {
            Ok(result) => result,
            Err(error) => panic!("{error:#}"),
        }
    }
}

/// What `host.address` says. A real one is never followed by a port; here it is where clients could not guess it.
fn host_address(address: SocketAddr, tls: bool) -> String {
    match (address.port(), tls) {
        (80, false) | (443, true) => address.ip().to_string(),
        _ => address.to_string(),
    }
}

/// Only the first host can have the port that was asked for.
fn address_of(mut asked: SocketAddr, host: usize) -> SocketAddr {
    if host > 0 {
        asked.set_port(0);
    }
    asked
}

fn place(xapi: SocketAddr, nbd: SocketAddr, tls: bool) -> Place {
    let scheme = if tls { "https" } else { "http" };
    Place { address: host_address(xapi, tls), url: format!("{scheme}://{xapi}"), nbd, second: None }
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listen at {address}"))
}
