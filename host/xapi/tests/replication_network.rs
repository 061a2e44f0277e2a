//! Facts about the network that disk streams and NBD take, against a simulated pool whose hosts have an address on each of two.

use std::net::IpAddr;

use tokio::io::AsyncReadExt;
use vmferry_xapi::records::{Host, Network, Pif, Pool, Vdi};
use vmferry_xapi::{Endpoint, Error, NbdUnavailable, Ref, Session, StreamNetwork, Trust, params};
use xapi_sim::{DiskSpec, NbdPurpose, Sim, SimConfig, SrSpec, VmSpec};

const SIZE: u64 = 4 << 20;

async fn pool(config: SimConfig) -> Sim {
    Sim::start(SimConfig { hosts: 2, replication_network: true, ..config }).await.expect("starts")
}

async fn login(sim: &Sim, trust: Option<Trust>, network: StreamNetwork) -> Session {
    let endpoint = Endpoint::parse(&sim.url()).expect("a URL").with_credentials("root", "password");
    let endpoint = match trust {
        Some(trust) => endpoint.with_trust(trust),
        None => endpoint,
    };
    Session::login(&endpoint.with_stream_network(network), "test").await.expect("login")
}

fn named() -> StreamNetwork {
    StreamNetwork::Named("replication".to_owned())
}

/// A disk that the first host sees, and one that only the second does.
async fn disks(sim: &Sim, session: &Session) -> [Ref<Vdi>; 2] {
    let local = sim.add_sr_with(SrSpec { name: "local".to_owned(), size: 1 << 40, host: Some(1), ..SrSpec::default() });
    let mut found = Vec::new();
    for sr in [None, Some(local)] {
        let disk = DiskSpec { size: SIZE, sr, ..DiskSpec::default() };
        let vm = sim.add_vm(VmSpec { name: "vm".to_owned(), disks: vec![disk], ..VmSpec::default() });
        found.push(session.by_uuid(&sim.vm_disks(&vm)[0]).await.expect("is there"));
    }
    found.try_into().expect("two")
}

/// Reads a disk and writes what was read back to it.
async fn copy(session: &Session, disk: &Ref<Vdi>) -> Result<(), Error> {
    let mut export = session.export_vdi(disk, None, "export").await?;
    let mut stream = Vec::new();
    export.read_to_end(&mut stream).await.expect("reads");
    export.finish().await?;
    let mut import = session.import_vdi(disk, stream.len() as u64, "import").await?;
    tokio::io::copy(&mut &stream[..], &mut import).await.expect("moves");
    import.finish().await
}

/// The last parts of the addresses that streams arrived at, and whether every call arrived at the first host's first one.
fn arrivals(sim: &Sim) -> (Vec<(u8, String)>, bool) {
    let last =
        |ip: &IpAddr| ip.to_string().rsplit('.').next().and_then(|part| part.parse().ok()).expect("an IPv4 address");
    let (calls, streams): (Vec<_>, Vec<_>) = sim.arrivals().into_iter().partition(|(_, what)| what == "POST");
    let streams = streams.iter().map(|(ip, what)| (last(ip), what.clone())).collect();
    (streams, calls.iter().all(|(ip, _)| last(ip) == 1))
}

fn at(ip: u8, what: &str) -> (u8, String) {
    (ip, what.to_owned())
}

/// Sets the key by which Xen Orchestra names the network.
async fn choose(sim: &Sim, session: &Session, uuid: &str) {
    let pool: Ref<Pool> = session.by_uuid(&sim.pool()).await.expect("is there");
    session.add_to_other_config(&pool, "xo:backupNetwork", uuid).await.expect("set");
}

/// Takes the address of the second host on the network.
async fn take_address(session: &Session) {
    let pifs = session.get_all_records::<Pif>().await.expect("records");
    let (pif, _) = pifs.into_iter().find(|(_, pif)| pif.ip == "127.0.0.3").expect("is there");
    let () = session.call("PIF.unplug", params![pif]).await.expect("unplugged");
}

#[tokio::test]
async fn streams_take_the_network_behind_redirects_too_and_calls_do_not() {
    for tls in [false, true] {
        let sim = pool(SimConfig { tls, ..SimConfig::default() }).await;
        // The certificate names the management address, and is checked for that.
        let authority = sim.certificate_pem().map(|pem| Trust::CaPem(pem.into_bytes()));
        let pin = sim.certificate_sha256().map(|pin| Trust::parse_pin(&pin).expect("a pin"));
        for trust in [authority, pin] {
            let session = login(&sim, trust, named()).await;
            let [seen, elsewhere] = disks(&sim, &session).await;
            let before = arrivals(&sim).0.len();
            copy(&session, &seen).await.expect("copied");
            copy(&session, &elsewhere).await.expect("copied");
            let (streams, calls_stay) = arrivals(&sim);
            let of_master = [at(2, "GET"), at(2, "PUT")];
            let redirected = [at(2, "GET"), at(3, "GET"), at(2, "PUT"), at(3, "PUT")];
            assert_eq!(streams[before..], [of_master.as_slice(), &redirected].concat());
            assert!(calls_stay, "{:?}", sim.arrivals());
            session.logout().await.expect("logged out");
        }
    }
}

#[tokio::test]
async fn what_the_pool_says_counts_where_nothing_else_is_said() {
    let sim = pool(SimConfig::default()).await;
    let session = login(&sim, None, StreamNetwork::default()).await;
    let [disk, _] = disks(&sim, &session).await;
    choose(&sim, &session, &sim.replication_network().expect("is there")).await;
    for (network, ip) in [(StreamNetwork::Management, 1), (StreamNetwork::OfPool, 2)] {
        let session = login(&sim, None, network).await;
        copy(&session, &disk).await.expect("copied");
        assert_eq!(arrivals(&sim).0.pop(), Some(at(ip, "PUT")));
        assert_eq!(session.stream_warnings().await.expect("told"), Vec::<String>::new());
        session.logout().await.expect("logged out");
    }
}

#[tokio::test]
async fn a_host_without_an_address_there_is_an_error_if_the_operator_chose_the_network_and_told_else() {
    let sim = pool(SimConfig::default()).await;
    let session = login(&sim, None, StreamNetwork::default()).await;
    let [_, disk] = disks(&sim, &session).await;
    choose(&sim, &session, &sim.replication_network().expect("is there")).await;
    take_address(&session).await;

    let strict = login(&sim, None, named()).await;
    let error = copy(&strict, &disk).await.expect_err("no way").to_string();
    assert!(error.contains("host host2 has no address on network replication"), "{error}");
    let loose = login(&sim, None, StreamNetwork::OfPool).await;
    copy(&loose, &disk).await.expect("copied");
    assert_eq!(arrivals(&sim).0.pop(), Some(at(1, "PUT")));
    let warnings = loose.stream_warnings().await.expect("told");
    assert!(
        warnings.len() == 1 && warnings[0].contains("host2") && warnings[0].contains("xo:backupNetwork"),
        "{warnings:?}"
    );

    let unknown = login(&sim, None, StreamNetwork::Named("replicatoin".to_owned())).await;
    let error = copy(&unknown, &disk).await.expect_err("no network").to_string();
    assert!(error.contains("network replicatoin") && error.contains("xe network-list"), "{error}");
}

#[tokio::test]
async fn nbd_takes_the_network_or_is_not_to_be_had() {
    let sim = pool(SimConfig { nbd_purpose: Some(NbdPurpose::Nbd), ..SimConfig::default() }).await;
    let session = login(&sim, None, named()).await;
    let [disk, _] = disks(&sim, &session).await;
    let error = session.nbd_clients(&disk, 1).await.expect_err("another network is for NBD");
    assert!(matches!(&error, NbdUnavailable::NotOnNetwork { network } if network == "replication"), "{error}");

    let replication = sim.replication_network().expect("is there");
    choose(&sim, &session, &replication).await;
    let loose = login(&sim, None, StreamNetwork::OfPool).await;
    drop(loose.nbd_clients(&disk, 1).await.expect("served"));
    assert_eq!(arrivals(&sim).0.pop(), Some(at(1, "NBD")));
    assert!(loose.stream_warnings().await.expect("told")[0].contains("purpose `nbd`"));

    let network: Ref<Network> = session.by_uuid(&replication).await.expect("is there");
    let () = session.call("network.add_purpose", params![network, "nbd"]).await.expect("added");
    drop(session.nbd_clients(&disk, 2).await.expect("served"));
    let (streams, calls_stay) = arrivals(&sim);
    // Either host serves the disk.
    let on = |host| streams.ends_with(&[at(host, "NBD"), at(host, "NBD")]);
    assert!((on(2) || on(3)) && calls_stay, "{streams:?}");
    let hosts = session.get_all_records::<Host>().await.expect("records");
    assert_eq!(hosts.len(), 2);
}
