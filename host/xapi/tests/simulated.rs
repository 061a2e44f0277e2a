//! Disks of a simulated pool, read and written in every way: what arrives is what the pool holds.

use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use vmferry_disk::cbt::changed_extents;
use vmferry_disk::chunked::{Coverage, Plan};
use vmferry_disk::extent::{Extent, Extents};
use vmferry_disk::nbd::{Pace, Reader, Source};
use vmferry_disk::transfer::{EngineName, Options, relay};
use vmferry_disk::vhd::Head;
use vmferry_xapi::records::{Vdi, VdiType};
use vmferry_xapi::{ApiError, Endpoint, NbdUnavailable, Ref, Session, Trust, params};
use xapi_sim::{DiskSpec, NbdPurpose, Sim, SimConfig, SrSpec, VmSpec};

const SIZE: u64 = 16 << 20;
const BLOCK: u64 = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(20);

/// A pool and a session at it.
async fn pool(config: SimConfig) -> (Sim, Session) {
    let sim = Sim::start(config).await.expect("starts");
    let mut endpoint = Endpoint::parse(&sim.url()).expect("a URL").with_credentials("root", "password");
    if let Some(digest) = sim.certificate_sha256() {
        endpoint = endpoint.with_trust(Trust::parse_pin(&digest).expect("a pin"));
    }
    let session = Session::login(&endpoint, "test").await.expect("login");
    (sim, session)
}

/// A disk with something in it.
fn disk(sim: &Sim, sr: Option<String>) -> String {
    let disk = DiskSpec { size: SIZE, sr, ..DiskSpec::default() };
    let vm = sim.add_vm(VmSpec { name: "web".to_owned(), disks: vec![disk], ..VmSpec::default() });
    let disk = sim.vm_disks(&vm).remove(0);
    for (n, offset) in [0, 5 * BLOCK + 512, SIZE - 4096].into_iter().enumerate() {
        sim.write(&disk, offset, &[n as u8 + 1; 4096]);
    }
    disk
}

async fn snapshot(session: &Session, disk: &str) -> (Ref<Vdi>, String) {
    let disk: Ref<Vdi> = session.by_uuid(disk).await.expect("a disk");
    let snapshot: Ref<Vdi> = session.call_async("VDI.snapshot", params![&disk]).await.expect("a snapshot");
    let uuid = session.get_record(&snapshot).await.expect("a record").uuid;
    (snapshot, uuid)
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_disk_is_read_by_nbd_as_the_pool_holds_it_and_let_go_after() {
    let ways = [(false, NbdPurpose::InsecureNbd), (false, NbdPurpose::Nbd), (true, NbdPurpose::Nbd)];
    for (tls, purpose) in ways {
        let (sim, session) = pool(SimConfig { tls, nbd_purpose: Some(purpose), ..SimConfig::default() }).await;
        let (snapshot, uuid) = snapshot(&session, &disk(&sim, None)).await;
        let connections = session.nbd_clients(&snapshot, 3).await.expect("served");
        assert_eq!((connections.clients.len(), connections.encrypted), (3, purpose == NbdPurpose::Nbd));
        assert!(connections.clients.iter().all(|client| client.size() == SIZE));
        assert_eq!(session.get_record(&snapshot).await.expect("a record").vbds.len(), 3, "one drive for each");

        let mut reader =
            Reader::new(connections.clients, Extents::whole_disk(SIZE), Pace::default()).expect("of this disk");
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
        while let Some(piece) = reader.read(&mut buffer).await.expect("reads") {
            hash.update(piece.bytes);
        }
        assert_eq!(hex(&hash.finalize()), sim.sha256(&uuid));

        drop(reader);
        let gone = async { while !session.get_record(&snapshot).await.expect("a record").vbds.is_empty() {} };
        tokio::time::timeout(PATIENCE, gone).await.expect("dropped connections let go of the disk");
    }
}

#[tokio::test]
async fn a_pool_without_a_network_for_nbd_says_so() {
    let (sim, session) = pool(SimConfig::default()).await;
    let (snapshot, _) = snapshot(&session, &disk(&sim, None)).await;
    let error = session.nbd_clients(&snapshot, 1).await.expect_err("none has the purpose");
    assert!(matches!(error, NbdUnavailable::NoNetwork), "{error}");
}

#[tokio::test]
async fn tracked_changes_read_by_nbd_and_written_in_chunks_make_a_clone_of_the_base_equal() {
    for tls in [false, true] {
        let (sim, session) = pool(SimConfig { tls, nbd_purpose: Some(NbdPurpose::Nbd), ..SimConfig::default() }).await;
        let uuid = disk(&sim, None);
        let live: Ref<Vdi> = session.by_uuid(&uuid).await.expect("a disk");
        session.enable_cbt(&live).await.expect("tracked");
        assert!(session.get_record(&live).await.expect("a record").cbt_enabled);
        let (base, _) = snapshot(&session, &uuid).await;
        sim.write(&uuid, 3 * BLOCK - 1, b"over an edge");
        sim.write(&uuid, 100 * BLOCK, &[9; 512]);
        let (newest, newest_uuid) = snapshot(&session, &uuid).await;

        let bitmap = session.list_changed_blocks(&base, &newest).await.expect("known");
        let changed = changed_extents(&bitmap, SIZE).expect("of this disk");
        let expected: Extents = [(2, 2), (100, 1)]
            .map(|(block, count)| Extent { offset: block * BLOCK, length: count * BLOCK })
            .into_iter()
            .collect();
        assert_eq!(changed, expected);
        let error = session.list_changed_blocks(&newest, &base).await.expect_err("the wrong way round");
        assert!(matches!(error.api(), Some(ApiError::ChangesUnknown { .. })), "{error}");

        let replica: Ref<Vdi> = session.call_async("VDI.clone", params![&base]).await.expect("a clone");
        let replica_uuid = session.get_record(&replica).await.expect("a record").uuid;
        let connections = session.nbd_clients(&newest, 2).await.expect("served");
        let plan = Plan::new(SIZE, changed, Coverage::Whole).expect("inside of the disk");
        let mut source = Source::chunked(connections.clients, &plan, Pace::default()).expect("of this disk");
        let mut import = session.import_chunked(&replica, "import").await.expect("opens");
        let sent = tokio::io::copy(&mut source, &mut import).await.expect("moves");
        assert_eq!((import.written(), Some(sent)), (sent, plan.stream_length()));
        import.finish().await.expect("confirmed");
        assert_eq!(sim.sha256(&replica_uuid), sim.sha256(&newest_uuid), "the replica is the snapshot");

        drop(source);
        session.data_destroy(&newest).await.expect("the host waits for the connections to be gone");
        assert_eq!(session.get_record(&newest).await.expect("a record").kind, VdiType::CbtMetadata);
        session.disable_cbt(&live).await.expect("no longer tracked");
    }
}

#[tokio::test]
async fn streams_go_to_the_host_that_sees_the_disk() {
    for tls in [false, true] {
        let (sim, session) = pool(SimConfig { tls, hosts: 2, ..SimConfig::default() }).await;
        let sr =
            sim.add_sr_with(SrSpec { name: "local".to_owned(), size: 1 << 40, host: Some(1), ..SrSpec::default() });
        let (snapshot, uuid) = snapshot(&session, &disk(&sim, Some(sr))).await;
        let mut export = session.export_vdi(&snapshot, None, "export").await.expect("redirected");
        let mut stream = Vec::new();
        export.read_to_end(&mut stream).await.expect("reads");
        export.finish().await.expect("confirmed");

        let replica: Ref<Vdi> = session.call_async("VDI.clone", params![&snapshot]).await.expect("a clone");
        let replica_uuid = session.get_record(&replica).await.expect("a record").uuid;
        sim.write(&replica_uuid, 0, &[0xee; 512]);
        let mut import = session.import_vdi(&replica, stream.len() as u64, "import").await.expect("redirected");
        tokio::io::copy(&mut &stream[..], &mut import).await.expect("moves");
        import.finish().await.expect("confirmed");
        assert_eq!(sim.sha256(&replica_uuid), sim.sha256(&uuid));
        let streams = sim.calls().into_iter().filter(|call| call.contains("_raw_vdi")).count();
        assert_eq!(streams, 4, "each was sent on once");
    }
}

#[tokio::test]
async fn a_transfer_is_the_kernels_between_plain_ends_and_ours_under_tls() {
    for (tls, engine) in [(false, EngineName::Splice), (true, EngineName::Lockstep)] {
        let (sim, session) = pool(SimConfig { tls, ..SimConfig::default() }).await;
        let uuid = disk(&sim, None);
        let (snapshot, snapshot_uuid) = snapshot(&session, &uuid).await;
        let mut export = session.export_vdi(&snapshot, None, "export").await.expect("opens");
        let head = Head::read(&mut export).await.expect("a head");

        let mut imports = Vec::new();
        let mut replicas = Vec::new();
        for _ in 0..2 {
            let replica: Ref<Vdi> = session.call_async("VDI.clone", params![&snapshot]).await.expect("a clone");
            let replica_uuid = session.get_record(&replica).await.expect("a record").uuid;
            sim.write(&replica_uuid, 0, &[0xee; 512]);
            imports.push(session.import_vdi(&replica, head.stream_length(), "import").await.expect("opens"));
            replicas.push(replica_uuid);
        }
        let options = Options { leaves: None, progress: &(), throttles: &[], stall: PATIENCE, first_byte: PATIENCE };
        let outcome = relay(&mut export, &head, &mut imports, options).await.expect("moves");
        assert_eq!((outcome.engine, outcome.bytes_read), (engine, head.stream_length()));
        assert_eq!(export.received(), head.stream_length(), "counted behind its back, too");
        for import in imports {
            assert_eq!(import.written(), head.stream_length());
            import.finish().await.expect("confirmed");
        }
        export.finish().await.expect("confirmed");
        for replica in replicas {
            assert_eq!(sim.sha256(&replica), sim.sha256(&snapshot_uuid));
        }
    }
}
