//! The NBD server byte by byte.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Client, MIB, vm_with_disks};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value as Json, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use xapi_sim::{DiskSpec, Fault, FaultKind, FaultPoint, NbdPurpose, Sim, SimConfig, VmSpec};

const SIZE: u64 = 4 * MIB;

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const INFO: u32 = 6;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;

const ACK: u32 = 1;
const ERR_UNSUP: u32 = 0x8000_0001;
const ERR_POLICY: u32 = 0x8000_0002;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_TLS_REQD: u32 = 0x8000_0005;

async fn setup(purpose: Option<NbdPurpose>) -> (Sim, Client, String) {
    let sim = Sim::start(SimConfig { nbd_purpose: purpose, ..SimConfig::default() }).await.unwrap();
    let client = Client::login(&sim).await;
    let (_, mut disks) = vm_with_disks(&sim, &[SIZE]);
    for place in 0..40u64 {
        let data: Vec<u8> = (0..70_000u64).map(|at| (at * (place + 3) / 7) as u8).collect();
        sim.write(&disks[0], place * 100_003, &data);
    }
    (sim, client, disks.remove(0))
}

async fn info(client: &Client, disk: &str) -> Json {
    let vdi = client.by_uuid("VDI", disk).await;
    client.call("VDI.get_nbd_info", json!([vdi])).await.unwrap()
}

fn export_name(client: &Client, disk: &str) -> String {
    format!("/{disk}?session_id={}", client.session)
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

struct Nbd(Box<dyn Stream>);

impl Nbd {
    /// Up to the first option.
    async fn connect(sim: &Sim) -> Self {
        let mut nbd = Self(Box::new(TcpStream::connect(sim.nbd_addresses()[0]).await.unwrap()));
        assert_eq!(nbd.take(18).await, b"NBDMAGICIHAVEOPT\0\x01");
        nbd.put(&[0, 0, 0, 1]).await;
        nbd
    }

    /// A connection to this export in the clear.
    async fn open(sim: &Sim, name: &str) -> Self {
        let mut nbd = Self::connect(sim).await;
        assert_eq!(nbd.export(name).await, SIZE);
        nbd
    }

    async fn take(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    async fn put(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
        self.0.flush().await.unwrap();
    }

    /// What comes before the end of the connection, and whether it ended in order.
    async fn rest(&mut self) -> (usize, bool) {
        let mut bytes = Vec::new();
        let end = timeout(Duration::from_secs(30), self.0.read_to_end(&mut bytes)).await;
        (bytes.len(), end.expect("the server closes the connection").is_ok())
    }

    async fn ask(&mut self, option: u32, data: &[u8]) {
        let length = u32::try_from(data.len()).unwrap();
        self.put(&[b"IHAVEOPT", option.to_be_bytes().as_slice(), &length.to_be_bytes(), data].concat()).await;
    }

    async fn option(&mut self, option: u32, data: &[u8]) -> u32 {
        self.ask(option, data).await;
        let reply = self.take(20).await;
        assert_eq!(reply[..8], [0x00, 0x03, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9]);
        assert_eq!((&reply[8..12], &reply[16..]), (option.to_be_bytes().as_slice(), [0; 4].as_slice()));
        u32::from_be_bytes(reply[12..16].try_into().unwrap())
    }

    /// Asks for the export; its size.
    async fn export(&mut self, name: &str) -> u64 {
        self.ask(EXPORT_NAME, name.as_bytes()).await;
        let reply = self.take(134).await;
        assert_eq!(reply[8..10], [0, 3], "has flags, read-only, and nothing else");
        assert_eq!(reply[10..], [0; 124]);
        u64::from_be_bytes(reply[..8].try_into().unwrap())
    }

    async fn request(&mut self, command: u16, cookie: u64, offset: u64, length: u32) {
        let head = [[0x25, 0x60, 0x95, 0x13].as_slice(), &[0, 0], &command.to_be_bytes()].concat();
        let place = [cookie.to_be_bytes().as_slice(), &offset.to_be_bytes(), &length.to_be_bytes()].concat();
        self.put(&[head, place].concat()).await;
    }

    /// The error of the next reply, which must be to this cookie.
    async fn reply(&mut self, cookie: u64) -> u32 {
        let reply = self.take(16).await;
        assert_eq!((&reply[..4], &reply[8..]), ([0x67, 0x44, 0x66, 0x98].as_slice(), cookie.to_be_bytes().as_slice()));
        u32::from_be_bytes(reply[4..8].try_into().unwrap())
    }

    async fn start_tls(mut self, info: &Json) -> Self {
        assert_eq!(self.option(STARTTLS, b"").await, ACK);
        let mut roots = rustls::RootCertStore::empty();
        let certificate = CertificateDer::from_pem_slice(info["cert"].as_str().unwrap().as_bytes()).unwrap();
        roots.add(certificate).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(info["subject"].as_str().unwrap().to_owned()).unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, self.0).await.unwrap();
        let session = stream.get_ref().1;
        assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_2));
        let suite = session.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, rustls::CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384);
        Self(Box::new(stream))
    }
}

fn dom0_vbds(sim: &Sim) -> usize {
    let dom0 = sim.records("VM").into_iter().find(|vm| vm["is_control_domain"] == true).unwrap();
    dom0["VBDs"].as_array().unwrap().len()
}

#[tokio::test]
async fn without_a_network_for_it_there_is_an_empty_set_and_a_closed_door() {
    let (sim, client, disk) = setup(None).await;
    assert_eq!(info(&client, &disk).await, json!([]));
    let mut nbd = Nbd(Box::new(TcpStream::connect(sim.nbd_addresses()[0]).await.unwrap()));
    assert_eq!(nbd.rest().await.0, 0);

    let network = client.by_uuid("network", &sim.network()).await;
    client.call("network.add_purpose", json!([network, "insecure_nbd"])).await.unwrap();
    let clash = client.call("network.add_purpose", json!([network, "nbd"])).await.unwrap_err();
    assert_eq!(clash, ["NETWORK_INCOMPATIBLE_PURPOSES", "nbd", "insecure_nbd"]);
    let info = info(&client, &disk).await;
    assert_eq!(
        (
            &info[0]["exportname"],
            &info[0]["address"],
            &info[0]["port"],
            &info[0]["subject"],
            info.as_array().unwrap().len()
        ),
        (
            &json!(export_name(&client, &disk)),
            &json!("127.0.0.1"),
            &json!(sim.nbd_addresses()[0].port()),
            &json!("localhost"),
            1
        )
    );
    Nbd::open(&sim, info[0]["exportname"].as_str().unwrap()).await;
    client.call("network.remove_purpose", json!([network, "insecure_nbd"])).await.unwrap();
    let mut nbd = Nbd(Box::new(TcpStream::connect(sim.nbd_addresses()[0]).await.unwrap()));
    assert_eq!(nbd.rest().await.0, 0);
    sim.stop().await;
}

#[tokio::test]
async fn one_option_is_enough_and_the_others_are_refused() {
    let (sim, client, disk) = setup(Some(NbdPurpose::InsecureNbd)).await;
    let mut nbd = Nbd::connect(&sim).await;
    for (option, expected) in [
        (LIST, ERR_POLICY),
        (GO, ERR_UNSUP),
        (INFO, ERR_UNSUP),
        (STRUCTURED_REPLY, ERR_UNSUP),
        (10, ERR_UNSUP),
        (4711, ERR_UNSUP),
        (STARTTLS, ERR_POLICY),
    ] {
        assert_eq!(nbd.option(option, b"").await, expected, "{option}");
    }
    assert_eq!(nbd.export(&export_name(&client, &disk)).await, SIZE);
    let mut aborted = Nbd::connect(&sim).await;
    assert_eq!((aborted.option(ABORT, b"").await, aborted.rest().await), (ACK, (0, true)));
    sim.stop().await;
}

#[tokio::test]
async fn with_the_purpose_nbd_nothing_is_told_before_tls() {
    let (sim, client, disk) = setup(Some(NbdPurpose::Nbd)).await;
    let name = export_name(&client, &disk);
    let mut nbd = Nbd::connect(&sim).await;
    for option in [LIST, GO, INFO, STRUCTURED_REPLY] {
        assert_eq!(nbd.option(option, b"").await, ERR_TLS_REQD, "{option}");
    }
    assert_eq!(nbd.option(STARTTLS, b"now").await, ERR_INVALID);
    nbd.ask(EXPORT_NAME, name.as_bytes()).await;
    assert_eq!(nbd.rest().await.0, 0, "closed");

    let info = info(&client, &disk).await;
    let mut nbd = Nbd::connect(&sim).await.start_tls(&info[0]).await;
    assert_eq!((nbd.option(STARTTLS, b"").await, nbd.option(LIST, b"").await), (ERR_INVALID, ERR_POLICY));
    assert_eq!(nbd.export(&name).await, SIZE);
    nbd.request(0, 1, 0, SIZE as u32).await;
    assert_eq!(nbd.reply(1).await, 0);
    assert!(nbd.take(SIZE as usize).await == sim.read(&disk, 0, SIZE as usize));
    nbd.request(2, 2, 0, 0).await;
    assert_eq!(nbd.rest().await, (0, true));
    sim.stop().await;
}

#[tokio::test]
async fn requests_are_answered_in_order_and_the_disk_is_held_meanwhile() {
    let (sim, client, disk) = setup(Some(NbdPurpose::InsecureNbd)).await;
    let vdi = client.by_uuid("VDI", &disk).await;
    let mut nbd = Nbd::open(&sim, &export_name(&client, &disk)).await;
    let requests = [(3 * MIB, 1024 * 1024), (0, 512), (SIZE - 512, 512), (512, 0), (65_536, 2_097_152)];
    for (cookie, (offset, length)) in requests.iter().enumerate() {
        nbd.request(0, cookie as u64, *offset, *length).await;
    }
    for (cookie, (offset, length)) in requests.iter().enumerate() {
        assert_eq!(nbd.reply(cookie as u64).await, 0);
        assert!(nbd.take(*length as usize).await == sim.read(&disk, *offset, *length as usize), "{cookie}");
    }
    assert_eq!(dom0_vbds(&sim), 1);
    let in_use = client.call("VDI.destroy", json!([vdi])).await.unwrap_err();
    assert_eq!(in_use, ["VDI_IN_USE", &vdi, "destroy"]);
    nbd.request(2, 9, 0, 0).await;
    assert_eq!((nbd.rest().await, dom0_vbds(&sim)), ((0, true), 0));
    sim.stop().await;
}

#[tokio::test]
async fn behind_every_error_the_connection_is_closed() {
    const EPERM: u32 = 1;
    const EINVAL: u32 = 22;
    let (sim, client, disk) = setup(Some(NbdPurpose::InsecureNbd)).await;
    let name = export_name(&client, &disk);
    for (what, command, offset, length, expected) in [
        ("write", 1, 0, 512, EPERM),
        ("flush", 3, 0, 0, EINVAL),
        ("trim", 4, 0, 512, EINVAL),
        ("block status", 7, 0, 512, EINVAL),
        ("offset", 0, 1, 512, EINVAL),
        ("length", 0, 0, 511, EINVAL),
        ("one sector too far", 0, SIZE - 512, 1024, 0),
        ("behind the end", 0, SIZE, 512, 0),
        ("behind all ends", 0, u64::MAX - 511, 1024, 0),
    ] {
        let mut nbd = Nbd::open(&sim, &name).await;
        nbd.request(command, 7, offset, length).await;
        assert_eq!(nbd.reply(7).await, expected, "{what}");
        assert_eq!(nbd.rest().await.0, 0, "{what}");
    }
    let mut nbd = Nbd::open(&sim, &name).await;
    nbd.put(&[0; 28]).await;
    assert_eq!(nbd.rest().await.0, 0, "no request");
    assert_eq!(dom0_vbds(&sim), 0);
    sim.stop().await;
}

#[tokio::test]
async fn an_export_that_cannot_be_had_is_a_closed_connection() {
    let (sim, client, disk) = setup(Some(NbdPurpose::InsecureNbd)).await;
    let vm = sim.add_vm(VmSpec {
        disks: vec![DiskSpec { size: SIZE, ..DiskSpec::default() }],
        running: true,
        ..VmSpec::default()
    });
    let running = sim.vm_disks(&vm).remove(0);
    let session = &client.session;
    for name in [
        String::new(),
        format!("/{disk}"),
        format!("/{disk}?session_id=OpaqueRef:dead"),
        format!("/nobody?session_id={session}"),
        export_name(&client, &running),
    ] {
        let mut nbd = Nbd::connect(&sim).await;
        nbd.ask(EXPORT_NAME, name.as_bytes()).await;
        assert_eq!(nbd.rest().await.0, 0, "{name}");
    }
    for (magic, length) in [(*b"NOTANOPT", 0u32), (*b"IHAVEOPT", u32::MAX)] {
        let mut nbd = Nbd::connect(&sim).await;
        nbd.put(&[magic.as_slice(), &LIST.to_be_bytes(), &length.to_be_bytes()].concat()).await;
        assert_eq!(nbd.rest().await.0, 0);
    }
    sim.stop().await;
}

#[tokio::test]
async fn a_host_has_sixteen_connections() {
    let (sim, client, disk) = setup(Some(NbdPurpose::InsecureNbd)).await;
    let name = export_name(&client, &disk);
    let mut open = Vec::new();
    for _ in 0..16 {
        open.push(Nbd::open(&sim, &name).await);
    }
    assert_eq!(dom0_vbds(&sim), 16);
    let mut refused = Nbd(Box::new(TcpStream::connect(sim.nbd_addresses()[0]).await.unwrap()));
    assert_eq!(refused.rest().await.0, 0);
    let mut ended = open.remove(3);
    ended.request(2, 0, 0, 0).await;
    assert_eq!(ended.rest().await, (0, true));
    // Its place is free a moment after it has ended.
    let mut free = false;
    for _ in 0..10_000 {
        let mut next = TcpStream::connect(sim.nbd_addresses()[0]).await.unwrap();
        free = next.read_exact(&mut [0; 18]).await.is_ok();
        if free {
            break;
        }
    }
    assert!(free);
    sim.stop().await;
}

#[tokio::test]
async fn faults_strike_by_the_payload_of_one_connection() {
    let (sim, client, disk) = setup(Some(NbdPurpose::InsecureNbd)).await;
    let name = export_name(&client, &disk);
    let content = sim.read(&disk, 0, 131_072);
    let two_reads = async |kind: FaultKind| {
        sim.inject(Fault { at: FaultPoint::Nbd, nth: 1, kind });
        let mut nbd = Nbd::open(&sim, &name).await;
        nbd.request(0, 1, 0, 65_536).await;
        assert_eq!(nbd.reply(1).await, 0);
        assert!(nbd.take(65_536).await == content[..65_536]);
        nbd.request(0, 2, 65_536, 65_536).await;
        nbd
    };
    assert_eq!(two_reads(FaultKind::CutAfter(65_536 + 100)).await.rest().await, (16 + 100, true));
    assert!(!two_reads(FaultKind::ResetAfter(65_536 + 100)).await.rest().await.1, "a reset");
    let flipped = two_reads(FaultKind::FlipByte(65_536 + 5)).await.take(16 + 65_536).await.split_off(16);
    let differing: Vec<usize> = (0..65_536).filter(|at| flipped[*at] != content[65_536 + at]).collect();
    assert_eq!((differing, flipped[5]), (vec![5], !content[65_536 + 5]));

    let mut stalled = two_reads(FaultKind::StallAfter(65_536 + 100)).await;
    assert_eq!(stalled.reply(2).await, 0);
    assert!(stalled.take(100).await == content[65_536..65_636]);
    sim.wait_until_stalled().await;
    sim.clear_faults();
    assert!(stalled.take(65_436).await == content[65_636..]);
    sim.wait_for_transfer_bytes(131_072).await;

    sim.inject(Fault { at: FaultPoint::Nbd, nth: 2, kind: FaultKind::CloseWithoutAnswer });
    Nbd::open(&sim, &name).await;
    let mut second = Nbd::connect(&sim).await;
    second.ask(EXPORT_NAME, name.as_bytes()).await;
    assert_eq!(second.rest().await.0, 0);
    sim.stop().await;
}
