//! Export and import over the wire, odd parts included.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

mod common;

use base64::Engine as _;
use common::{Client, MIB, golden, read_answer, vm_with_disks};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use xapi_sim::{DiskSpec, Fault, FaultKind, FaultPoint, Sim, SimConfig, VmSpec};

const SIZE: u64 = 16 * MIB;
const IO_ERROR: [&str; 2] = ["VDI_IO_ERROR", "Device I/O errors"];

async fn setup() -> (Sim, Client, String) {
    let sim = Sim::start(SimConfig::default()).await.unwrap();
    let client = Client::login(&sim).await;
    let (_, mut disks) = vm_with_disks(&sim, &[SIZE]);
    (sim, client, disks.remove(0))
}

fn fault(at: FaultPoint, kind: FaultKind) -> Fault {
    Fault { at, nth: 1, kind }
}

/// VBDs of the control domain: there are none when no transfer is open.
fn dom0_vbds(sim: &Sim) -> usize {
    let dom0 = sim.records("VM").into_iter().find(|vm| vm["is_control_domain"] == true).unwrap();
    dom0["VBDs"].as_array().unwrap().len()
}

#[tokio::test]
async fn an_export_has_no_length_and_ends_with_its_connection() {
    let (sim, client, disk) = setup().await;
    let answer = client.get(&format!("/export_raw_vdi/?format=vhd&vdi={disk}&session_id={}", client.session)).await;
    assert_eq!(answer.status(), "200");
    assert_eq!((answer.header("content-length"), answer.header("transfer-encoding")), (None, None));
    assert_eq!((answer.header("connection"), answer.header("content-type")), (Some("close"), Some("application/vhd")));
    assert!(answer.header("content-disposition").unwrap().contains(&format!("{disk}.vhd")));
    let task = answer.header("task-id").unwrap().to_owned();
    assert_eq!(client.outcome(&task).await.0, "success");
    assert_eq!(answer.body.len(), 3072, "an empty disk of 16 MiB");
    sim.stop().await;
}

#[tokio::test]
async fn a_disk_in_use_is_told_in_the_task_and_inside_of_the_body() {
    let sim = Sim::start(SimConfig::default()).await.unwrap();
    let client = Client::login(&sim).await;
    let disks = vec![DiskSpec { size: SIZE, ..DiskSpec::default() }];
    let vm = sim.add_vm(VmSpec { disks, running: true, ..VmSpec::default() });
    let disk = &sim.vm_disks(&vm)[0];
    let reference = client.by_uuid("VDI", disk).await;
    let (body, status, error) = client.export(&format!("format=vhd&vdi={disk}")).await;
    assert_eq!((status.as_str(), error), ("failure", vec!["VDI_IN_USE".to_owned(), reference.clone()]));
    assert!(body.starts_with(b"HTTP/1.1 500"), "200 had been said");
    let (answer, status, error) = client.import(&format!("format=vhd&vdi={disk}"), &golden("full.out")).await;
    assert_eq!((answer.status(), status.as_str(), error[0].as_str()), ("200", "failure", "VDI_IN_USE"));
    sim.stop().await;
}

#[tokio::test]
async fn credentials_are_a_session_or_a_password() {
    let (sim, client, disk) = setup().await;
    let task = client.task().await;
    let answer = client.get(&format!("/export_raw_vdi?vdi={disk}&session_id=OpaqueRef:dead&task_id={task}")).await;
    assert_eq!((answer.status(), answer.header("www-authenticate").is_some()), ("401", true));
    assert_eq!(client.outcome(&task).await, ("failure".to_owned(), vec!["SESSION_AUTHENTICATION_FAILED".to_owned()]));
    assert_eq!(client.get(&format!("/export_raw_vdi?vdi={disk}")).await.status(), "401");

    let request = |header: &str| format!("GET /export_raw_vdi?format=vhd&vdi={disk} HTTP/1.1\r\n{header}\r\n\r\n");
    let basic = base64::engine::general_purpose::STANDARD.encode("root:password");
    assert_eq!(client.exchange(request(&format!("Authorization: Basic {basic}")).as_bytes()).await.status(), "200");
    let cookie = request(&format!("Cookie: session_id={}", client.session));
    assert_eq!(client.exchange(cookie.as_bytes()).await.status(), "200");
    sim.stop().await;
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused_before_the_body() {
    let (sim, client, disk) = setup().await;
    let refused = async |parameters: &str, headers: &str| {
        let (answer, status, error) = client.import_with(parameters, headers, b"").await;
        assert_eq!(status, "failure", "{parameters}");
        (answer.status().to_owned(), error[0].clone())
    };
    let internal = |status: &str| (status.to_owned(), "INTERNAL_ERROR".to_owned());
    let vdi = format!("vdi={disk}");
    assert_eq!(refused(&format!("{vdi}&format=vhd"), "Transfer-Encoding: chunked\r\n").await, internal("404"));
    assert_eq!(refused(&format!("{vdi}&format=vhd&chunked=true"), "Content-Length: 1\r\n").await, internal("404"));
    assert_eq!(refused(&format!("{vdi}&format=qcow9"), "").await, internal("404"));
    assert_eq!(refused("format=vhd", "").await, ("400".to_owned(), "VDI_MISSING".to_owned()));
    assert_eq!(refused("format=vhd&vdi=nobody", "").await, ("500".to_owned(), "HANDLE_INVALID".to_owned()));
    let task = client.task().await;
    let answer = client.get(&format!("/export_raw_vdi?session_id={}&task_id={task}", client.session)).await;
    assert_eq!(answer.status(), "500", "the vdi is missing");
    sim.stop().await;
}

#[tokio::test]
async fn another_host_is_named_with_the_whole_query() {
    let config = SimConfig { redirect_transfers_to: Some("https://10.0.0.2".into()), ..SimConfig::default() };
    let sim = Sim::start(config).await.unwrap();
    let client = Client::login(&sim).await;
    let task = client.task().await;
    let query = format!("vdi=x&session_id={}&task_id={task}", client.session);
    let answer = client.get(&format!("/export_raw_vdi?{query}")).await;
    assert_eq!(answer.status(), "302");
    assert_eq!(answer.header("location"), Some(format!("https://10.0.0.2/export_raw_vdi?{query}").as_str()));
    assert_eq!(client.outcome(&task).await.0, "pending", "the task is the other host's business");
    sim.stop().await;
}

#[tokio::test]
async fn an_import_is_answered_before_its_body_and_holds_the_disk() {
    let (sim, client, disk) = setup().await;
    let reference = client.by_uuid("VDI", &disk).await;
    let task = client.task().await;
    let stream = golden("full.out");
    let mut connection = client.connect().await;
    let head = format!(
        "PUT /import_raw_vdi?format=vhd&vdi={disk}&session_id={}&task_id={task} HTTP/1.1\r\nContent-Length: {}\r\n\r\n",
        client.session,
        stream.len()
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut early = [0; 15];
    connection.read_exact(&mut early).await.unwrap();
    assert_eq!(&early, b"HTTP/1.1 200 OK");

    connection.write_all(&stream[..3 * MIB as usize]).await.unwrap();
    sim.wait_for_transfer_bytes(3 * MIB).await;
    assert_eq!(dom0_vbds(&sim), 1);
    assert_eq!(
        client.call("VDI.destroy", json!([reference])).await.unwrap_err(),
        ["VDI_IN_USE", &reference, "destroy"]
    );
    let (_, status, error) = client.export(&format!("format=vhd&vdi={disk}")).await;
    assert_eq!((status.as_str(), error[0].as_str()), ("failure", "VDI_IN_USE"));

    connection.write_all(&stream[3 * MIB as usize..]).await.unwrap();
    read_answer(&mut connection).await;
    assert_eq!(client.wait(&task).await.0, "success");
    let record = client.call("task.get_record", json!([task])).await.unwrap();
    assert_eq!(
        (record["result"].clone(), record["progress"].clone()),
        (json!(format!("<value>{reference}</value>")), json!(1.0))
    );
    assert_eq!(dom0_vbds(&sim), 0);
    assert_eq!(sim.record("VDI", &disk).unwrap()["physical_utilisation"], 3 * 2 * MIB);
    sim.stop().await;
}

#[tokio::test]
async fn a_truncated_stream_fails_and_what_came_stays() {
    let (sim, client, disk) = setup().await;
    let stream = golden("full.out");
    let (answer, status, error) = client
        .import_with(
            &format!("format=vhd&vdi={disk}"),
            &format!("Content-Length: {}\r\n", stream.len()),
            &stream[..5 * MIB as usize],
        )
        .await;
    assert_eq!((answer.status(), status.as_str(), error), ("200", "failure", IO_ERROR.map(str::to_owned).to_vec()));
    assert!(
        sim.read(&disk, 0, 2 * MIB as usize) == golden("child.raw")[..2 * MIB as usize],
        "the first block is written"
    );
    assert!(sim.read(&disk, 8 * MIB, 2 * MIB as usize).iter().all(|byte| *byte == 0), "the third is not");
    assert_eq!(dom0_vbds(&sim), 0);
    sim.stop().await;
}

#[tokio::test]
async fn without_the_right_length_the_data_is_there_and_the_task_fails() {
    for headers in ["", "Content-Length: 4096\r\n"] {
        let (sim, client, disk) = setup().await;
        let parameters = format!("format=vhd&vdi={disk}");
        let (_, status, error) = client.import_with(&parameters, headers, &golden("full.out")).await;
        assert_eq!((status.as_str(), error[0].as_str()), ("failure", "VDI_IO_ERROR"), "{headers}");
        assert!(sim.read(&disk, 0, SIZE as usize) == golden("child.raw"), "{headers}");
        sim.stop().await;
    }
}

#[tokio::test]
async fn broken_streams_are_refused() {
    let (sim, client, disk) = setup().await;
    let good = golden("full.out");
    let mut wrong_footer = good.clone();
    wrong_footer[100] ^= 1;
    let mut wrong_end = good.clone();
    *wrong_end.last_mut().unwrap() ^= 1;
    let fixed = [vec![0; SIZE as usize], good[good.len() - 512..].to_vec()].concat();
    for (name, stream) in
        [("footer", wrong_footer), ("last footer", wrong_end), ("fixed disk", fixed), ("nothing", vec![])]
    {
        let (_, status, error) = client.import(&format!("format=vhd&vdi={disk}"), &stream).await;
        assert_eq!((status.as_str(), error[0].as_str()), ("failure", "VDI_IO_ERROR"), "{name}");
    }
    let (_, small) = vm_with_disks(&sim, &[4 * MIB]);
    let (_, status, error) = client.import(&format!("format=vhd&vdi={}", small[0]), &good).await;
    assert_eq!((status.as_str(), error[0].as_str()), ("failure", "VDI_IO_ERROR"), "the disk is too small");
    assert!(sim.read(&small[0], 0, 2 * MIB as usize) == golden("child.raw")[..2 * MIB as usize]);
    sim.stop().await;
}

#[tokio::test]
async fn a_snapshot_is_not_written_to() {
    let (sim, client, disk) = setup().await;
    let reference = client.by_uuid("VDI", &disk).await;
    let snapshot = client.text("VDI.snapshot", json!([reference])).await;
    let (_, status, error) = client.import(&format!("format=vhd&vdi={snapshot}"), &golden("full.out")).await;
    assert_eq!((status.as_str(), error), ("failure", vec!["VDI_READONLY".to_owned(), snapshot]));
    sim.stop().await;
}

#[tokio::test]
async fn a_cut_export_ends_like_a_complete_one_and_only_the_task_knows() {
    let (sim, client, disk) = setup().await;
    sim.write(&disk, 0, &[1]);
    sim.inject(fault(FaultPoint::Export, FaultKind::CutAfter(MIB + 7)));
    let (body, status, error) = client.export(&format!("format=vhd&vdi={disk}")).await;
    assert_eq!((body.len() as u64, status.as_str(), error), (MIB + 7, "failure", IO_ERROR.map(str::to_owned).to_vec()));
    assert_eq!(dom0_vbds(&sim), 0);
    let (_, status, _) = client.export(&format!("format=vhd&vdi={disk}")).await;
    assert_eq!(status, "success", "a fault strikes once");
    sim.stop().await;
}

#[tokio::test]
async fn a_stalled_transfer_goes_on_when_it_may() {
    let (sim, client, disk) = setup().await;
    sim.inject(fault(FaultPoint::Import, FaultKind::StallAfter(3 * MIB)));
    let (parameters, stream) = (format!("format=vhd&vdi={disk}"), golden("full.out"));
    let length = format!("Content-Length: {}\r\n", stream.len());
    let release = async {
        sim.wait_until_stalled().await;
        assert_eq!(dom0_vbds(&sim), 1);
        sim.clear_faults();
    };
    // The sender must not close its side: a peer that is gone ends the stall.
    let send = async {
        let task = client.task().await;
        let mut connection = client.connect().await;
        let head = format!(
            "PUT /import_raw_vdi?{parameters}&session_id={}&task_id={task} HTTP/1.1\r\n{length}\r\n",
            client.session
        );
        connection.write_all(head.as_bytes()).await.unwrap();
        connection.write_all(&stream).await.unwrap();
        read_answer(&mut connection).await;
        client.wait(&task).await
    };
    let (outcome, ()) = tokio::join!(send, release);
    assert_eq!(outcome.0, "success");
    assert!(sim.read(&disk, 0, SIZE as usize) == golden("child.raw"));
    sim.stop().await;
}

#[tokio::test]
async fn a_stall_ends_when_the_peer_goes_away() {
    let (sim, client, disk) = setup().await;
    for (at, request) in [(FaultPoint::Import, "PUT /import_raw_vdi"), (FaultPoint::Export, "GET /export_raw_vdi")] {
        sim.write(&disk, 0, &[1]);
        sim.inject(fault(at, FaultKind::StallAfter(600)));
        let task = client.task().await;
        let mut connection = client.connect().await;
        let head = format!(
            "{request}?format=vhd&vdi={disk}&session_id={}&task_id={task} HTTP/1.1\r\nContent-Length: 6296064\r\n\r\n",
            client.session
        );
        connection.write_all(head.as_bytes()).await.unwrap();
        if request.starts_with("PUT") {
            connection.write_all(&golden("full.out")[..MIB as usize]).await.unwrap();
        }
        sim.wait_until_stalled().await;
        drop(connection);
        assert_eq!(client.wait(&task).await, ("failure".to_owned(), IO_ERROR.map(str::to_owned).to_vec()), "{request}");
        assert_eq!(dom0_vbds(&sim), 0, "{request}");
    }
    sim.stop().await;
}

#[tokio::test]
async fn other_faults_at_transfers_do_what_they_say() {
    let (sim, client, disk) = setup().await;
    let export = format!("/export_raw_vdi?format=vhd&vdi={disk}&session_id={}", client.session);
    sim.inject(fault(FaultPoint::Export, FaultKind::Http500));
    assert_eq!(client.get(&export).await.status(), "500");
    sim.inject(fault(FaultPoint::Export, FaultKind::CloseWithoutAnswer));
    assert_eq!(client.get(&export).await.head, "");

    let parameters = format!("format=vhd&vdi={disk}");
    sim.inject(fault(FaultPoint::Import, FaultKind::SrFull));
    let (answer, status, error) = client.import(&parameters, &golden("full.out")).await;
    assert_eq!((answer.status(), status.as_str(), error[0].as_str()), ("200", "failure", "SR_BACKEND_FAILURE_44"));
    assert!(sim.read(&disk, 0, SIZE as usize).iter().all(|byte| *byte == 0));
    sim.inject(fault(FaultPoint::Import, FaultKind::ReplyLost));
    let (answer, status, _) = client.import(&parameters, &golden("full.out")).await;
    assert_eq!((answer.head.as_str(), status.as_str()), ("", "success"), "done, though nobody heard");
    sim.inject(fault(FaultPoint::Export, FaultKind::SessionLost));
    assert_eq!(client.get(&export).await.status(), "401");
    sim.stop().await;
}

/// One piece in XAPI's own framing.
fn chunk(offset: u64, data: &[u8]) -> Vec<u8> {
    [offset.to_le_bytes().as_slice(), &u32::try_from(data.len()).unwrap().to_le_bytes(), data].concat()
}

#[tokio::test]
async fn a_chunked_import_has_no_length_and_ends_with_its_marker() {
    let (sim, client, disk) = setup().await;
    sim.write(&disk, 0, &[7; 4096]);
    let task = client.task().await;
    let mut connection = client.connect().await;
    // The flag may also come as a cookie.
    let head = format!(
        "PUT /import_raw_vdi?format=raw&vdi={disk}&session_id={}&task_id={task} HTTP/1.1\r\nCookie: chunked=true\r\n\r\n",
        client.session
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    let body = [chunk(3 * MIB, &[1; 700]), chunk(1024, &[2; 5]), chunk(512, &[0; 512]), chunk(9, &[]), chunk(0, &[3])];
    connection.write_all(&body.concat()).await.unwrap();
    assert_eq!(client.outcome(&task).await.0, "pending");
    connection.write_all(&[0; 12]).await.unwrap();
    let answer = read_answer(&mut connection).await;
    assert_eq!((answer.status(), answer.body.len()), ("200", 0), "it ends although our side is open");
    assert_eq!(client.wait(&task).await.0, "success");
    let mut expected = vec![7; 4096];
    expected[0] = 3;
    expected[512..1024].fill(0);
    expected[1024..1029].fill(2);
    assert!(sim.read(&disk, 0, 4096) == expected, "what was not sent is as it was");
    assert_eq!(sim.read(&disk, 3 * MIB - 1, 702), [[0].as_slice(), &[1; 700], &[0]].concat());
    sim.stop().await;
}

#[tokio::test]
async fn a_chunked_import_that_breaks_keeps_what_came() {
    let (sim, client, disk) = setup().await;
    let good = chunk(0, &[5; 512]);
    for (what, rest) in [
        ("no marker", vec![]),
        ("half a head", vec![0; 7]),
        ("half a piece", chunk(MIB, &[6; 100])[..50].to_vec()),
        ("behind the end", [chunk(SIZE - 1, &[6; 2]), vec![0; 12]].concat()),
        ("behind all ends", [chunk(u64::MAX, &[6; 2]), vec![0; 12]].concat()),
    ] {
        sim.write(&disk, 0, &[0; 512]);
        let parameters = format!("format=raw&chunked=true&vdi={disk}");
        let (answer, status, error) = client.import_with(&parameters, "", &[good.clone(), rest].concat()).await;
        assert_eq!(
            (answer.status(), status.as_str(), error),
            ("200", "failure", IO_ERROR.map(str::to_owned).to_vec()),
            "{what}"
        );
        assert_eq!(sim.read(&disk, 0, 512), [5; 512], "{what}");
    }
    sim.stop().await;
}

#[tokio::test]
async fn a_length_that_is_too_large_is_waited_for() {
    let (sim, client, disk) = setup().await;
    let stream = golden("full.out");
    let length = format!("Content-Length: {}\r\n", stream.len() + 512);
    let (_, status, error) = client.import_with(&format!("format=vhd&vdi={disk}"), &length, &stream).await;
    assert_eq!((status.as_str(), error[0].as_str()), ("failure", "VDI_IO_ERROR"));
    assert!(sim.read(&disk, 0, SIZE as usize) == golden("child.raw"), "the data is there");
    sim.stop().await;
}

#[tokio::test]
async fn a_reset_is_not_an_end() {
    let (sim, client, disk) = setup().await;
    sim.write(&disk, 0, &[1]);
    for (at, kind, expected) in [
        (FaultPoint::Export, FaultKind::ResetAfter(MIB), Some(std::io::ErrorKind::ConnectionReset)),
        (FaultPoint::Export, FaultKind::CutAfter(MIB), None),
    ] {
        sim.inject(fault(at, kind));
        let task = client.task().await;
        let mut connection = client.connect().await;
        let head = format!(
            "GET /export_raw_vdi?format=vhd&vdi={disk}&session_id={}&task_id={task} HTTP/1.1\r\n\r\n",
            client.session
        );
        connection.write_all(head.as_bytes()).await.unwrap();
        let ended = connection.read_to_end(&mut Vec::new()).await;
        assert_eq!(ended.err().map(|error| error.kind()), expected);
        assert_eq!(client.wait(&task).await, ("failure".to_owned(), IO_ERROR.map(str::to_owned).to_vec()));
        assert_eq!(dom0_vbds(&sim), 0);
    }
    sim.stop().await;
}

#[tokio::test]
async fn an_error_in_the_middle_goes_into_the_same_socket() {
    let (sim, client, disk) = setup().await;
    sim.write(&disk, 0, &[1]);
    sim.inject(fault(FaultPoint::Export, FaultKind::FailAfter(5000)));
    let (body, status, error) = client.export(&format!("format=vhd&vdi={disk}")).await;
    assert_eq!((status.as_str(), error), ("failure", IO_ERROR.map(str::to_owned).to_vec()));
    assert!(body[5000..].starts_with(b"HTTP/1.1 500"));

    // With the number of all bytes: everything seems done, and the task says otherwise.
    let stream = golden("full.out");
    sim.inject(fault(FaultPoint::Import, FaultKind::FailAfter(stream.len() as u64)));
    let (answer, status, error) = client.import(&format!("format=vhd&vdi={disk}"), &stream).await;
    assert_eq!((answer.status(), status.as_str(), error[0].as_str()), ("200", "failure", "VDI_IO_ERROR"));
    assert!(answer.body.starts_with(b"HTTP/1.1 500"));
    assert!(sim.read(&disk, 0, SIZE as usize) == golden("child.raw"));
    let length = client.export(&format!("format=vhd&vdi={disk}")).await.0.len() as u64;
    sim.inject(fault(FaultPoint::Export, FaultKind::CutAfter(length)));
    let (body, status, _) = client.export(&format!("format=vhd&vdi={disk}")).await;
    assert_eq!((body.len() as u64, status.as_str()), (length, "failure"), "a whole stream of a task that failed");
    sim.stop().await;
}

#[tokio::test]
async fn an_endless_export_goes_on_behind_its_footer() {
    let (sim, client, disk) = setup().await;
    sim.inject(fault(FaultPoint::Export, FaultKind::Endless));
    let task = client.task().await;
    let mut connection = client.connect().await;
    let head = format!(
        "GET /export_raw_vdi?format=vhd&vdi={disk}&session_id={}&task_id={task} HTTP/1.1\r\n\r\n",
        client.session
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut body = vec![0; 40 * MIB as usize];
    connection.read_exact(&mut body).await.unwrap();
    let footer = golden("same.out").len();
    assert!(body.windows(8).rposition(|window| window == b"conectix").unwrap() < 2 * footer);
    assert_eq!(client.outcome(&task).await.0, "pending");
    drop(connection);
    assert_eq!(client.wait(&task).await.0, "failure");
    sim.stop().await;
}
