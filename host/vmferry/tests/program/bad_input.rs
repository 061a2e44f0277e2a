//! Bad input gets a message that names what, where and the remedy, an exit code that is not zero, and changes nothing.

use crate::stage::{MIB, Pool, Stage, pool_section, text};
use serde_json::{Value, json};
use std::net::TcpListener;

/// A uuid that nothing has.
const NOBODY: &str = "11111111-2222-4333-8444-555555555555";

/// Runs the job; it must end with `code`, say all `words`, and leave both pools as they were.
#[track_caller]
fn refused(stage: &Stage, arguments: &[&str], code: i32, words: &[&str]) {
    let before = (stage.source.everything(), stage.target.everything());
    let output = stage.vmferry(arguments);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is missing: {said}");
    }
    assert!(before == (stage.source.everything(), stage.target.everything()), "something changed: {said}");
}

#[test]
fn a_configuration_that_is_wrong_says_where_and_what_is_right() {
    let stage = Stage::new();
    for (more, words) in [
        ("integrty = 'digest'", &["integrty", "integrity", "vmferry.toml"][..]),
        ("integrity = 7", &["integrity", "job.erp"]),
        ("retention = { plugin = 'retain-cout', with = { keep = 2 } }", &["retain-cout", "retain-count"]),
        ("retention = { plugin = 'retain-count', with = { kep = 2 } }", &["kep", "keep"]),
        ("schedule = { plugin = 'schedule-interval', with = { every = 'soon' } }", &["every", "soon"]),
    ] {
        stage.configure(more);
        refused(&stage, &["run", "erp"], 2, words);
    }
}

#[test]
fn a_missing_secret_file_is_named_with_its_pool() {
    let stage = Stage::new();
    let source = pool_section("prod", &stage.source).replace("password = 'password'", "password_file = 'no-such-file'");
    stage.configure_pools(&source, &pool_section("dr", &stage.target), "");
    refused(&stage, &["run", "erp"], 2, &["no-such-file", "prod"]);
}

#[test]
fn a_wrong_password_and_an_unreachable_host_name_their_pool() {
    let stage = Stage::new();
    let wrong = pool_section("prod", &stage.source).replace("password = 'password'", "password = 'hunter2'");
    stage.configure_pools(&wrong, &pool_section("dr", &stage.target), "");
    refused(&stage, &["run", "erp"], 1, &["prod", "root"]);
    assert!(!text(&stage.vmferry(&["run", "erp"])).contains("hunter2"));

    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let gone = format!("[pool.prod]\nurl = 'http://127.0.0.1:{port}'\nusername = 'root'\npassword = 'x'\n");
    stage.configure_pools(&gone, &pool_section("dr", &stage.target), "");
    refused(&stage, &["run", "erp"], 1, &["prod", &port.to_string()]);
}

#[test]
fn a_certificate_that_does_not_match_its_pin_is_refused_with_the_one_presented() {
    let (source, target) = (Pool::start(&["--tls"]), Pool::start(&[]));
    let presented = source.text("certificate_sha256").to_owned();
    let stage = Stage::of(source, target, NOBODY);
    let wrong = pool_section("prod", &stage.source).replace(&presented, &"ab".repeat(32));
    stage.configure_pools(&wrong, &pool_section("dr", &stage.target), "");
    refused(&stage, &["run", "erp"], 1, &["prod", &presented, "certificate_sha256"]);
}

#[test]
fn unknown_jobs_vms_and_storage_are_named_with_a_remedy() {
    let stage = Stage::new();
    refused(&stage, &["run", "epr"], 2, &["epr", "erp"]);
    refused(&stage, &["run", "erp", "--vm", NOBODY], 1, &[NOBODY, "prod", "check the uuid"]);
    refused(&stage, &["plan", "erp", "--vm", NOBODY], 2, &[NOBODY, "prod", "check the uuid"]);
    let config = std::fs::read_to_string(stage.path("vmferry.toml")).unwrap();
    std::fs::write(stage.path("vmferry.toml"), config.replace(stage.target.text("sr"), NOBODY)).unwrap();
    refused(&stage, &["run", "erp"], 1, &[NOBODY, "dr", "`sr`"]);
}

#[test]
fn what_is_not_a_component_of_the_right_world_never_runs() {
    let stage = Stage::new();
    let core_module = b"\0asm\x01\0\0\0";
    for (kind, component, words) in [
        ("retention", &b"not wasm at all"[..], &["component"][..]),
        ("retention", &core_module[..], &["component"]),
        ("scheduler", vmferry_test_guests::get("answers_nonsense"), &["misbehaving-guests", "scheduler"]),
        ("scheduler", vmferry_test_guests::get("policy_with_http"), &["wasi:http"]),
    ] {
        let folder = stage.path("bad");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("plugin.toml"), vmferry_test_guests::manifest(kind, "")).unwrap();
        std::fs::write(folder.join("plugin.wasm"), component).unwrap();
        stage.configure(&format!(
            "{} = {{ plugin = 'misbehaving-guests' }}\n\n[plugin.misbehaving-guests]\npath = '{}'",
            if kind == "retention" { kind } else { "schedule" },
            folder.display()
        ));
        refused(&stage, &["run", "erp"], 2, words);
    }
}

#[test]
fn a_cut_or_damaged_stream_is_refused_and_both_pools_stay_as_they_were() {
    let stage = Stage::new();
    let disks = stage.source.disks(&stage.vm);
    let strikes = [
        (json!({ "flip_byte": 40 }), "the footer's checksum"),
        (json!({ "flip_byte": 512 + 8 }), "the header's checksum"),
        (json!({ "cut_after": 700 }), "ends at byte 700"),
        (json!({ "cut_after": MIB }), "the stream is cut"),
    ];
    let strike = |pool: &Pool, at: &str, kind: &Value| {
        pool.admin("POST", "/fault", &json!({ "at": at, "kind": kind }));
    };
    for (kind, words) in &strikes {
        strike(&stage.source, "export", kind);
        refused(&stage, &["run", "erp"], 1, &[words, "erp-db"]);
    }

    let point = stage.json(&["run", "erp"], 0)["vms"][0]["targets"][0]["recovery_point"].clone();
    let content = stage.target.content(point.as_str().unwrap());
    for (kind, words) in &strikes {
        // What is newer than the point does not get into it, nor into the replica.
        disks.iter().for_each(|disk| stage.source.write(disk, 20 * MIB, &[1; 5 << 20]));
        strike(&stage.source, "export", kind);
        let output = stage.vmferry(&["run", "erp"]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains(words), "{words:?} is missing: {}", text(&output));
        let vms = stage.target.records("VM");
        let ours: Vec<&Value> = vms.iter().filter(|vm| vm["is_control_domain"] == false).collect();
        assert_eq!(ours.len(), 2, "a replica and its point");
        for vm in ours {
            assert_eq!(stage.target.content(vm["uuid"].as_str().unwrap()), content, "{}", text(&output));
        }
        let disks = stage.target.records("VDI").into_iter().filter(|disk| disk["managed"] == true).count();
        assert_eq!(disks, 4, "two of each");
    }
    let healed = stage.json(&["run", "erp"], 0);
    assert_eq!(healed["vms"][0]["targets"][0]["disks"][0]["kind"], "delta", "{healed:#}");
}

#[test]
fn a_server_that_answers_nonsense_is_named() {
    let stage = Stage::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        for socket in listener.incoming() {
            let Ok(mut socket) = socket else { return };
            let _ = socket.read(&mut [0; 4096]);
            let body = "<methodResponse><params><param><value><struct>";
            let _ = write!(
                socket,
                "HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
        }
    });
    let nonsense = format!("[pool.prod]\nurl = 'http://{address}'\nusername = 'root'\npassword = 'x'\n");
    stage.configure_pools(&nonsense, &pool_section("dr", &stage.target), "");
    refused(&stage, &["run", "erp"], 1, &["prod", "byte"]);
}
