//! The simulator's NBD server in the eyes of libnbd's programs.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

use serde_json::{Value as Json, json};
use vmferry_peers::Peer;
use xapi_sim::{DiskSpec, NbdPurpose, Sim, SimConfig, VmSpec};

const SIZE: u64 = 64 << 20;

/// A halted VM's disk with data that no two places share.
async fn pool(purpose: NbdPurpose) -> (Sim, String) {
    let sim = Sim::start(SimConfig { nbd_purpose: Some(purpose), ..SimConfig::default() }).await.unwrap();
    let disks = vec![DiskSpec { size: SIZE, ..DiskSpec::default() }];
    let vm = sim.add_vm(VmSpec { disks, ..VmSpec::default() });
    let disk = sim.vm_disks(&vm).remove(0);
    for place in 0..12u64 {
        let data: Vec<u8> = (0..100_000u64).map(|at| (at * (place + 7) / 13) as u8).collect();
        sim.write(&disk, place * 5_000_011, &data);
    }
    (sim, disk)
}

async fn nbd_info(sim: &Sim, curl: &Peer, disk: &str) -> anyhow::Result<Json> {
    let rpc = async |method: &str, params: Json| -> anyhow::Result<Json> {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
        let answer = curl.run(["-sSf", "-d", &body, &format!("{}/jsonrpc", sim.url())]).await?;
        Ok(serde_json::from_str::<Json>(&answer)?["result"].clone())
    };
    let session = rpc("session.login_with_password", json!(["root", "password"])).await?;
    let vdi = rpc("VDI.get_by_uuid", json!([session, disk])).await?;
    Ok(rpc("VDI.get_nbd_info", json!([session, vdi])).await?[0].clone())
}

/// The export's name has a slash and a question mark of its own, which a URI has to hide.
fn uri(scheme: &str, info: &Json, query: &str) -> String {
    let name = info["exportname"].as_str().unwrap().replace('/', "%2F").replace('?', "%3F").replace('=', "%3D");
    // By name, since that is what the certificate is checked against.
    format!("{scheme}://{}:{}/{name}{query}", info["subject"].as_str().unwrap(), info["port"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libnbd_reads_a_disk_with_and_without_tls() -> anyhow::Result<()> {
    let (Some(info), Some(copy)) = (Peer::system("nbdinfo")?, Peer::system("nbdcopy")?) else { return Ok(()) };
    let Some(curl) = Peer::system("curl")? else { return Ok(()) };
    for purpose in [NbdPurpose::InsecureNbd, NbdPurpose::Nbd] {
        let (sim, disk) = pool(purpose).await;
        let folder = tempfile::tempdir()?;
        let told = nbd_info(&sim, &curl, &disk).await?;
        std::fs::write(folder.path().join("ca-cert.pem"), told["cert"].as_str().unwrap())?;
        let certificates = format!("?tls-certificates={}", folder.path().display());
        let uri = match purpose {
            NbdPurpose::Nbd => uri("nbds", &told, &certificates),
            NbdPurpose::InsecureNbd => uri("nbd", &told, ""),
        };
        let seen: Json = serde_json::from_str(&info.run(["--json", &uri]).await?)?;
        let export = &seen["exports"][0];
        assert_eq!((&seen["protocol"], &seen["TLS"]), (&json!("newstyle-fixed"), &json!(purpose == NbdPurpose::Nbd)));
        assert_eq!((&export["export-size"], &export["is_read_only"]), (&json!(SIZE), &json!(true)));
        assert_eq!((&export["can_multi_conn"], &export["can_flush"]), (&json!(false), &json!(false)));

        let raw = folder.path().join("disk.raw");
        for connections in ["--connections=1", "--connections=4"] {
            copy.run([connections, &uri, raw.to_str().unwrap()]).await?;
            let content = std::fs::read(&raw)?;
            assert!(content == sim.read(&disk, 0, SIZE as usize), "{purpose:?} {connections}");
        }
        // A client that does not know the certificate gets nothing.
        if purpose == NbdPurpose::Nbd {
            let stranger = tempfile::tempdir()?;
            let (other, disk) = pool(purpose).await;
            let other_told = nbd_info(&other, &curl, &disk).await?;
            std::fs::write(stranger.path().join("ca-cert.pem"), other_told["cert"].as_str().unwrap())?;
            let certificates = format!("?tls-certificates={}", stranger.path().display());
            let refused = info.run(["--json", &self::uri("nbds", &told, &certificates)]).await;
            assert!(refused.is_err(), "the certificate of another pool");
            other.stop().await;
        }
        sim.stop().await;
    }
    Ok(())
}
