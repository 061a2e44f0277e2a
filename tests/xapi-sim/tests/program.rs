//! The program: its line of JSON, its control port, its end.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

mod common;

use std::io::Write as _;
use std::process::Stdio;

use base64::Engine as _;
use serde_json::{Value as Json, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use common::{Answer, read_answer};

async fn start(arguments: &[&str]) -> (Child, Json) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_xapi-sim"))
        .args(arguments)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines.next_line().await.unwrap().unwrap();
    (child, serde_json::from_str(&ready).unwrap())
}

async fn request(url: &Json, method: &str, target: &str, body: Json) -> (String, Json) {
    let address = url.as_str().unwrap().strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let body = body.to_string();
    let head = format!("{method} {target} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let answer: Answer = read_answer(&mut stream).await;
    (answer.status().to_owned(), serde_json::from_slice(&answer.body).unwrap())
}

#[tokio::test]
async fn images_become_disks_and_the_control_port_works_on_them() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    std::fs::File::create(&image).unwrap().write_all(&vec![7; 3 << 20]).unwrap();
    let (mut child, ready) =
        start(&["--image", image.to_str().unwrap(), "--admin", "127.0.0.1:0", "--name", "dr"]).await;
    let admin = &ready["admin_url"];
    let vm = &ready["vms"][0];
    let disk = vm["disks"][0].as_str().unwrap();
    assert_eq!((&vm["name"], &ready["certificate_sha256"]), (&json!("vm"), &Json::Null));
    assert_eq!((&ready["hosts"][0]["url"], &ready["hosts"][0]["nbd"]), (&ready["url"], &ready["nbd"]));
    let nbd = ready["nbd"].as_str().unwrap();
    assert!(!nbd.ends_with(":0"), "{nbd}");
    TcpStream::connect(nbd).await.unwrap();

    let ok = async |method: &str, target: &str, body: Json| {
        let (status, answer) = request(admin, method, target, body).await;
        assert_eq!(status, "200", "{target}: {answer}");
        answer
    };
    let base64 = base64::engine::general_purpose::STANDARD;
    let write = json!({ "vdi": disk, "offset": 5, "data_base64": base64.encode("guest") });
    ok("POST", "/write", write).await;
    let read = ok("GET", &format!("/read?vdi={disk}&offset=4&length=7"), Json::Null).await;
    assert_eq!(base64.decode(read["data_base64"].as_str().unwrap()).unwrap(), b"\x07guest\x07");

    let dump = folder.path().join("dump.raw");
    let before = ok("GET", &format!("/sha256?vdi={disk}"), Json::Null).await;
    ok("POST", "/dump", json!({ "vdi": disk, "path": dump })).await;
    assert_eq!(std::fs::metadata(&dump).unwrap().len(), 4 << 20, "the size was rounded up");
    ok("POST", "/load-image", json!({ "vdi": disk, "path": image })).await;
    assert_ne!(ok("GET", &format!("/sha256?vdi={disk}"), Json::Null).await, before);
    ok("POST", "/load-image", json!({ "vdi": disk, "path": dump })).await;
    assert_eq!(ok("GET", &format!("/sha256?vdi={disk}"), Json::Null).await, before);

    ok("POST", "/add-vm", json!({ "name": "other", "disks": [{ "size": 1 }], "running": true })).await;
    assert_eq!(ok("GET", "/counts", Json::Null).await["VDI"], 2);
    assert_eq!(ok("GET", "/records?class=pool", Json::Null).await[0]["name_label"], "dr");

    ok("POST", "/fault", json!({ "at": { "call": "session.*" }, "kind": { "api_error": ["TOO_BUSY", []] } })).await;
    let login = json!({ "method": "session.login_with_password", "params": ["root", "password"], "id": 1 });
    let (_, refused) = request(&ready["url"], "POST", "/jsonrpc", login).await;
    assert_eq!(refused["error"], json!(["TOO_BUSY"]));
    ok("DELETE", "/faults", Json::Null).await;
    assert_eq!(ok("GET", "/calls", Json::Null).await, json!(["session.login_with_password"]));

    let sr = ok("POST", "/add-sr", json!({ "name": "large", "size": 1u64 << 42, "kind": "nfs" })).await["sr"].clone();
    let disk_of = |size: u64| json!({ "disks": [{ "size": size, "sr": sr, "image_format": "qcow2" }] });
    let added = ok("POST", "/add-vm", disk_of(3 << 40)).await;
    let (status, answer) = request(admin, "POST", "/break-cbt", json!({ "vdi": added["disks"][0] })).await;
    assert_eq!((status.as_str(), answer["error"].as_str().unwrap().contains("VDI_NO_CBT_METADATA")), ("400", true));

    let (status, answer) =
        request(admin, "POST", "/write", json!({ "vdi": "nobody", "offset": 0, "data_base64": "" })).await;
    assert_eq!((status.as_str(), answer["error"].as_str().unwrap().contains("UUID_INVALID")), ("400", true));
    assert_eq!(request(admin, "GET", "/nothing", Json::Null).await.0, "400");

    let pid = child.id().unwrap().to_string();
    assert!(Command::new("sh").args(["-c", &format!("kill -TERM {pid}")]).status().await.unwrap().success());
    assert!(child.wait().await.unwrap().success(), "ends cleanly");
}

#[tokio::test]
async fn a_missing_image_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_xapi-sim")).args(["--image", "/nowhere.raw"]).output().await.unwrap();
    assert!(!output.status.success() && output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere.raw"));
}
